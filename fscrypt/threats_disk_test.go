package fscrypt_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
)

// Threats 8 and 9: what can be done to objects on the disk.
func TestTamperedObjects(t *testing.T) {
	for name, attack := range map[string]func(t *testing.T, a, b string){
		"swapped": func(t *testing.T, a, b string) {
			require.NoError(t, os.Rename(a, a+"x"))
			require.NoError(t, os.Rename(b, a))
			require.NoError(t, os.Rename(a+"x", b))
		},
		"duplicated": func(t *testing.T, a, b string) { edit(t, a, func([]byte) []byte { return read(t, b) }) },
		"removed":    func(t *testing.T, a, _ string) { require.NoError(t, os.Remove(a)) },
		"emptied":    func(t *testing.T, a, _ string) { edit(t, a, func([]byte) []byte { return nil }) },
		"truncated by a byte": func(t *testing.T, a, _ string) {
			edit(t, a, func(b []byte) []byte { return b[:len(b)-1] })
		},
		"truncated at a chunk": func(t *testing.T, a, _ string) {
			edit(t, a, func(b []byte) []byte { n := len(b) - 200_000 - 4*16; return b[:n+65536+16] })
		},
		"extended": func(t *testing.T, a, _ string) { edit(t, a, func(b []byte) []byte { return append(b, 0) }) },
		"chunks reordered": func(t *testing.T, a, _ string) {
			edit(t, a, func(b []byte) []byte {
				const c = 65536 + 16
				h := len(b) - 200_000 - 4*16
				out := append([]byte{}, b[:h]...)
				out = append(append(out, b[h+c:h+2*c]...), b[h:h+c]...)
				return append(out, b[h+2*c:]...)
			})
		},
		"bit in the header": func(t *testing.T, a, _ string) { flip(t, a, 60) },
		"bit in the data":   func(t *testing.T, a, _ string) { flip(t, a, 100_000) },
		"bit at the end":    func(t *testing.T, a, _ string) { flip(t, a, -1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, v := passVolume(t, "one")
			a := objects(t, dir)[0]
			require.NoError(t, v.WriteFile("two", bytes.Repeat([]byte("2"), 200_000)))
			b := objects(t, dir)[0]
			if b == a {
				b = objects(t, dir)[1]
			}
			attack(t, a, b)
			got, err := v.ReadFile("one")
			require.ErrorIs(t, err, fscrypt.ErrTampered)
			assert.Nil(t, got, "ReadFile returns all or nothing")
			f, err := v.OpenFile("one")
			if err == nil { // the last chunk is sound: the bad one shows when it is read
				p := make([]byte, 200_000)
				_, err = f.ReadAt(p, 0)
				require.NoError(t, f.Close())
			}
			require.ErrorIs(t, err, fscrypt.ErrTampered)
			lock(t, v)
		})
	}
}

// Threat 8: an older version of a file in place of the newer one.
func TestOlderVersionOfAFileIsRefused(t *testing.T) {
	dir, v := passVolume(t, "f")
	first := objects(t, dir)[0]
	old := read(t, first)
	require.NoError(t, v.WriteFile("f", bytes.Repeat([]byte("new"), 5000)))
	now := objects(t, dir)
	require.Len(t, now, 1)
	require.NotEqual(t, first, now[0])
	edit(t, now[0], func([]byte) []byte { return old })
	_, err := v.ReadFile("f")
	require.ErrorIs(t, err, fscrypt.ErrTampered)
	lock(t, v)
}

