package fscrypt_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

const streamSize = 64 << 20

// benchVolume is a volume on a file system of its own kind: TRUSTTREE_BENCH
// names the directory, otherwise the temporary one.
func benchDir(b *testing.B) string {
	dir, err := os.MkdirTemp(os.Getenv("TRUSTTREE_BENCH"), "bench")
	require.NoError(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func benchVolume(b *testing.B, cfg fscrypt.Config) *fscrypt.Volume {
	cfg.Label, cfg.UnsafeNoFreshness = "bench", true
	v, err := fscrypt.Create(b.Context(), filepath.Join(benchDir(b), "v"), cfg, pass)
	require.NoError(b, err)
	b.Cleanup(func() { _ = v.Lock(b.Context()) })
	return v
}

// gocryptfs mounts an encrypted directory for the benchmark.
func gocryptfs(b *testing.B) string {
	tool := testenv.Tool(b, "gocryptfs", "gocryptfs")
	dir := benchDir(b)
	cipher, mount, pw := filepath.Join(dir, "c"), filepath.Join(dir, "m"), filepath.Join(dir, "pw")
	require.NoError(b, os.Mkdir(cipher, 0o700))
	require.NoError(b, os.Mkdir(mount, 0o700))
	require.NoError(b, os.WriteFile(pw, []byte("p"), 0o600))
	for _, args := range [][]string{{"-q", "-init", "-scryptn", "10", "-passfile", pw, cipher}, {"-q", "-passfile", pw, cipher, mount}} {
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			testenv.Missing(b, "gocryptfs: "+string(out))
		}
	}
	b.Cleanup(func() { _ = exec.Command("umount", mount).Run() })
	return mount
}

var chunk = bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB

func writeStream(b *testing.B, w io.Writer) {
	for range streamSize / len(chunk) {
		_, err := w.Write(chunk)
		require.NoError(b, err)
	}
}

// BenchmarkStreamWrite writes a file and flushes it.
func BenchmarkStreamWrite(b *testing.B) {
	b.Run("fscrypt", func(b *testing.B) {
		v := benchVolume(b, fscrypt.Config{})
		b.SetBytes(streamSize)
		for b.Loop() {
			w, err := v.Create("f")
			require.NoError(b, err)
			writeStream(b, w)
			require.NoError(b, w.Close())
		}
	})
	b.Run("age", func(b *testing.B) {
		id, err := age.GenerateX25519Identity()
		require.NoError(b, err)
		name := filepath.Join(benchDir(b), "f")
		b.SetBytes(streamSize)
		for b.Loop() {
			f, err := os.Create(name)
			require.NoError(b, err)
			w, err := age.Encrypt(f, id.Recipient())
			require.NoError(b, err)
			writeStream(b, w)
			require.NoError(b, w.Close())
			require.NoError(b, f.Sync())
			require.NoError(b, f.Close())
		}
	})
	b.Run("gocryptfs", func(b *testing.B) {
		name := filepath.Join(gocryptfs(b), "f")
		b.SetBytes(streamSize)
		for b.Loop() {
			f, err := os.Create(name)
			require.NoError(b, err)
			writeStream(b, f)
			require.NoError(b, f.Sync())
			require.NoError(b, f.Close())
		}
	})
}

// BenchmarkStreamRead reads a file that the page cache holds.
func BenchmarkStreamRead(b *testing.B) {
	b.Run("fscrypt", func(b *testing.B) {
		v := benchVolume(b, fscrypt.Config{})
		w, err := v.Create("f")
		require.NoError(b, err)
		writeStream(b, w)
		require.NoError(b, w.Close())
		b.SetBytes(streamSize)
		for b.Loop() {
			f, err := v.OpenFile("f")
			require.NoError(b, err)
			n, err := io.Copy(io.Discard, f)
			require.NoError(b, err)
			require.EqualValues(b, streamSize, n)
			require.NoError(b, f.Close())
		}
	})
	b.Run("age", func(b *testing.B) {
		id, err := age.GenerateX25519Identity()
		require.NoError(b, err)
		name := filepath.Join(benchDir(b), "f")
		f, err := os.Create(name)
		require.NoError(b, err)
		w, err := age.Encrypt(f, id.Recipient())
		require.NoError(b, err)
		writeStream(b, w)
		require.NoError(b, w.Close())
		require.NoError(b, f.Close())
		b.SetBytes(streamSize)
		for b.Loop() {
			f, err := os.Open(name)
			require.NoError(b, err)
			r, err := age.Decrypt(bufio.NewReaderSize(f, 1<<20), id)
			require.NoError(b, err)
			n, err := io.Copy(io.Discard, r)
			require.NoError(b, err)
			require.EqualValues(b, streamSize, n)
			require.NoError(b, f.Close())
		}
	})
}

var small = bytes.Repeat([]byte("s"), 4096)

// BenchmarkCreateSmall makes files of 4 KiB, each durable with its name.
func BenchmarkCreateSmall(b *testing.B) {
	b.Run("fscrypt", func(b *testing.B) {
		v := benchVolume(b, fscrypt.Config{})
		i := 0
		for b.Loop() {
			require.NoError(b, v.WriteFile(fmt.Sprintf("d/%d", i), small))
			i++
		}
	})
	for name, dir := range map[string]func(*testing.B) string{"gocryptfs": gocryptfs, "plain": benchDir} {
		b.Run(name, func(b *testing.B) {
			d := dir(b)
			i := 0
			for b.Loop() {
				f, err := os.Create(filepath.Join(d, fmt.Sprint(i)))
				require.NoError(b, err)
				_, err = f.Write(small)
				require.NoError(b, err)
				require.NoError(b, f.Sync())
				require.NoError(b, f.Close())
				g, err := os.Open(d)
				require.NoError(b, err)
				require.NoError(b, g.Sync())
				require.NoError(b, g.Close())
				i++
			}
		})
	}
}

const smallFiles = 500

// BenchmarkOpenReadSmall opens and reads files of 4 KiB.
func BenchmarkOpenReadSmall(b *testing.B) {
	b.Run("fscrypt", func(b *testing.B) {
		v := benchVolume(b, fscrypt.Config{})
		for i := range smallFiles {
			require.NoError(b, v.WriteFile(fmt.Sprint(i), small))
		}
		i := 0
		for b.Loop() {
			_, err := v.ReadFile(fmt.Sprint(i % smallFiles))
			require.NoError(b, err)
			i++
		}
	})
	b.Run("gocryptfs", func(b *testing.B) {
		d := gocryptfs(b)
		for i := range smallFiles {
			require.NoError(b, os.WriteFile(filepath.Join(d, fmt.Sprint(i)), small, 0o600))
		}
		i := 0
		for b.Loop() {
			_, err := os.ReadFile(filepath.Join(d, fmt.Sprint(i%smallFiles)))
			require.NoError(b, err)
			i++
		}
	})
}

// BenchmarkRandomRead reads 4 KiB from anywhere in a file of 4 MiB, which the
// caches hold.
func BenchmarkRandomRead(b *testing.B) {
	const size = 4 << 20
	read := func(b *testing.B, f io.ReaderAt) {
		rnd := rand.New(rand.NewPCG(1, 1))
		p := make([]byte, 4096)
		for range 4000 {
			_, err := f.ReadAt(p, rnd.Int64N(size-4096))
			require.NoError(b, err)
		}
		for b.Loop() {
			if _, err := f.ReadAt(p, rnd.Int64N(size-4096)); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("fscrypt", func(b *testing.B) {
		v := benchVolume(b, fscrypt.Config{})
		require.NoError(b, v.WriteFile("f", bytes.Repeat(chunk, 4)))
		f, err := v.OpenFile("f")
		require.NoError(b, err)
		read(b, f)
		require.NoError(b, f.Close())
	})
	b.Run("gocryptfs", func(b *testing.B) {
		name := filepath.Join(gocryptfs(b), "f")
		require.NoError(b, os.WriteFile(name, bytes.Repeat(chunk, 4), 0o600))
		f, err := os.Open(name)
		require.NoError(b, err)
		read(b, f)
		require.NoError(b, f.Close())
	})
}

// BenchmarkUnlock unseals on swtpm: the whole chain of signed policy, floor
// and latch, and beside it literal PCRs alone.
func BenchmarkUnlock(b *testing.B) {
	dev, _ := tpmtest.New(b)
	boot(b, dev, "image 1")
	persist(b, dev)
	f := defineFloor(b, dev, tpm.NVPolicyFloor)
	boss := newAuthority(b)
	for name, p := range map[string]*fscrypt.TPM{
		"bare": {Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, UnsafeNoLatch: true},
		"full": {Device: dev, Policies: []fscrypt.BootPolicy{boss.approve(b, imagePCRs("image 1"), "fleet", f, 1)}},
	} {
		b.Run(name, func(b *testing.B) {
			s, err := fscrypt.NewSecret(bytes.Repeat([]byte("k"), 32))
			require.NoError(b, err)
			bind := fscrypt.Binding{Volume: "v", Label: "l", Slot: "s"}
			slot, err := p.Wrap(b.Context(), s, bind)
			require.NoError(b, err)
			bind = fscrypt.WithoutLatch(bind)
			for b.Loop() {
				out, err := p.Unwrap(b.Context(), slot, bind)
				require.NoError(b, err)
				out.Erase()
			}
		})
	}
}
