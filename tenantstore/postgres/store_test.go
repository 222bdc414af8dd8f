package postgres_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/keys"
	"github.com/trusttree/trusttree/tenantstore/postgres"
)

// site is what the processes of one store have in common.
type site struct {
	owner ed25519.PrivateKey
	roots *x509.CertPool
	keys  tenantstore.KeyProvider
	cert  func(cn string) []*x509.Certificate
	woken atomic.Int64 // how often a store was
	lost  atomic.Int64
}

// logger counts what the stores say about waking.
func (w *site) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(counter{w}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type counter struct{ w *site }

func (c counter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(`"tenantstore.woken"`)) {
		c.w.woken.Add(1)
	}
	if bytes.Contains(p, []byte(`"tenantstore.listen_lost"`)) {
		c.w.lost.Add(1)
	}
	return len(p), nil
}

func newSite(t *testing.T) *site {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	w := &site{roots: x509.NewCertPool()}
	w.cert = func(cn string) []*x509.Certificate {
		x := tmpl
		if cn != "root" {
			x = &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cn}, NotBefore: tmpl.NotBefore, NotAfter: tmpl.NotAfter,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		}
		der, err := x509.CreateCertificate(rand.Reader, x, tmpl, key.Public(), key)
		require.NoError(t, err)
		c, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		return []*x509.Certificate{c}
	}
	w.roots.AddCert(w.cert("root")[0])
	_, w.owner, err = ed25519.GenerateKey(nil)
	require.NoError(t, err)
	w.keys, err = keys.OpenDir(t.Context(), filepath.Join(t.TempDir(), "keys"), nil)
	require.NoError(t, err)
	return w
}

