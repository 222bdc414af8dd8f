package tenantstore_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
)

// systemKeys returns the key that store.json names, and how many system
// instances the engine holds.
func systemState(t *testing.T, w *world) (keyID string, instances int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, "store", "store.json"))
	require.NoError(t, err)
	field := func(name string) string {
		_, rest, ok := strings.Cut(string(b), `"`+name+`": "`)
		require.True(t, ok, name)
		return rest[:strings.IndexByte(rest, '"')]
	}
	for _, dir := range []string{filepath.Join(w.dir, "one"), filepath.Join(w.dir, "store", "instances")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), field("system")) {
				instances++
			}
		}
	}
	return field("key_id"), instances
}

// TestSystemKeyIsReplacedWhateverIsCut rewraps and re-encrypts the system
// instance and cuts the power at every step: afterwards the store opens with
// all it had, one key works, and no instance is left over.
func TestSystemKeyIsReplacedWhateverIsCut(t *testing.T) {
	for _, action := range []string{"rewrap", "rotate"} {
		for _, late := range []bool{false, true} {
			for n := 0; ; n++ {
				w, p := cutWorld(t)
				ctx := t.Context()
				s := w.open()
				op := w.operator(s)
				_, err := s.Create(ctx, op, tenantstore.Spec{ID: "acme", Region: "eu"})
				require.NoError(t, err)
				audit := s.AuditKey()
				old, _ := systemState(t, w)
				if action == "rewrap" {
					p.Cut(n, late)
					err = s.RewrapKey(ctx, op, "")
				} else {
					require.NoError(t, s.RotateKey(ctx, op, ""))
					require.NoError(t, s.Close(ctx))
					p.Cut(n, late)
					var again *tenantstore.Store
					if again, err = tenantstore.Open(ctx, w.config()); err == nil {
						s = again
					}
				}
				reached := p.IsCut()
				p.Cut(-1, false)
				_ = s.Close(context.Background())
				s = w.open()
				require.Equal(t, audit, s.AuditKey())
				list, lerr := s.Tenants(ctx, w.operator(s))
				require.NoError(t, lerr)
				require.Len(t, list, 1)
				now, instances := systemState(t, w)
				assert.Equal(t, 1, instances)
				if now != old {
					_, werr := w.keys.Wrap(ctx, old, nil, tenantstore.KeyContext{})
					require.ErrorIs(t, werr, tenantstore.ErrKeyDestroyed, "the old key")
				}
				if !reached {
					require.NoError(t, err)
					require.NotEqual(t, old, now)
					require.NoError(t, s.Close(ctx))
					break
				}
				require.NoError(t, s.Close(ctx))
			}
		}
	}
}

func TestSystemKeyIsTheOperators(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	w.tenant(s, "acme")
	p := w.principal(s, "service-acme", "")
	require.ErrorIs(t, s.RewrapKey(ctx, p, ""), tenantstore.ErrDenied)
	require.ErrorIs(t, s.RotateKey(ctx, p, ""), tenantstore.ErrDenied)
	require.NoError(t, s.RewrapKey(ctx, w.operator(s), ""))
	require.NoError(t, s.RotateKey(ctx, w.operator(s), ""))
	require.NoError(t, s.Close(ctx))
	s = w.open()
	_, err := w.handle(s, "acme").Collection("c").Put(ctx, []byte("k"), nil)
	require.NoError(t, err)
}
