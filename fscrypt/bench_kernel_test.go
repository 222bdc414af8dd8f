//go:build linux

package fscrypt_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/fscrypt/kernel"
	"github.com/trusttree/trusttree/internal/testenv"
)

// fileSystems are the directories that BenchmarkFileSystem compares: ext4 as
// it is, gocryptfs over it, an encryption policy set by hand, and a volume in
// kernel mode, which is such a policy under our sealed key.
var fileSystems = []struct {
	name string
	dir  func(*testing.B) string
}{
	{"plain-ext4", benchDir},
	{"gocryptfs", gocryptfs},
	{"kernel-fscrypt", func(b *testing.B) string {
		testenv.Root(b)
		dir := filepath.Join(benchDir(b), "d")
		require.NoError(b, os.Mkdir(dir, 0o700))
		d, err := os.Open(dir)
		require.NoError(b, err)
		defer d.Close()
		key := make([]byte, 64)
		_, _ = rand.Read(key)
		id, err := kernel.AddKey(d, key)
		if err != nil {
			testenv.Missing(b, "a file system with encryption in TRUSTTREE_BENCH")
		}
		require.NoError(b, kernel.SetPolicy(d, kernel.Policy{Contents: kernel.AES256XTS, Filenames: kernel.AES256CTS, Identifier: id}))
		return dir
	}},
	{"trusttree-kernel-mode", func(b *testing.B) string {
		testenv.Root(b)
		v, err := fscrypt.Create(b.Context(), filepath.Join(benchDir(b), "v"), kernelConfig, pass)
		if errors.Is(err, fscrypt.ErrUnsupported) {
			testenv.Missing(b, "a file system with encryption in TRUSTTREE_BENCH")
		}
		require.NoError(b, err)
		b.Cleanup(func() { _ = v.Lock(b.Context()) })
		return v.Path()
	}},
}

// BenchmarkFileSystem does with files of a file system what the benchmarks of
// the portable mode do: TRUSTTREE_BENCH names a directory of an ext4 file
// system with the feature encrypt.
func BenchmarkFileSystem(b *testing.B) {
	works := []struct {
		name string
		work func(b *testing.B, dir string)
	}{
		{"stream-write", streamWrite}, {"stream-read", streamRead}, {"create-small", createSmall}, {"open-read-small", openReadSmall}, {"random-read", randomRead},
	}
	for _, w := range works {
		for _, fs := range fileSystems {
			b.Run(w.name+"/"+fs.name, func(b *testing.B) { w.work(b, fs.dir(b)) })
		}
	}
}

func streamWrite(b *testing.B, dir string) {
	b.SetBytes(streamSize)
	for b.Loop() {
		f, err := os.Create(filepath.Join(dir, "f"))
		require.NoError(b, err)
		writeStream(b, f)
		require.NoError(b, f.Sync())
		require.NoError(b, f.Close())
	}
}

func streamRead(b *testing.B, dir string) {
	name := filepath.Join(dir, "f")
	f, err := os.Create(name)
	require.NoError(b, err)
	writeStream(b, f)
	require.NoError(b, f.Close())
	b.SetBytes(streamSize)
	for b.Loop() {
		f, err := os.Open(name)
		require.NoError(b, err)
		n, err := io.Copy(io.Discard, f)
		require.NoError(b, err)
		require.EqualValues(b, streamSize, n)
		require.NoError(b, f.Close())
	}
}

func createSmall(b *testing.B, dir string) {
	i := 0
	for b.Loop() {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		require.NoError(b, err)
		_, err = f.Write(small)
		require.NoError(b, err)
		require.NoError(b, f.Sync())
		require.NoError(b, f.Close())
		d, err := os.Open(dir)
		require.NoError(b, err)
		require.NoError(b, d.Sync())
		require.NoError(b, d.Close())
		i++
	}
}

func openReadSmall(b *testing.B, dir string) {
	for i := range smallFiles {
		require.NoError(b, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), small, 0o600))
	}
	i := 0
	for b.Loop() {
		_, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i%smallFiles)))
		require.NoError(b, err)
		i++
	}
}

func randomRead(b *testing.B, dir string) {
	const size = 4 << 20
	name := filepath.Join(dir, "f")
	require.NoError(b, os.WriteFile(name, bytes.Repeat(chunk, 4), 0o600))
	f, err := os.Open(name)
	require.NoError(b, err)
	defer f.Close()
	rnd := mrand.New(mrand.NewPCG(1, 1))
	p := make([]byte, 4096)
	for b.Loop() {
		if _, err := f.ReadAt(p, rnd.Int64N(size-4096)); err != nil {
			b.Fatal(err)
		}
	}
}
