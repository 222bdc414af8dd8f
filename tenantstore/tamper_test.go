package tenantstore_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/sqlite"
)

func copyTree(tb testing.TB, from, to string) {
	tb.Helper()
	require.NoError(tb, filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, p)
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	}))
}

func instanceDir(w *world, t *tenantstore.Tenant) string {
	return filepath.Join(w.dir, "store", "instances", t.UID().String()+"-1")
}

// twoTenants makes two tenants with the same keys in both, and closes the store.
func twoTenants(t *testing.T) (w *world, a, b string) {
	w = newWorld(t)
	s := w.open()
	ta, tb := w.tenant(s, "acme"), w.tenant(s, "beta")
	for i := range 50 {
		for _, x := range []*tenantstore.Tenant{ta, tb} {
			_, err := x.Collection("c").Put(t.Context(), fmt.Appendf(nil, "k%02d", i), append([]byte(x.ID()), bytes.Repeat([]byte("x"), 500)...))
			require.NoError(t, err)
		}
	}
	require.NoError(t, s.Close(t.Context()))
	return w, instanceDir(w, ta), instanceDir(w, tb)
}

func TestFilesOfAnotherTenantAreRefused(t *testing.T) {
	for name, attack := range map[string]func(t *testing.T, a, b string){
		"file swapped": func(t *testing.T, a, b string) {
			x, err := os.ReadFile(filepath.Join(b, "data.db"))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(a, "data.db"), x, 0o600))
		},
		"page swapped": func(t *testing.T, a, b string) {
			f, err := os.OpenFile(filepath.Join(a, "data.db"), os.O_RDWR, 0)
			require.NoError(t, err)
			defer f.Close()
			x, err := os.ReadFile(filepath.Join(b, "data.db"))
			require.NoError(t, err)
			_, err = f.WriteAt(x[4096:8192], 4096)
			require.NoError(t, err)
		},
		"directory swapped": func(t *testing.T, a, b string) {
			require.NoError(t, os.RemoveAll(a))
			require.NoError(t, os.Rename(b, a))
		},
		"symlink to the file": func(t *testing.T, a, b string) {
			require.NoError(t, os.Remove(filepath.Join(a, "data.db")))
			require.NoError(t, os.Symlink(filepath.Join(b, "data.db"), filepath.Join(a, "data.db")))
		},
		"hard link to the file": func(t *testing.T, a, b string) {
			require.NoError(t, os.Remove(filepath.Join(a, "data.db")))
			require.NoError(t, os.Link(filepath.Join(b, "data.db"), filepath.Join(a, "data.db")))
		},
		"symlink to the directory": func(t *testing.T, a, b string) {
			require.NoError(t, os.RemoveAll(a))
			require.NoError(t, os.Symlink(b, a))
		},
		"symlink as the log": func(t *testing.T, a, b string) {
			require.NoError(t, os.Symlink(filepath.Join(b, "data.db"), filepath.Join(a, "data.db-wal")))
		},
		"named pipe as the log": func(t *testing.T, a, _ string) { mkfifo(t, filepath.Join(a, "data.db-wal")) },
		"file removed":          func(t *testing.T, a, _ string) { require.NoError(t, os.Remove(filepath.Join(a, "data.db"))) },
		"directory removed":     func(t *testing.T, a, _ string) { require.NoError(t, os.RemoveAll(a)) },
		"file emptied":          func(t *testing.T, a, _ string) { require.NoError(t, os.Truncate(filepath.Join(a, "data.db"), 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := twoTenants(t)
			attack(t, a, b)
			s := w.open()
			c := w.handle(s, "acme").Collection("c")
			tampered := false
			for i := range 50 {
				r, err := c.Get(t.Context(), fmt.Appendf(nil, "k%02d", i))
				if err != nil {
					require.ErrorIs(t, err, tenantstore.ErrTampered)
					tampered = true
					continue
				}
				require.True(t, strings.HasPrefix(string(r.Value), "acme"), "the other tenant's value")
			}
			require.True(t, tampered)
			assert.Contains(t, w.log.String(), `"outcome":"failed"`, "audited")
			if !strings.Contains(name, "directory swapped") {
				_, err := w.handle(s, "beta").Collection("c").Get(t.Context(), []byte("k00"))
				if !strings.Contains(name, "hard link") {
					require.NoError(t, err, "the other tenant is disturbed")
				}
			}
		})
	}
}

