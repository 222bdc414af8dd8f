package fscrypt_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
)

var update = flag.Bool("update", false, "write the golden volume anew")

const golden = "testdata/volume-v1"

// TestGoldenVolume opens a volume that version 1 wrote: what is on disks stays
// readable.
func TestGoldenVolume(t *testing.T) {
	p := &fscrypt.Passphrase{Passphrase: "golden", WorkFactor: 10}
	if *update {
		require.NoError(t, os.RemoveAll(golden))
		v, err := fscrypt.Create(t.Context(), golden, fscrypt.Config{Label: "golden", UnsafeNoFreshness: true}, p)
		require.NoError(t, err)
		require.NoError(t, v.WriteFile("dir/hello", []byte("hello from version 1\n")))
		require.NoError(t, v.WriteFile("gone", nil))
		require.NoError(t, v.Remove("gone"))
		require.NoError(t, v.Rename("dir/hello", "hello"))
		lock(t, v)
		require.NoError(t, os.Remove(filepath.Join(golden, ".fscrypt", "lock")))
	}
	dir := filepath.Join(t.TempDir(), "v")
	copyTree(t, golden, dir)
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{Label: "golden"}, p)
	require.NoError(t, err)
	b, err := v.ReadFile("hello")
	require.NoError(t, err)
	assert.Equal(t, "hello from version 1\n", string(b))
	assert.Equal(t, 1, v.Status().Files)
	lock(t, v)
}
