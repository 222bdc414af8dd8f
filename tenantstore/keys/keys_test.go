package keys_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
)

// softwareTPM is the TPM of these tests.
func softwareTPM(t *testing.T) transport.TPM {
	dev, _ := tpmtest.New(t)
	return dev.Device
}

var key = bytes.Repeat([]byte("k"), 64)

// exercise is what every provider must do.
func exercise(t *testing.T, p tenantstore.KeyProvider) {
	ctx := t.Context()
	kc := tenantstore.KeyContext{Store: tenantstore.UID{1}, Tenant: tenantstore.UID{2}, Generation: 3}
	require.NoError(t, p.Create(ctx, "key-1"))
	require.NoError(t, p.Create(ctx, "key-1"), "again")
	require.NoError(t, p.Create(ctx, "key-2"))
	wrapped, err := p.Wrap(ctx, "key-1", key, kc)
	require.NoError(t, err)
	assert.NotContains(t, string(wrapped), string(key[:16]))
	got, err := p.Unwrap(ctx, "key-1", wrapped, kc)
	require.NoError(t, err)
	require.Equal(t, key, got)

	for name, c := range map[string]tenantstore.KeyContext{
		"another store":      {Store: tenantstore.UID{9}, Tenant: kc.Tenant, Generation: 3},
		"another tenant":     {Store: kc.Store, Tenant: tenantstore.UID{9}, Generation: 3},
		"another generation": {Store: kc.Store, Tenant: kc.Tenant, Generation: 4},
	} {
		_, err := p.Unwrap(ctx, "key-1", wrapped, c)
		require.Error(t, err, name)
	}
	_, err = p.Unwrap(ctx, "key-1", append([]byte{0}, wrapped...), kc)
	require.Error(t, err)
	_, err = p.Unwrap(ctx, "key-1", nil, kc)
	require.Error(t, err)
	_, err = p.Unwrap(ctx, "never-made", wrapped, kc)
	require.Error(t, err)
	for _, id := range []string{"", "../x", "master", "A"} {
		require.Error(t, p.Create(ctx, id), id)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = p.Unwrap(canceled, "key-1", wrapped, kc)
	require.ErrorIs(t, err, context.Canceled)

	require.NoError(t, p.Destroy(ctx, "key-1"))
	require.NoError(t, p.Destroy(ctx, "key-1"), "again")
	_, err = p.Unwrap(ctx, "key-1", wrapped, kc)
	require.ErrorIs(t, err, tenantstore.ErrKeyDestroyed)
}

func TestDirWithFile(t *testing.T) {
	dir := t.TempDir()
	p, err := keys.OpenDir(t.Context(), dir, nil)
	require.NoError(t, err)
	exercise(t, p)
	require.ErrorIs(t, p.Create(t.Context(), "key-1"), tenantstore.ErrKeyDestroyed, "a destroyed key does not come back")
	_, err = p.Unwrap(t.Context(), "key-2", make([]byte, 104), tenantstore.KeyContext{})
	require.ErrorIs(t, err, tenantstore.ErrTampered, "not another key, however it was wrapped")

	b, err := os.ReadFile(filepath.Join(dir, "key-2.json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key-3.json"), b, 0o600))
	_, err = p.Wrap(t.Context(), "key-3", key, tenantstore.KeyContext{})
	require.ErrorIs(t, err, tenantstore.ErrTampered, "a key file under another name")
	p.Close()
	_, err = p.Wrap(t.Context(), "key-2", key, tenantstore.KeyContext{})
	require.ErrorIs(t, err, tenantstore.ErrKeyUnavailable)

	fi, err := os.Stat(filepath.Join(dir, "master.json"))
	require.NoError(t, err)
	assert.EqualValues(t, 0o600, fi.Mode().Perm())
}

func TestDirSealedToTPM(t *testing.T) {
	dir := t.TempDir()
	bus := &tpmtest.Bus{TPM: softwareTPM(t)}
	p, err := keys.OpenDir(t.Context(), dir, bus)
	require.NoError(t, err)
	exercise(t, p)
	wrapped, err := p.Wrap(t.Context(), "key-2", key, tenantstore.KeyContext{})
	require.NoError(t, err)

	again, err := keys.OpenDir(t.Context(), dir, bus)
	require.NoError(t, err)
	got, err := again.Unwrap(t.Context(), "key-2", wrapped, tenantstore.KeyContext{})
	require.NoError(t, err)
	require.Equal(t, key, got)

	_, err = keys.OpenDir(t.Context(), dir, nil)
	require.ErrorIs(t, err, tenantstore.ErrInvalid, "the directory alone opens nothing")
	_, err = keys.OpenDir(t.Context(), dir, softwareTPM(t))
	require.ErrorIs(t, err, tenantstore.ErrKeyUnavailable, "nor does it with another TPM")
}

