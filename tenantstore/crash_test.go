package tenantstore_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/powercut"
	"github.com/trusttree/trusttree/tenantstore/internal/sqlite"
)

// cutWorld has two engines of which every write can be cut; the system
// instance is on the first.
func cutWorld(t *testing.T) (*world, *powercut.Power) {
	w := newWorld(t)
	p := powercut.New()
	var engines []engine.Engine
	for _, name := range []string{"one", "two"} {
		e, err := sqlite.New(filepath.Join(w.dir, name))
		require.NoError(t, err)
		t.Cleanup(func() { _ = e.Close() })
		engines = append(engines, &powercut.Engine{Engine: e, As: name, Power: p})
	}
	inner := w.keys
	w.edit = func(c *tenantstore.Config) {
		c.Keys, c.System = &powercut.Keys{KeyProvider: inner, Power: p}, "one"
		c.Placement = []tenantstore.Placement{{Region: "eu", Engine: engines[0]}, {Region: "eu", Engine: engines[1]}}
	}
	return w, p
}

// TestKillAtEveryStep cuts the power at every step of each lifecycle change,
// before and after the step, and looks at what the next start finds.
func TestKillAtEveryStep(t *testing.T) {
	type op = func(context.Context, *tenantstore.Store, tenantstore.Principal) error
	for name, change := range map[string]op{
		"rewrap": func(ctx context.Context, s *tenantstore.Store, p tenantstore.Principal) error {
			return s.RewrapKey(ctx, p, "acme")
		},
		"rotate": func(ctx context.Context, s *tenantstore.Store, p tenantstore.Principal) error {
			return s.RotateKey(ctx, p, "acme")
		},
		"migrate": func(ctx context.Context, s *tenantstore.Store, p tenantstore.Principal) error {
			return s.Migrate(ctx, p, "acme", "two")
		},
	} {
		t.Run(name, func(t *testing.T) {
			killEachStep(t, change, func(t *testing.T, w *world, s *tenantstore.Store, done bool) {
				a := w.handle(s, "acme")
				n := 0
				for r, err := range a.Collection("c").Scan(t.Context(), tenantstore.Range{}) {
					require.NoError(t, err)
					assert.Equal(t, string(r.Key), string(r.Value))
					n++
				}
				require.Equal(t, 300, n, "something acknowledged is lost")
				_, err := a.Collection("c").Put(t.Context(), []byte("more"), []byte("more"))
				require.NoError(t, err)
				oneKey(t, w, s, a.UID())
			})
		})
	}
	t.Run("destroy", func(t *testing.T) {
		destroy := func(ctx context.Context, s *tenantstore.Store, p tenantstore.Principal) error {
			_, err := s.Destroy(ctx, p, "acme")
			return err
		}
		killEachStep(t, destroy, func(t *testing.T, w *world, s *tenantstore.Store, done bool) {
			list, err := s.Tenants(t.Context(), w.operator(s))
			require.NoError(t, err)
			if !done && list[0].State == "active" {
				return // nothing had happened yet
			}
			require.Equal(t, "destroyed", list[0].State)
			_, err = w.keys.Wrap(t.Context(), list[0].KeyID, nil, tenantstore.KeyContext{})
			require.ErrorIs(t, err, tenantstore.ErrKeyDestroyed)
		})
	})
	t.Run("create", func(t *testing.T) {
		create := func(ctx context.Context, s *tenantstore.Store, p tenantstore.Principal) error {
			_, err := s.Create(ctx, p, tenantstore.Spec{ID: "beta", Region: "eu"})
			return err
		}
		killEachStep(t, create, func(t *testing.T, w *world, s *tenantstore.Store, done bool) {
			_, err := s.Create(t.Context(), w.operator(s), tenantstore.Spec{ID: "beta", Region: "eu"})
			if err != nil {
				require.ErrorIs(t, err, tenantstore.ErrExists)
				w.grant(s, tenantstore.Grant{Subject: "service-beta", Tenant: "beta", Roles: []tenantstore.Role{tenantstore.RoleWrite}})
				_, err = w.handle(s, "beta").Collection("c").Put(t.Context(), []byte("k"), nil)
				require.NoError(t, err)
			}
			list, err := s.Tenants(t.Context(), w.operator(s))
			require.NoError(t, err)
			require.Len(t, list, 2)
		})
	})
}

// oneKey asserts that of all keys the tenant ever had exactly one works.
func oneKey(t *testing.T, w *world, s *tenantstore.Store, uid tenantstore.UID) {
	t.Helper()
	works := 0
	for n := 1; n <= 5; n++ {
		_, err := w.keys.Wrap(t.Context(), fmt.Sprintf("%v-%d", uid, n), nil, tenantstore.KeyContext{})
		if err == nil {
			works++
		}
	}
	require.Equal(t, 1, works, "keys that work")
}

func killEachStep(t *testing.T, change func(context.Context, *tenantstore.Store, tenantstore.Principal) error,
	check func(t *testing.T, w *world, s *tenantstore.Store, done bool)) {
	for _, late := range []bool{false, true} {
		for n := 1; ; n++ {
			require.Less(t, n, 100)
			w, p := cutWorld(t)
			s := w.open()
			ctx := t.Context()
			_, err := s.Create(ctx, w.operator(s), tenantstore.Spec{ID: "acme", Region: "eu"})
			require.NoError(t, err)
			w.grant(s, tenantstore.Grant{Subject: "service-acme", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite}})
			require.NoError(t, w.handle(s, "acme").Update(ctx, func(x *tenantstore.Tx) error {
				for i := range 300 {
					k := fmt.Appendf(nil, "k%03d", i)
					if _, err := x.Put("c", k, k); err != nil {
						return err
					}
				}
				return nil
			}))
			operator := w.operator(s)
			p.Cut(n, late)
			err = change(ctx, s, operator)
			_ = s.Close(ctx)
			reached := p.IsCut()
			p.Cut(-1, false)
			s = w.open()
			require.NoError(t, s.Recover(ctx, w.operator(s)))
			check(t, w, s, err == nil)
			require.NoError(t, s.Close(ctx))
			if !reached {
				require.NoError(t, err)
				break
			}
		}
	}
}

// A crash of the process leaves the write-ahead log behind; what was
// acknowledged is in it.
func TestCopyOfARunningStoreOpens(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	a := w.tenant(s, "acme")
	for i := range 50 {
		_, err := a.Collection("c").Put(ctx, fmt.Appendf(nil, "%02d", i), []byte("v"))
		require.NoError(t, err)
	}
	crashed := *w
	crashed.dir = t.TempDir()
	copyTree(t, filepath.Join(w.dir, "store"), filepath.Join(crashed.dir, "store"))
	s2 := crashed.open()
	n := 0
	for _, err := range crashed.handle(s2, "acme").Collection("c").Scan(ctx, tenantstore.Range{}) {
		require.NoError(t, err)
		n++
	}
	assert.Equal(t, 50, n)
}