func (w *site) open(t *testing.T, e engine.Engine, dir, instance string) *tenantstore.Store {
	s, err := tenantstore.Open(t.Context(), tenantstore.Config{Dir: dir, Logger: w.logger(), Keys: w.keys, Owners: []crypto.PublicKey{w.owner.Public()}, Roots: w.roots,
		Region: "eu", System: e.Name(), Instance: instance, Placement: []tenantstore.Placement{{Region: "eu", Engine: e}}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

func (w *site) assign(t *testing.T, s *tenantstore.Store, serial uint64, roles ...tenantstore.Role) {
	signed, err := tenantstore.SignAssignments(tenantstore.Assignments{Store: "trusttree", Serial: serial, Expires: time.Now().Add(time.Hour), Grants: []tenantstore.Grant{
		{Subject: "operator", Roles: []tenantstore.Role{tenantstore.RoleControl}},
		{Subject: "service", Tenant: "acme", Roles: roles},
	}}, w.owner)
	require.NoError(t, err)
	require.NoError(t, s.Assign(t.Context(), signed))
}

func (w *site) principal(t *testing.T, s *tenantstore.Store, cn string) tenantstore.Principal {
	p, err := s.Authenticate(t.Context(), w.cert(cn), "")
	require.NoError(t, err)
	return p
}

// TestTwoProcessesShareAStore has two stores on one system instance: what one
// changes the other follows within a second, and each has a log of its own.
func TestTwoProcessesShareAStore(t *testing.T) {
	c, ctx := server(t), t.Context()
	e, err := postgres.New(ctx, postgres.Config{Admin: c.Admin, Schemas: true})
	require.NoError(t, err)
	defer e.Close()
	defer func() {
		refs, err := e.List(ctx)
		require.NoError(t, err)
		for _, r := range refs {
			require.NoError(t, e.Destroy(ctx, r))
		}
	}()
	w := newSite(t)
	dirs := []string{t.TempDir(), t.TempDir()}
	one := w.open(t, e, dirs[0], "one")
	w.assign(t, one, 1, tenantstore.RoleRead, tenantstore.RoleWrite)
	boot, err := os.ReadFile(filepath.Join(dirs[0], "store.json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dirs[1], "store.json"), boot, 0o600))
	two := w.open(t, e, dirs[1], "two")
	assert.NotEqual(t, one.AuditKey(), two.AuditKey())

	op := w.principal(t, one, "operator")
	_, err = one.Create(ctx, op, tenantstore.Spec{ID: "acme", Engine: e.Name()})
	require.NoError(t, err)
	var cols []*tenantstore.Collection
	for _, s := range []*tenantstore.Store{one, two} {
		a, err := s.Tenant(ctx, w.principal(t, s, "service"))
		require.NoError(t, err)
		cols = append(cols, a.Collection("c"))
	}
	v, err := cols[0].PutIf(ctx, []byte("k"), []byte("one"), 0)
	require.NoError(t, err)
	_, err = cols[1].PutIf(ctx, []byte("k"), []byte("two"), v)
	require.NoError(t, err)
	_, err = cols[0].PutIf(ctx, []byte("k"), []byte("late"), v)
	require.ErrorIs(t, err, tenantstore.ErrConflict)

	// The old generation takes no write of the other process any more, and
	// what it goes on to write is in the new one, without an error.
	require.NoError(t, one.RotateKey(ctx, op, "acme"))
	_, err = cols[1].Put(ctx, []byte("after"), []byte("two"))
	require.NoError(t, err)
	r, err := cols[0].Get(ctx, []byte("after"))
	require.NoError(t, err)
	assert.Equal(t, "two", string(r.Value))

	before := w.woken.Load()
	require.NoError(t, one.Suspend(ctx, op, "acme"))
	require.Eventually(t, func() bool { return w.woken.Load() >= before+2 }, 60*time.Second, time.Millisecond, "both are told at once, without a poll")
	require.Eventually(t, func() bool {
		_, err := cols[1].Get(ctx, []byte("k"))
		return errors.Is(err, tenantstore.ErrTenantClosed)
	}, 60*time.Second, 50*time.Millisecond)
	// The listening connections are cut: the poll goes on, and they come back.
	before = w.woken.Load()
	admin(t, c, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
	require.NoError(t, two.Resume(ctx, w.principal(t, two, "operator"), "acme"))
	require.Eventually(t, func() bool { return w.lost.Load() >= 2 && w.woken.Load() >= before+2 }, 60*time.Second, 10*time.Millisecond)
	w.assign(t, two, 2, tenantstore.RoleRead)
	require.Eventually(t, func() bool {
		_, err := cols[0].Put(ctx, []byte("k"), nil)
		return errors.Is(err, tenantstore.ErrDenied)
	}, 60*time.Second, 50*time.Millisecond)
	require.NoError(t, one.Recover(ctx, op))
	require.NoError(t, one.Close(ctx))
	require.NoError(t, two.Close(ctx))
}

// TestStoreMovesBetweenEngines creates a tenant on the embedded engine, outgrows
// it, and comes back; a canary written on the way is nowhere on the server.
func TestStoreMovesBetweenEngines(t *testing.T) {
	c, ctx := server(t), t.Context()
	e, err := postgres.New(ctx, postgres.Config{Admin: c.Admin})
	require.NoError(t, err)
	defer e.Close()
	w := newSite(t)
	s := w.open(t, e, t.TempDir(), "")
	w.assign(t, s, 1, tenantstore.RoleRead, tenantstore.RoleWrite, tenantstore.RoleAdmin)
	op, svc := w.principal(t, s, "operator"), w.principal(t, s, "service")
	defer func() {
		require.NoError(t, s.Close(ctx))
		refs, err := e.List(ctx)
		require.NoError(t, err)
		for _, r := range refs {
			require.NoError(t, e.Destroy(ctx, r))
		}
	}()
	_, err = s.Create(ctx, op, tenantstore.Spec{ID: "acme"})
	require.NoError(t, err)
	a, err := s.Tenant(ctx, svc)
	require.NoError(t, err)
	const canary = "CANARY9d2e"
	col := a.Collection(canary)
	for i := range 400 {
		_, err := col.Put(ctx, fmt.Appendf(nil, "k%03d", i), bytes.Repeat([]byte(canary), 20))
		require.NoError(t, err)
	}
	count := func() (n int) {
		for r, err := range col.Scan(ctx, tenantstore.Range{}) {
			require.NoError(t, err)
			require.Equal(t, canary, string(r.Value[:len(canary)]))
			n++
		}
		return n
	}
	require.NoError(t, s.Migrate(ctx, op, "acme", "postgres"))
	assert.Equal(t, 400, count())
	require.NoError(t, col.Append(ctx, canary, time.Now(), []byte(canary)))
	fresh, err := a.Ingest(ctx, canary, func(x *tenantstore.Tx) error { _, err := x.PutIf("c", []byte("k"), []byte(canary), 0); return err })
	require.NoError(t, err)
	assert.True(t, fresh)
	fresh, err = a.Ingest(ctx, canary, func(*tenantstore.Tx) error { return nil })
	require.NoError(t, err)
	assert.False(t, fresh)
	require.NoError(t, s.RotateKey(ctx, op, "acme"))
	assert.Equal(t, 400, count())

	dump := exec.Command(testenv.Tool(t, "pg_dump", "postgresql"), "-d", c.Admin+" dbname="+database(t, e, a))
	out, err := dump.Output()
	require.NoError(t, err)
	require.Greater(t, len(out), 50_000)
	assert.NotContains(t, string(out), canary, "pg_dump")
	hexed := fmt.Sprintf("%x", canary)
	assert.NotContains(t, string(out), hexed, "pg_dump")
	require.NoError(t, filepath.WalkDir(c.Dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Type()&fs.ModeSocket != 0 {
			return nil //nolint:nilerr // files come and go while the server runs
		}
		b, err := os.ReadFile(p)
		if err == nil {
			assert.False(t, bytes.Contains(b, []byte(canary)) || bytes.Contains(b, []byte(hexed)), "in %s", p)
		}
		return nil
	}))

	require.NoError(t, s.Migrate(ctx, op, "acme", "embedded"))
	assert.Equal(t, 400, count())
	refs, err := e.List(ctx)
	require.NoError(t, err)
	assert.Len(t, refs, 1, "the system instance alone is left on the server")
	_, err = s.Destroy(ctx, op, "acme")
	require.NoError(t, err)
}

func database(t *testing.T, e *postgres.Engine, a *tenantstore.Tenant) string {
	refs, err := e.List(t.Context())
	require.NoError(t, err)
	for _, r := range refs {
		if tenantstore.UID(r.UID) == a.UID() {
			return fmt.Sprintf("t_%x_%d", r.UID, r.Generation)
		}
	}
	t.Fatal("the tenant is not on the server")
	return ""
}