// Threat 8 and 9, on the manifest.
func TestTamperedManifest(t *testing.T) {
	for name, attack := range map[string]func(t *testing.T, log string){
		"bit in the first record": func(t *testing.T, log string) { flip(t, log, 50) },
		"bit in the last record":  func(t *testing.T, log string) { flip(t, log, -20) },
		"bit in a length":         func(t *testing.T, log string) { flip(t, log, 1) },
		"sectors wiped before other records": func(t *testing.T, log string) {
			edit(t, log, func(b []byte) []byte { clear(b[512:1024]); return b })
		},
		"a record's place and length wiped": func(t *testing.T, log string) {
			edit(t, log, func(b []byte) []byte {
				at := 8 + 24 + int(b[2])<<8 + int(b[3]) // the second record
				clear(b[at : (at/512+1)*512])
				return b
			})
		},
		"garbage behind zeros": func(t *testing.T, log string) {
			edit(t, log, func(b []byte) []byte { return append(append(b, make([]byte, 9<<20)...), 1) })
		},
		"removed": func(t *testing.T, log string) { require.NoError(t, os.Remove(log)) },
		"record dropped": func(t *testing.T, log string) {
			edit(t, log, func(b []byte) []byte { n := 8 + 24 + int(b[2])<<8 + int(b[3]); return b[n:] })
		},
		"emptied": func(t *testing.T, log string) { edit(t, log, func([]byte) []byte { return nil }) },
		"under another number": func(t *testing.T, log string) {
			require.NoError(t, os.Rename(log, strings.Replace(log, "log.1.", "log.2.", 1)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, v := passVolume(t, "one", "two")
			for i := range 20 {
				require.NoError(t, v.WriteFile("small", []byte{byte(i)}))
			}
			lock(t, v)
			attack(t, filepath.Join(dir, ".fscrypt", "log.1.1"))
			_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
			require.ErrorIs(t, err, fscrypt.ErrTampered)
		})
	}
}

// TestZerosBehindTheManifest leaves a log as a process does that was killed:
// zeros are written ahead of what it will write next.
func TestZerosBehindTheManifest(t *testing.T) {
	dir, v := passVolume(t, "one")
	log := filepath.Join(dir, ".fscrypt", "log.1.1")
	was := read(t, log)
	assert.Greater(t, len(was)-len(bytes.TrimRight(was, "\x00")), 16<<10)
	fscrypt.Abandon(v)
	edit(t, log, func([]byte) []byte { return was })
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("two", []byte("2")))
	assert.Equal(t, len(was), len(read(t, log)))
	lock(t, v)
	is := read(t, log)
	assert.Equal(t, len(is), len(bytes.TrimRight(is, "\x00")), "a locked volume's log ends with its last record")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	b, err := v.ReadFile("two")
	require.NoError(t, err)
	assert.Equal(t, "2", string(b))
	lock(t, v)
}

func read(t testing.TB, name string) []byte {
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return b
}

func edit(t testing.TB, name string, f func([]byte) []byte) {
	require.NoError(t, os.WriteFile(name, f(read(t, name)), 0o600))
}

func flip(t testing.TB, name string, at int) {
	edit(t, name, func(b []byte) []byte {
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 1
		return b
	})
}

// Threat 10: no key is used twice, also after the disk was put back.
func TestSameContentNeverEncryptsTheSame(t *testing.T) {
	dir, v := passVolume(t)
	require.NoError(t, v.WriteFile("a", bytes.Repeat([]byte("same content"), 1000)))
	first := read(t, objects(t, dir)[0])
	lock(t, v)
	snapshot := filepath.Join(t.TempDir(), "snapshot")
	copyTree(t, dir, snapshot)
	seen := map[string]bool{string(first[len(first)-28:]): true}
	for range 5 {
		back := filepath.Join(t.TempDir(), "back")
		copyTree(t, snapshot, back)
		v, err := fscrypt.Open(t.Context(), back, fscrypt.Config{}, pass)
		require.NoError(t, err)
		require.NoError(t, v.WriteFile("a", bytes.Repeat([]byte("same content"), 1000)))
		b := read(t, objects(t, back)[0])
		assert.False(t, seen[string(b[len(b)-28:])])
		seen[string(b[len(b)-28:])] = true
		lock(t, v)
	}
}

// Threat 11: neither names nor, where asked for, sizes show.
func TestNamesAndSizesAreHidden(t *testing.T) {
	dir := t.TempDir()
	cfg := loose
	cfg.PadSizes = true
	v, err := fscrypt.Create(t.Context(), dir, cfg, pass)
	require.NoError(t, err)
	sizes := map[int64]bool{}
	for i := range 100 {
		n := 30_000 + i
		require.NoError(t, v.WriteFile(fmt.Sprintf("license-plate-%d", i), bytes.Repeat([]byte("x"), n)))
		b, err := v.ReadFile(fmt.Sprintf("license-plate-%d", i))
		require.NoError(t, err)
		require.Len(t, b, n)
	}
	for _, o := range objects(t, dir) {
		fi, err := os.Stat(o)
		require.NoError(t, err)
		sizes[fi.Size()] = true
	}
	assert.LessOrEqual(t, len(sizes), 2, "100 sizes show as %d", len(sizes))
	require.NoError(t, v.Rotate(t.Context(), pass))
	b, err := v.ReadFile("license-plate-7")
	require.NoError(t, err)
	require.Len(t, b, 30_007)
	lock(t, v)
	assert.False(t, grep(t, dir, []byte("license-plate")))
}
