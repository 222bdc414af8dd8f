//go:build linux

package fscrypt_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/fscrypt/kernel"
	"github.com/trusttree/trusttree/internal/testenv"
)

// ext4 mounts a new ext4 file system in a file, with encryption or without.
func ext4(t testing.TB, features ...string) (mount, image string) {
	t.Helper()
	testenv.Root(t)
	mkfs := testenv.Tool(t, "mkfs.ext4", "e2fsprogs")
	image = filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 48<<20))
	args := []string{"-q", "-F"}
	if len(features) > 0 {
		args = append(args, "-O", strings.Join(features, ","))
	}
	out, err := exec.Command(mkfs, append(args, image)...).CombinedOutput()
	require.NoError(t, err, string(out))
	return mountImage(t, image), image
}

func mountImage(t testing.TB, image string) string {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		testenv.Missing(t, "loop mounts: "+string(out))
	}
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	return dir
}

var kernelConfig = fscrypt.Config{Label: "data", Kernel: true, UnsafeNoFreshness: true}

// kernelVolume creates a kernel mode volume, or skips where the kernel has no
// encryption.
func kernelVolume(t testing.TB) (mount, dir, image string, v *fscrypt.Volume) {
	mount, image = ext4(t, "encrypt")
	dir = filepath.Join(mount, "volume")
	v, err := fscrypt.Create(t.Context(), dir, kernelConfig, pass)
	if errors.Is(err, fscrypt.ErrUnsupported) {
		testenv.Missing(t, "kernel with CONFIG_FS_ENCRYPTION: "+err.Error())
	}
	require.NoError(t, err)
	return mount, dir, image, v
}

func TestKernelVolumeHidesAndReturns(t *testing.T) {
	_, dir, image, v := kernelVolume(t)
	secret := bytes.Repeat([]byte("plaintext of the camera "), 1000)
	require.NoError(t, os.WriteFile(filepath.Join(v.Path(), "camera-0001"), secret, 0o600))
	s := v.Status()
	require.NotNil(t, s.Kernel)
	assert.Equal(t, "present", s.Kernel.Key)
	assert.Equal(t, "AES-256-XTS", s.Kernel.Contents)
	t.Logf("modes %s and %s, slow cipher: %v", s.Kernel.Contents, s.Kernel.Filenames, s.Kernel.SlowCipher)
	lock(t, v)
	_, err := os.ReadFile(filepath.Join(dir, "tree", "camera-0001"))
	require.Error(t, err)
	names, err := os.ReadDir(filepath.Join(dir, "tree"))
	require.NoError(t, err)
	for _, n := range names {
		assert.NotContains(t, n.Name(), "camera")
	}
	assert.ErrorIs(t, os.WriteFile(filepath.Join(dir, "tree", "new"), nil, 0o600), unix.ENOKEY)
	raw, err := os.ReadFile(image)
	require.NoError(t, err)
	assert.False(t, bytes.Contains(raw, secret[:48]), "plaintext on the block device")
	assert.False(t, bytes.Contains(raw, []byte("camera-0001")), "name on the block device")

	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(v.Path(), "camera-0001"))
	require.NoError(t, err)
	assert.True(t, bytes.Equal(secret, got))
	_, err = v.ReadFile("camera-0001")
	require.ErrorIs(t, err, fscrypt.ErrUnsupported)
	require.NoError(t, v.Reseal(t.Context(), pass))
	require.NoError(t, v.Destroy(t.Context()))
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.Error(t, err)
}

func TestKernelLockWaitsForOpenFiles(t *testing.T) {
	_, _, _, v := kernelVolume(t)
	name := filepath.Join(v.Path(), "held")
	require.NoError(t, os.WriteFile(name, []byte("held open"), 0o600))
	f, err := os.Open(name)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err = v.Lock(ctx)
	var busy *fscrypt.BusyError
	require.ErrorAs(t, err, &busy)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Contains(t, fmt.Sprint(busy.Paths), "/held")
	assert.Contains(t, fmt.Sprint(busy.Paths), fmt.Sprint(os.Getpid()))
	assert.Equal(t, "incompletely removed", v.Status().Kernel.Key)
	require.NoError(t, f.Close())
	lock(t, v)
	assert.True(t, v.Status().Locked)
}

