package postgres_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/powercut"
	"github.com/trusttree/trusttree/tenantstore/postgres"
)

// newEngine is an engine in schema mode on the power, and what clears the
// server of its instances.
func newEngine(t *testing.T, p *powercut.Power) *powercut.Engine {
	e, err := postgres.New(t.Context(), postgres.Config{Admin: server(t).Admin, Schemas: true})
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.Close() })
	return &powercut.Engine{Engine: e, As: "postgres", Power: p}
}

func clearServer(t *testing.T, e engine.Engine) {
	refs, err := e.List(context.Background())
	require.NoError(t, err)
	for _, r := range refs {
		require.NoError(t, e.Destroy(context.Background(), r))
	}
}

// second is a copy of a store's directory for another process.
func second(t *testing.T, dir string) string {
	other := t.TempDir()
	boot, err := os.ReadFile(filepath.Join(dir, "store.json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(other, "store.json"), boot, 0o600))
	return other
}

// handle is what the service has of the tenant acme.
func (w *site) handle(t *testing.T, s *tenantstore.Store) *tenantstore.Tenant {
	a, err := s.Tenant(t.Context(), w.principal(t, s, "service"))
	require.NoError(t, err)
	return a
}

func contents(t *testing.T, c *tenantstore.Collection) map[string]string {
	got := map[string]string{}
	for r, err := range c.Scan(t.Context(), tenantstore.Range{}) {
		require.NoError(t, err)
		got[string(r.Key)] = string(r.Value)
	}
	return got
}

// TestWritersOfEveryProcessGoOnWhileTheKeyRotates holds a rotation in the middle
// of its copy: in this process and in another one writers write, overwrite,
// delete and append, none waits for the copy or fails, and all of it is in the
// new generation.
func TestWritersOfEveryProcessGoOnWhileTheKeyRotates(t *testing.T) {
	p, ctx := powercut.New(), t.Context()
	e, plain := newEngine(t, p), newEngine(t, powercut.New())
	defer clearServer(t, e)
	w := newSite(t)
	dir := t.TempDir()
	one := w.open(t, e, dir, "one")
	w.assign(t, one, 1, tenantstore.RoleRead, tenantstore.RoleWrite, tenantstore.RoleAdmin)
	two := w.open(t, plain, second(t, dir), "two")
	op := w.principal(t, one, "operator")
	_, err := one.Create(ctx, op, tenantstore.Spec{ID: "acme", Engine: e.Name()})
	require.NoError(t, err)
	cols := []*tenantstore.Collection{w.handle(t, one).Collection("c"), w.handle(t, two).Collection("c")}
	want := map[string]string{}
	const records = 1500
	require.NoError(t, w.handle(t, one).Update(ctx, func(x *tenantstore.Tx) error {
		for i := range records {
			k := fmt.Sprintf("k%04d", i)
			want[k] = "old"
			if _, err := x.Put("c", []byte(k), []byte("old")); err != nil {
				return err
			}
		}
		return nil
	}))
	gate := p.Hold(2)
	done := make(chan error, 1)
	go func() { done <- one.RotateKey(ctx, op, "acme") }()
	<-p.Held() // after the first page
	for i, c := range cols {
		for j := range 40 {
			k := fmt.Sprintf("k%04d", (j*37+i)%records)
			_, err := c.Put(ctx, []byte(k), []byte("new"))
			require.NoError(t, err)
			want[k] = "new"
		}
		gone := fmt.Sprintf("k%04d", 3+i)
		require.NoError(t, c.Delete(ctx, []byte(gone)))
		delete(want, gone)
		require.NoError(t, c.Append(ctx, "s", time.Now(), []byte("p")))
	}
	// Both go on through the end of the copy, the fence and the switch.
	var stop atomic.Bool
	var wg sync.WaitGroup
	counts := make([]int, len(cols))
	for i, c := range cols {
		wg.Go(func() {
			for !stop.Load() {
				if _, err := c.Put(ctx, fmt.Appendf(nil, "w%d-%05d", i, counts[i]), []byte("w")); !assert.NoError(t, err) {
					return
				}
				if _, err := c.Get(ctx, fmt.Appendf(nil, "w%d-%05d", i, counts[i])); !assert.NoError(t, err) {
					return
				}
				counts[i]++
			}
		})
	}
	gate <- nil
	require.NoError(t, <-done)
	stop.Store(true)
	wg.Wait()
	for i, n := range counts {
		for j := range n {
			want[fmt.Sprintf("w%d-%05d", i, j)] = "w"
		}
	}
	for _, c := range cols {
		require.Equal(t, want, contents(t, c))
	}
	for _, s := range []*tenantstore.Store{one, two} {
		_, err := w.handle(t, s).Verify(ctx)
		require.NoError(t, err)
		require.NoError(t, s.Close(ctx))
	}
}

// TestKillAtEveryStep cuts the power at every step of a rotation, a migration
// and a destruction on the server, before and after the step, and looks at what
// the next start finds: one key works, and nothing acknowledged is lost.
func TestKillAtEveryStep(t *testing.T) {
	w := newSite(t)
	type change = func(context.Context, *tenantstore.Store, tenantstore.Principal) error
	for name, change := range map[string]change{
		"rotate": func(ctx context.Context, s *tenantstore.Store, p tenantstore.Principal) error {
			return s.RotateKey(ctx, p, "acme")
		},
		"migrate": func(ctx context.Context, s *tenantstore.Store, p tenantstore.Principal) error {
			return s.Migrate(ctx, p, "acme", "embedded")
		},
		"destroy": func(ctx context.Context, s *tenantstore.Store, p tenantstore.Principal) error {
			_, err := s.Destroy(ctx, p, "acme")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, late := range []bool{false, true} {
				first, by := 1, 1
				if !testenv.Long() { // before every other step, and after those between
					by = 2
					if late {
						first = 2
					}
				}
				for n, cut := first, true; cut; n += by {
					require.Less(t, n, 60)
					cut = killAt(t, w, n, late, name, change)
				}
			}
		})
	}
}

// killAt cuts the power at the n-th step of a change, and reports whether it
// has as many.
func killAt(t *testing.T, w *site, n int, late bool, name string, change func(context.Context, *tenantstore.Store, tenantstore.Principal) error) (cut bool) {
	ctx, p, provider := t.Context(), powercut.New(), w.keys
	e := newEngine(t, p)
	defer clearServer(t, e)
	defer func() { w.keys = provider }()
	w.keys = &powercut.Keys{KeyProvider: provider, Power: p}
	dir := t.TempDir()
	s := w.open(t, e, dir, "")
	w.assign(t, s, 1, tenantstore.RoleRead, tenantstore.RoleWrite, tenantstore.RoleAdmin)
	op := w.principal(t, s, "operator")
	info, err := s.Create(ctx, op, tenantstore.Spec{ID: "acme", Engine: e.Name()})
	require.NoError(t, err)
	want := map[string]string{}
	records := testenv.N(20, 1200)
	require.NoError(t, w.handle(t, s).Update(ctx, func(x *tenantstore.Tx) error {
		for i := range records {
			k := fmt.Sprintf("k%04d", i)
			want[k] = k
			if _, err := x.Put("c", []byte(k), []byte(k)); err != nil {
				return err
			}
		}
		return nil
	}))
	p.Cut(n, late)
	err = change(ctx, s, op)
	_ = s.Close(ctx)
	cut = p.IsCut()
	p.Cut(-1, false)
	s = w.open(t, e, dir, "")
	op = w.principal(t, s, "operator")
	if a, err := s.Tenant(ctx, w.principal(t, s, "service")); err == nil { // before anything is recovered
		short, cancel := context.WithTimeout(ctx, 2*time.Second) // it may be fenced
		defer cancel()
		if _, err = a.Collection("c").Put(short, []byte("more"), []byte("more")); err == nil {
			want["more"] = "more"
		}
	} else {
		require.Equal(t, "destroy", name)
	}
	require.NoError(t, s.Recover(ctx, op))
	works := 0
	for i := 1; i <= 4; i++ {
		if _, err := provider.Wrap(ctx, fmt.Sprintf("%v-%d", info.UID, i), nil, tenantstore.KeyContext{}); err == nil {
			works++
		}
	}
	list, lerr := s.Tenants(ctx, op)
	require.NoError(t, lerr)
	if list[0].State == "destroyed" {
		require.Equal(t, "destroy", name)
		require.Zero(t, works)
	} else {
		require.Equal(t, 1, works, "keys that work")
		got := contents(t, w.handle(t, s).Collection("c"))
		if want["more"] == "" {
			delete(got, "more")
		}
		require.Equal(t, want, got)
	}
	if !cut {
		require.NoError(t, err)
	}
	require.NoError(t, s.Close(ctx))
	refs, rerr := e.List(ctx)
	require.NoError(t, rerr)
	require.LessOrEqual(t, len(refs), 2, "no instance is left over")
	return cut
}
