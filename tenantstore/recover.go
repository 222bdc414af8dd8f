package tenantstore

import (
	"context"
)

// recover finishes or undoes what a crash interrupted, and returns the tenants
// whose copy is to be taken up. Where the key provider or an engine can't be
// reached, the tenant stays closed until the next Open.
func (s *Store) recover(ctx context.Context) (copying []ID, err error) {
	var open []ID
	if err := s.entries(ctx, func(e entry, _ uint64) error {
		if e.State == stateCreating || e.State == stateDestroying || e.Pending != nil {
			open = append(open, e.ID)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for _, id := range open {
		again, err := s.recoverTenant(ctx, id, false)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if again {
			copying = append(copying, id)
		}
		s.logUnfinished(ctx, id, err)
	}
	return copying, nil
}

func (s *Store) logUnfinished(ctx context.Context, id ID, err error) {
	if err != nil {
		s.cfg.Logger.ErrorContext(ctx, "interrupted change can't be finished now", "event", "tenantstore.recover_failed", "tenant", id, "error", err)
	}
}

// recoverTenant finishes or undoes what was interrupted of one tenant. A copy
// it takes up only with copies; otherwise it says that there is one.
func (s *Store) recoverTenant(ctx context.Context, id ID, copies bool) (copying bool, err error) {
	unlock, err := s.control.lock(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	e, version, ok, err := s.lookup(ctx, id)
	switch {
	case err != nil || !ok:
		return false, err
	case e.State == stateCreating:
		return false, s.undoCreate(ctx, e)
	case e.State == stateDestroying:
		_, err = s.finishDestroy(ctx, e, version)
		return false, err
	case e.Pending == nil:
		return false, nil
	case !e.copying():
		_, err = s.undoPending(ctx, e, version)
		return false, err
	case !copies:
		return true, nil
	}
	action := "rotate"
	if e.Pending.Engine != e.Engine {
		action = "migrate"
	}
	if err := s.audit.record(ctx, s.systemTrail(), Event{Action: action, Subject: "service", Tenant: id, Detail: "goes on where it was cut"}); err != nil {
		return false, err
	}
	if e, err = s.finishMove(ctx, e, version, s.copyOld, true); err != nil {
		return false, err
	}
	return false, s.tell(ctx, Principal{subject: "service"}, e, action)
}

// resume takes up interrupted copies in the background until the store is
// closed.
func (s *Store) resume(ids []ID) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.stopResuming = func() { cancel(); <-done }
	go func() {
		defer close(done)
		for _, id := range ids {
			_, err := s.recoverTenant(ctx, id, true)
			if ctx.Err() != nil {
				return
			}
			s.logUnfinished(ctx, id, err)
		}
	}()
}

// Recover finishes or undoes what a crash interrupted, and returns when it is
// done. Open does it itself, except where several processes share the system
// instance: there it could undo what another one is doing, so an operator calls
// it when none is. It needs RoleControl.
func (s *Store) Recover(ctx context.Context, p Principal) error {
	if err := s.may(p, "", RoleControl); err != nil {
		return boundary(ctx, "recover", s.deny(ctx, p, "recover", err))
	}
	copying, err := s.recover(ctx)
	for _, id := range copying {
		if err == nil {
			_, err = s.recoverTenant(ctx, id, true)
		}
	}
	return boundary(ctx, "recover", err)
}
