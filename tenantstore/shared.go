package tenantstore

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// pollEvery is how old may be what a process knows of changes that another
// one made, where several share the system instance. Where the engine can wake
// the others (PostgreSQL's LISTEN and NOTIFY) they ask at their next use; the
// poll stays behind that, for a connection that is lost and not yet missed.
const pollEvery = 500 * time.Millisecond

// Waits before a lost connection is tried again.
const (
	listenWait    = 500 * time.Millisecond
	maxListenWait = 30 * time.Second
)

// listen keeps listening to the system instance until the store is closed.
func (s *Store) listen(l engine.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.stopListening = func() { cancel(); <-done }
	go func() {
		defer close(done)
		wait := listenWait
		for {
			err := l.Listen(ctx, func() { wait = listenWait; s.wake() })
			if ctx.Err() != nil {
				return
			}
			s.cfg.Logger.WarnContext(ctx, "no wake-ups from other processes: polling", "event", "tenantstore.listen_lost", "error", err, "retry", wait)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			wait = min(2*wait, maxListenWait)
		}
	}()
}

// wake makes the next use of anything ask what changed.
func (s *Store) wake() {
	s.woken.Store(time.Now().UnixNano())
	s.polled.Store(0)
	s.cfg.Logger.Debug("another process may have changed something", "event", "tenantstore.woken")
}

// tellOthers wakes the other processes when the transaction commits.
func tellOthers(tx engine.Tx) error {
	if w, ok := tx.(engine.Waker); ok {
		return w.Wake()
	}
	return nil
}

// refresh takes over assignments that another process brought into force.
func (s *Store) refresh(ctx context.Context) error {
	if !s.shared {
		return nil
	}
	last, now := s.polled.Load(), time.Now().UnixNano()
	if now-last < int64(pollEvery) || !s.polled.CompareAndSwap(last, now) {
		return nil
	}
	signed, err := s.loadState(ctx, assignmentsKey)
	if err != nil || signed == nil {
		return err
	}
	old := s.assigned.Load()
	if old != nil && bytes.Equal(old.signed, signed) {
		return nil
	}
	v, err := verifyAssignments(signed, s.cfg.Owners, s.cfg.Name)
	if err != nil {
		return err
	}
	if old != nil && v.serial < old.serial {
		return fmt.Errorf("assignments: %w: serial %d, in force was %d", ErrRollback, v.serial, old.serial)
	}
	s.assigned.Store(v)
	return nil
}

// current reports whether the catalogue still says of an open instance what it
// said when it was opened; with must it asks however fresh the last answer is.
func (s *Store) current(ctx context.Context, in *instance, must bool) (bool, error) {
	if !s.shared {
		return true, nil
	}
	if err := in.mu.lock(ctx); err != nil {
		return false, err
	}
	defer in.mu.unlock()
	now := time.Now()
	if !must && now.Sub(in.seen) < pollEvery && in.seen.UnixNano() > s.woken.Load() {
		return true, nil
	}
	e, _, ok, err := s.lookup(ctx, in.id)
	if err != nil {
		if replaced(err, false) { // of the catalogue, and not of the tenant's instance
			err = fmt.Errorf("%w: catalogue: %v", ErrBusy, err)
		}
		return false, err
	}
	in.seen = now
	return ok && e.sameInstance(in.entry), nil
}