// peel is an engine that lets a test reach below the sealing.
type peel struct {
	engine.Engine
	open map[engine.Ref]engine.DB
}

func (p *peel) Name() string { return "peel" }
func (p *peel) Open(ctx context.Context, r engine.Ref, k []byte) (engine.DB, error) {
	db, err := p.Engine.Open(ctx, r, k)
	p.open[r] = db
	return db, err
}

func rows(t *testing.T, db engine.DB, min int) (kvs []engine.KV) {
	t.Helper()
	require.NoError(t, db.View(t.Context(), func(tx engine.Tx) error {
		for kv, err := range tx.Scan(nil, nil, false, 1000) {
			require.NoError(t, err)
			if len(kv.Value) >= min {
				kvs = append(kvs, kv)
			}
		}
		return nil
	}))
	return kvs
}

// What the database's administrator can do: move sealed records about.
func TestMovedRecordsDoNotOpen(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	inner, err := sqlite.New(filepath.Join(w.dir, "peel"))
	require.NoError(t, err)
	p := &peel{inner, map[engine.Ref]engine.DB{}}
	w.edit = func(c *tenantstore.Config) { c.Placement = []tenantstore.Placement{{Region: "eu", Engine: p}} }
	s := w.open()
	op := w.operator(s)
	var tenants []*tenantstore.Tenant
	for _, id := range []tenantstore.ID{"acme", "beta"} {
		_, err := s.Create(ctx, op, tenantstore.Spec{ID: id, Region: "eu"})
		require.NoError(t, err)
		w.grant(s, tenantstore.Grant{Subject: "service-" + string(id), Tenant: id, Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite}})
		x := w.handle(s, id)
		tenants = append(tenants, x)
		for _, c := range []string{"c", "d"} {
			for _, k := range []string{"k1", "k2"} {
				_, err := x.Collection(c).Put(ctx, []byte(k), []byte(string(id)+strings.Repeat("x", 100)))
				require.NoError(t, err)
			}
		}
	}
	db := p.open[engine.Ref{UID: tenants[0].UID(), Generation: 1}]
	other := p.open[engine.Ref{UID: tenants[1].UID(), Generation: 1}]
	mine, theirs := rows(t, db, 100), rows(t, other, 100)
	require.Len(t, mine, 4)
	for name, v := range map[string][]byte{
		"of another key or collection": mine[1].Value,
		"of another collection":        mine[2].Value,
		"of another tenant":            theirs[0].Value,
		"with an unknown suite":        append([]byte{9}, mine[0].Value[1:]...),
		"cut":                          mine[0].Value[:40],
		"too short":                    {1},
		"random":                       []byte(rand.Text() + rand.Text() + rand.Text()),
	} {
		require.NoError(t, db.Update(ctx, func(tx engine.Tx) error { return tx.Put(mine[0].Key, v) }))
		bad := 0
		for _, c := range []string{"c", "d"} {
			for _, k := range []string{"k1", "k2"} {
				if _, err := tenants[0].Collection(c).Get(ctx, []byte(k)); err != nil {
					require.ErrorIs(t, err, tenantstore.ErrTampered, name)
					bad++
				}
			}
		}
		require.Equal(t, 1, bad, name)
	}
	for _, kv := range mine {
		assert.NotContains(t, string(kv.Value), "xxxxxxxx")
	}

	// An old generation's record does not open in the new one.
	require.NoError(t, db.Update(ctx, func(tx engine.Tx) error { return tx.Put(mine[0].Key, mine[0].Value) }))
	require.NoError(t, s.RotateKey(ctx, op, "acme"))
	_, err = tenants[0].Collection("c").Get(ctx, []byte("k1"))
	require.NoError(t, err)
	db = p.open[engine.Ref{UID: tenants[0].UID(), Generation: 2}]
	require.NoError(t, db.Update(ctx, func(tx engine.Tx) error {
		for _, kv := range mine {
			if err := tx.Put(kv.Key, kv.Value); err != nil {
				return err
			}
		}
		return nil
	}))
	_, err = tenants[0].Collection("c").Get(ctx, []byte("k1"))
	require.ErrorIs(t, err, tenantstore.ErrTampered)
}

