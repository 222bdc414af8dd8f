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

// makeInstance makes an instance with nothing but a canary in it.
func (s *Store) makeInstance(ctx context.Context, eng engine.Engine, ref engine.Ref, sec secret) error {
	fileKey, err := subkey(sec.data(), "file", s.uid, ref)
	if err != nil {
		return err
	}
	defer clear(fileKey)
	z, err := newSealer(sec, s.uid, ref)
	if err != nil {
		return err
	}
	ek := append(z.space(kindMeta), canaryName...)
	return eng.Create(ctx, ref, fileKey, engine.KV{Key: ek, Value: z.seal(new(scratch), ek, 1, []byte(ref.String()))})
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
	in := &instance{uid: e.UID, id: e.ID, entry: e, limits: newLimiter(e.Quota.or(s.cfg.Quota)), seen: time.Now(),
		closer: s.closeInstance, mu: newMutex()}
	if in.seal, err = newSealer(sec, s.uid, e.ref()); err != nil {
		return nil, err
	}
	in.checked.Store(s.cfg.Clock().UnixNano())
	in.shared, in.mark = p.Engine.Shared(), in.markKey()
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
		if err == nil && !in.shared {
			var there bool
			there, err = in.marked(tx)
			in.noting.Store(there)
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

// use runs f with the tenant's instance. Where another process replaces the
// instance meanwhile, f, which has then done nothing, runs again with the new
// one; while it is fenced for the end of a copy, use waits.
func (t *Tenant) use(ctx context.Context, write bool, f func(*instance) error) error {
	if t.s.closed.Load() {
		return fmt.Errorf("%w: the store is closed", ErrTenantClosed)
	}
	if t.p.local {
		return f(t.s.sys)
	}
	var fenced time.Time
	for {
		same, err := t.once(ctx, f)
		switch {
		case err == nil && same:
			return nil
		case err != nil && !replaced(err, write):
			return err
		case err != nil && same && !errors.Is(err, engine.ErrFenced):
			return err
		case err != nil && same:
			if fenced.IsZero() {
				fenced = time.Now()
			}
			if time.Since(fenced) > busyWait {
				return fmt.Errorf("%w: a change of the tenant's key does not end: %w", ErrBusy, err)
			}
			if err := pause(ctx, fencedWait); err != nil {
				return err
			}
			continue
		}
		unblock, err := t.s.cache.block(ctx, t.uid) // another process changed it: open it anew
		if err != nil {
			return err
		}
		unblock()
	}
}

// fencedWait is how often a writer asks whether a fenced instance was replaced.
const fencedWait = 20 * time.Millisecond

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// replaced reports whether an error is what is left of an instance that another
// process has replaced, and says that nothing was done.
func replaced(err error, write bool) bool {
	return errors.Is(err, engine.ErrFenced) || errors.Is(err, engine.ErrNotFound) || errors.Is(err, engine.ErrAborted) ||
		!write && errors.Is(err, engine.ErrUnavailable)
}

// once runs f unless the catalogue says that the open instance is not the
// tenant's any more, and after an error that may come of that asks again.
func (t *Tenant) once(ctx context.Context, f func(*instance) error) (same bool, err error) {
	sl, err := t.s.cache.acquire(ctx, t.uid, t.open)
	if err != nil {
		return true, err
	}
	defer t.s.cache.release(sl)
	if same, err := t.s.current(ctx, sl.in, false); err != nil || !same {
		return err != nil, err
	}
	if err := t.s.freshKey(ctx, sl.in); err != nil {
		if same, cerr := t.s.current(ctx, sl.in, true); cerr == nil && !same {
			return false, nil
		}
		return true, err
	}
	err = f(sl.in)
	if t.s.shared && err != nil && replaced(err, false) {
		same, cerr := t.s.current(ctx, sl.in, true)
		if cerr != nil {
			return true, cerr
		}
		return same, err
	}
	return true, err
}

// open opens the instance that the catalogue names, again where another process
// has replaced it meanwhile.
func (t *Tenant) open(ctx context.Context) (*instance, error) {
	var last entry
	var failed error
	for {
		e, _, ok, err := t.s.lookup(ctx, t.id)
		if err != nil {
			return nil, err
		}
		if !ok || e.UID != t.uid || e.State != stateActive {
			return nil, ErrTenantClosed
		}
		if failed != nil && last.sameInstance(e) {
			return nil, failed
		}
		in, err := t.openEntry(ctx, e)
		if err == nil || !t.s.shared {
			return in, err
		}
		last, failed = e, err
	}
}

// sameInstance reports whether two entries of a tenant name the same instance
// under the same key.
func (e entry) sameInstance(o entry) bool {
	return e.UID == o.UID && e.State == o.State && e.Engine == o.Engine && e.Generation == o.Generation && e.KeyID == o.KeyID
}

func (t *Tenant) openEntry(ctx context.Context, e entry) (*instance, error) {
	sec, err := t.s.unwrap(ctx, e)
	if err != nil {
		return nil, err
	}
	defer sec.zero()
	return t.s.openInstance(ctx, e, sec)
}

// freshKey asks the key provider again when the last answer is older than
// KeyTTL, so that a key that was revoked there stops working here. Who waited
// while it was asked takes its answer.
func (s *Store) freshKey(ctx context.Context, in *instance) error {
	if s.keyIsFresh(in) {
		return nil
	}
	began := time.Now()
	if err := in.mu.lock(ctx); err != nil {
		return err
	}
	defer in.mu.unlock()
	if s.keyIsFresh(in) {
		return nil
	}
	now := s.cfg.Clock()
	if in.refusedAt.After(began) {
		return in.refused
	}
	sec, err := s.unwrap(ctx, in.entry)
	if err != nil {
		if ctx.Err() == nil { // otherwise it is this caller's error alone
			in.refused, in.refusedAt = err, time.Now()
		}
		s.cfg.Logger.WarnContext(ctx, "key provider refuses the tenant's key", "event", "tenantstore.key_refused", "tenant", in.id, "error", err)
		return err
	}
	sec.zero()
	in.checked.Store(now.UnixNano())
	return nil
}

// keyIsFresh is false, too, when the clock went backwards.
func (s *Store) keyIsFresh(in *instance) bool {
	d := s.cfg.Clock().UnixNano() - in.checked.Load()
	return d >= 0 && d < int64(s.cfg.KeyTTL)
}