func TestLookAlikeFileSystemIsWrongVolume(t *testing.T) {
	mount, dir, _, v := kernelVolume(t)
	id := v.Status().Kernel.Identifier
	lock(t, v)
	meta := filepath.Join(dir, ".fscrypt")

	t.Run("unencrypted directory at the path", func(t *testing.T) {
		evil := filepath.Join(mount, "evil1")
		copyTree(t, meta, filepath.Join(evil, ".fscrypt"))
		require.NoError(t, os.Mkdir(filepath.Join(evil, "tree"), 0o700))
		_, err := fscrypt.Open(t.Context(), evil, fscrypt.Config{}, pass)
		require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
	})
	t.Run("file system without encryption", func(t *testing.T) {
		plain, _ := ext4(t)
		evil := filepath.Join(plain, "volume")
		copyTree(t, meta, filepath.Join(evil, ".fscrypt"))
		require.NoError(t, os.Mkdir(filepath.Join(evil, "tree"), 0o700))
		_, err := fscrypt.Open(t.Context(), evil, fscrypt.Config{}, pass)
		require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
	})
	t.Run("symbolic link to elsewhere", func(t *testing.T) {
		evil := filepath.Join(mount, "evil2")
		copyTree(t, meta, filepath.Join(evil, ".fscrypt"))
		require.NoError(t, os.Symlink(t.TempDir(), filepath.Join(evil, "tree")))
		_, err := fscrypt.Open(t.Context(), evil, fscrypt.Config{}, pass)
		require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
	})
	t.Run("directory under the attacker's key", func(t *testing.T) {
		evil := filepath.Join(mount, "evil3")
		copyTree(t, meta, filepath.Join(evil, ".fscrypt"))
		encryptedDir(t, filepath.Join(evil, "tree"), bytes.Repeat([]byte{7}, 64))
		_, err := fscrypt.Open(t.Context(), evil, fscrypt.Config{}, pass)
		require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
	})
	t.Run("right policy without the anchor", func(t *testing.T) {
		v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
		require.NoError(t, err)
		require.NoError(t, os.Remove(filepath.Join(v.Path(), ".fscrypt-anchor")))
		lock(t, v)
		_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
		require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
		d, err := os.Open(dir)
		require.NoError(t, err)
		defer d.Close()
		var ident kernel.Identifier
		_, err = hex.Decode(ident[:], []byte(id))
		require.NoError(t, err)
		state, err := kernel.Status(d, ident)
		require.NoError(t, err)
		assert.Equal(t, kernel.Absent, state, "the key is taken back")
	})
}

// encryptedDir makes a directory encrypted under a key.
func encryptedDir(t testing.TB, dir string, key []byte) kernel.Policy {
	require.NoError(t, os.MkdirAll(dir, 0o700))
	d, err := os.Open(dir)
	require.NoError(t, err)
	defer d.Close()
	id, err := kernel.AddKey(d, key)
	require.NoError(t, err)
	p := kernel.Policy{Contents: kernel.AES256XTS, Filenames: kernel.AES256CTS, Identifier: id}
	require.NoError(t, kernel.SetPolicy(d, p))
	return p
}

func TestKernelModeNeverFallsBackToPlain(t *testing.T) {
	plain, _ := ext4(t)
	dir := filepath.Join(plain, "volume")
	_, err := fscrypt.Create(t.Context(), dir, kernelConfig, pass)
	require.ErrorIs(t, err, fscrypt.ErrUnsupported)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
	_, err = fscrypt.Create(t.Context(), filepath.Join(t.TempDir(), "tmp"), kernelConfig, pass)
	if err != nil { // the temporary directory may itself be able to encrypt
		require.ErrorIs(t, err, fscrypt.ErrUnsupported)
	}
}

func TestKeyIdentifierIsTheKernels(t *testing.T) {
	key := make([]byte, 64)
	for i := range key {
		key[i] = byte(i)
	}
	id, err := kernel.KeyIdentifier(key)
	require.NoError(t, err)
	assert.Equal(t, "8699c2c53707405da5aba5ae4d8583c0", id.String())
}

