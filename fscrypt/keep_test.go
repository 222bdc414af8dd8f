//go:build linux

package fscrypt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/tpm"
)

// otherProcess makes the test binary serve as a daemon, or as a machine's first
// process.
func otherProcess() {
	switch {
	case os.Getpid() == 1 && os.Getenv("CI") == "":
		guest()
	case os.Getenv("FSCRYPT_TEST_RESTART") != "":
		restarted()
	}
}

// restarted is a node's daemon in a process of its own: it opens the volume
// with what file descriptor 3 keeps, appends a line to a file, and then does
// as the variable says: "killed" dies at once, "stopped" detaches, "locked"
// locks.
func restarted() {
	err := func() error {
		ctx := context.Background()
		dev, err := linuxudstpm.Open(os.Getenv("FSCRYPT_TEST_SOCKET"))
		if err != nil {
			return err
		}
		keep, err := fscrypt.NewKeep(os.NewFile(3, "keep"))
		if err != nil {
			return err
		}
		v, err := fscrypt.Open(ctx, os.Getenv("FSCRYPT_TEST_DIR"), fscrypt.Config{},
			&fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, Keep: keep})
		if err != nil {
			return err
		}
		b, err := v.ReadFile("log")
		if err != nil {
			return err
		}
		if err := v.WriteFile("log", append(b, os.Getenv("FSCRYPT_TEST_RESTART")+"\n"...)); err != nil {
			return err
		}
		switch os.Getenv("FSCRYPT_TEST_RESTART") {
		case "killed":
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case "stopped":
			return v.Detach(ctx)
		}
		return v.Lock(ctx)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestRestartedDaemonReopensInTheSameBoot kills and restarts a process that
// has a volume open: what is kept in memory opens it again, until it is locked.
func TestRestartedDaemonReopensInTheSameBoot(t *testing.T) {
	dev := newTPM(t)
	dir := t.TempDir()
	boot(t, dev, "image 1")
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, Counter: tpm.NVVolumeFirst}
	v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "x"}, p)
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("log", nil))
	lock(t, v)
	reboot(t, dev, "image 1")

	keep, err := fscrypt.NewKeep(nil)
	require.NoError(t, err)
	defer keep.Close()
	self, err := os.Executable()
	require.NoError(t, err)
	socket := serveTPM(t, dev)
	daemon := func(end string) (string, error) {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "FSCRYPT_TEST_RESTART="+end, "FSCRYPT_TEST_SOCKET="+socket, "FSCRYPT_TEST_DIR="+dir)
		cmd.ExtraFiles = []*os.File{keep.File()}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, end := range []string{"killed", "killed", "stopped", "killed", "locked"} {
		out, err := daemon(end)
		if end == "killed" {
			var ee *exec.ExitError
			require.ErrorAs(t, err, &ee, out)
			require.Equal(t, syscall.SIGKILL, ee.Sys().(syscall.WaitStatus).Signal(), out)
			continue
		}
		require.NoError(t, err, out)
	}
	out, err := daemon("locked")
	require.Error(t, err)
	assert.Contains(t, out, fscrypt.ErrLatched.Error(), "Lock erased what was kept")

	reboot(t, dev, "image 1")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	b, err := v.ReadFile("log")
	require.NoError(t, err)
	assert.Equal(t, "killed\nkilled\nstopped\nkilled\nlocked\n", string(b))
	lock(t, v)
}

// TestKeepHoldsNoRemoteShare: a node that was revoked opens its data volume
// from what is kept neither, and one whose lease merely ended does, when the
// cloud releases again, without a reboot.
func TestKeepHoldsNoRemoteShare(t *testing.T) {
	dev := newTPM(t)
	c := newCloud(t)
	boot(t, dev, "image 1")
	keep, err := fscrypt.NewKeep(nil)
	require.NoError(t, err)
	defer keep.Close()
	tp := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, Counter: tpm.NVVolumeFirst, PIN: []byte("1234")}
	p := fscrypt.All(tp, c.remote("node"))
	dir := t.TempDir()
	tp.Keep = keep
	v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "data"}, p)
	require.NoError(t, err)
	tp.PIN = nil // whoever typed it is gone
	require.NoError(t, v.Detach(t.Context()))
	_, err = v.ReadFile("a")
	require.ErrorIs(t, err, fscrypt.ErrLocked)

	c.down = errors.New("no network")
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrUnavailable)
	c.down, c.lease = nil, time.Second
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return v.Status().Locked }, 10*time.Second, 20*time.Millisecond)
	require.NoError(t, v.Detach(t.Context()))
	c.lease = time.Hour
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err, "after the lease had ended")
	require.NoError(t, v.Detach(t.Context()))
	require.NoError(t, c.Revoke(t.Context(), "node", "stolen"))
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrRevoked)
}

