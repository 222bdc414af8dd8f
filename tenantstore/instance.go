package tenantstore

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// wrapNew makes the entry's key-encryption key and wraps a secret under it.
func (s *Store) wrapNew(ctx context.Context, keys KeyProvider, e entry, sec secret) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	if err := keys.Create(ctx, e.KeyID); err != nil {
		return nil, keyError(err)
	}
	wrapped, err := keys.Wrap(ctx, e.KeyID, sec, e.keyContext(s.uid))
	return wrapped, keyError(err)
}

// unwrap asks the provider of the entry for its key, by the key that wrapped
// it: never another one.
func (s *Store) unwrap(ctx context.Context, e entry) (secret, error) {
	keys, err := s.provider(e.Provider)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	b, err := keys.Unwrap(ctx, e.KeyID, e.Wrapped, e.keyContext(s.uid))
	if err != nil {
		return nil, keyError(err)
	}
	if len(b) != secretSize {
		clear(b)
		return nil, fmt.Errorf("%w: unwrapped key of %d bytes", ErrTampered, len(b))
	}
	return b, nil
}

func keyError(err error) error {
	if err == nil || errors.Is(err, ErrKeyDestroyed) || errors.Is(err, ErrKeyUnavailable) || errors.Is(err, ErrTampered) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrKeyUnavailable, err)
}

const canaryName = "canary"

// makeInstance makes an empty instance with a canary in it.
func (s *Store) makeInstance(ctx context.Context, eng engine.Engine, ref engine.Ref, sec secret) error {
	fileKey, err := subkey(sec.data(), "file", s.uid, ref)
	if err != nil {
		return err
	}
	defer clear(fileKey)
	if err := eng.Create(ctx, ref, fileKey); err != nil {
		return err
	}
	z, err := newSealer(sec, s.uid, ref)
	if err != nil {
		return err
	}
	db, err := eng.Open(ctx, ref, fileKey)
	if err != nil {
		return err
	}
	ek := append(z.space(kindMeta), canaryName...)
	err = db.Update(ctx, func(tx engine.Tx) error { return tx.Put(ek, z.seal(new(scratch), ek, 1, []byte(ref.String()))) })
	return errors.Join(err, db.Close())
}

// openInstance opens an entry's instance and proves with its canary that it is
// the one that was made for this store, tenant and generation.
func (s *Store) openInstance(ctx context.Context, e entry, sec secret) (*instance, error) {
	p, ok := s.engines[e.Engine]
	if !ok {
		return nil, fmt.Errorf("%w: no engine %q is configured", ErrRegion, e.Engine)
	}
	if p.Region != e.Region {
		return nil, fmt.Errorf("%w: the tenant is pinned to region %q, engine %q is in %q", ErrRegion, e.Region, e.Engine, p.Region)
	}
	fileKey, err := subkey(sec.data(), "file", s.uid, e.ref())
	if err != nil {
		return nil, err
	}
	defer clear(fileKey)
	in := &instance{uid: e.UID, id: e.ID, entry: e, limits: newLimiter(e.Quota.or(s.cfg.Quota)), checked: s.cfg.Clock(), seen: time.Now(),
		closer: s.closeInstance}
	if in.seal, err = newSealer(sec, s.uid, e.ref()); err != nil {
		return nil, err
	}
	if in.db, err = p.Engine.Open(ctx, e.ref(), fileKey); err != nil {
		if errors.Is(err, engine.ErrNotFound) {
			err = fmt.Errorf("%w: %w", ErrTampered, err)
		}
		return nil, err
	}
	err = in.db.View(ctx, func(tx engine.Tx) error {
		_, canary, err := in.get(tx, new(scratch), append(in.seal.space(kindMeta), canaryName...))
		if err == nil && subtle.ConstantTimeCompare(canary, []byte(e.ref().String())) != 1 || errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("%w: the instance's canary is wrong", ErrTampered)
		}
		return err
	})
	if err == nil {
		err = s.checkAnchor(ctx, in)
	}
	if err != nil {
		return nil, errors.Join(err, in.db.Close())
	}
	return in, nil
}

// use runs f with the tenant's instance.
func (t *Tenant) use(ctx context.Context, f func(*instance) error) error {
	if t.s.closed.Load() {
		return fmt.Errorf("%w: the store is closed", ErrTenantClosed)
	}
	if t.p.local {
		return f(t.s.sys)
	}
	for {
		sl, err := t.s.cache.acquire(ctx, t.uid, t.open)
		if err != nil {
			return err
		}
		same, err := t.s.current(ctx, sl.in)
		if err == nil && same {
			defer t.s.cache.release(sl)
			if err := t.s.freshKey(ctx, sl.in); err != nil {
				return err
			}
			return f(sl.in)
		}
		t.s.cache.release(sl)
		if err != nil {
			return err
		}
		unblock, err := t.s.cache.block(ctx, t.uid) // another process changed it: open it anew
		if err != nil {
			return err
		}
		unblock()
	}
}

func (t *Tenant) open(ctx context.Context) (*instance, error) {
	e, _, ok, err := t.s.lookup(ctx, t.id)
	if err != nil {
		return nil, err
	}
	if !ok || e.UID != t.uid || e.State != stateActive {
		return nil, ErrTenantClosed
	}
	sec, err := t.s.unwrap(ctx, e)
	if err != nil {
		return nil, err
	}
	defer sec.zero()
	return t.s.openInstance(ctx, e, sec)
}

// freshKey asks the key provider again when the last answer is older than
// KeyTTL, so that a key that was revoked there stops working here.
func (s *Store) freshKey(ctx context.Context, in *instance) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	now := s.cfg.Clock()
	if d := now.Sub(in.checked); d >= 0 && d < s.cfg.KeyTTL {
		return nil
	}
	sec, err := s.unwrap(ctx, in.entry)
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "key provider refuses the tenant's key", "event", "tenantstore.key_refused", "tenant", in.id, "error", err)
		return err
	}
	sec.zero()
	in.checked = now
	return nil
}
