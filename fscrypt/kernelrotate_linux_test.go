package fscrypt_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/fscrypt/kernel"
	"github.com/trusttree/trusttree/internal/testenv"
)

// furnish puts one of everything into a directory.
func furnish(t testing.TB, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	old := time.Date(2021, 2, 3, 4, 5, 6, 789012345, time.UTC)
	require.NoError(t, os.MkdirAll(at("etc/deep/er"), 0o750))
	require.NoError(t, os.Mkdir(at("drop"), 0o700))
	require.NoError(t, os.Chmod(at("drop"), 0o777|os.ModeSticky|os.ModeSetgid))
	require.NoError(t, os.WriteFile(at("etc/config"), bytes.Repeat([]byte("camera "), 5000), 0o640))
	require.NoError(t, os.WriteFile(at("etc/deep/er/empty"), nil, 0o600))
	require.NoError(t, os.WriteFile(at("tool"), []byte("#!/bin/sh\n"), 0o755))
	require.NoError(t, os.Chown(at("tool"), 1234, 5678))
	require.NoError(t, os.Chmod(at("tool"), 0o755|os.ModeSetuid))
	require.NoError(t, unix.Setxattr(at("tool"), "user.note", []byte("a note\x00"), 0))
	require.NoError(t, unix.Setxattr(at("etc"), "trusted.note", []byte("of a directory"), 0))
	require.NoError(t, os.Symlink("etc/config", at("link")))
	require.NoError(t, os.Symlink("/nowhere/at all", at("etc/dangling")))
	require.NoError(t, os.Link(at("tool"), at("etc/deep/same tool")))
	require.NoError(t, os.WriteFile(at("ein ziemlich langer Name für eine Datei, weil auch diese verschlüsselt werden"), []byte("x"), 0o400))
	f, err := os.Create(at("sparse"))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("at the start"), 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("far out"), 20<<20)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(30<<20))
	require.NoError(t, f.Close())
	require.NoError(t, os.Lchown(at("link"), 77, 88))
	for _, name := range []string{"etc/config", "drop", "link"} {
		ts := []unix.Timespec{unix.NsecToTimespec(old.UnixNano() + 5), unix.NsecToTimespec(old.UnixNano())}
		require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// inventory describes all that a directory holds, but for the anchor.
func inventory(t testing.TB, dir string) map[string]string {
	all := map[string]string{}
	inodes := map[uint64]string{}
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == ".fscrypt-anchor" {
			return err
		}
		name, err := filepath.Rel(dir, p)
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(p, &st))
		s := fmt.Sprintf("%o %d:%d mtime %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		if first := inodes[st.Ino]; first != "" {
			s += " is " + first
		}
		inodes[st.Ino] = name
		switch {
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			require.NoError(t, err)
			s += " to " + target
		case d.Type().IsRegular():
			b := read(t, p)
			s += fmt.Sprintf(" %d links, %d bytes %x", st.Nlink, len(b), sha256.Sum256(b))
			if int64(len(b)) > 1<<20 {
				s += fmt.Sprintf(" sparse %v", st.Blocks*512 < int64(len(b))/10)
			}
		}
		for _, attr := range []string{"user.note", "trusted.note"} {
			b := make([]byte, 100)
			if n, err := unix.Lgetxattr(p, attr, b); err == nil {
				s += fmt.Sprintf(" %s=%q", attr, b[:n])
			}
		}
		all[name] = s
		return nil
	}))
	return all
}

// rotatable is a kernel mode volume that is furnished, opened with a progress
// callback.
func rotatable(t *testing.T, progress func(done, total int)) (mount, dir string, v *fscrypt.Volume, holds map[string]string) {
	mount, dir, _, v = kernelVolume(t)
	furnish(t, v.Path())
	require.NoError(t, v.Protect(t.Context(), "etc/config"))
	holds = inventory(t, v.Path())
	lock(t, v)
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{Progress: progress}, pass)
	require.NoError(t, err)
	return mount, dir, v, holds
}

// unrotated: a rotation that failed has left the volume as it was.
func unrotated(t *testing.T, dir string, v *fscrypt.Volume, id string, holds map[string]string) {
	t.Helper()
	s := v.Status()
	assert.Equal(t, id, s.Kernel.Identifier)
	assert.Equal(t, "present", s.Kernel.Key)
	assert.False(t, s.Rotating)
	assert.Equal(t, holds, inventory(t, v.Path()))
	assert.Equal(t, []string{".fscrypt", "tree"}, namesOf(t, dir))
	lock(t, v)
	assert.False(t, checkCut(t, dir, holds, "after a rotation that failed"))
}

