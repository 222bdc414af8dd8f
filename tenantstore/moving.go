package tenantstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// moves remembers which engine keys were written while an instance is copied.
// A key is in it before its transaction commits; transactions of an embedded
// instance exclude each other and the reads of the copier, so that what the
// copier did not see is in here.
type moves struct {
	mu   sync.Mutex
	keys map[string]struct{}
}

// Limits of what is written during a copy.
const (
	maxMoves   = 1 << 20 // keys not yet copied; more writes are ErrBusy
	fewMoves   = 1000    // so few are copied while the tenant waits
	moveRounds = 8       // at most, until the tenant waits
)

func (m *moves) add(key []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.keys) >= maxMoves {
		return fmt.Errorf("%w: more is written than the change of the key keeps up with", ErrBusy)
	}
	m.keys[string(key)] = struct{}{}
	return nil
}

func (m *moves) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.keys)
}

// take returns the keys and forgets them.
func (m *moves) take() map[string]struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := m.keys
	m.keys = map[string]struct{}{}
	return keys
}

// movedTx notes what is written.
type movedTx struct {
	engine.Tx
	m *moves
}

func (t movedTx) Put(key, value []byte) error {
	if err := t.m.add(key); err != nil {
		return err
	}
	return t.Tx.Put(key, value)
}

func (t movedTx) Insert(key, value []byte) (bool, error) {
	if err := t.m.add(key); err != nil {
		return false, err
	}
	return t.Tx.Insert(key, value)
}

func (t movedTx) Delete(key []byte) (bool, error) {
	if err := t.m.add(key); err != nil {
		return false, err
	}
	return t.Tx.Delete(key)
}

// written returns tx so that what it writes is noted while the instance is
// copied. It is called inside the transaction.
func (in *instance) written(tx engine.Tx) engine.Tx {
	if m := in.moves.Load(); m != nil {
		return movedTx{tx, m}
	}
	return tx
}

// copyOld is the filler that copies the present generation: first all of it and
// what is written meanwhile, round by round, while the tenant is in use; then,
// shut, the rest.
func (s *Store) copyOld(ctx context.Context, old entry, sec secret, dst *instance, shut func(context.Context) error) (err error) {
	var m *moves
	if e := s.engines[old.Engine].Engine; !e.Shared() && old.State == stateActive {
		sl, err := s.cache.acquire(ctx, old.UID, func(ctx context.Context) (*instance, error) { return s.openInstance(ctx, old, sec) })
		if err != nil {
			return err
		}
		// The instance stays the one that notes what is written, until it is shut.
		m = &moves{keys: map[string]struct{}{}}
		s.cache.pin(sl, true)
		sl.in.moves.Store(m)
		defer func(in *instance) {
			in.moves.Store(nil)
			s.cache.pin(sl, false)
		}(sl.in)
		err = copyInUse(ctx, sl.in, dst, m)
		s.cache.release(sl)
		if err != nil {
			return err
		}
	}
	if err := shut(ctx); err != nil {
		return err
	}
	src, err := s.openInstance(ctx, old, sec)
	if err != nil {
		return err
	}
	if m == nil {
		err = copyInstance(ctx, src, dst)
	} else {
		err = copyKeys(ctx, src, dst, m.take())
	}
	return errors.Join(err, src.db.Close())
}

func copyInUse(ctx context.Context, src, dst *instance, m *moves) error {
	err := copyInstance(ctx, src, dst)
	for round := 0; err == nil && round < moveRounds && m.len() > fewMoves; round++ {
		err = copyKeys(ctx, src, dst, m.take())
	}
	return err
}

// copyKeys copies what is under the keys now, or removes it.
func copyKeys(ctx context.Context, src, dst *instance, keys map[string]struct{}) error {
	todo := make([]string, 0, len(keys))
	for k := range keys {
		if k[0] != kindMeta {
			todo = append(todo, k)
		}
	}
	for len(todo) > 0 {
		page := todo[:min(len(todo), pageRecords)]
		todo = todo[len(page):]
		var kvs []engine.KV
		if err := src.db.View(ctx, func(tx engine.Tx) error {
			kvs = kvs[:0]
			for _, k := range page {
				kv := engine.KV{Key: []byte(k)}
				version, value, err := src.get(tx, new(scratch), kv.Key)
				switch {
				case errors.Is(err, ErrNotFound):
				case err != nil:
					return err
				default:
					kv.Value = dst.seal.seal(new(scratch), kv.Key, version, value)
				}
				kvs = append(kvs, kv)
			}
			return nil
		}); err != nil {
			return err
		}
		if err := dst.db.Update(ctx, func(tx engine.Tx) error {
			for _, kv := range kvs {
				var err error
				if kv.Value == nil {
					_, err = tx.Delete(kv.Key)
				} else {
					err = tx.Put(kv.Key, kv.Value)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
