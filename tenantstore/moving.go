package tenantstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// A tenant is copied into its next generation while it is in use. A mark in the
// present generation makes every transaction that writes, in every process,
// note beside each key it writes that it did. How far the copy came is in the
// next generation, in the transaction that copies. So the copy first takes all
// in the order of keys, then what was noted, round by round; and whatever is
// cut, it goes on where it stopped. Transactions that write exclude each other:
// what committed before the mark the copier sees, what comes after is noted.
const (
	markName     = "moving"
	progressName = "progress"

	fewMoves   = 1000 // so few are copied while the tenant waits
	moveRounds = 8    // at most, until the tenant waits
)

// progress is how far a copy came. Version 1.
type progress struct {
	Version int    `json:"version"`
	From    []byte `json:"from,omitempty"` // the next key
	Done    bool   `json:"done,omitempty"` // all keys once; what is left was noted
}

func (in *instance) markKey() []byte     { return append(in.seal.space(kindMeta), markName...) }
func (in *instance) progressKey() []byte { return append(in.seal.space(kindMeta), progressName...) }

// own reports whether an engine key is the instance's own, and not the tenant's.
func own(ek []byte) bool { return len(ek) > 0 && (ek[0] == kindMeta || ek[0] == kindMoved) }

// notingTx notes what is written.
type notingTx struct {
	engine.Tx
	in *instance
	sc *scratch
}

func (t notingTx) note(key []byte) error {
	ek := append([]byte{kindMoved}, key...)
	return t.Tx.Put(ek, t.in.seal.seal(t.sc, ek, 0, nil))
}

func (t notingTx) Put(key, value []byte) error {
	if err := t.Tx.Put(key, value); err != nil {
		return err
	}
	return t.note(key)
}

func (t notingTx) Insert(key, value []byte) (bool, error) {
	fresh, err := t.Tx.Insert(key, value)
	if err == nil && fresh {
		err = t.note(key)
	}
	return fresh, err
}

func (t notingTx) Delete(key []byte) (bool, error) {
	there, err := t.Tx.Delete(key)
	if err == nil && there {
		err = t.note(key)
	}
	return there, err
}

// written returns tx so that what it writes is noted while the instance is
// copied. It is called inside the transaction.
func (in *instance) written(tx engine.Tx) (engine.Tx, error) {
	noting := in.noting.Load()
	if in.shared { // another process may have set the mark
		there, err := in.marked(tx)
		if err != nil {
			return nil, err
		}
		noting = there
	}
	if noting {
		return notingTx{tx, in, new(scratch)}, nil
	}
	return tx, nil
}

// marked reports whether the instance has the mark.
func (in *instance) marked(tx engine.Tx) (bool, error) {
	ek, get := in.mark, tx.Get
	if p, ok := tx.(engine.Peeker); ok {
		get = p.Peek
	}
	sealed, err := get(ek)
	if err != nil || sealed == nil {
		return false, err
	}
	_, _, err = in.seal.open(new(scratch), ek, bytes.Clone(sealed))
	return true, err
}

// use runs f with the present generation: the tenant's open instance, or the
// one that the move has for itself.
func (m *move) use(ctx context.Context, f func(*instance) error) error {
	if m.src != nil {
		return f(m.src)
	}
	sl, err := m.s.cache.acquire(ctx, m.e.UID, func(ctx context.Context) (*instance, error) { return m.s.openInstance(ctx, m.e, m.sec) })
	if err != nil {
		return err
	}
	defer m.s.cache.release(sl)
	return f(sl.in)
}

