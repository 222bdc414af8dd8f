// Package enginetest is the conformance suite that every engine of tenantstore
// passes: call Run from a test of the engine.
package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// Run runs the suite. The engine should be empty; the suite leaves it empty.
func Run(t *testing.T, e engine.Engine) {
	for name, f := range map[string]func(*testing.T, engine.Engine){
		"Lifecycle": lifecycle, "Transactions": transactions, "Scan": scan, "GroupCommit": groupCommit,
		"WrongKey": wrongKey, "Cancel": cancel, "Fence": fence, "LargeValue": largeValue, "TwoInstances": twoInstances, "Listen": listen,
	} {
		t.Run(name, func(t *testing.T) { f(t, e) })
	}
	refs, err := e.List(t.Context())
	require.NoError(t, err)
	assert.Empty(t, refs, "instances left")
}

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

var next byte

func made(t *testing.T, e engine.Engine) (engine.Ref, engine.DB) {
	t.Helper()
	next++
	r := engine.Ref{UID: [16]byte{next, 0xfe}, Generation: 7}
	require.NoError(t, e.Create(t.Context(), r, key(next)))
	db, err := e.Open(t.Context(), r, key(next))
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, db.Close())
		assert.NoError(t, e.Destroy(context.Background(), r))
	})
	return r, db
}

func put(t *testing.T, db engine.DB, k, v string) {
	t.Helper()
	require.NoError(t, db.Update(t.Context(), func(tx engine.Tx) error { return tx.Put([]byte(k), []byte(v)) }))
}

func get(t *testing.T, db engine.DB, k string) (v string) {
	t.Helper()
	require.NoError(t, db.View(t.Context(), func(tx engine.Tx) error {
		b, err := tx.Get([]byte(k))
		v = string(b)
		return err
	}))
	return v
}

func lifecycle(t *testing.T, e engine.Engine) {
	ctx := t.Context()
	r := engine.Ref{UID: [16]byte{0xab}, Generation: 1}
	_, err := e.Open(ctx, r, key(1))
	require.ErrorIs(t, err, engine.ErrNotFound)
	require.NoError(t, e.Destroy(ctx, r), "what is not there")
	require.NoError(t, e.Create(ctx, r, key(1)))
	db, err := e.Open(ctx, r, key(1))
	require.NoError(t, err)
	put(t, db, "k", "v")
	n, err := db.Size(ctx)
	require.NoError(t, err)
	assert.Positive(t, n)
	require.NoError(t, db.Check(ctx))
	require.NoError(t, db.Close())
	require.Error(t, db.Update(ctx, func(engine.Tx) error { return nil }), "closed")

	db, err = e.Open(ctx, r, key(1))
	require.NoError(t, err)
	assert.Equal(t, "v", get(t, db, "k"))
	require.NoError(t, db.Close())
	refs, err := e.List(ctx)
	require.NoError(t, err)
	assert.Equal(t, []engine.Ref{r}, refs)
	require.NoError(t, e.Create(ctx, r, key(2)), "in place of an unfinished one")
	db, err = e.Open(ctx, r, key(2))
	require.NoError(t, err)
	assert.Empty(t, get(t, db, "k"))
	require.NoError(t, db.Close())
	require.NoError(t, e.Destroy(ctx, r))
	_, err = e.Open(ctx, r, key(2))
	require.ErrorIs(t, err, engine.ErrNotFound)
}

