package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/attest/registry/registrytest"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
	"github.com/trusttree/trusttree/tenantstore/postgres"
)

// testPostgres starts a PostgreSQL server for a test and returns how its
// administrator connects.
func testPostgres(t *testing.T) string {
	t.Helper()
	initdb, server := testenv.Tool(t, "initdb", "postgresql"), testenv.Tool(t, "postgres", "postgresql")
	dir, err := os.MkdirTemp("", "cloudpg")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	password := filepath.Join(dir, "pw")
	require.NoError(t, os.WriteFile(password, []byte("admin-test"), 0o600))
	start := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if os.Geteuid() == 0 { // the server refuses to run as root
			u, err := user.Lookup("postgres")
			require.NoError(t, err)
			uid, err := strconv.Atoi(u.Uid)
			require.NoError(t, err)
			gid, err := strconv.Atoi(u.Gid)
			require.NoError(t, err)
			require.NoError(t, os.Lchown(dir, uid, gid))
			require.NoError(t, os.Lchown(password, uid, gid))
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
		return cmd
	}
	data := filepath.Join(dir, "data")
	out, err := start(exec.Command(initdb, "-D", data, "-U", "admin", "--auth=scram-sha-256", "--pwfile="+password, "--no-sync", "-E", "UTF8", "--locale=C")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	require.NoError(t, l.Close())
	cmd := start(exec.Command(server, "-D", data, "-k", dir, "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-c", "max_connections=50", "-c", "shared_buffers=32MB"))
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGQUIT); _ = cmd.Wait() })
	admin := fmt.Sprintf("host=127.0.0.1 port=%d user=admin password=admin-test dbname=postgres sslmode=disable", port)
	require.Eventually(t, func() bool {
		_, err := postgres.New(t.Context(), postgres.Config{Admin: admin})
		return err == nil
	}, 30*time.Second, 50*time.Millisecond)
	return admin
}

// instances opens the stores of two cloud instances over one PostgreSQL.
func instances(t *testing.T, admin string) (one, two *tenantstore.Store) {
	t.Helper()
	dir := t.TempDir()
	a, err := newAuthority("city.example")
	require.NoError(t, err)
	kek, err := keys.OpenDir(t.Context(), filepath.Join(dir, "kek"), nil)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	open := func(name string) *tenantstore.Store {
		db, err := postgres.New(t.Context(), postgres.Config{Admin: admin})
		require.NoError(t, err)
		store, err := tenantstore.Open(t.Context(), tenantstore.Config{
			Name: "city.example", Dir: filepath.Join(dir, name), Keys: kek, Owners: []crypto.PublicKey{a.key.Public()}, Roots: roots, Instance: name,
			System: db.Name(), Placement: []tenantstore.Placement{{Region: "local", Engine: db}},
		})
		require.NoError(t, err)
		t.Cleanup(func() { _ = store.Close(context.WithoutCancel(t.Context())) })
		return store
	}
	one = open("one")
	b, err := os.ReadFile(filepath.Join(dir, "one", "store.json"))
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "two"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "two", "store.json"), b, 0o600))
	return one, open("two")
}

func TestRegistryOverPostgreSQL(t *testing.T) {
	admin := testPostgres(t)
	one, two := instances(t, admin)
	t.Run("devices", func(t *testing.T) { registrytest.Devices(t, devices{t: one.System()}) })
	t.Run("challenges", func(t *testing.T) { registrytest.Challenges(t, challenges{one.System()}) })
	t.Run("a challenge is taken once by all instances", func(t *testing.T) {
		a, b := challenges{one.System()}, challenges{two.System()}
		for i := range 10 {
			id := fmt.Sprint("both", i)
			require.NoError(t, a.Put(t.Context(), id, []byte("v"), time.Now().Add(time.Hour)))
			var wg sync.WaitGroup
			errs := make([]error, 4)
			for k, s := range []challenges{a, b, a, b} {
				wg.Go(func() { _, errs[k] = s.Take(t.Context(), id) })
			}
			wg.Wait()
			took := 0
			for _, err := range errs {
				if err == nil {
					took++
				} else {
					require.ErrorIs(t, err, registry.ErrNotFound)
				}
			}
			assert.Equal(t, 1, took)
		}
	})
	t.Run("what one instance revokes another does not overwrite", func(t *testing.T) {
		a, b := devices{t: one.System()}, devices{t: two.System()}
		d := registry.Device{ID: registry.DeviceID{9}, State: registry.Enrolled, EKCertificate: []byte{1}, AKPublic: []byte{2}, KeySPKI: []byte{3}}
		_, err := a.Put(t.Context(), d)
		require.NoError(t, err)
		stale, err := b.Get(t.Context(), d.ID)
		require.NoError(t, err)
		revoked := stale
		revoked.State = registry.Revoked
		_, err = a.Put(t.Context(), revoked)
		require.NoError(t, err)
		stale.State = registry.Affirming
		_, err = b.Put(t.Context(), stale)
		require.ErrorIs(t, err, registry.ErrConflict)
	})
}

// T10: who shows no certificate, or one that the owner gave no role, is no
// operator, at any of the pages.
func TestT10OperatorsHaveCertificates(t *testing.T) {
	store := testStore(t)
	a := &admin{store: store, fleet: newFleet("", time.Now), domain: "city.example", log: slog.New(slog.DiscardHandler)}
	server := httptest.NewUnstartedServer(a.handler())
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13} // the worst that a front end could do
	server.StartTLS()
	defer server.Close()
	stranger, err := newAuthority("evil.example")
	require.NoError(t, err)
	for name, certs := range map[string][]tls.Certificate{
		"none":     nil,
		"stranger": {{Certificate: [][]byte{stranger.cert.Raw}, PrivateKey: stranger.key}},
	} {
		client := server.Client()
		client.Transport.(*http.Transport).TLSClientConfig.Certificates = certs
		for _, route := range []string{
			"PUT /v1/admin/assignments", "PUT /v1/admin/tenants/x", "POST /v1/admin/nodes/00/revoke", "POST /v1/admin/nodes/00/release",
			"GET /v1/admin/tenants", "POST /v1/admin/tokens", "GET /v1/admin/checkpoint", "POST /v1/admin/nodes/00/reattest", "GET /v1/admin/fleet",
		} {
			method, path, _ := strings.Cut(route, " ")
			req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader("{}"))
			require.NoError(t, err)
			rsp, err := client.Do(req)
			require.NoError(t, err)
			require.NoError(t, rsp.Body.Close())
			assert.Contains(t, []int{http.StatusUnauthorized, http.StatusForbidden}, rsp.StatusCode, "%s: %s", name, route)
		}
		client.CloseIdleConnections()
	}
}
