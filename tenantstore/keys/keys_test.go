package keys_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

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
	require.ErrorIs(t, p.Create(ctx, "key-1"), tenantstore.ErrKeyDestroyed, "a destroyed key does not come back")
}

func TestDirWithFile(t *testing.T) {
	dir := t.TempDir()
	p, err := keys.OpenDir(t.Context(), dir, nil)
	require.NoError(t, err)
	exercise(t, p)
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
