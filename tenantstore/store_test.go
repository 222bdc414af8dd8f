package tenantstore_test

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
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
)

// world is everything around a store: an issuer, an owner, keys, a log.
type world struct {
	tb     testing.TB
	dir    string
	ca     *x509.Certificate
	caKey  crypto.Signer
	owner  ed25519.PrivateKey
	keys   tenantstore.KeyProvider
	clock  func() time.Time
	log    *syncBuffer
	serial uint64
	grants []tenantstore.Grant
	edit   func(*tenantstore.Config)
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{tb: tb, dir: memoryDir(tb), clock: time.Now, log: new(syncBuffer)}
	_, w.owner, _ = ed25519.GenerateKey(nil)
	w.ca, w.caKey = issue(tb, nil, nil, "test root", "")
	k, err := keys.OpenDir(context.Background(), filepath.Join(w.dir, "keys"), nil)
	require.NoError(tb, err)
	w.keys = k
	return w
}

// memoryDir is a directory in memory, where there is one: syncs cost nothing.
// Benchmarks use the disk.
func memoryDir(tb testing.TB) string {
	tb.Helper()
	if _, ok := tb.(*testing.B); !ok {
		if dir, err := os.MkdirTemp("/dev/shm", "tenantstore"); err == nil {
			tb.Cleanup(func() { _ = os.RemoveAll(dir) })
			return dir
		}
	}
	return tb.TempDir()
}

// reopenKeys opens the copy of the key directory that a copied world has.
func reopenKeys(tb testing.TB, w *world) tenantstore.KeyProvider {
	tb.Helper()
	k, err := keys.OpenDir(context.Background(), filepath.Join(w.dir, "keys"), nil)
	require.NoError(tb, err)
	return k
}

func issue(tb testing.TB, parent *x509.Certificate, parentKey crypto.Signer, cn, uri string) (*x509.Certificate, crypto.Signer) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(tb, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if uri != "" {
		u, err := url.Parse(uri)
		require.NoError(tb, err)
		tmpl.URIs = []*url.URL{u}
	}
	if parent == nil {
		parent, parentKey = tmpl, key
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.ExtKeyUsage = true, true, nil
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), parentKey)
	require.NoError(tb, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(tb, err)
	return c, key
}

func (w *world) cert(cn string) []*x509.Certificate {
	c, _ := issue(w.tb, w.ca, w.caKey, cn, "")
	return []*x509.Certificate{c}
}

func (w *world) config() tenantstore.Config {
	roots := x509.NewCertPool()
	roots.AddCert(w.ca)
	cfg := tenantstore.Config{Dir: filepath.Join(w.dir, "store"), Keys: w.keys, Owners: []crypto.PublicKey{w.owner.Public()}, Roots: roots,
		Clock: func() time.Time { return w.clock() }, Logger: slog.New(slog.NewJSONHandler(w.log, nil))}
	if w.edit != nil {
		w.edit(&cfg)
	}
	return cfg
}

func (w *world) open() *tenantstore.Store {
	w.tb.Helper()
	s, err := tenantstore.Open(context.Background(), w.config())
	require.NoError(w.tb, err)
	w.tb.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

func (w *world) grant(s *tenantstore.Store, g ...tenantstore.Grant) {
	w.tb.Helper()
	w.grants = append(w.grants, g...)
	w.assign(s)
}

func (w *world) assign(s *tenantstore.Store) {
	w.tb.Helper()
	require.NoError(w.tb, s.Assign(context.Background(), w.signed()))
}

func (w *world) signed() []byte {
	w.tb.Helper()
	w.serial++
	b, err := tenantstore.SignAssignments(tenantstore.Assignments{Store: "trusttree", Serial: w.serial, Expires: w.clock().Add(365 * 24 * time.Hour), Grants: w.grants}, w.owner)
	require.NoError(w.tb, err)
	return b
}

func (w *world) principal(s *tenantstore.Store, cn, stream string) tenantstore.Principal {
	w.tb.Helper()
	p, err := s.Authenticate(context.Background(), w.cert(cn), stream)
	require.NoError(w.tb, err)
	return p
}

func (w *world) operator(s *tenantstore.Store) tenantstore.Principal {
	w.tb.Helper()
	if len(w.grants) == 0 {
		w.grant(s, tenantstore.Grant{Subject: "operator", Roles: []tenantstore.Role{tenantstore.RoleControl}})
	}
	return w.principal(s, "operator", "")
}

// tenant makes a tenant and returns a handle with all data roles in it.
func (w *world) tenant(s *tenantstore.Store, id tenantstore.ID) *tenantstore.Tenant {
	w.tb.Helper()
	_, err := s.Create(context.Background(), w.operator(s), tenantstore.Spec{ID: id})
	require.NoError(w.tb, err)
	w.grant(s, tenantstore.Grant{Subject: "service-" + string(id), Tenant: id,
		Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite, tenantstore.RoleAdmin}})
	return w.handle(s, id)
}

func (w *world) handle(s *tenantstore.Store, id tenantstore.ID) *tenantstore.Tenant {
	w.tb.Helper()
	t, err := s.Tenant(context.Background(), w.principal(s, "service-"+string(id), ""))
	require.NoError(w.tb, err)
	return t
}

// info is what the catalogue says of a tenant.
func (w *world) info(s *tenantstore.Store, id tenantstore.ID) tenantstore.Info {
	list, err := s.Tenants(context.Background(), w.operator(s))
	require.NoError(w.tb, err)
	for _, i := range list {
		if i.ID == id {
			return i
		}
	}
	require.Fail(w.tb, "no such tenant")
	return tenantstore.Info{}
}