func TestOtherProgramReadsThePolicy(t *testing.T) {
	_, _, _, v := kernelVolume(t)
	tool := testenv.Tool(t, "xfs_io", "xfsprogs")
	out, err := exec.Command(tool, "-r", "-c", "get_encpolicy", v.Path()).CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Contains(t, string(out), v.Status().Kernel.Identifier)
	lock(t, v)
}

// TestFscryptToolReadsThePolicy asks the fscrypt program, which has policies
// of its own and none for this directory, under which key it is.
func TestFscryptToolReadsThePolicy(t *testing.T) {
	mount, _, _, v := kernelVolume(t)
	tool := testenv.Tool(t, "fscrypt", "fscrypt")
	conf := filepath.Join(t.TempDir(), "conf")
	require.NoError(t, os.WriteFile(conf, []byte(`{"source":"custom_passphrase","hash_costs":{"time":"1","memory":"8","parallelism":"1"},
		"options":{"padding":"32","contents":"AES_256_XTS","filenames":"AES_256_CTS","policy_version":"2"}}`), 0o600))
	run := func(args ...string) (string, error) {
		cmd := exec.Command(tool, args...)
		cmd.Env = append(os.Environ(), "FSCRYPT_CONF="+conf)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run("setup", "--quiet", "--all-users", mount)
	require.NoError(t, err, out)
	out, err = run("status", v.Path())
	require.Error(t, err)
	assert.Contains(t, out, "policies/"+v.Status().Kernel.Identifier)
	lock(t, v)
}

// TestKernelModeAddsNoSystemCall traces a program that writes and reads below
// the volume, and beside it.
func TestKernelModeAddsNoSystemCall(t *testing.T) {
	strace := testenv.Tool(t, "strace", "strace")
	mount, _, _, v := kernelVolume(t)
	trace := func(dir string) []string {
		out := filepath.Join(t.TempDir(), "trace")
		for _, args := range [][]string{{"if=/dev/zero", "of=" + dir + "/f", "bs=4096", "count=64", "conv=fsync"}, {"if=" + dir + "/f", "of=/dev/null", "bs=4096"}} {
			b, err := exec.Command(strace, append([]string{"-A", "-o", out, "dd", "status=none"}, args...)...).CombinedOutput()
			if err != nil {
				testenv.Missing(t, "permission to trace: "+string(b))
			}
		}
		var calls []string
		for line := range strings.SplitSeq(string(read(t, out)), "\n") {
			name, _, _ := strings.Cut(line, "(")
			calls = append(calls, name)
		}
		return calls
	}
	plain, volume := trace(mount), trace(v.Path())
	assert.Equal(t, plain, volume)
	assert.Greater(t, len(volume), 2*2*64)
	lock(t, v)
}

// TestKernelKeyGoesWithTheLease takes the key away when the cloud does not
// renew the lease.
func TestKernelKeyGoesWithTheLease(t *testing.T) {
	mount, _ := ext4(t, "encrypt")
	c := newCloud(t)
	p := fscrypt.All(pass, c.remote("node"))
	dir := filepath.Join(mount, "volume")
	v, err := fscrypt.Create(t.Context(), dir, kernelConfig, p)
	if errors.Is(err, fscrypt.ErrUnsupported) {
		testenv.Missing(t, "kernel with CONFIG_FS_ENCRYPTION: "+err.Error())
	}
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(v.Path(), "f"), []byte("x"), 0o600))
	lock(t, v)
	c.lease = time.Second
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	_, err = os.ReadFile(filepath.Join(v.Path(), "f"))
	require.NoError(t, err)
	held, err := os.Open(filepath.Join(v.Path(), "f"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return v.Status().Locked && v.Status().Kernel.Key == "incompletely removed" }, 10*time.Second, 20*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var busy *fscrypt.BusyError
	require.ErrorAs(t, v.Lock(ctx), &busy, "held files keep the key in use")
	require.NoError(t, held.Close())
	lock(t, v)
	_, err = os.ReadFile(filepath.Join(dir, "tree", "f"))
	require.Error(t, err)
}

