package hotplug

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/trusttree/trusttree/moduleid"
)

// Event says that what is in a connector may have changed.
type Event struct {
	Connector string // empty means every connector: events were lost
	Present   bool   // something is there now
}

// Source watches connectors. Watch calls emit for every change until ctx ends,
// which is no error; emit may block and returns soon after ctx ends.
type Source interface {
	Watch(ctx context.Context, emit func(Event)) error
}

// Config says how Run acts. The zero value is usable.
type Config struct {
	// Settle is how long a connector must be quiet before its module is asked:
	// contacts bounce, and chips start up. Zero means 200 ms.
	Settle time.Duration

	// Renew is how often every connector is asked without an event, which also
	// renews the leases; keep it below BayConfig.Lease. Zero means 2 minutes.
	Renew time.Duration

	Logger *slog.Logger // nil logs nothing
}

// Run admits what is plugged in and invalidates what is pulled out, until ctx
// ends (which is no error) or a source fails. A removal takes effect at once; a
// module that came is asked once it settled. One slow module delays no other.
func Run(ctx context.Context, inv *moduleid.Inventory, cfg Config, sources ...Source) error {
	if cfg.Settle == 0 {
		cfg.Settle = 200 * time.Millisecond
	}
	if cfg.Renew == 0 {
		cfg.Renew = 2 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &runner{inv: inv, cfg: cfg, wake: map[string]chan struct{}{}}
	var wg sync.WaitGroup
	for _, e := range inv.Snapshot() {
		wake := make(chan struct{}, 1)
		r.wake[e.Connector] = wake
		wg.Go(func() { r.keep(ctx, inv.Bay(e.Connector), wake) })
	}
	errs := make(chan error, len(sources))
	for _, s := range sources {
		wg.Go(func() {
			if err := s.Watch(ctx, func(e Event) { r.event(ctx, e) }); err != nil && ctx.Err() == nil {
				errs <- fmt.Errorf("hotplug: %w", err)
				cancel()
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

type runner struct {
	inv  *moduleid.Inventory
	cfg  Config
	wake map[string]chan struct{} // by connector; read only
}

// event invalidates at once and leaves the asking to the connector's keeper.
func (r *runner) event(ctx context.Context, e Event) {
	for connector, wake := range r.wake {
		if e.Connector != "" && e.Connector != connector {
			continue
		}
		if err := r.inv.Bay(connector).Removed(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Logger.ErrorContext(ctx, "measuring a removal failed", "event", "moduleid.hotplug.failed", "connector", connector, "error", err)
		}
		if e.Present || e.Connector == "" {
			select {
			case wake <- struct{}{}:
			default: // it is going to be asked anyway
			}
		}
	}
}

// keep asks one connector's module when it is woken, and now and then.
func (r *runner) keep(ctx context.Context, bay *moduleid.Bay, wake <-chan struct{}) {
	renew := time.NewTimer(r.cfg.Renew)
	defer renew.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
			if !quiet(ctx, wake, r.cfg.Settle) {
				return
			}
		case <-renew.C:
		}
		_, err := bay.Admit(ctx)
		if err != nil && !errors.Is(err, moduleid.ErrAbsent) && ctx.Err() == nil {
			r.cfg.Logger.WarnContext(ctx, "module not admitted", "event", "moduleid.hotplug.refused", "connector", bay.Connector(), "error", err)
		}
		renew.Reset(r.cfg.Renew)
	}
}

// quiet waits until no event came for d; it reports false when ctx ended.
func quiet(ctx context.Context, wake <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-wake:
			t.Reset(d)
		case <-t.C:
			return true
		}
	}
}

// Poll is a Source that asks whether something is in a connector.
type Poll struct {
	Connector string
	Present   func(ctx context.Context) (bool, error) // an error counts as absent
	Interval  time.Duration                           // zero means 1 second
}

// Watch implements Source. What is there at the start is an event.
func (p Poll) Watch(ctx context.Context, emit func(Event)) error {
	if p.Interval == 0 {
		p.Interval = time.Second
	}
	was := false
	for {
		is, err := p.Present(ctx)
		is = is && err == nil
		if is != was {
			emit(Event{p.Connector, is})
			was = is
		}
		t := time.NewTimer(p.Interval)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}