func keyState(t *testing.T, dir, id string) kernel.KeyState {
	d, err := os.Open(dir)
	require.NoError(t, err)
	defer d.Close()
	var ident kernel.Identifier
	_, err = hex.Decode(ident[:], []byte(id))
	require.NoError(t, err)
	state, err := kernel.Status(d, ident)
	require.NoError(t, err)
	return state
}

// TestKernelRotate puts the whole directory under a new key, twice.
func TestKernelRotate(t *testing.T) {
	var done, total int
	_, dir, v, holds := rotatable(t, func(d, n int) { done, total = d, n })
	path, id, latch := v.Path(), v.Status().Kernel.Identifier, v.Latch()
	_, err := v.AddProtector(t.Context(), recovery(t))
	require.NoError(t, err)
	meta := filepath.Join(dir, ".fscrypt")
	oldMeta := filepath.Join(t.TempDir(), "meta")
	copyTree(t, meta, oldMeta)
	require.Error(t, v.Rotate(t.Context()), "nothing to go on with")

	require.NoError(t, v.Rotate(t.Context(), newPass))
	s := v.Status()
	assert.False(t, s.Rotating)
	assert.Len(t, s.Slots, 1)
	assert.NotEqual(t, id, s.Kernel.Identifier, "another key")
	assert.Equal(t, "present", s.Kernel.Key)
	assert.Equal(t, kernel.Absent, keyState(t, dir, id), "the old key is gone")
	assert.Equal(t, path, v.Path())
	assert.Equal(t, latch, v.Latch())
	assert.Equal(t, []string{".fscrypt", "tree"}, namesOf(t, dir))
	assert.Equal(t, holds, inventory(t, path))
	assert.Equal(t, 5, done, "each file once")
	assert.Equal(t, 5, total)
	require.NoError(t, v.Verify(t.Context()))
	b, err := v.ReadFile("etc/config")
	require.NoError(t, err)
	assert.Len(t, b, 35000)
	require.NoError(t, os.WriteFile(filepath.Join(path, "new"), []byte("x"), 0o600))
	require.NoError(t, os.Remove(filepath.Join(path, "new")))
	require.NoError(t, os.Chtimes(path, time.Time{}, time.Unix(1e9, 0)))
	holds = inventory(t, path)
	lock(t, v)
	assert.True(t, checkCut(t, dir, holds, "rotated"))

	// What the old key opened leads nowhere any more.
	newMeta := filepath.Join(t.TempDir(), "meta")
	copyTree(t, meta, newMeta)
	copyTree(t, oldMeta, meta)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.ErrorIs(t, err, fscrypt.ErrWrongVolume, "the old header is not that of the new directory")
	copyTree(t, newMeta, meta)

	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, newPass)
	require.NoError(t, err)
	second := v.Status().Kernel.Identifier
	require.NoError(t, v.Rotate(t.Context(), pass))
	assert.NotContains(t, []string{id, second}, v.Status().Kernel.Identifier)
	assert.Equal(t, holds, inventory(t, path))
	lock(t, v)
	assert.False(t, checkCut(t, dir, holds, "rotated back to the first passphrase"))
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	require.NoError(t, v.Destroy(t.Context()))
	assert.Empty(t, namesOf(t, filepath.Join(dir, ".fscrypt")))
	assert.NoDirExists(t, path)
}

// TestKernelRotateRefusesOpenFiles names who holds files, before anything
// changes.
func TestKernelRotateRefusesOpenFiles(t *testing.T) {
	_, dir, v, holds := rotatable(t, nil)
	before := v.Status()
	header := read(t, filepath.Join(dir, ".fscrypt", "header.a"))
	f, err := os.Open(filepath.Join(v.Path(), "tool"))
	require.NoError(t, err)
	err = v.Rotate(t.Context(), newPass)
	var busy *fscrypt.BusyError
	require.ErrorAs(t, err, &busy)
	assert.Contains(t, fmt.Sprint(busy.Paths), fmt.Sprintf("process %d: %s/tool", os.Getpid(), v.Path()))
	assert.Equal(t, before, v.Status())
	assert.Equal(t, header, read(t, filepath.Join(dir, ".fscrypt", "header.a")))
	require.NoError(t, f.Close())
	unrotated(t, dir, v, before.Kernel.Identifier, holds)
}