// copyOld is the filler that copies the present generation: first all of it and
// what is written meanwhile while the tenant is in use; then, shut, the rest.
func (s *Store) copyOld(ctx context.Context, m *move) error {
	if m.again { // what was cut may have left the fence
		if err := s.engines[m.e.Engine].Engine.Fence(ctx, m.e.ref(), false); err != nil {
			return err
		}
	}
	if m.e.State != stateActive { // nobody uses it, and the cache must not have it
		if err := m.shut(ctx); err != nil {
			return err
		}
	}
	if err := m.copyAll(ctx); err != nil {
		return err
	}
	for round, n := 0, fewMoves+1; m.src == nil && round < moveRounds && n > fewMoves; round++ {
		var err error
		if n, err = m.copyNoted(ctx); err != nil {
			return err
		}
	}
	if m.src == nil {
		if err := m.shut(ctx); err != nil {
			return err
		}
	}
	if err := m.use(ctx, func(in *instance) error {
		return in.db.View(ctx, func(tx engine.Tx) error {
			there, err := in.marked(tx)
			if err == nil && !there {
				err = fmt.Errorf("%w: the mark that makes writes be noted is gone", ErrTampered)
			}
			return err
		})
	}); err != nil {
		return err
	}
	_, err := m.copyNoted(ctx)
	return err
}

// startNoting sets the mark, unless the copy has begun before.
func (m *move) startNoting(ctx context.Context) (p progress, err error) {
	err = m.dst.db.View(ctx, func(tx engine.Tx) error {
		_, text, err := m.dst.get(tx, new(scratch), m.dst.progressKey())
		if errors.Is(err, ErrNotFound) {
			p = progress{Version: 1}
			return nil
		}
		if err != nil {
			return err
		}
		p = progress{}
		if err := strictJSON(text, &p); err != nil {
			return fmt.Errorf("progress of a copy: %w", err)
		}
		if p.Version != 1 {
			return fmt.Errorf("%w: progress of a copy of version %d, this reader knows 1", ErrInvalid, p.Version)
		}
		return nil
	})
	if err != nil || p.From != nil || p.Done {
		return p, err
	}
	return p, m.use(ctx, func(in *instance) error {
		if err := m.s.firstWrite(ctx, in); err != nil {
			return err
		}
		return in.db.Update(ctx, func(tx engine.Tx) error {
			in.noting.Store(true)
			return in.put(tx, new(scratch), in.mark, nil, m.s.version())
		})
	})
}

// copyAll re-seals every record into the next generation. Every record must
// authenticate.
func (m *move) copyAll(ctx context.Context) error {
	p, err := m.startNoting(ctx)
	for err == nil && !p.Done {
		err = m.copyPage(ctx, &p)
	}
	return err
}

func (m *move) copyPage(ctx context.Context, p *progress) error {
	var page []engine.KV
	if err := m.use(ctx, func(in *instance) (err error) {
		page, err = in.page(ctx, p.From, restorePage, restorePageSize)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			p.Done = true
			return nil
		}
		last := page[len(page)-1].Key
		p.From = append(last[:len(last):len(last)], 0)
		return reseal(in, m.dst, page)
	}); err != nil {
		return err
	}
	text, err := json.Marshal(*p)
	if err != nil {
		return err
	}
	return m.dst.db.Update(ctx, func(tx engine.Tx) error {
		for _, kv := range page {
			if kv.Value == nil {
				continue
			}
			if err := tx.Put(kv.Key, kv.Value); err != nil {
				return err
			}
		}
		return m.dst.put(tx, new(scratch), m.dst.progressKey(), text, 0)
	})
}

// reseal seals a page of src for dst. What is src's own gets no value.
func reseal(src, dst *instance, page []engine.KV) error {
	for i, kv := range page {
		if own(kv.Key) {
			page[i].Value = nil
			continue
		}
		version, value, err := src.seal.open(new(scratch), kv.Key, kv.Value)
		if err != nil {
			return err
		}
		page[i].Value = dst.seal.seal(new(scratch), kv.Key, version, value)
	}
	return nil
}

