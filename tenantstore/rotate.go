package tenantstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// RewrapKey gives a tenant a new key-encryption key, wraps its data key under
// it and destroys the old one. It is cheap, and does not help against a data
// key that leaked: that is RotateKey. It needs RoleControl. At every crash
// exactly one of both keys works, and Open finishes or undoes the change.
func (s *Store) RewrapKey(ctx context.Context, p Principal, id ID) error {
	return boundary(ctx, "rewrap key", s.changeKey(ctx, p, "rewrap", id, "", nil))
}

// RotateKey re-encrypts a tenant under a new data key (and a new key-encryption
// key) and destroys the old ones. Uses of the tenant go on meanwhile, in every
// process, and wait only for the end, in which what was written last is copied.
// It needs RoleControl. At every crash exactly one of both keys works. What was
// cut by a crash Open takes up where it stopped, in the background (where
// several processes share the store, Recover does); what the end of ctx, an
// engine or key provider that can't be reached, Suspend, Hold or Destroy cut,
// the next RotateKey does. The empty ID is the system instance, which the next
// Open re-encrypts; on a shared engine it can be rewrapped only.
func (s *Store) RotateKey(ctx context.Context, p Principal, id ID) error {
	return boundary(ctx, "rotate key", s.changeKey(ctx, p, "rotate", id, "", s.copyOld))
}

// Migrate moves a tenant to another engine of its region, re-encrypted under a
// new key. Uses of the tenant go on, and what was cut is taken up, as with
// RotateKey. It needs RoleControl.
func (s *Store) Migrate(ctx context.Context, p Principal, id ID, engineName string) error {
	return boundary(ctx, "migrate", s.changeKey(ctx, p, "migrate", id, engineName, s.copyOld))
}

func (s *Store) changeKey(ctx context.Context, p Principal, action string, id ID, engineName string, fill filler) error {
	unlock, err := s.lockControl(ctx, p, action, id)
	if err != nil {
		return err
	}
	defer unlock()
	if id == "" && action != "migrate" {
		return s.changeSystem(ctx, p, action)
	}
	return s.moveTo(ctx, p, action, id, engineName, fill, true)
}

// filler fills the next generation of a tenant. When it returns nil the tenant
// is shut: it has called m.shut.
type filler func(ctx context.Context, m *move) error

// move is a change of a tenant's key under way.
type move struct {
	s       *Store
	e       entry // as it is in the catalogue: the present generation, Pending the next
	version uint64
	sec     secret // of the present generation
	fresh   secret // of the next one
	dst     *instance

	src     *instance // the present generation, once the tenant is shut
	unblock func()
	fenced  bool
	again   bool // it was begun before
}

// moveTo makes the tenant's next key and, with fill, its next generation, in
// five steps: note what is being made; make it; fill it; switch in one write;
// destroy what was replaced. With lasting, what fill has done is kept when it
// is cut, and taken up by the next call. The caller holds the control lock.
func (s *Store) moveTo(ctx context.Context, p Principal, action string, id ID, engineName string, fill filler, lasting bool) error {
	if err := s.operate(ctx, p, action, id, ""); err != nil {
		return err
	}
	e, version, ok, err := s.lookup(ctx, id)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: no tenant %q", ErrNotFound, id)
	}
	if err := from(stateActive, stateSuspended)(&e); err != nil {
		return err
	}
	if engineName == "" {
		engineName = e.Engine
	} else if place, err := s.place(e.Region, engineName); err != nil {
		return err
	} else if place.Engine.Name() == e.Engine {
		return fmt.Errorf("%w: the tenant is on engine %q", ErrInvalid, e.Engine)
	}
	if left, _ := s.cut.LoadAndDelete(e.UID); e.Pending != nil && s.shared && left != e.Pending.KeyID {
		return fmt.Errorf("%w: another change of the tenant is under way or was cut (Store.Recover finishes it, when no process is at it)", ErrBusy)
	}
	if e.Pending != nil && !(lasting && fill != nil && e.copying() && e.Pending.Engine == engineName) {
		if version, err = s.undoPending(ctx, e, version); err != nil {
			return err
		}
		e.Pending = nil
	}
	if e.Pending == nil {
		e.KeyNumber++
		e.Pending = &pending{KeyID: keyName(e.UID, e.KeyNumber), Provider: e.Provider}
		if fill != nil {
			e.Pending.Engine, e.Pending.Generation = engineName, e.Generation+1
		}
		if version, err = s.save(ctx, e, version); err != nil {
			return err
		}
	}
	if e, err = s.finishMove(ctx, e, version, fill, lasting); err != nil {
		return err
	}
	return s.tell(ctx, p, e, action)
}