// TestKernelRotateNoticesOtherPrograms: what is changed or held open while the
// copy is made is not lost.
func TestKernelRotateNoticesOtherPrograms(t *testing.T) {
	var held *os.File
	for name, disturb := range map[string]func(t *testing.T, dir string) error{
		"written":  func(t *testing.T, dir string) error { return os.WriteFile(dir+"/tool", []byte("acknowledged"), 0o600) },
		"new":      func(t *testing.T, dir string) error { return os.WriteFile(dir+"/drop/new", nil, 0o600) },
		"removed":  func(t *testing.T, dir string) error { return os.Remove(dir + "/etc/dangling") },
		"renamed":  func(t *testing.T, dir string) error { return os.Rename(dir+"/sparse", dir+"/drop/sparse") },
		"mode":     func(t *testing.T, dir string) error { return os.Chmod(dir+"/etc/config", 0o600) },
		"contents": func(t *testing.T, dir string) error { return rewrite(dir + "/etc/deep/er/empty") },
		"held": func(t *testing.T, dir string) (err error) {
			held, err = os.OpenFile(dir+"/tool", os.O_WRONLY, 0)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var v *fscrypt.Volume
			var id string
			ctx := t.Context()
			var dir string
			_, dir, v, _ = rotatable(t, func(done, total int) {
				if done != total {
					return
				}
				require.NoError(t, disturb(t, v.Path()))
				var busy *fscrypt.BusyError
				assert.ErrorAs(t, v.Lock(ctx), &busy)
				assert.ErrorAs(t, v.Destroy(ctx), &busy)
				_, err := v.ReadFile("etc/config")
				assert.ErrorIs(t, err, fscrypt.ErrLocked)
				assert.ErrorIs(t, v.Protect(ctx, "tool"), fscrypt.ErrLocked)
				assert.True(t, v.Status().Rotating)
				assert.Equal(t, "present", v.Status().Kernel.Key)
			})
			id = v.Status().Kernel.Identifier
			err := v.Rotate(ctx, newPass)
			require.Error(t, err)
			if name == "held" {
				var busy *fscrypt.BusyError
				require.ErrorAs(t, err, &busy)
				assert.Contains(t, fmt.Sprint(busy.Paths), "/tool")
				_, err = held.WriteString("still open")
				require.NoError(t, errors.Join(err, held.Close()))
			} else {
				require.ErrorContains(t, err, "stop it and try again")
			}
			assert.Equal(t, id, v.Status().Kernel.Identifier)
			if name == "written" {
				assert.Equal(t, "acknowledged", string(read(t, v.Path()+"/tool")))
			}
			require.NoError(t, v.Protect(t.Context(), "etc/config"))
			unrotated(t, dir, v, id, inventory(t, v.Path()))
		})
	}
}

func rewrite(name string) error { return os.WriteFile(name, []byte("now with content"), 0o600) }

// TestKernelRotateCancelled is undone at once.
func TestKernelRotateCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, dir, v, holds := rotatable(t, func(done, total int) {
		if done == 2 {
			cancel()
		}
	})
	id := v.Status().Kernel.Identifier
	require.ErrorIs(t, v.Rotate(ctx, newPass), context.Canceled)
	unrotated(t, dir, v, id, holds)
}

// TestKernelRotateWithoutSpace refuses before it changes anything, and gives
// all space back where somebody else used it up meanwhile.
func TestKernelRotateWithoutSpace(t *testing.T) {
	t.Run("at the start", func(t *testing.T) {
		mount, dir, v, holds := rotatable(t, nil)
		require.NoError(t, os.WriteFile(filepath.Join(mount, "filler"), make([]byte, leftOn(t, mount)-(512<<10)), 0o600))
		id, gen := v.Status().Kernel.Identifier, v.Status().Generation
		err := v.Rotate(t.Context(), newPass)
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.ErrorContains(t, err, "left")
		assert.Equal(t, gen, v.Status().Generation)
		unrotated(t, dir, v, id, holds)
	})
	t.Run("while copying", func(t *testing.T) {
		var mount string
		mount, dir, v, holds := rotatable(t, func(done, total int) {
			if done == 1 {
				_ = os.WriteFile(filepath.Join(mount, "filler"), make([]byte, leftOn(t, mount)+(4<<20)), 0o600)
			}
		})
		id := v.Status().Kernel.Identifier
		require.ErrorIs(t, v.Rotate(t.Context(), newPass), syscall.ENOSPC)
		require.NoError(t, os.Remove(filepath.Join(mount, "filler")))
		if v.Status().Rotating { // no space for the header: the next Open undoes it
			lock(t, v)
			assert.False(t, checkCut(t, dir, holds, "no space"))
			return
		}
		unrotated(t, dir, v, id, holds)
	})
}

func leftOn(t testing.TB, dir string) int64 {
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	return int64(st.Bavail) * int64(st.Bsize)
}