// TestProtectedFilesOfAKernelVolume changes ciphertext on the block device,
// which the kernel reads as garbage without an error, and files by their names.
func TestProtectedFilesOfAKernelVolume(t *testing.T) {
	mount, dir, image, v := kernelVolume(t)
	marker := bytes.Repeat([]byte("configuration of the camera "), 1000)
	write := func(name string, b []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(v.Path(), name), b, 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(v.Path(), "etc"), 0o700))
	write("etc/config", marker)
	write("etc/other", []byte("other"))
	write("loose", []byte("not protected"))
	require.NoError(t, v.Protect(t.Context(), "etc/config", "etc/other"))
	require.Error(t, v.Protect(t.Context(), "etc"), "a directory")
	require.ErrorIs(t, v.Protect(t.Context(), "../x"), os.ErrInvalid)
	require.ErrorIs(t, v.Protect(t.Context(), "missing"), os.ErrNotExist)
	b, err := v.ReadFile("etc/config")
	require.NoError(t, err)
	require.True(t, bytes.Equal(marker, b))
	_, err = v.ReadFile("loose")
	require.ErrorIs(t, err, fscrypt.ErrUnsupported)
	require.NoError(t, v.Verify(t.Context()))
	assert.Equal(t, 2, v.Status().Files)
	config := filepath.Join(v.Path(), "etc", "config")
	block := firstBlock(t, config)
	lock(t, v)
	require.ErrorIs(t, v.Verify(t.Context()), fscrypt.ErrLocked)

	require.NoError(t, exec.Command("umount", mount).Run())
	flip(t, image, int(block)+100)
	require.NoError(t, exec.Command("mount", "-o", "loop", image, mount).Run())
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	b, err = os.ReadFile(config)
	require.NoError(t, err, "the kernel reads garbage without an error")
	require.Equal(t, len(marker), len(b))
	require.False(t, bytes.Equal(marker, b))
	_, err = v.ReadFile("etc/config")
	require.ErrorIs(t, err, fscrypt.ErrTampered)
	err = v.Verify(t.Context())
	require.ErrorIs(t, err, fscrypt.ErrTampered)
	require.ErrorContains(t, err, "etc/config")
	require.NotContains(t, err.Error(), "etc/other")

	write("etc/config", marker)
	require.NoError(t, v.Verify(t.Context()))
	require.NoError(t, os.Rename(filepath.Join(v.Path(), "loose"), filepath.Join(v.Path(), "etc/other")))
	require.ErrorIs(t, v.Verify(t.Context()), fscrypt.ErrTampered)
	require.NoError(t, v.Protect(t.Context(), "etc/other"), "the new content is meant")
	require.NoError(t, v.Verify(t.Context()))
	require.NoError(t, os.Remove(filepath.Join(v.Path(), "etc/other")))
	require.ErrorIs(t, v.Verify(t.Context()), fscrypt.ErrTampered)
	require.NoError(t, v.Unprotect("etc/other"))
	require.ErrorIs(t, v.Unprotect("etc/other"), os.ErrNotExist)
	require.NoError(t, v.Verify(t.Context()))
	lock(t, v)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	require.NoError(t, v.Verify(t.Context()))
	lock(t, v)
}

// firstBlock is where a file's content begins on its block device, in bytes.
func firstBlock(t *testing.T, name string) int64 {
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Sync())
	block := 0
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 1 /* FIBMAP */, uintptr(unsafe.Pointer(&block)))
	require.Zero(t, errno)
	var sfs unix.Statfs_t
	require.NoError(t, unix.Fstatfs(int(f.Fd()), &sfs))
	return int64(block) * int64(sfs.Bsize)
}

// TestKernelVolumeStaysOpenWhileDetached: a process that is started anew
// finds the volume as other programs go on using it.
func TestKernelVolumeStaysOpenWhileDetached(t *testing.T) {
	_, dir, _, v := kernelVolume(t)
	name := filepath.Join(v.Path(), "f")
	require.NoError(t, os.WriteFile(name, []byte("x"), 0o600))
	require.NoError(t, v.Detach(t.Context()))
	assert.True(t, v.Status().Locked)
	assert.Equal(t, "present", v.Status().Kernel.Key)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = f.WriteString("y")
	require.NoError(t, err)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	_, err = f.WriteString("z")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, "xyz", string(b))
	lock(t, v)
	_, err = os.ReadFile(name)
	require.Error(t, err)
}