// copying reports whether the next generation is made and being filled: what is
// not undone but taken up.
func (e entry) copying() bool {
	return e.Pending != nil && e.Pending.Wrapped != nil && e.Pending.Generation > e.Generation
}

// finishMove does what is left of the change that Pending names, and returns
// the entry as it is then.
func (s *Store) finishMove(ctx context.Context, e entry, version uint64, fill filler, lasting bool) (entry, error) {
	m := &move{s: s, e: e, version: version, unblock: func() {}}
	defer func() {
		m.sec.zero()
		m.fresh.zero()
		m.unblock()
	}()
	copying, stop := s.control.stoppable(ctx, e.ID)
	err := m.make(copying, fill, lasting)
	if c := context.Cause(copying); err != nil && c != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", ErrBusy, c)
	}
	stop()
	err = errors.Join(err, m.close())
	if err != nil {
		return m.e, m.fail(ctx, err, lasting)
	}
	// The switch: from here on the new key works and the old one is to go.
	next := m.e
	next.KeyID, next.Wrapped = m.e.Pending.KeyID, m.e.Pending.Wrapped
	next.Pending = &pending{KeyID: m.e.KeyID, Provider: m.e.Provider}
	if fill != nil {
		next.Engine, next.Generation = m.e.Pending.Engine, m.e.Pending.Generation
		next.Pending.Engine, next.Pending.Generation = m.e.Engine, m.e.Generation
	}
	if m.version, err = s.save(ctx, next, m.version); err != nil {
		return m.e, err // whichever it is, Open finds out
	}
	if _, err := s.undoPending(ctx, next, m.version); err != nil {
		return next, err
	}
	next.Pending = nil
	return next, nil
}

// make makes the next key and, with fill, makes and fills the next generation.
func (m *move) make(ctx context.Context, fill filler, lasting bool) (err error) {
	s := m.s
	if m.sec, err = s.unwrap(ctx, m.e); err != nil {
		return err
	}
	next := m.e
	next.KeyID, next.Provider = m.e.Pending.KeyID, m.e.Pending.Provider
	if fill != nil {
		next.Engine, next.Generation = m.e.Pending.Engine, m.e.Pending.Generation
	}
	if _, ok := s.engines[m.e.Engine]; !ok {
		return fmt.Errorf("%w: no engine %q is configured", ErrRegion, m.e.Engine)
	}
	to, ok := s.engines[next.Engine]
	if !ok {
		return fmt.Errorf("%w: no engine %q is configured", ErrRegion, next.Engine)
	}
	if m.again = m.e.Pending.Wrapped != nil; m.again {
		next.Wrapped = m.e.Pending.Wrapped
		if m.fresh, err = s.unwrap(ctx, next); err != nil {
			return err
		}
	} else {
		keys, err := s.provider(next.Provider)
		if err != nil {
			return err
		}
		if fill == nil {
			if next.Wrapped, err = s.wrapNew(ctx, keys, next, m.sec); err != nil {
				return err
			}
			p := *m.e.Pending
			p.Wrapped, m.e.Pending = next.Wrapped, &p
			return m.shut(ctx)
		}
		m.fresh = newSecret(m.sec.lasting())
		if next.Wrapped, err = s.wrapNew(ctx, keys, next, m.fresh); err != nil {
			return err
		}
		if err := s.makeInstance(ctx, to.Engine, next.ref(), m.fresh); err != nil {
			return err
		}
		p := *m.e.Pending
		p.Wrapped, m.e.Pending = next.Wrapped, &p
		if lasting { // from here on it is not undone, but goes on where it was cut
			if m.version, err = s.save(ctx, m.e, m.version); err != nil {
				return err
			}
		}
	}
	if m.dst, err = s.openInstance(ctx, next, m.fresh); err != nil {
		return err
	}
	return fill(ctx, m)
}

// shut makes all uses of the tenant end, and keeps it shut until the move is
// over; on a shared engine it also keeps other processes from writing.
func (m *move) shut(ctx context.Context) error {
	unblock, err := m.s.cache.block(ctx, m.e.UID)
	if err != nil {
		return err
	}
	m.unblock = unblock
	if m.dst == nil { // only the key changes
		return nil
	}
	m.fenced = true
	if err := m.s.engines[m.e.Engine].Engine.Fence(ctx, m.e.ref(), true); err != nil {
		return err
	}
	m.src, err = m.s.openInstance(ctx, m.e, m.sec)
	return err
}

// close closes both generations, before either is destroyed.
func (m *move) close() error {
	var err error
	if m.src != nil {
		err = m.s.closeInstance(m.src)
	}
	if m.dst != nil {
		err = errors.Join(err, m.dst.db.Close())
	}
	m.src, m.dst = nil, nil
	return err
}

