package tlsconn

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxFleetDestinations bounds how many destinations are counted at once. When
// they are all busy, others wait for one to end: unknown is deny.
const maxFleetDestinations = 65536

// fleetTable caps what all nodes together do to one destination.
type fleetTable struct {
	l  Limits
	mu sync.Mutex
	m  map[string]*fleetDestination
}

type fleetDestination struct {
	flows int
	rate  *rate.Limiter
}

// acquire takes a place at a destination; the returned function gives it back.
func (t *fleetTable) acquire(dst string, now time.Time) (func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.m[dst]
	if d == nil {
		if t.m == nil {
			t.m = map[string]*fleetDestination{}
		}
		if len(t.m) >= maxFleetDestinations {
			t.sweep(now)
		}
		if len(t.m) >= maxFleetDestinations {
			return nil, fmt.Errorf("%w: %d destinations in use by the fleet", ErrLimit, len(t.m))
		}
		d = &fleetDestination{}
		if n := t.l.RatePerDestination; n > 0 {
			d.rate = rate.NewLimiter(rate.Limit(n), 2*n)
		}
		t.m[dst] = d
	}
	if t.l.FlowsPerDestination > 0 && d.flows >= t.l.FlowsPerDestination {
		return nil, fmt.Errorf("%w: the fleet has %d flows to this destination", ErrLimit, d.flows)
	}
	if d.rate != nil && !d.rate.AllowN(now, 1) {
		return nil, fmt.Errorf("%w: the fleet opens more than %d flows a second to this destination", ErrLimit, t.l.RatePerDestination)
	}
	d.flows++
	var once sync.Once
	return func() {
		once.Do(func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			d.flows--
		})
	}, nil
}

// sweep forgets destinations that no one uses. It is called with the lock held.
func (t *fleetTable) sweep(now time.Time) {
	for k, d := range t.m {
		if d.flows == 0 && (d.rate == nil || d.rate.TokensAt(now) >= float64(d.rate.Burst())) {
			delete(t.m, k)
		}
	}
}

// takeFleet takes places for a flow here and, through the hook, in the fleet
// that other gateways serve. The places are freed with the flow.
func (e *endpoint) takeFleet(ctx context.Context, f *flow, a netip.AddrPort) error {
	release, err := e.fleet.acquire(f.target.proto+"!"+a.String(), time.Now())
	if err == nil {
		f.addRelease(release)
		if e.cfg.Fleet != nil {
			if release, err = e.cfg.Fleet(ctx, f.target.proto, a); err == nil && release != nil {
				f.addRelease(release)
			}
		}
	}
	if err != nil {
		return e.refuse(f, CodeLimit, "", err)
	}
	return nil
}