// TestCanaryIsNowhereInClear writes marked names, keys and values and looks for
// them in every file below the store, while it runs and after, and in the log.
func TestCanaryIsNowhereInClear(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	a := w.tenant(s, "acme")
	const canary = "CANARY7f3a"
	c := a.Collection(canary)
	for i := range 200 {
		_, err := c.Put(ctx, fmt.Appendf(nil, "%s-%d", canary, i), bytes.Repeat([]byte(canary), 100))
		require.NoError(t, err)
		require.NoError(t, c.Append(ctx, canary, time.Now(), []byte(canary)))
	}
	_, err := a.Ingest(ctx, canary, func(*tenantstore.Tx) error { return nil })
	require.NoError(t, err)
	_, _ = c.PutIf(ctx, []byte(canary), []byte(canary), 99)
	scan := func(when string) {
		n := 0
		require.NoError(t, filepath.WalkDir(w.dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			assert.NotContains(t, string(b), canary, "%s: %s", when, p)
			assert.NotContains(t, string(b), "SQLite format", "%s: %s", when, p)
			n++
			return nil
		}))
		require.Greater(t, n, 5)
	}
	scan("running")
	require.NoError(t, s.RotateKey(ctx, w.operator(s), "acme"))
	scan("rotated")
	require.NoError(t, s.Close(ctx))
	scan("closed")
	assert.NotContains(t, w.log.String(), canary)
}

// TestCorruptionTrials damages a tenant's file in many ways: no silent wrong
// answer, no panic, and the other tenant is not disturbed.
func TestCorruptionTrials(t *testing.T) {
	w, a, _ := twoTenants(t)
	file := filepath.Join(a, "data.db")
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	rnd := mrand.New(mrand.NewPCG(1, 2))
	clean, harmless := 0, 0
	trials := testenv.N(60, 500)
	for i := range trials {
		b := bytes.Clone(whole)
		switch i % 4 {
		case 0:
			b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
		case 1:
			b = b[:rnd.IntN(len(b))]
		case 2:
			x, y := rnd.IntN(len(b)/4096)*4096, rnd.IntN(len(b)/4096)*4096
			page := bytes.Clone(b[x : x+4096])
			copy(b[x:], b[y:y+4096])
			copy(b[y:], page)
		case 3:
			x := rnd.IntN(len(b)/4096) * 4096
			_, _ = rand.Read(b[x : x+4096])
		}
		require.NoError(t, os.WriteFile(file, b, 0o600))
		s := w.open()
		bad := false
		c := w.handle(s, "acme").Collection("c")
		n := 0
		for r, err := range c.Scan(t.Context(), tenantstore.Range{}) {
			if err != nil {
				require.ErrorIs(t, err, tenantstore.ErrTampered, "trial %d", i)
				bad = true
				break
			}
			require.Equal(t, "acme", string(r.Value[:4]), "trial %d", i)
			n++
		}
		if !bad {
			require.Equal(t, 50, n, "trial %d: records are missing without an error", i)
		}
		for j := range 50 {
			r, err := c.Get(t.Context(), fmt.Appendf(nil, "k%02d", j))
			if err != nil {
				require.ErrorIs(t, err, tenantstore.ErrTampered, "trial %d", i)
				bad = true
				break
			}
			require.Equal(t, "acme", string(r.Value[:4]))
		}
		if bad {
			clean++
		} else {
			harmless++
			require.True(t, bytes.Equal(b, whole) || i%4 != 3, "trial %d: damage went unnoticed", i)
		}
		_, err := w.handle(s, "beta").Collection("c").Get(t.Context(), []byte("k00"))
		require.NoError(t, err)
		require.NoError(t, s.Close(t.Context()))
		for _, junk := range []string{"data.db-wal", "data.db-journal"} {
			_ = os.Remove(filepath.Join(a, junk))
		}
	}
	t.Logf("%d trials: %d clean errors, %d without effect on what was read", trials, clean, harmless)
}
