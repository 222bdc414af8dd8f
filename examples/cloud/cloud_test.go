package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/attest/registry/registrytest"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
)

func initialised(t *testing.T) string {
	t.Helper()
	state := filepath.Join(t.TempDir(), "cloud")
	require.NoError(t, command(t.Context(), []string{"init", "-state", state + "/"}, &bytes.Buffer{}))
	return state
}

func TestInitMakesWhatServeNeeds(t *testing.T) {
	state := initialised(t)
	require.NoError(t, filepath.WalkDir(state, func(path string, d os.DirEntry, walkErr error) error {
		if walkErr != nil {
			return walkErr
		}
		fi, err := d.Info()
		if err == nil && d.Type().IsRegular() && filepath.Dir(path) == state {
			assert.Equal(t, os.FileMode(0o600), fi.Mode().Perm(), path)
		}
		return err
	}))
	boot, err := wire.LoadBootstrap(filepath.Join(state, "bootstrap.json"))
	require.NoError(t, err)
	assert.Equal(t, "city.example", boot.TrustDomain)

	// Without a TPM maker no node could enrol: it says what to do.
	err = command(t.Context(), []string{"serve", "-state", state, "-check"}, &bytes.Buffer{})
	require.ErrorContains(t, err, "tpm-makers")
	maker, err := os.ReadFile(filepath.Join(state, "ca.crt"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(state, "tpm-makers", "maker.pem"), maker, 0o600))
	for _, offline := range []string{"owner.key", "policy.key", "recovery.key", "keys/root.key"} {
		require.NoError(t, os.Remove(filepath.Join(state, offline)), "as the command says")
	}
	var out bytes.Buffer
	require.NoError(t, command(t.Context(), []string{"serve", "-state", state, "-check"}, &out))
	assert.Contains(t, out.String(), "ok, domain city.example")
}

func TestInitNeverReplacesKeys(t *testing.T) {
	state := initialised(t)
	before, err := os.ReadFile(filepath.Join(state, "ca.key"))
	require.NoError(t, err)
	err = command(t.Context(), []string{"init", "-state", state}, &bytes.Buffer{})
	assert.Equal(t, wire.ExitUsage, wire.Report(&bytes.Buffer{}, "cloud", err))
	after, err := os.ReadFile(filepath.Join(state, "ca.key"))
	require.NoError(t, err)
	assert.Equal(t, before, after)
}

// TestFilesOfAnySizeAreNamed: an empty file, or one of gigabytes, in the state
// directory stops the cloud at once, with the file's name.
func TestFilesOfAnySizeAreNamed(t *testing.T) {
	state := initialised(t)
	maker, err := os.ReadFile(filepath.Join(state, "ca.crt"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(state, "tpm-makers", "maker.pem"), maker, 0o600))
	for _, name := range []string{"ca.crt", "ca.key", "gateway.crt", "gateway.key", "owner.pub", "policy.pub", "spool.key", "assignments.json", "flows.json", "module-revocations", "cloud.json"} {
		file := filepath.Join(state, name)
		good, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, size := range []int64{0, 5 << 30} {
			require.NoError(t, os.WriteFile(file, nil, 0o600))
			require.NoError(t, os.Truncate(file, size)) // a hole, where the file system has them
			err := command(t.Context(), []string{"serve", "-state", state, "-check"}, &bytes.Buffer{})
			assert.ErrorContains(t, err, strings.TrimSuffix(name, ".json"), "%d bytes", size)
			if size > 0 {
				assert.ErrorContains(t, err, "longer than")
			}
		}
		require.NoError(t, os.WriteFile(file, good, 0o600))
	}
	require.NoError(t, command(t.Context(), []string{"serve", "-state", state, "-check"}, &bytes.Buffer{}))
}

func TestCommandExitCodes(t *testing.T) {
	state := initialised(t)
	require.NoError(t, os.WriteFile(filepath.Join(state, "tpm-makers", "maker.pem"), []byte("no PEM"), 0o600))
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing":         {nil, wire.ExitUsage, "say what to do"},
		"unknown verb":    {[]string{"x"}, wire.ExitUsage, `"x" is none of`},
		"no state":        {[]string{"serve"}, wire.ExitUsage, "-state DIR"},
		"absent state":    {[]string{"serve", "-state", "/absent"}, wire.ExitFailed, "cloud init"},
		"page for all":    {[]string{"serve", "-state", state, "-insecure-loopback-page", "0.0.0.0:80"}, wire.ExitUsage, "only a loopback address"},
		"bad maker":       {[]string{"serve", "-state", state, "-check"}, wire.ExitFailed, "maker.pem"},
		"assign, no file": {[]string{"assign", "-state", state}, wire.ExitUsage, "-in FILE"},
		"assign, absent":  {[]string{"assign", "-state", state, "-in", "/absent"}, wire.ExitFailed, "/absent"},
		"boot, no log":    {[]string{"boot", "-state", state}, wire.ExitUsage, "-log"},
		"boot, not a log": {[]string{"boot", "-state", state, "-log", "cloud_test.go", "-reference", "x", "-pcr-policy", "y"}, wire.ExitFailed, "cloud_test.go"},
		"issue, no name":  {[]string{"issue", "-state", state}, wire.ExitUsage, "-name"},
		"issue, bad name": {[]string{"issue", "-state", state, "-name", "../x"}, wire.ExitUsage, "-name"},
	} {
		var stderr bytes.Buffer
		code := wire.Report(&stderr, "cloud", command(t.Context(), c.args, &stderr))
		assert.Equal(t, c.code, code, "%s: %s", name, stderr.String())
		assert.Contains(t, stderr.String(), c.says, name)
	}
}

