package fscrypt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/fscrypt/internal/disk"
	"github.com/trusttree/trusttree/internal/testenv"
)

// cutFS is the real directory of a volume. It counts what changes there, and
// in the encrypted directories beside it; after some step nothing changes any
// more. What the block device holds then is what a power cut leaves.
type cutFS struct {
	disk.FS
	mu    sync.Mutex
	steps int
	cut   int                    // the step at which the power goes, 0 for never
	fail  func(what string) bool // one change fails, and the power stays
}

func openCut(t testing.TB, dir string, cut int, ps ...fscrypt.Protector) (*cutFS, *fscrypt.Volume, error) {
	d, err := disk.OpenOS(filepath.Join(dir, ".fscrypt"))
	require.NoError(t, err)
	c := &cutFS{FS: d, cut: cut}
	v, err := fscrypt.OpenIn(t.Context(), dir, c, fscrypt.Config{}, ps...)
	if err != nil {
		require.NoError(t, d.Close())
	}
	return c, v, err
}

func (c *cutFS) step(what string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut > 0 && c.steps >= c.cut || c.fail != nil && c.fail(what) {
		return errCut
	}
	c.steps++
	return nil
}

func (c *cutFS) Step() error { return c.step("tree") }

func (c *cutFS) Create(name string) (disk.File, error) {
	if err := c.step("create " + name); err != nil {
		return nil, err
	}
	return c.file(c.FS.Create(name))
}

func (c *cutFS) Open(name string) (disk.File, error) { return c.file(c.FS.Open(name)) }

func (c *cutFS) file(f disk.File, err error) (disk.File, error) {
	if err != nil {
		return nil, err
	}
	return &cutFile{f, c}, nil
}

func (c *cutFS) Rename(a, b string) error {
	if err := c.step("rename " + b); err != nil {
		return err
	}
	return c.FS.Rename(a, b)
}

func (c *cutFS) Remove(name string) error {
	if err := c.step("remove " + name); err != nil {
		return err
	}
	return c.FS.Remove(name)
}

func (c *cutFS) SyncDir(name string) error {
	if err := c.step("sync " + name); err != nil {
		return err
	}
	return c.FS.SyncDir(name)
}

type cutFile struct {
	disk.File
	c *cutFS
}

func (f *cutFile) Write(p []byte) (int, error) {
	if err := f.c.step("write"); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *cutFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.c.step("write"); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *cutFile) Truncate(size int64) error {
	if err := f.c.step("truncate"); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *cutFile) Sync() error {
	if err := f.c.step("flush"); err != nil {
		return err
	}
	return f.File.Sync()
}

// memory is a directory that no disk slows down, where there is one.
func memory(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "fscrypt-test")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// smallVolume is the image of a locked kernel mode volume, and what it holds.
func smallVolume(t *testing.T) (image []byte, holds map[string]string) {
	testenv.Root(t)
	mkfs := testenv.Tool(t, "mkfs.ext4", "e2fsprogs")
	file := filepath.Join(memory(t), "image")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 8<<20))
	out, err := exec.Command(mkfs, "-q", "-F", "-O", "encrypt", "-N", "128", file).CombinedOutput()
	require.NoError(t, err, string(out))
	mount := mountImage(t, file)
	v, err := fscrypt.Create(t.Context(), filepath.Join(mount, "volume"), kernelConfig, pass)
	if errors.Is(err, fscrypt.ErrUnsupported) {
		testenv.Missing(t, "kernel with CONFIG_FS_ENCRYPTION: "+err.Error())
	}
	require.NoError(t, err)
	furnish(t, v.Path())
	require.NoError(t, v.Protect(t.Context(), "etc/config"))
	holds = inventory(t, v.Path())
	lock(t, v)
	require.NoError(t, exec.Command("umount", mount).Run())
	return read(t, file), holds
}

