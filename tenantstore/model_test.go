package tenantstore_test

import (
	"context"
	"flag"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore"
)

// TestModel drives a tenant through random writes, lifecycle changes and
// restarts, beside a map.
func TestModel(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		require.NoError(t, f.Value.Set(strconv.Itoa(testenv.N(15, 300))))
	}
	ctx := context.Background()
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		s := w.open()
		w.tenant(s, "acme")
		model := map[string]tenantstore.Record{}
		open := true
		col := func() *tenantstore.Collection { return w.handle(s, "acme").Collection("c") }
		key := rapid.SampledFrom([]string{"a", "b", "c"})
		operate := func(f func(context.Context, tenantstore.Principal, tenantstore.ID) error) {
			require.NoError(rt, f(ctx, w.operator(s), "acme"))
		}
		ready := func(rt *rapid.T) {
			if !open {
				rt.Skip()
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				ready(rt)
				k, v := key.Draw(rt, "key"), rapid.String().Draw(rt, "value")
				n, err := col().Put(ctx, []byte(k), []byte(v))
				require.NoError(rt, err)
				model[k] = tenantstore.Record{Value: []byte(v), Version: n}
			},
			"put if": func(rt *rapid.T) {
				ready(rt)
				k, stale := key.Draw(rt, "key"), rapid.Bool().Draw(rt, "stale")
				want := model[k].Version
				if stale {
					want++
				}
				n, err := col().PutIf(ctx, []byte(k), []byte("cas"), want)
				if stale {
					require.ErrorIs(rt, err, tenantstore.ErrConflict)
					return
				}
				require.NoError(rt, err)
				model[k] = tenantstore.Record{Value: []byte("cas"), Version: n}
			},
			"delete": func(rt *rapid.T) {
				ready(rt)
				k := key.Draw(rt, "key")
				require.NoError(rt, col().Delete(ctx, []byte(k)))
				delete(model, k)
			},
			"rotate":  func(*rapid.T) { operate(s.RotateKey) },
			"rewrap":  func(*rapid.T) { operate(s.RewrapKey) },
			"suspend": func(*rapid.T) { operate(s.Suspend); open = false },
			"resume":  func(*rapid.T) { operate(s.Resume); open = true },
			"restart": func(rt *rapid.T) {
				require.NoError(rt, s.Close(ctx))
				s = w.open()
			},
			"": func(rt *rapid.T) {
				if !open {
					_, err := s.Tenant(ctx, w.principal(s, "service-acme", ""))
					require.ErrorIs(rt, err, tenantstore.ErrTenantClosed)
					return
				}
				got := map[string]tenantstore.Record{}
				for r, err := range col().Scan(ctx, tenantstore.Range{}) {
					require.NoError(rt, err)
					got[string(r.Key)] = tenantstore.Record{Value: r.Value, Version: r.Version}
				}
				require.Len(rt, got, len(model))
				for k, r := range model {
					require.Equal(rt, r.Version, got[k].Version)
					require.Equal(rt, string(r.Value), string(got[k].Value))
				}
			},
		})
		require.NoError(rt, s.Close(ctx))
	})
}