// fail leaves what was cut to be taken up, and undoes what went wrong.
func (m *move) fail(ctx context.Context, err error, lasting bool) error {
	cut := ctx.Err() != nil || errors.Is(err, errInterrupted) || errors.Is(err, engine.ErrUnavailable) ||
		errors.Is(err, ErrKeyUnavailable) || errors.Is(err, ErrBusy)
	ctx = context.WithoutCancel(ctx)
	m.unblock() // what undoes it shuts the tenant for a moment itself
	m.unblock = func() {}
	if !lasting && m.e.copying() { // the catalogue does not know that it is made
		p := *m.e.Pending
		p.Wrapped, m.e.Pending = nil, &p
	}
	if !cut || !m.e.copying() {
		_, uerr := m.s.undoPending(ctx, m.e, m.version)
		return errors.Join(err, uerr)
	}
	if m.fenced {
		err = errors.Join(err, m.s.engines[m.e.Engine].Engine.Fence(ctx, m.e.ref(), false))
	}
	m.s.cut.Store(m.e.UID, m.e.Pending.KeyID)
	return fmt.Errorf("%w (the tenant goes on under its present key; the same call takes it up where it stopped)", err)
}

// fillNew makes the instance of an entry and fills it.
func (s *Store) fillNew(ctx context.Context, e entry, sec secret, fill func(*instance) error) error {
	if err := s.makeInstance(ctx, s.engines[e.Engine].Engine, e.ref(), sec); err != nil {
		return err
	}
	dst, err := s.openInstance(ctx, e, sec)
	if err != nil {
		return err
	}
	return errors.Join(fill(dst), dst.db.Close())
}

// undoPending destroys the key and the instance that Pending names: those
// being made before the switch, those replaced after it.
func (s *Store) undoPending(ctx context.Context, e entry, version uint64) (uint64, error) {
	if p := e.Pending; p != nil {
		if p.KeyID == e.KeyID || p.Engine == e.Engine && p.Generation == e.Generation {
			return version, fmt.Errorf("%w: catalogue entry of %q names what is in use as replaced", ErrTampered, e.ID)
		}
		if e.copying() { // from here on it is undone, whatever is cut
			q := *p
			q.Wrapped, e.Pending = nil, &q
			var err error
			if version, err = s.save(ctx, e, version); err != nil {
				return version, err
			}
			if err := s.unfence(ctx, e); err != nil {
				return version, err
			}
			if err := s.stopNoting(ctx, e); err != nil { // it costs writes some time, and no more
				s.cfg.Logger.WarnContext(ctx, "writes are noted for a rotation that was given up", "event", "tenantstore.noting_left", "tenant", e.ID, "error", err)
			}
		}
		if p.Engine != "" {
			place, ok := s.engines[p.Engine]
			if !ok {
				return version, fmt.Errorf("%w: no engine %q is configured", ErrRegion, p.Engine)
			}
			if p.Generation > e.Generation { // it was being made: the one in use may be fenced
				if err := s.unfence(ctx, e); err != nil {
					return version, err
				}
			}
			if err := place.Engine.Destroy(ctx, engine.Ref{UID: e.UID, Generation: p.Generation}); err != nil {
				return version, err
			}
		}
		keys, err := s.provider(p.Provider)
		if err != nil {
			return version, err
		}
		kctx, cancel := context.WithTimeout(ctx, keyTimeout)
		defer cancel()
		if err := keys.Destroy(kctx, p.KeyID); err != nil {
			return version, keyError(err)
		}
		e.Pending = nil
	}
	return s.save(ctx, e, version)
}

func (s *Store) unfence(ctx context.Context, e entry) error {
	place, ok := s.engines[e.Engine]
	if !ok {
		return fmt.Errorf("%w: no engine %q is configured", ErrRegion, e.Engine)
	}
	return place.Engine.Fence(ctx, e.ref(), false)
}

// tell puts an operator's action into the tenant's own trail.
func (s *Store) tell(ctx context.Context, p Principal, e entry, action string) error {
	sec, err := s.unwrap(ctx, e)
	if err != nil {
		return err
	}
	defer sec.zero()
	z, err := newSealer(sec, s.uid, e.ref())
	if err != nil {
		return err
	}
	return s.audit.record(ctx, trail{uid: e.UID, seal: z}, Event{Action: action, Subject: p.subject, Stream: p.stream, Tenant: e.ID,
		Detail: fmt.Sprintf("engine %s, generation %d, key %s", e.Engine, e.Generation, e.KeyID)})
}
