package fscrypt_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/tpm"
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

const goldenHeader = "testdata/header-v1-full.json"

// TestGoldenHeader reads a header with every field that version 1 has, of
// every kind of slot, and writes it again as it was.
func TestGoldenHeader(t *testing.T) {
	key := bytes.Repeat([]byte("golden! "), 4)
	if *update {
		require.NoError(t, os.WriteFile(goldenHeader, makeGoldenHeader(t, key), 0o600))
	}
	b := read(t, goldenHeader)
	again, private, err := fscrypt.ReopenHeader(b, bytes.Clone(key))
	require.NoError(t, err)
	assert.Equal(t, string(b), string(again))
	var p map[string]any
	require.NoError(t, json.Unmarshal(private, &p))
	assert.ElementsMatch(t, []string{"stable", "old", "counter", "kernel"}, slices.Collect(maps.Keys(p)))
	var h struct {
		Slots []struct {
			Type string
			Data struct {
				Parts []struct {
					Data map[string]any
				}
			}
		}
	}
	require.NoError(t, json.Unmarshal(b, &h))
	require.Equal(t, "all(tpm,remote)", h.Slots[0].Type)
	assert.ElementsMatch(t, []string{"parent", "public", "private", "pin", "bank", "latch", "after", "share", "revocation"}, slices.Collect(maps.Keys(h.Slots[0].Data.Parts[0].Data)))
	key[0]++
	_, _, err = fscrypt.ReopenHeader(b, key)
	require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
}

// makeGoldenHeader takes the slots from a volume, and gives them to a header
// under a known key.
func makeGoldenHeader(t *testing.T, key []byte) []byte {
	dev := newTPM(t)
	boot(t, dev, "image 1")
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, PIN: []byte("1234"), After: [][]byte{make([]byte, 32)},
		Counter: tpm.NVVolumeFirst, Share: tpm.NVVolumeShareFirst, Revocation: revocationIndex}
	dir := t.TempDir()
	v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "golden"}, fscrypt.All(p, newCloud(t).remote("node")), recovery(t), pass)
	require.NoError(t, err)
	lock(t, v)
	b, err := fscrypt.GoldenHeader(read(t, filepath.Join(dir, ".fscrypt", "header.a")), bytes.Clone(key))
	require.NoError(t, err)
	return b
}
