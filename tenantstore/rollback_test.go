package tenantstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
)

// An older copy of a tenant's files, put back, is refused, however far the
// sessions since then got: closed in order, or cut.
func TestOlderInstanceIsRefused(t *testing.T) {
	for _, cut := range []bool{false, true} {
		w, ctx := newWorld(t), t.Context()
		s := w.open()
		a := w.tenant(s, "acme")
		b := w.tenant(s, "beta")
		write := func(s *tenantstore.Store, v string) {
			_, err := w.handle(s, "acme").Collection("c").Put(ctx, []byte("k"), []byte(v))
			require.NoError(t, err)
		}
		write(s, "old")
		_, err := b.Collection("c").Put(ctx, []byte("k"), nil)
		require.NoError(t, err)
		require.NoError(t, s.Close(ctx))
		dir, kept := instanceDir(w, a), t.TempDir()
		copyTree(t, dir, kept)

		s = w.open()
		write(s, "new")
		if cut {
			crashed := *w
			crashed.dir = t.TempDir()
			copyTree(t, w.dir, crashed.dir)
			w = &crashed
			w.keys = reopenKeys(t, w)
		} else {
			require.NoError(t, s.Close(ctx))
		}
		dir = instanceDir(w, a)
		require.NoError(t, os.RemoveAll(dir))
		copyTree(t, kept, dir)
		s = w.open()
		_, err = w.handle(s, "acme").Collection("c").Get(ctx, []byte("k"))
		require.ErrorIs(t, err, tenantstore.ErrRollback)
		assert.Contains(t, w.log.String(), "rolled back")
		_, err = w.handle(s, "beta").Collection("c").Get(ctx, []byte("k"))
		require.NoError(t, err)
		require.NoError(t, s.Close(ctx))
	}
}

// Whoever puts the system instance back to bring a revoked grant back is
// noticed by the audit log.
func TestOlderAssignmentsAreNoticed(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	w.tenant(s, "acme")
	require.NoError(t, s.Close(ctx))
	kept := t.TempDir()
	var system string
	entries, err := os.ReadDir(filepath.Join(w.dir, "store", "instances"))
	require.NoError(t, err)
	boot, err := os.ReadFile(filepath.Join(w.dir, "store", "store.json"))
	require.NoError(t, err)
	for _, e := range entries {
		if strings.Contains(string(boot), strings.TrimSuffix(e.Name(), "-1")) {
			system = filepath.Join(w.dir, "store", "instances", e.Name())
		}
	}
	copyTree(t, system, kept)
	s = w.open()
	w.grants = w.grants[:1]
	w.assign(s)
	require.NoError(t, s.Close(ctx))
	require.NoError(t, os.RemoveAll(system))
	copyTree(t, kept, system)
	_, err = tenantstore.Open(ctx, w.config())
	require.ErrorIs(t, err, tenantstore.ErrRollback)
	require.False(t, errors.Is(err, tenantstore.ErrTampered))
}