func transactions(t *testing.T, e engine.Engine) {
	_, db := made(t, e)
	ctx := t.Context()
	boom := errors.New("boom")
	put(t, db, "a", "1")
	err := db.Update(ctx, func(tx engine.Tx) error {
		require.NoError(t, tx.Put([]byte("a"), []byte("2")))
		require.NoError(t, tx.Put([]byte("b"), []byte("2")))
		v, err := tx.Get([]byte("a"))
		require.NoError(t, err)
		assert.Equal(t, "2", string(v), "a transaction sees its own writes")
		return boom
	})
	require.ErrorIs(t, err, boom)
	assert.Equal(t, "1", get(t, db, "a"))
	assert.Equal(t, "", get(t, db, "b"))
	require.NoError(t, db.Update(ctx, func(tx engine.Tx) error {
		fresh, err := tx.Insert([]byte("a"), []byte("3"))
		require.NoError(t, err)
		assert.False(t, fresh)
		fresh, err = tx.Insert([]byte("c"), []byte("3"))
		require.NoError(t, err)
		assert.True(t, fresh)
		was, err := tx.Delete([]byte("a"))
		require.NoError(t, err)
		assert.True(t, was)
		was, err = tx.Delete([]byte("nothing"))
		assert.False(t, was)
		return err
	}))
	assert.Equal(t, "", get(t, db, "a"))
	assert.Equal(t, "3", get(t, db, "c"))
	require.Error(t, db.View(ctx, func(tx engine.Tx) error { return tx.Put([]byte("x"), []byte("y")) }), "a view writes nothing")
	assert.Equal(t, "", get(t, db, "x"))
	assert.PanicsWithValue(t, "oops", func() { _ = db.Update(ctx, func(engine.Tx) error { panic("oops") }) })
	var stale engine.Tx
	require.NoError(t, db.Update(ctx, func(tx engine.Tx) error { stale = tx; return nil }))
	require.Error(t, stale.Put([]byte("late"), []byte("v")), "after the transaction")
	assert.Equal(t, "", get(t, db, "late"))
}

func scan(t *testing.T, e engine.Engine) {
	_, db := made(t, e)
	require.NoError(t, db.Update(t.Context(), func(tx engine.Tx) error {
		for i := range 700 {
			if err := tx.Put([]byte{byte(i >> 8), byte(i)}, fmt.Appendf(nil, "%d", i)); err != nil {
				return err
			}
		}
		return tx.Put([]byte{0xff, 0xff}, []byte("last"))
	}))
	list := func(from, to []byte, reverse bool, limit int) (keys []string) {
		require.NoError(t, db.View(t.Context(), func(tx engine.Tx) error {
			for kv, err := range tx.Scan(from, to, reverse, limit) {
				if err != nil {
					return err
				}
				keys = append(keys, fmt.Sprintf("%x", kv.Key))
			}
			return nil
		}))
		return keys
	}
	all := list(nil, nil, false, 10_000)
	require.Len(t, all, 701)
	assert.IsIncreasing(t, all)
	back := list(nil, nil, true, 10_000)
	require.Len(t, back, 701)
	assert.IsDecreasing(t, back)
	assert.Equal(t, []string{"0001", "0002"}, list([]byte{0, 1}, []byte{0, 3}, false, 10))
	assert.Equal(t, []string{"0002", "0001"}, list([]byte{0, 1}, []byte{0, 3}, true, 10))
	assert.Equal(t, []string{"0100"}, list([]byte{1}, nil, false, 1))
	assert.Equal(t, []string{"ffff"}, list(nil, nil, true, 1))
	assert.Empty(t, list([]byte{3}, []byte{4}, false, 1))
	require.NoError(t, db.View(t.Context(), func(tx engine.Tx) error {
		for range tx.Scan(nil, nil, false, 10) {
			break // and the transaction goes on
		}
		for kv, err := range tx.Scan(nil, nil, false, 2) {
			require.NoError(t, err)
			v, err := tx.Get(kv.Key) // reading inside a scan
			require.NoError(t, err)
			assert.Equal(t, string(kv.Value), string(v))
		}
		return nil
	}))
}