// copyNoted copies what is under the noted keys now, or removes it, and returns
// how many there were. While the tenant is in use it takes back the notes of
// what it has copied, unless they were renewed.
func (m *move) copyNoted(ctx context.Context) (n int, err error) {
	from := []byte{kindMoved}
	for {
		var notes, page []engine.KV
		err := m.use(ctx, func(in *instance) error {
			return in.db.View(ctx, func(tx engine.Tx) error {
				notes, page = notes[:0], page[:0]
				for kv, err := range tx.Scan(from, []byte{kindMoved + 1}, false, pageRecords) {
					if err != nil {
						return err
					}
					if _, _, err := in.seal.open(new(scratch), kv.Key, bytes.Clone(kv.Value)); err != nil {
						return err
					}
					notes = append(notes, kv)
				}
				for _, note := range notes {
					kv := engine.KV{Key: note.Key[1:]}
					version, value, err := in.get(tx, new(scratch), kv.Key)
					switch {
					case errors.Is(err, ErrNotFound):
					case err != nil:
						return err
					default:
						kv.Value = m.dst.seal.seal(new(scratch), kv.Key, version, value)
					}
					page = append(page, kv)
				}
				return nil
			})
		})
		if err != nil || len(notes) == 0 {
			return n, err
		}
		n += len(notes)
		last := notes[len(notes)-1].Key
		from = append(last[:len(last):len(last)], 0)
		if err := m.dst.db.Update(ctx, func(tx engine.Tx) error { return replace(tx, page) }); err != nil {
			return n, err
		}
		if m.src != nil {
			continue
		}
		if err := m.use(ctx, func(in *instance) error { return in.takeBack(ctx, notes) }); err != nil {
			return n, err
		}
	}
}

// replace puts what has a value and deletes what has none.
func replace(tx engine.Tx, page []engine.KV) error {
	for _, kv := range page {
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
}

// takeBack removes notes that are still the same.
func (in *instance) takeBack(ctx context.Context, notes []engine.KV) error {
	return in.db.Update(ctx, func(tx engine.Tx) error {
		for _, kv := range notes {
			now, err := tx.Get(kv.Key)
			if err != nil {
				return err
			}
			if now == nil || !bytes.Equal(now, kv.Value) {
				continue
			}
			if _, err := tx.Delete(kv.Key); err != nil {
				return err
			}
		}
		return nil
	})
}

// stopNoting removes the mark and the notes of a copy that is given up.
func (s *Store) stopNoting(ctx context.Context, e entry) error {
	sec, err := s.unwrap(ctx, e)
	if err != nil {
		return err
	}
	defer sec.zero()
	unblock, err := s.cache.block(ctx, e.UID)
	if err != nil {
		return err
	}
	defer unblock()
	in, err := s.openInstance(ctx, e, sec)
	if err != nil {
		return err
	}
	err = s.firstWrite(ctx, in)
	if err == nil {
		err = in.db.Update(ctx, func(tx engine.Tx) error {
			_, err := tx.Delete(in.mark)
			return err
		})
	}
	for n := 1; err == nil && n > 0; {
		err = in.db.Update(ctx, func(tx engine.Tx) error {
			var keys [][]byte
			for kv, err := range tx.Scan([]byte{kindMoved}, []byte{kindMoved + 1}, false, pageRecords) {
				if err != nil {
					return err
				}
				keys = append(keys, kv.Key)
			}
			n = len(keys)
			for _, k := range keys {
				if _, err := tx.Delete(k); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(err, s.closeInstance(in))
}

// copyInstance re-seals every record of src into dst at once, while nobody uses
// src.
func copyInstance(ctx context.Context, src, dst *instance) error {
	var from []byte
	for {
		page, err := src.page(ctx, from, restorePage, restorePageSize)
		if err != nil || len(page) == 0 {
			return err
		}
		last := page[len(page)-1].Key
		from = append(last[:len(last):len(last)], 0)
		if err := reseal(src, dst, page); err != nil {
			return err
		}
		if err := dst.db.Update(ctx, func(tx engine.Tx) error {
			for _, kv := range page {
				if kv.Value == nil {
					continue
				}
				if err := tx.Put(kv.Key, kv.Value); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
}