// TestKeepForgetsReplacedSlots: what is kept follows the slots in force, and a
// refused volume leaves nothing.
func TestKeepForgetsReplacedSlots(t *testing.T) {
	dev := newTPM(t)
	boot(t, dev, "image 1")
	keep, err := fscrypt.NewKeep(nil)
	require.NoError(t, err)
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, Counter: tpm.NVVolumeFirst, Keep: keep}
	dir, old := t.TempDir(), filepath.Join(t.TempDir(), "old")
	v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "x"}, p)
	require.NoError(t, err)
	copyTree(t, dir, old)
	require.NoError(t, v.Reseal(t.Context(), p))
	require.NoError(t, v.Rotate(t.Context(), p))
	require.NoError(t, v.Detach(t.Context()))
	_, err = fscrypt.Open(t.Context(), old, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrLatched, "the old slot is not kept")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	require.NoError(t, v.Reseal(t.Context(), p), "sealing again leaves the latch as it is")
	require.NoError(t, v.Detach(t.Context()))

	// A header that the key does not authenticate: the volume stays closed,
	// and what is kept is not its doing.
	flipLabel(t, dir)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.Error(t, err)
	flipLabel(t, dir)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	require.NoError(t, v.Destroy(t.Context()))
	assert.Equal(t, make([]byte, 4096-64), keepBytes(t, keep)[64:], "nothing is left")
	require.NoError(t, keep.Close())
	require.NoError(t, keep.Close())
}

func flipLabel(t *testing.T, dir string) {
	for _, n := range []string{"header.a", "header.b"} {
		edit(t, filepath.Join(dir, ".fscrypt", n), func(b []byte) []byte {
			if bytes.Contains(b, []byte(`"label":"x"`)) {
				return bytes.Replace(b, []byte(`"label":"x"`), []byte(`"label":"y"`), 1)
			}
			return bytes.Replace(b, []byte(`"label":"y"`), []byte(`"label":"x"`), 1)
		})
	}
}

// keepBytes reads what a Keep's file holds; memfd_secret can only be mapped.
func keepBytes(t *testing.T, k *fscrypt.Keep) []byte {
	b, err := syscall.Mmap(int(k.File().Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
	require.NoError(t, err)
	defer syscall.Munmap(b)
	return bytes.Clone(b)
}

func TestKeepRefusesFilesOnDisksAndOfOthers(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "keep"))
	require.NoError(t, err)
	_, err = fscrypt.NewKeep(f)
	var fsType syscall.Statfs_t
	require.NoError(t, syscall.Statfs(t.TempDir(), &fsType))
	if fsType.Type != 0x01021994 { // tmpfs
		require.ErrorIs(t, err, fscrypt.ErrUnsupported)
	}
	shm := func(content string, mode os.FileMode) (*fscrypt.Keep, error) {
		f, err := os.CreateTemp("/dev/shm", "keep")
		require.NoError(t, err)
		t.Cleanup(func() { _ = os.Remove(f.Name()) })
		_, err = io.WriteString(f, content)
		require.NoError(t, err)
		require.NoError(t, f.Chmod(mode))
		return fscrypt.NewKeep(f)
	}
	_, err = shm("", 0o644)
	require.ErrorContains(t, err, "others have access")
	_, err = shm("short", 0o600)
	require.ErrorIs(t, err, fscrypt.ErrUnsupported)
	_, err = shm(string(bytes.Repeat([]byte("x"), 4096)), 0o600)
	require.ErrorIs(t, err, fscrypt.ErrUnsupported)
	k, err := shm("", 0o600)
	require.NoError(t, err)
	require.NoError(t, k.Close())
}

// Threat 5: an attacker who once booted a system of his own sealed a volume of
// his own to the TPM, in the place of the node's.
func TestSupplantedVolumeIsNoticedByItsLatch(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	reboot(t, dev, "image 1")
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.NoError(t, err)
	latch := v.Latch()
	lock(t, v)
	reboot(t, dev, "image 1")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{Latch: latch}, with(imagePCRs("image 1")))
	require.NoError(t, err)
	lock(t, v)

	require.NoError(t, dev.Reboot(t.Context())) // what is sealed asks for PCRs of image 1
	evil := t.TempDir()
	p := with(imagePCRs("image 1"))
	p.UnsafeReplaceNV = true
	v, err = fscrypt.Create(t.Context(), evil, fscrypt.Config{Label: "test"}, p)
	require.NoError(t, err)
	lock(t, v)
	reboot(t, dev, "image 1")
	_, err = fscrypt.Open(t.Context(), evil, fscrypt.Config{Latch: latch}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
	_, err = fscrypt.Open(t.Context(), evil, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrLatched, "refused, and latched")
}