func TestAgeTakesBothKeys(t *testing.T) {
	inner, err := keys.OpenDir(t.Context(), t.TempDir(), nil)
	require.NoError(t, err)
	id, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	other, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	var withheld error
	ids := []age.Identity{id}
	p, err := keys.NewAge(inner, func(context.Context) ([]age.Identity, error) { return ids, withheld }, id.Recipient())
	require.NoError(t, err)
	kc := tenantstore.KeyContext{Tenant: tenantstore.UID{1}}
	require.NoError(t, p.Create(t.Context(), "key-9"))
	wrapped, err := p.Wrap(t.Context(), "key-9", key, kc)
	require.NoError(t, err)
	withheld = errors.New("no")
	_, err = p.Unwrap(t.Context(), "key-9", wrapped, kc)
	require.ErrorIs(t, err, tenantstore.ErrKeyUnavailable, "the tenant withholds its identity")
	withheld, ids = nil, []age.Identity{other}
	_, err = p.Unwrap(t.Context(), "key-9", wrapped, kc)
	require.ErrorIs(t, err, tenantstore.ErrKeyUnavailable, "another identity")
	ids = nil
	_, err = p.Unwrap(t.Context(), "key-9", wrapped, kc)
	require.ErrorIs(t, err, tenantstore.ErrKeyUnavailable, "no identity")
	ids = []age.Identity{id}
	_, err = p.Unwrap(t.Context(), "key-9", wrapped, kc)
	require.NoError(t, err)
	exercise(t, p)
	_, err = keys.NewAge(inner, nil, id.Recipient())
	require.ErrorIs(t, err, tenantstore.ErrInvalid)
}

// transit is what this package uses of OpenBao's transit engine.
type transit struct {
	mu      sync.Mutex
	keys    map[string]*transitKey
	failing int // status to answer with, or 0
}

type transitKey struct {
	a         cipher.AEAD
	deletable bool
}

func (s *transit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(status int, text string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{text}})
	}
	if s.failing != 0 {
		fail(s.failing, "upstream says no")
		return
	}
	if r.Header.Get("X-Vault-Token") != "hvs.test" {
		fail(http.StatusForbidden, "permission denied")
		return
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/transit/"), "/")
	var in struct {
		Plaintext      []byte `json:"plaintext"`
		Ciphertext     string `json:"ciphertext"`
		AssociatedData []byte `json:"associated_data"`
		Deletable      bool   `json:"deletion_allowed"`
	}
	_ = json.NewDecoder(r.Body).Decode(&in)
	op, name := parts[0], parts[1]
	k := s.keys[name]
	if k == nil && (op != "keys" || len(parts) > 2 || r.Method == http.MethodDelete) {
		fail(http.StatusBadRequest, "encryption key not found")
		return
	}
	switch {
	case op == "keys" && len(parts) > 2:
		k.deletable = in.Deletable
	case op == "keys" && r.Method == http.MethodDelete:
		if !k.deletable {
			fail(http.StatusBadRequest, "deletion is not allowed for this key")
			return
		}
		delete(s.keys, name)
	case op == "keys" && k == nil:
		b := make([]byte, 32)
		_, _ = rand.Read(b)
		block, _ := aes.NewCipher(b)
		a, _ := cipher.NewGCMWithRandomNonce(block)
		s.keys[name] = &transitKey{a: a}
	case op == "encrypt":
		ct := "vault:v1:" + base64.StdEncoding.EncodeToString(k.a.Seal(nil, nil, in.Plaintext, in.AssociatedData))
		_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]string{"ciphertext": ct}})
	case op == "decrypt":
		ct, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(in.Ciphertext, "vault:v1:"))
		if err != nil || !strings.HasPrefix(in.Ciphertext, "vault:v1:") {
			fail(http.StatusBadRequest, "invalid ciphertext: no prefix")
			return
		}
		pt, err := k.a.Open(nil, nil, ct, in.AssociatedData)
		if err != nil {
			fail(http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"plaintext": pt}, "request_id": "x"})
	}
}

func TestTransit(t *testing.T) {
	srv := &transit{keys: map[string]*transitKey{}}
	server := httptest.NewTLSServer(srv)
	defer server.Close()
	token := "hvs.test"
	cfg := keys.TransitConfig{Address: server.URL, Client: server.Client(), Token: func(context.Context) (string, error) { return token, nil }}
	p, err := keys.NewTransit(cfg)
	require.NoError(t, err)
	exercise(t, p)

	wrapped, err := p.Wrap(t.Context(), "key-2", key, tenantstore.KeyContext{})
	require.NoError(t, err)
	unwrap := func() error {
		_, err := p.Unwrap(t.Context(), "key-2", wrapped, tenantstore.KeyContext{})
		return err
	}
	for _, status := range []int{429, 500, 503, 400, 404, 301} {
		srv.failing = status
		require.ErrorIs(t, unwrap(), tenantstore.ErrKeyUnavailable, status)
	}
	srv.failing = 0
	token = "revoked"
	err = unwrap()
	require.ErrorIs(t, err, tenantstore.ErrKeyUnavailable)
	require.NotErrorIs(t, err, tenantstore.ErrKeyDestroyed)
	require.NotContains(t, err.Error(), "revoked", "the token is in an error")
	server.Close()
	require.ErrorIs(t, unwrap(), tenantstore.ErrKeyUnavailable)

	for _, address := range []string{"", "http://127.0.0.1:8200", "https://user:pw@host", "ftp://x"} {
		_, err := keys.NewTransit(keys.TransitConfig{Address: address, Token: cfg.Token})
		require.ErrorIs(t, err, tenantstore.ErrInvalid, address)
	}
}

func FuzzKeyFile(f *testing.F) {
	seed := f.TempDir()
	p, err := keys.OpenDir(context.Background(), seed, nil)
	require.NoError(f, err)
	require.NoError(f, p.Create(context.Background(), "key-1"))
	b, err := os.ReadFile(filepath.Join(seed, "key-1.json"))
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(`{"version":1,"id":"key-1","gone":true}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(seed, "key-1.json"), file, 0o600))
		_, err := p.Wrap(t.Context(), "key-1", key, tenantstore.KeyContext{})
		if err == nil && !bytes.Contains(file, []byte("sealed")) {
			t.Fatal("a key out of nothing")
		}
	})
}
