package tenantstore_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/sqlite"
)

// Each benchmark has two parts: "store" is the whole of tenantstore, "engine"
// the same work on the bare engine, which is SQLite with the Adiantum VFS.

const benchValue = 200

func benchStore(b *testing.B) *tenantstore.Tenant {
	b.Helper()
	w := newWorld(b)
	w.edit = func(c *tenantstore.Config) { c.Quota = tenantstore.Quota{OpsPerSec: 1 << 30, Batch: 1 << 20} }
	return w.tenant(w.open(), "bench")
}

func benchEngine(b *testing.B) engine.DB {
	b.Helper()
	e, err := sqlite.New(filepath.Join(b.TempDir(), "e"))
	require.NoError(b, err)
	ref, key := engine.Ref{UID: [16]byte{1}, Generation: 1}, make([]byte, 32)
	require.NoError(b, e.Create(b.Context(), ref, key))
	db, err := e.Open(b.Context(), ref, key)
	require.NoError(b, err)
	b.Cleanup(func() { _ = db.Close(); _ = e.Close() })
	return db
}

func benchKey(i int) []byte { return binary.BigEndian.AppendUint64(make([]byte, 0, 32), uint64(i)) }

func random(n int) []byte {
	v := make([]byte, n)
	for i := range v {
		v[i] = byte(rand.Uint32())
	}
	return v
}

// rawKey is as long as the engine key of a record.
func rawKey(i int) []byte { return append(make([]byte, 17, 48), benchKey(i)...) }

func BenchmarkBatch1000(b *testing.B) {
	const n = 1000
	v := random(benchValue)
	b.Run("store", func(b *testing.B) {
		a := benchStore(b)
		i := 0
		for b.Loop() {
			require.NoError(b, a.Update(b.Context(), func(x *tenantstore.Tx) error {
				for range n {
					i++
					if _, err := x.Put("c", benchKey(i), v); err != nil {
						return err
					}
				}
				return nil
			}))
		}
		b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "rec/s")
	})
	b.Run("engine", func(b *testing.B) {
		db := benchEngine(b)
		i := 0
		for b.Loop() {
			require.NoError(b, db.Update(b.Context(), func(tx engine.Tx) error {
				for range n {
					i++
					if err := tx.Put(rawKey(i), v); err != nil {
						return err
					}
				}
				return nil
			}))
		}
		b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "rec/s")
	})
}

func BenchmarkGet(b *testing.B) {
	const n = 20_000
	v := random(benchValue)
	b.Run("store", func(b *testing.B) {
		a := benchStore(b)
		require.NoError(b, a.Update(b.Context(), func(x *tenantstore.Tx) error {
			for i := range n {
				if _, err := x.Put("c", benchKey(i), v); err != nil {
					return err
				}
			}
			return nil
		}))
		c := a.Collection("c")
		for b.Loop() {
			if _, err := c.Get(b.Context(), benchKey(rand.IntN(n))); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("engine", func(b *testing.B) {
		db := benchEngine(b)
		require.NoError(b, db.Update(b.Context(), func(tx engine.Tx) error {
			for i := range n {
				if err := tx.Put(rawKey(i), v); err != nil {
					return err
				}
			}
			return nil
		}))
		for b.Loop() {
			if err := db.View(b.Context(), func(tx engine.Tx) error {
				_, err := tx.Get(rawKey(rand.IntN(n)))
				return err
			}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkDurablePut compares one durable writer with 64 of one tenant that
// share syncs by group commit.
func BenchmarkDurablePut(b *testing.B) {
	v := random(benchValue)
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("store/writers=%d", writers), func(b *testing.B) {
			c := benchStore(b).Collection("c")
			durable(b, writers, func(ctx context.Context, i int) error {
				_, err := c.Put(ctx, benchKey(i), v)
				return err
			})
		})
		b.Run(fmt.Sprintf("engine/writers=%d", writers), func(b *testing.B) {
			db := benchEngine(b)
			durable(b, writers, func(ctx context.Context, i int) error {
				return db.Update(ctx, func(tx engine.Tx) error { return tx.Put(rawKey(i), v) })
			})
		})
	}
}

func durable(b *testing.B, writers int, put func(context.Context, int) error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range writers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := put(context.Background(), int(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "put/s")
}

func BenchmarkCreateTenant(b *testing.B) {
	w := newWorld(b)
	s := w.open()
	op := w.operator(s)
	i := 0
	for b.Loop() {
		i++
		_, err := s.Create(b.Context(), op, tenantstore.Spec{ID: tenantstore.ID(fmt.Sprintf("t-%d", i))})
		require.NoError(b, err)
	}
}