// TestKernelRotateRefusesWhatItCannotCopy names it, before anything changes.
func TestKernelRotateRefusesWhatItCannotCopy(t *testing.T) {
	_, dir, v, holds := rotatable(t, nil)
	id, gen := v.Status().Kernel.Identifier, v.Status().Generation
	odd := filepath.Join(v.Path(), "etc", "odd")
	attr := func(flag int) (func() error, func()) {
		set := func(n int) error {
			f, err := os.OpenFile(odd, os.O_RDONLY|os.O_CREATE, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
			if err != nil {
				return err
			}
			return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags)&^flag|n)
		}
		return func() error { return set(flag) }, func() { require.NoError(t, set(0)) }
	}
	immutable, mutable := attr(0x10)
	appendOnly, notOnly := attr(0x20)
	for _, c := range []struct {
		what  string
		make  func() error
		unset func()
	}{
		{"a socket", func() error { return unix.Mknod(odd, unix.S_IFSOCK|0o600, 0) }, nil},
		{"a named pipe", func() error { return unix.Mkfifo(odd, 0o600) }, nil},
		{"a character device", func() error { return unix.Mknod(odd, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }, nil},
		{"immutable", immutable, mutable},
		{"append-only", appendOnly, notOnly},
		{"on another file system or mount", func() error {
			return errors.Join(os.Mkdir(odd, 0o700), unix.Mount("none", odd, "tmpfs", 0, ""))
		}, func() { require.NoError(t, unix.Unmount(odd, 0)) }},
	} {
		require.NoError(t, c.make(), c.what)
		err := v.Rotate(t.Context(), newPass)
		if c.unset != nil {
			c.unset()
		}
		require.ErrorIs(t, err, fscrypt.ErrUnsupported, c.what)
		require.ErrorContains(t, err, "etc/odd is "+c.what)
		assert.Equal(t, gen, v.Status().Generation)
		require.NoError(t, os.RemoveAll(odd))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "tree.next"), 0o700))
	require.ErrorIs(t, v.Rotate(t.Context(), newPass), fs.ErrExist)
	require.NoError(t, os.Remove(filepath.Join(dir, "tree.next")))
	etc := filepath.Join(v.Path(), "etc")
	now := inventory(t, v.Path())
	assert.Len(t, now, len(holds))
	require.NotEmpty(t, now[filepath.Base(etc)])
	unrotated(t, dir, v, id, now)
}

// TestKernelRotateKeepsWhatWasProtected: a protected file that was changed is
// found before its ciphertext goes.
func TestKernelRotateKeepsWhatWasProtected(t *testing.T) {
	_, dir, v, _ := rotatable(t, nil)
	id := v.Status().Kernel.Identifier
	config := filepath.Join(v.Path(), "etc/config")
	want := read(t, config)
	for _, change := range []func() error{
		func() error { return os.WriteFile(config, []byte("changed"), 0o640) },
		func() error { return os.Remove(config) },
	} {
		require.NoError(t, change())
		err := v.Rotate(t.Context(), newPass)
		require.ErrorIs(t, err, fscrypt.ErrTampered)
		assert.Equal(t, id, v.Status().Kernel.Identifier)
		require.NoError(t, os.WriteFile(config, want, 0o640))
	}
	unrotated(t, dir, v, id, inventory(t, v.Path()))
}

// TestKernelRotateEndsWithTheLease: when the volume shuts meanwhile, no key
// stays in the kernel.
func TestKernelRotateEndsWithTheLease(t *testing.T) {
	mount, _ := ext4(t, "encrypt")
	c := newCloud(t)
	p := fscrypt.All(pass, c.remote("node"))
	dir := filepath.Join(mount, "volume")
	var v *fscrypt.Volume
	cfg := kernelConfig
	cfg.Progress = func(done, total int) {
		if done == 3 {
			c.deny = fscrypt.ErrRevoked
			_, err := v.RenewLease(context.Background())
			assert.Error(t, err)
			c.deny = nil
		}
	}
	v, err := fscrypt.Create(t.Context(), dir, cfg, p)
	if errors.Is(err, fscrypt.ErrUnsupported) {
		testenv.Missing(t, "kernel with CONFIG_FS_ENCRYPTION: "+err.Error())
	}
	require.NoError(t, err)
	furnish(t, v.Path())
	holds, id := inventory(t, v.Path()), v.Status().Kernel.Identifier
	require.ErrorIs(t, v.Rotate(t.Context(), newPass), fscrypt.ErrLocked)
	assert.True(t, v.Status().Locked)
	assert.Equal(t, kernel.Absent, keyState(t, dir, id))
	_, err = os.ReadFile(filepath.Join(v.Path(), "tool"))
	require.Error(t, err)
	lock(t, v)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	assert.Equal(t, holds, inventory(t, v.Path()))
	assert.False(t, v.Status().Rotating)
	assert.Equal(t, []string{".fscrypt", "tree"}, namesOf(t, dir))
	lock(t, v)
}
