package tenantstore_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/sqlite"
)

// gated holds the copying into generations after the first until it is let go.
type gated struct {
	engine.Engine
	hold atomic.Pointer[chan struct{}]
	busy chan struct{} // gets one when the copying waits
}

func (g *gated) Name() string { return "gated" }
func (g *gated) Open(ctx context.Context, r engine.Ref, k []byte) (engine.DB, error) {
	db, err := g.Engine.Open(ctx, r, k)
	if err == nil && r.Generation > 1 {
		db = &gatedDB{db, g}
	}
	return db, err
}

type gatedDB struct {
	engine.DB
	g *gated
}

func (d *gatedDB) Update(ctx context.Context, f func(engine.Tx) error) error {
	if err := d.DB.Update(ctx, f); err != nil {
		return err
	}
	if ch := d.g.hold.Swap(nil); ch != nil {
		d.g.busy <- struct{}{}
		<-*ch
	}
	return nil
}

// TestWritersGoOnWhileTheKeyRotates stops a rotation in the middle of its copy
// and writes, overwrites, deletes and appends: nothing waits, and all of it is
// there afterwards.
func TestWritersGoOnWhileTheKeyRotates(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	inner, err := sqlite.New(filepath.Join(w.dir, "gated"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = inner.Close() })
	g := &gated{Engine: inner, busy: make(chan struct{}, 1)}
	w.edit = func(c *tenantstore.Config) { c.Placement = []tenantstore.Placement{{Region: "eu", Engine: g}} }
	s := w.open()
	op := w.operator(s)
	_, err = s.Create(ctx, op, tenantstore.Spec{ID: "acme", Region: "eu"})
	require.NoError(t, err)
	w.grant(s, tenantstore.Grant{Subject: "service-acme", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite}})
	c := w.handle(s, "acme").Collection("c")
	want := map[string]string{}
	put := func(k, v string) {
		_, err := c.Put(ctx, []byte(k), []byte(v))
		require.NoError(t, err)
		want[k] = v
	}
	for i := range 3000 {
		put(fmt.Sprintf("k%04d", i), "old")
	}
	for round := range 2 {
		gate := make(chan struct{})
		g.hold.Store(&gate)
		done := make(chan error, 1)
		go func() { done <- s.RotateKey(ctx, op, "acme") }()
		<-g.busy
		for i := 0; i < 3000; i += 7 {
			put(fmt.Sprintf("k%04d", i), fmt.Sprintf("new %d", round))
		}
		for i := 3; i < 3000; i += 1000 {
			require.NoError(t, c.Delete(ctx, fmt.Appendf(nil, "k%04d", i)))
			delete(want, fmt.Sprintf("k%04d", i))
		}
		put(fmt.Sprintf("late%d", round), "late")
		require.NoError(t, c.Append(ctx, "s", time.Unix(int64(round), 0), []byte("p")))
		close(gate)
		require.NoError(t, <-done)
		got := map[string]string{}
		for r, err := range c.Scan(ctx, tenantstore.Range{}) {
			require.NoError(t, err)
			got[string(r.Key)] = string(r.Value)
		}
		require.Equal(t, want, got)
	}
	n := 0
	for _, err := range c.Series(ctx, "s", time.Time{}, time.Time{}) {
		require.NoError(t, err)
		n++
	}
	assert.Equal(t, 2, n)
}

// TestRotationUnderLoadLosesNothing rotates again and again while writers add
// records; what they were told is stored is there.
func TestRotationUnderLoadLosesNothing(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	c := w.tenant(s, "acme").Collection("c")
	op := w.operator(s)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var counts [4]int
	for g := range counts {
		wg.Go(func() {
			for !stop.Load() {
				if _, err := c.Put(ctx, fmt.Appendf(nil, "%d-%d", g, counts[g]), []byte("v")); !assert.NoError(t, err) {
					return
				}
				counts[g]++
			}
		})
	}
	for range 4 {
		require.NoError(t, s.RotateKey(ctx, op, "acme"))
	}
	stop.Store(true)
	wg.Wait()
	for g, n := range counts {
		for i := range n {
			_, err := c.Get(ctx, fmt.Appendf(nil, "%d-%d", g, i))
			require.NoError(t, err, "%d-%d of %d", g, i, n)
		}
	}
}