// withImage runs f on a volume in an image, and returns the image as it was
// when f ended, before anything else was flushed, and after.
func withImage(t *testing.T, image []byte, f func(dir string) *fscrypt.Volume) (cut, flushed []byte) {
	file, mount := filepath.Join(memory(t), "image"), t.TempDir()
	require.NoError(t, os.WriteFile(file, image, 0o600))
	if out, err := exec.Command("mount", "-o", "loop", file, mount).CombinedOutput(); err != nil {
		testenv.Missing(t, "loop mounts: "+string(out))
	}
	mounted := true
	defer func() {
		if mounted {
			_ = exec.Command("umount", "-l", mount).Run()
		}
	}()
	v := f(filepath.Join(mount, "volume"))
	cut = read(t, file)
	if v != nil {
		fscrypt.Abandon(v)
	}
	require.Eventually(t, func() bool {
		runtime.GC() // an Open that failed leaves files to it
		return exec.Command("umount", mount).Run() == nil
	}, 20*time.Second, 50*time.Millisecond)
	mounted = false
	flushed = read(t, file)
	require.NoError(t, os.Remove(file))
	return cut, flushed
}

var newPass = &fscrypt.Passphrase{Passphrase: "new", WorkFactor: 1}

// check opens a volume after a cut: with the old key or with the new one, not
// with both; all that it held is there, and nothing of the rotation is left.
func checkCut(t *testing.T, dir string, holds map[string]string, where string) (rotated bool) {
	use, other := pass, newPass
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, use)
	if err != nil {
		require.ErrorIs(t, err, fscrypt.ErrAuth, where)
		use, other, rotated = newPass, pass, true
		v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, use)
	}
	require.NoError(t, err, where)
	require.False(t, v.Status().Rotating, where)
	require.Equal(t, holds, inventory(t, v.Path()), where)
	require.NoError(t, v.Verify(t.Context()), where)
	require.Equal(t, []string{".fscrypt", "tree"}, namesOf(t, dir), where)
	for _, name := range namesOf(t, filepath.Join(dir, ".fscrypt")) {
		require.False(t, strings.HasSuffix(name, ".tmp"), where)
	}
	require.NoError(t, v.Lock(t.Context()), where)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, other)
	require.ErrorIs(t, err, fscrypt.ErrAuth, where)
	return rotated
}

