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
	s.control.Lock()
	defer s.control.Unlock()
	if id == "" {
		return boundary(ctx, "rewrap key", s.changeSystem(ctx, p, "rewrap"))
	}
	return boundary(ctx, "rewrap key", s.moveTo(ctx, p, "rewrap", id, "", nil, false))
}

// RotateKey re-encrypts a tenant under a new data key (and a new key-encryption
// key) and destroys the old ones. Uses of the tenant go on meanwhile and wait
// only for the end, in which what was written since is copied; on a shared
// engine they wait throughout. It needs RoleControl. At every crash exactly one
// of both keys works, and Open finishes or undoes the change. The empty ID is
// the system instance, which the next Open re-encrypts; on a shared engine it
// can be rewrapped only.
func (s *Store) RotateKey(ctx context.Context, p Principal, id ID) error {
	s.control.Lock()
	defer s.control.Unlock()
	if id == "" {
		return boundary(ctx, "rotate key", s.changeSystem(ctx, p, "rotate"))
	}
	return boundary(ctx, "rotate key", s.moveTo(ctx, p, "rotate", id, "", s.copyOld, true))
}

// Migrate moves a tenant to another engine of its region, re-encrypted under a
// new key. Uses of the tenant wait as for RotateKey. It needs RoleControl.
func (s *Store) Migrate(ctx context.Context, p Principal, id ID, engineName string) error {
	s.control.Lock()
	defer s.control.Unlock()
	return boundary(ctx, "migrate", s.moveTo(ctx, p, "migrate", id, engineName, s.copyOld, true))
}

// filler fills the next generation of a tenant; old and sec are the present
// one. shut makes all uses of the tenant end; it may be called again.
type filler func(ctx context.Context, old entry, sec secret, dst *instance, shut func(context.Context) error) error

// moveTo makes the tenant's next key and, with fill, its next generation, in
// four steps: note what is being made; make it; switch in one write; destroy
// what was replaced.
//
// With online the tenant is in use until fill shuts it; otherwise, and on a
// shared engine, it is shut from the start.
func (s *Store) moveTo(ctx context.Context, p Principal, action string, id ID, engineName string, fill filler, online bool) error {
	old, version, err := s.change(ctx, p, action, id, func(e *entry) error {
		if err := from(stateActive, stateSuspended)(e); err != nil {
			return err
		}
		if e.Pending != nil {
			return fmt.Errorf("%w: another change of the tenant is unfinished; reopen the store", ErrBusy)
		}
		if engineName == "" {
			engineName = e.Engine
		} else if place, err := s.place(e.Region, engineName); err != nil {
			return err
		} else if place.Engine.Name() == e.Engine {
			return fmt.Errorf("%w: the tenant is on engine %q", ErrInvalid, e.Engine)
		}
		e.KeyNumber++
		e.Pending = &pending{KeyID: keyName(e.UID, e.KeyNumber), Provider: e.Provider}
		if fill != nil {
			e.Pending.Engine, e.Pending.Generation = engineName, e.Generation+1
		}
		return nil
	})
	if err != nil {
		return err
	}
	unblock := func() {}
	defer func() { unblock() }()
	shutYet := false
	shut := func(ctx context.Context) error {
		if shutYet {
			return nil
		}
		u, err := s.cache.block(ctx, old.UID)
		if err == nil {
			unblock, shutYet = u, true
		}
		return err
	}
	if e, ok := s.engines[old.Engine]; !online || !ok || e.Engine.Shared() || old.State != stateActive {
		if err := shut(ctx); err != nil {
			return errors.Join(err, s.undoPending(context.WithoutCancel(ctx), old, version))
		}
	}
	next := old
	next.Pending, next.KeyID = nil, old.Pending.KeyID
	if _, ok := s.engines[old.Engine]; !ok {
		return errors.Join(fmt.Errorf("%w: no engine %q is configured", ErrRegion, old.Engine), s.undoPending(ctx, old, version))
	}
	if fill != nil {
		next.Engine, next.Generation = old.Pending.Engine, old.Pending.Generation
	}
	err = s.make(ctx, old, &next, fill, shut)
	if err == nil {
		err = shut(ctx)
	}
	if err != nil {
		return errors.Join(err, s.undoPending(context.WithoutCancel(ctx), old, version))
	}
	// The switch: from here on the new key works and the old one is to go.
	next.Pending = &pending{KeyID: old.KeyID, Provider: old.Provider}
	if fill != nil {
		next.Pending.Engine, next.Pending.Generation = old.Engine, old.Generation
	}
	if version, err = s.save(ctx, next, version); err != nil {
		return err // whichever it is, Open finds out
	}
	if err := s.undoPending(ctx, next, version); err != nil {
		return err
	}
	return s.tell(ctx, p, next, action)
}