// TestBundleOfMakers: all certificates of a file count, not the first alone.
func TestBundleOfMakers(t *testing.T) {
	dir := t.TempDir()
	var bundle []byte
	for range 2 {
		a, err := newAuthority("maker.example")
		require.NoError(t, err)
		bundle = append(bundle, certPEM(a.cert)...)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "maker.pem"), bundle, 0o600))
	certs, err := loadCerts(dir)
	require.NoError(t, err)
	assert.Len(t, certs, 2)
}

func testStore(t *testing.T) *tenantstore.Store {
	t.Helper()
	dir := t.TempDir()
	a, err := newAuthority("city.example")
	require.NoError(t, err)
	kek, err := keys.OpenDir(t.Context(), filepath.Join(dir, "kek"), nil)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	store, err := tenantstore.Open(t.Context(), tenantstore.Config{Dir: filepath.Join(dir, "store"), Keys: kek, Owners: []crypto.PublicKey{a.key.Public()}, Roots: roots})
	require.NoError(t, err)
	t.Cleanup(func() { _ = store.Close(context.WithoutCancel(t.Context())) })
	return store
}

func TestRegistryOverTheStore(t *testing.T) {
	t.Run("devices", func(t *testing.T) {
		registrytest.Devices(t, devices{t: testStore(t).System()})
	})
	t.Run("devices, parsed once", func(t *testing.T) {
		registrytest.Devices(t, devices{t: testStore(t).System(), parsed: &parsedDevices{}})
	})
	t.Run("challenges", func(t *testing.T) {
		registrytest.Challenges(t, challenges{testStore(t).System()})
	})
}

func TestTokenBindsOneTPM(t *testing.T) {
	s := tokens{testStore(t).System()}
	now := time.Now()
	require.NoError(t, s.add(t.Context(), []byte("token"), now.Add(time.Hour)))
	first, second := registry.DeviceID{1}, registry.DeviceID{2}
	require.NoError(t, s.check(t.Context(), []byte("token"), first, now))
	require.NoError(t, s.use(t.Context(), []byte("token"), first, now))
	require.NoError(t, s.use(t.Context(), []byte("token"), first, now), "an answer that was lost")
	require.ErrorIs(t, s.use(t.Context(), []byte("token"), second, now), errToken, "a cloned node")
	require.ErrorIs(t, s.check(t.Context(), []byte("guess"), first, now), errToken)
	require.NoError(t, s.add(t.Context(), []byte("old"), now.Add(-time.Hour)))
	require.ErrorIs(t, s.check(t.Context(), []byte("old"), first, now), errToken)
}

func TestChallengesAreSwept(t *testing.T) {
	s := challenges{testStore(t).System()}
	now := time.Now()
	require.NoError(t, s.Put(t.Context(), "old", []byte("x"), now.Add(-time.Minute)))
	require.NoError(t, s.Put(t.Context(), "new", []byte("y"), now.Add(time.Minute)))
	require.NoError(t, s.sweep(t.Context(), now))
	_, err := s.Take(t.Context(), "old")
	require.ErrorIs(t, err, registry.ErrNotFound)
	v, err := s.Take(t.Context(), "new")
	require.NoError(t, err)
	assert.Equal(t, "y", string(v))
}

// testPage is an operator page over a fleet of one node.
func testPage(f *fleet) http.Handler {
	p := &page{domain: "city.example", fleet: f, monitor: newMonitor(f.touched), usage: newUsage(), log: slog.New(slog.DiscardHandler),
		releases: func(context.Context) ([]releaseView, error) { return nil, nil }}
	return p.handler()
}

func TestPageEscapesWhatNodesSay(t *testing.T) {
	f := newFleet("", time.Now)
	f.setState("00", "/node/00", "contraindicated", `<script>alert(1)</script>`)
	f.setLink("00", "boot", false, `<img src=x onerror=alert(1)>`)
	h := testPage(f)
	for _, path := range []string{"/", "/nodes/00", "/tenants", "/rollouts", "/events", "/?state=contraindicated&q=00"} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		assert.Equal(t, http.StatusOK, rec.Code, path)
		assert.NotContains(t, rec.Body.String(), "<script>alert", path)
		assert.NotContains(t, rec.Body.String(), "<img", path)
		assert.Contains(t, rec.Header().Get("Content-Security-Policy"), "default-src 'none'", path)
		assert.NotContains(t, rec.Header().Get("Content-Security-Policy"), "unsafe", path)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/fleet.json", nil))
	var nodes []nodeView
	require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &nodes))
	require.Len(t, nodes, 1)
	assert.Equal(t, "contraindicated", nodes[0].State)
	rec = httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/nodes/11", nil))
	assert.Equal(t, http.StatusNotFound, rec.Code)
}

func TestFailedInitLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := command(ctx, []string{"init", "-state", filepath.Join(parent, "cloud")}, &bytes.Buffer{})
	require.Error(t, err)
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	assert.Empty(t, entries)
}
