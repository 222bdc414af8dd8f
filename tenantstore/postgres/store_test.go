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
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
	"github.com/trusttree/trusttree/tenantstore/postgres"
)

// store opens a store with a PostgreSQL engine in region "eu" and returns it
// with its operator and a service of the tenant "acme".
func store(t *testing.T, e *postgres.Engine, system string) (s *tenantstore.Store, op, svc tenantstore.Principal) {
	ctx := t.Context()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	cert := func(cn string) []*x509.Certificate {
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
	roots := x509.NewCertPool()
	roots.AddCert(cert("root")[0])
	public, owner, _ := ed25519.GenerateKey(nil)
	k, err := keys.OpenDir(ctx, filepath.Join(t.TempDir(), "keys"), nil)
	require.NoError(t, err)
	s, err = tenantstore.Open(ctx, tenantstore.Config{Dir: t.TempDir(), Keys: k, Owners: []crypto.PublicKey{public}, Roots: roots, Region: "eu", System: system,
		Placement: []tenantstore.Placement{{Region: "eu", Engine: e}}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	signed, err := tenantstore.SignAssignments(tenantstore.Assignments{Store: "trusttree", Serial: 1, Expires: time.Now().Add(time.Hour), Grants: []tenantstore.Grant{
		{Subject: "operator", Roles: []tenantstore.Role{tenantstore.RoleControl}},
		{Subject: "service", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite, tenantstore.RoleAdmin}},
	}}, owner)
	require.NoError(t, err)
	require.NoError(t, s.Assign(ctx, signed))
	op, err = s.Authenticate(ctx, cert("operator"), "")
	require.NoError(t, err)
	svc, err = s.Authenticate(ctx, cert("service"), "")
	require.NoError(t, err)
	return s, op, svc
}

// TestStoreMovesBetweenEngines creates a tenant on the embedded engine, outgrows
// it, and comes back; a canary written on the way is nowhere on the server.
func TestStoreMovesBetweenEngines(t *testing.T) {
	c, ctx := server(t), t.Context()
	e, err := postgres.New(ctx, postgres.Config{Admin: c.admin})
	require.NoError(t, err)
	defer e.Close()
	s, op, svc := store(t, e, "postgres")
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

	dump := exec.Command(testenv.Tool(t, "pg_dump", "postgresql"), "-d", c.admin+" dbname="+database(t, e, a))
	out, err := dump.Output()
	require.NoError(t, err)
	require.Greater(t, len(out), 50_000)
	assert.NotContains(t, string(out), canary, "pg_dump")
	hexed := fmt.Sprintf("%x", canary)
	assert.NotContains(t, string(out), hexed, "pg_dump")
	require.NoError(t, filepath.WalkDir(c.dir, func(p string, d fs.DirEntry, err error) error {
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