func namesOf(t testing.TB, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestKernelRotatePowerCutAtEveryStep cuts the power at every change that Rotate
// makes, of the header and of the directories, once with what was not flushed
// lost and once with it there; and at every change by which Open finishes or
// undoes what the cut left. Without TRUSTTREE_LONG it takes every eighth.
func TestKernelRotatePowerCutAtEveryStep(t *testing.T) {
	image, holds := smallVolume(t)
	every := 8
	if testenv.Long() {
		every = 1
	}
	var log []string
	withImage(t, image, func(dir string) *fscrypt.Volume {
		c, v, err := openCut(t, dir, 0, pass)
		require.NoError(t, err)
		c.fail = func(what string) bool { log = append(log, what); return false }
		require.NoError(t, v.Rotate(t.Context(), newPass))
		lock(t, v)
		assert.True(t, checkCut(t, dir, holds, "no cut"))
		return nil
	})
	require.Greater(t, len(log), 100)
	rotate := func(t *testing.T, cut int) (lost, kept []byte) {
		return withImage(t, image, func(dir string) *fscrypt.Volume {
			c, v, err := openCut(t, dir, 0, pass)
			require.NoError(t, err)
			c.cut = c.steps + cut
			require.ErrorIs(t, v.Rotate(t.Context(), newPass), errCut)
			return v
		})
	}
	check := func(t *testing.T, disk []byte, where string) (rotated bool) {
		withImage(t, disk, func(dir string) *fscrypt.Volume {
			rotated = checkCut(t, dir, holds, where)
			return nil
		})
		return rotated
	}
	// From the second time on that the header's first copy has its name, the
	// new key opens the volume.
	first := nth(log, "rename header.a", 2)
	for cut := 1; cut < len(log)-3; cut++ { // a checkpoint may end it
		if cut%every != 0 && cut != first && cut != first+1 {
			continue
		}
		t.Run(fmt.Sprintf("Rotate/%d %s", cut, log[cut]), func(t *testing.T) {
			lost, kept := rotate(t, cut)
			assert.Equal(t, cut > first, check(t, kept, "all there"))
			if check(t, lost, "unflushed lost") {
				assert.Greater(t, cut, first)
			}
		})
	}
	for name, at := range map[string]int{"undoes": nth(log, "tree", 9), "finishes": nth(log, "rename header.b", 2) + 2} {
		p := map[string]fscrypt.Protector{"undoes": pass, "finishes": newPass}[name]
		_, half := rotate(t, at)
		open := func(t *testing.T, cut int) (kept []byte, steps int, err error) {
			_, kept = withImage(t, half, func(dir string) *fscrypt.Volume {
				var c *cutFS
				var v *fscrypt.Volume
				c, v, err = openCut(t, dir, cut, p)
				steps = c.steps
				return v
			})
			return kept, steps, err
		}
		_, steps, err := open(t, 0)
		require.NoError(t, err)
		require.Greater(t, steps, 20)
		for cut := 1; cut < steps; cut += every {
			t.Run(fmt.Sprintf("Open %s/%d", name, cut), func(t *testing.T) {
				kept, _, err := open(t, cut)
				if err != nil { // otherwise what is left to do can wait
					require.ErrorIs(t, err, errCut)
				}
				assert.Equal(t, name == "finishes", check(t, kept, "after Open"))
			})
		}
	}
}

// nth is where a change was logged for the nth time.
func nth(log []string, what string, n int) int {
	for i, l := range log {
		if l == what {
			if n--; n == 0 {
				return i
			}
		}
	}
	return -1
}

// TestKernelRotateHeaderCannotBeWritten: one write of the header that puts the
// copy in force fails; whether it had, nobody knows.
func TestKernelRotateHeaderCannotBeWritten(t *testing.T) {
	image, holds := smallVolume(t)
	for _, what := range []string{"rename header.a", "rename header.b"} {
		withImage(t, image, func(dir string) *fscrypt.Volume {
			c, v, err := openCut(t, dir, 0, pass)
			require.NoError(t, err)
			seen := 0
			c.fail = func(w string) bool {
				if w == what {
					seen++
				}
				return w == what && seen == 2
			}
			require.ErrorIs(t, v.Rotate(t.Context(), newPass), errCut)
			assert.Equal(t, holds, inventory(t, v.Path()), "the old directory is in use again")
			lock(t, v)
			assert.False(t, checkCut(t, dir, holds, what))
			return nil
		})
	}
}

// TestKernelRotateLookAlike puts other directories where the copy in force is,
// before it has its name: the volume does not open, and what it replaced stays.
func TestKernelRotateLookAlike(t *testing.T) {
	image, holds := smallVolume(t)
	_, disk := withImage(t, image, func(dir string) *fscrypt.Volume {
		c, v, err := openCut(t, dir, 0, pass)
		require.NoError(t, err)
		headers := 0
		c.fail = func(what string) bool {
			if what == "rename header.b" {
				headers++
			}
			return headers >= 2 && what == "tree" // the exchange
		}
		require.ErrorIs(t, v.Rotate(t.Context(), newPass), errCut)
		assert.True(t, v.Status().Rotating)
		return v
	})
	withImage(t, disk, func(dir string) *fscrypt.Volume {
		next, aside := filepath.Join(dir, "tree.next"), filepath.Join(dir, "aside")
		require.NoError(t, os.Rename(next, aside))
		for name, evil := range map[string]func(){
			"missing":       func() {},
			"plain":         func() { require.NoError(t, os.Mkdir(next, 0o700)) },
			"link":          func() { require.NoError(t, os.Symlink(aside, next)) },
			"other key":     func() { encryptedDir(t, next, []byte(strings.Repeat("k", 64))) },
			"old directory": func() { require.NoError(t, os.Rename(filepath.Join(dir, "tree"), next)) },
		} {
			evil()
			_, err := fscrypt.Open(context.Background(), dir, fscrypt.Config{}, newPass)
			require.ErrorIs(t, err, fscrypt.ErrWrongVolume, name)
			if name == "old directory" {
				require.NoError(t, os.Rename(next, filepath.Join(dir, "tree")))
			}
			require.NoError(t, os.RemoveAll(next))
		}
		require.NoError(t, os.Rename(aside, next))
		assert.True(t, checkCut(t, dir, holds, "put right"))
		return nil
	})
}
