package tenantstore

import (
	"bytes"
	"context"
	"fmt"
	"time"
)

// pollEvery is how old may be what a process knows of changes that another
// one made, where several share the system instance.
const pollEvery = 500 * time.Millisecond

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
// said when it was opened.
func (s *Store) current(ctx context.Context, in *instance) (bool, error) {
	if !s.shared {
		return true, nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if time.Since(in.seen) < pollEvery {
		return true, nil
	}
	e, _, ok, err := s.lookup(ctx, in.id)
	if err != nil {
		return false, err
	}
	in.seen = time.Now()
	o := in.entry
	return ok && e.UID == o.UID && e.State == o.State && e.Engine == o.Engine && e.Generation == o.Generation && e.KeyID == o.KeyID, nil
}

// Recover finishes or undoes what a crash interrupted. Open does it itself,
// except where several processes share the system instance: there it could
// undo what another one is doing, so an operator calls it when none is. It
// needs RoleControl.
func (s *Store) Recover(ctx context.Context, p Principal) error {
	s.control.Lock()
	defer s.control.Unlock()
	if err := s.may(p, "", RoleControl); err != nil {
		return boundary(ctx, "recover", s.deny(ctx, p, "recover", err))
	}
	return boundary(ctx, "recover", s.recover(ctx))
}