// make wraps the next key and, with fill, fills the next generation.
func (s *Store) make(ctx context.Context, old entry, next *entry, fill filler, shut func(context.Context) error) error {
	keys, err := s.provider(next.Provider)
	if err != nil {
		return err
	}
	sec, err := s.unwrap(ctx, old)
	if err != nil {
		return err
	}
	defer sec.zero()
	if fill == nil {
		next.Wrapped, err = s.wrapNew(ctx, keys, *next, sec)
		return err
	}
	fresh := newSecret(sec.lasting())
	defer fresh.zero()
	if next.Wrapped, err = s.wrapNew(ctx, keys, *next, fresh); err != nil {
		return err
	}
	if err := s.engines[old.Engine].Engine.Fence(ctx, old.ref(), true); err != nil {
		return err
	}
	return s.fillNew(ctx, *next, fresh, func(dst *instance) error { return fill(ctx, old, sec, dst, shut) })
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

// copyInstance re-seals every record of src into dst, but for what is the
// instance's own (canary, anchor). Every record must authenticate.
func copyInstance(ctx context.Context, src, dst *instance) error {
	var page []engine.KV
	size := 0
	flush := func() error {
		err := dst.db.Update(ctx, func(tx engine.Tx) error {
			for _, kv := range page {
				if err := tx.Put(kv.Key, kv.Value); err != nil {
					return err
				}
			}
			return nil
		})
		page, size = page[:0], 0
		return err
	}
	if err := src.pages(ctx, func(kv engine.KV) error {
		if kv.Key[0] == kindMeta {
			return nil
		}
		version, value, err := src.seal.open(new(scratch), kv.Key, kv.Value)
		if err != nil {
			return err
		}
		page = append(page, engine.KV{Key: kv.Key, Value: dst.seal.seal(new(scratch), kv.Key, version, value)})
		if size += len(value); len(page) < restorePage && size < restorePageSize {
			return nil
		}
		return flush()
	}); err != nil {
		return err
	}
	return flush()
}

// undoPending destroys the key and the instance that Pending names: those
// being made before the switch, those replaced after it.
func (s *Store) undoPending(ctx context.Context, e entry, version uint64) error {
	if p := e.Pending; p != nil {
		if p.KeyID == e.KeyID || p.Engine == e.Engine && p.Generation == e.Generation {
			return fmt.Errorf("%w: catalogue entry of %q names what is in use as replaced", ErrTampered, e.ID)
		}
		if p.Engine != "" {
			place, ok := s.engines[p.Engine]
			if !ok {
				return fmt.Errorf("%w: no engine %q is configured", ErrRegion, p.Engine)
			}
			if p.Generation > e.Generation { // it was being made: the one in use may be fenced
				if err := s.engines[e.Engine].Engine.Fence(ctx, e.ref(), false); err != nil {
					return err
				}
			}
			if err := place.Engine.Destroy(ctx, engine.Ref{UID: e.UID, Generation: p.Generation}); err != nil {
				return err
			}
		}
		keys, err := s.provider(p.Provider)
		if err != nil {
			return err
		}
		kctx, cancel := context.WithTimeout(ctx, keyTimeout)
		defer cancel()
		if err := keys.Destroy(kctx, p.KeyID); err != nil {
			return keyError(err)
		}
		e.Pending = nil
	}
	_, err := s.save(ctx, e, version)
	return err
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