// groupCommit has many writers at once, of which some fail: each one's
// transaction stands or falls alone.
func groupCommit(t *testing.T, e engine.Engine) {
	_, db := made(t, e)
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for i := range 48 {
		wg.Go(func() {
			err := db.Update(t.Context(), func(tx engine.Tx) error {
				n, err := tx.Get([]byte("counter"))
				if err != nil {
					return err
				}
				if err := tx.Put([]byte("counter"), append(n, 'x')); err != nil {
					return err
				}
				if i%4 == 0 {
					return boom
				}
				return tx.Put(fmt.Appendf(nil, "w%02d", i), []byte("v"))
			})
			if i%4 == 0 {
				assert.ErrorIs(t, err, boom)
			} else {
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	assert.Len(t, get(t, db, "counter"), 36, "updates are serialised, and failed ones leave nothing")
	for i := range 48 {
		assert.Equal(t, i%4 != 0, get(t, db, fmt.Sprintf("w%02d", i)) == "v")
	}
}

func wrongKey(t *testing.T, e engine.Engine) {
	r, db := made(t, e)
	put(t, db, "k", "v")
	require.NoError(t, db.Close())
	_, err := e.Open(t.Context(), r, key(0xee))
	require.Error(t, err)
}

func cancel(t *testing.T, e engine.Engine) {
	_, db := made(t, e)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	require.ErrorIs(t, db.Update(ctx, func(tx engine.Tx) error { return tx.Put([]byte("k"), []byte("v")) }), context.Canceled)
	require.ErrorIs(t, db.View(ctx, func(tx engine.Tx) error { return nil }), context.Canceled)
	assert.Equal(t, "", get(t, db, "k"))
	put(t, db, "k", "still works")
}

func fence(t *testing.T, e engine.Engine) {
	if !e.Shared() {
		t.Skip("one process alone")
	}
	r, db := made(t, e)
	put(t, db, "k", "v")
	require.NoError(t, e.Fence(t.Context(), r, true))
	err := db.Update(t.Context(), func(tx engine.Tx) error { return tx.Put([]byte("k"), []byte("lost")) })
	require.ErrorIs(t, err, engine.ErrFenced)
	assert.Equal(t, "v", get(t, db, "k"))
	require.NoError(t, e.Fence(t.Context(), r, false))
	put(t, db, "k", "again")
}

func largeValue(t *testing.T, e engine.Engine) {
	_, db := made(t, e)
	v := bytes.Repeat([]byte("0123456789abcdef"), engine.MaxValue/16)
	require.NoError(t, db.Update(t.Context(), func(tx engine.Tx) error { return tx.Put(bytes.Repeat([]byte("k"), engine.MaxKey), v) }))
	require.NoError(t, db.View(t.Context(), func(tx engine.Tx) error {
		got, err := tx.Get(bytes.Repeat([]byte("k"), engine.MaxKey))
		assert.True(t, bytes.Equal(v, got))
		return err
	}))
}

func twoInstances(t *testing.T, e engine.Engine) {
	_, a := made(t, e)
	_, b := made(t, e)
	put(t, a, "k", "a")
	put(t, b, "k", "b")
	assert.Equal(t, "a", get(t, a, "k"))
	assert.Equal(t, "b", get(t, b, "k"))
}

// listen has somebody listen, and woken by what is committed, not by what is
// rolled back.
func listen(t *testing.T, e engine.Engine) {
	r, db := made(t, e)
	l, ok := db.(engine.Listener)
	if !ok {
		t.Skip("the engine wakes nobody")
	}
	other, err := e.Open(t.Context(), r, key(next))
	require.NoError(t, err)
	defer func() { assert.NoError(t, other.Close()) }()
	ctx, stop := context.WithCancel(t.Context())
	woken, done := make(chan struct{}, 10), make(chan error)
	go func() { done <- l.Listen(ctx, func() { woken <- struct{}{} }) }()
	wait := func(what string) {
		t.Helper()
		select {
		case <-woken:
		case <-time.After(20 * time.Second):
			t.Fatal("not woken: " + what)
		}
	}
	wait("when it listens")
	boom := errors.New("boom")
	say := func(fail error) error {
		return other.Update(t.Context(), func(tx engine.Tx) error {
			require.NoError(t, tx.(engine.Waker).Wake())
			return fail
		})
	}
	require.ErrorIs(t, say(boom), boom)
	require.NoError(t, say(nil))
	wait("after a commit")
	assert.Empty(t, woken, "one commit, one wake-up; none for what was rolled back")
	stop()
	require.ErrorIs(t, <-done, context.Canceled)
}
