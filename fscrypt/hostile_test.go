package fscrypt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm"
)

// classes are the errors that a changed header may lead to.
var classes = []error{fscrypt.ErrTampered, fscrypt.ErrWrongVolume, fscrypt.ErrAuth, fscrypt.ErrNoSlot, fscrypt.ErrUnsupported}

// TestDamagedHeader changes every byte of one copy of the header, and cuts it
// off everywhere: the other one opens the volume and mends it. With both
// copies changed, the volume does not open, or is as it was.
func TestDamagedHeader(t *testing.T) {
	d := newCrashFS()
	v, err := fscrypt.CreateOn(t.Context(), d, loose, pass)
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("a", []byte("content")))
	lock(t, v)
	whole := slices.Clone(d.files["header.a"].data)
	open := func(a, b []byte) (*fscrypt.Volume, *crashFS, error) {
		again := d.Reboot(func() bool { return true })
		again.files["header.a"].data, again.files["header.b"].data = slices.Clone(a), slices.Clone(b)
		v, err := fscrypt.OpenOn(t.Context(), again, fscrypt.Config{}, pass)
		return v, again, err
	}
	for at := 0; at < len(whole); at += testenv.N(2, 1) {
		flipped := slices.Clone(whole)
		flipped[at] ^= byte(1 << (at % 8))
		for how, bad := range map[string][]byte{"flipped": flipped, "cut": whole[:at]} {
			where := fmt.Sprintf("%s at byte %d", how, at)
			for _, first := range []bool{true, false} {
				a, b := bad, whole
				if !first {
					a, b = whole, bad
				}
				v, again, err := open(a, b)
				require.NoError(t, err, where)
				got, err := v.ReadFile("a")
				require.NoError(t, err, where)
				require.Equal(t, "content", string(got))
				require.Equal(t, again.files["header.a"].data, again.files["header.b"].data, where)
				fscrypt.Abandon(v)
			}
			v, _, err := open(bad, bad)
			if err == nil {
				got, err := v.ReadFile("a")
				require.NoError(t, err, where)
				require.Equal(t, "content", string(got))
				fscrypt.Abandon(v)
				continue
			}
			known := slices.ContainsFunc(classes, func(c error) bool { return errors.Is(err, c) })
			require.True(t, known, "%s: %v", where, err)
		}
	}
}

// TestLostHeaderCopy: a copy that is gone, a directory, far too large, or a
// pipe is mended from the other one, or the volume opens without it; nothing
// waits for it.
func TestLostHeaderCopy(t *testing.T) {
	for what, attack := range map[string]func(name string) error{
		"gone":      os.Remove,
		"directory": func(name string) error { return replaced(name, func() error { return os.Mkdir(name, 0o700) }) },
		"huge":      func(name string) error { return os.Truncate(name, 1<<40) },
		"pipe":      func(name string) error { return replaced(name, func() error { return mkfifo(name) }) },
		"link out": func(name string) error {
			return replaced(name, func() error { return os.Symlink("/etc/passwd", name) })
		},
		"device": func(name string) error { return replaced(name, func() error { return os.Symlink("/dev/zero", name) }) },
	} {
		for _, copy := range []string{"header.a", "header.b"} {
			t.Run(what+" "+copy, func(t *testing.T) {
				dir, v := passVolume(t, "f")
				lock(t, v)
				if err := attack(filepath.Join(dir, ".fscrypt", copy)); err != nil {
					testenv.Missing(t, err.Error())
				}
				u, err := fscrypt.Inspect(dir)
				require.NoError(t, err)
				assert.Equal(t, v.Status().Volume, u.Volume)
				v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
				require.NoError(t, err)
				_, err = v.ReadFile("f")
				require.NoError(t, err)
				lock(t, v)
			})
		}
	}
}

func replaced(name string, with func() error) error {
	if err := os.Remove(name); err != nil {
		return err
	}
	return with()
}

// TestObjectsReplacedByWhatIsNoFile: links that lead out of the volume, pipes,
// devices and directories in the place of objects are not followed, not waited
// for and not read.
func TestObjectsReplacedByWhatIsNoFile(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("not yours"), 0o600))
	for what, put := range map[string]func(name string) error{
		"link out": func(name string) error { return os.Symlink(outside, name) },
		"pipe":     mkfifo, "directory": func(name string) error { return os.Mkdir(name, 0o700) },
	} {
		t.Run(what, func(t *testing.T) {
			dir, v := passVolume(t, "one")
			object := objects(t, dir)[0]
			if err := replaced(object, func() error { return put(object) }); err != nil {
				testenv.Missing(t, err.Error())
			}
			b, err := v.ReadFile("one")
			require.Error(t, err)
			assert.Nil(t, b)
			assert.NotContains(t, err.Error(), "not yours")
			require.NoError(t, v.WriteFile("one", []byte("written anew")))
			lock(t, v)
			v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
			require.NoError(t, err)
			lock(t, v)
			got := read(t, outside)
			assert.Equal(t, "not yours", string(got))
		})
	}
	t.Run("directory of objects leads out", func(t *testing.T) {
		dir, v := passVolume(t, "one")
		lock(t, v)
		elsewhere := t.TempDir()
		objects := filepath.Join(dir, ".fscrypt", "objects")
		require.NoError(t, os.Rename(objects, filepath.Join(elsewhere, "o")))
		require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "o", "precious"), nil, 0o600))
		require.NoError(t, os.Symlink(filepath.Join(elsewhere, "o"), objects))
		_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
		require.Error(t, err)
		_, err = os.Stat(filepath.Join(elsewhere, "o", "precious"))
		require.NoError(t, err, "what is not the volume's is not tidied up")
	})
	t.Run("the volume itself is a link", func(t *testing.T) {
		dir, v := passVolume(t, "one")
		lock(t, v)
		other := t.TempDir()
		require.NoError(t, os.Symlink(filepath.Join(dir, ".fscrypt"), filepath.Join(other, ".fscrypt")))
		_, err := fscrypt.Open(t.Context(), other, fscrypt.Config{}, pass)
		require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
	})
}

// TestNamesOfFiles: names are data, and never lead anywhere on the disk.
func TestNamesOfFiles(t *testing.T) {
	dir, v := passVolume(t)
	long := strings.Repeat("n", 1024)
	for _, name := range []string{"a", "a b", "a\nb", "\x01", "a\\b", "C:", "...", "~", "é", "日本", "-rf", "\u202e", long, strings.Repeat("\x01", 1024), strings.Repeat("d/", 511) + "f"} {
		require.NoError(t, v.WriteFile(name, []byte(name)), name)
		got, err := v.ReadFile(name)
		require.NoError(t, err)
		require.Equal(t, name, string(got))
		require.NoError(t, v.Remove(name))
	}
	for _, name := range []string{"", ".", "..", "../a", "a/../b", "/a", "a/", "a//b", "./a", "a/.", "\xff", long + "n"} {
		require.ErrorIs(t, v.WriteFile(name, nil), fs.ErrInvalid, "%.20q", name)
		_, err := v.ReadFile(name)
		require.Error(t, err)
		_, err = v.Append(name)
		require.ErrorIs(t, err, fs.ErrInvalid)
		require.NoError(t, v.WriteFile("from", nil))
		require.ErrorIs(t, v.Rename("from", name), fs.ErrInvalid)
		require.Error(t, v.Remove(name))
	}
	lock(t, v)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "everything is in .fscrypt")
}

// TestSlotsAtTheirLimit fills every slot, opens by the first and the last, and
// refuses one more.
func TestSlotsAtTheirLimit(t *testing.T) {
	dir, v := passVolume(t, "f")
	var last *fscrypt.Passphrase
	for i := range 15 {
		last = &fscrypt.Passphrase{Passphrase: fmt.Sprint("p", i), WorkFactor: 1}
		_, err := v.AddProtector(t.Context(), last)
		require.NoError(t, err)
	}
	_, err := v.AddProtector(t.Context(), pass)
	require.ErrorContains(t, err, "16 slots")
	lock(t, v)
	for _, p := range []fscrypt.Protector{pass, last} {
		v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
		require.NoError(t, err)
		lock(t, v)
	}
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, last)
	require.NoError(t, err)
	for _, s := range v.Status().Slots[:15] {
		require.NoError(t, v.RemoveProtector(t.Context(), s.ID))
	}
	require.Error(t, v.RemoveProtector(t.Context(), v.Status().Slots[0].ID), "the last slot stays")
	lock(t, v)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.ErrorIs(t, err, fscrypt.ErrAuth)
	var many []fscrypt.Protector
	for range 17 {
		many = append(many, pass)
	}
	_, err = fscrypt.Create(t.Context(), filepath.Join(t.TempDir(), "v"), loose, many...)
	require.Error(t, err)
}

// TestSecondOpenIsUnavailable: one process at a time. The one that comes second
// closes no latch, and finds the volume once the first is done.
func TestSecondOpenIsUnavailable(t *testing.T) {
	dev := newTPM(t)
	boot(t, dev, "image 1")
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}}
	dir := t.TempDir()
	v, err := fscrypt.Create(t.Context(), dir, loose, p, pass)
	require.NoError(t, err)
	lock(t, v)
	reboot(t, dev, "image 1")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrUnavailable)
	require.NoError(t, v.WriteFile("f", nil))
	lock(t, v)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err, "the latch is still open")
	lock(t, v)
}

// TestCancelledOpen: a service that does not answer is given up with the
// context, and the TPM was not asked: it opens afterwards, in the same boot.
func TestCancelledOpen(t *testing.T) {
	dev := newTPM(t)
	boot(t, dev, "image 1")
	c := newCloud(t)
	remote := c.remote("node")
	p := fscrypt.All(&fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}}, remote)
	dir := t.TempDir()
	v, err := fscrypt.Create(t.Context(), dir, loose, p)
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("f", nil))
	lock(t, v)
	reboot(t, dev, "image 1")
	answer := remote.Exchange
	asked := make(chan bool, 1)
	remote.Exchange = func(ctx context.Context, _ []byte) ([]byte, error) {
		asked <- true
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := fscrypt.Open(ctx, dir, fscrypt.Config{}, p)
		done <- err
	}()
	<-asked
	cancel()
	select {
	case err := <-done:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(time.Minute):
		t.Fatal("Open goes on")
	}
	remote.Exchange = answer
	for _, f := range []func(ctx context.Context) error{
		func(ctx context.Context) error { _, err := fscrypt.Open(ctx, dir, fscrypt.Config{}, p); return err },
		func(ctx context.Context) error {
			_, err := fscrypt.Create(ctx, filepath.Join(t.TempDir(), "new"), loose, p)
			return err
		},
	} {
		require.ErrorIs(t, f(ctx), context.Canceled)
	}
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	_, err = v.AddProtector(ctx, pass)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, v.Rotate(ctx, p), context.Canceled)
	b, err := v.ReadFile("f")
	require.NoError(t, err)
	assert.Empty(t, b)
	lock(t, v)
}

// TestLargeAndSparse writes more than any buffer holds, zeros among it, and
// reads it from everywhere.
func TestLargeAndSparse(t *testing.T) {
	_, v := passVolume(t)
	size := testenv.N(20, 300) << 20
	w, err := v.Create("zeros")
	require.NoError(t, err)
	block := make([]byte, 1<<20)
	for i := range size >> 20 {
		block[0] = byte(i)
		_, err := w.Write(block)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	f, err := v.OpenFile("zeros")
	require.NoError(t, err)
	p := make([]byte, 3)
	for i := range size >> 20 {
		_, err := f.ReadAt(p, int64(i)<<20)
		require.NoError(t, err)
		require.Equal(t, []byte{byte(i), 0, 0}, p)
	}
	var buf bytes.Buffer
	n, err := f.WriteTo(&buf)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	require.NoError(t, f.Close())
	lock(t, v)
}

// TestDamagedHeaderUnderATPM: one damaged copy costs neither the TPM's latch
// nor its patience.
func TestDamagedHeaderUnderATPM(t *testing.T) {
	dev := newTPM(t)
	boot(t, dev, "image 1")
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, PIN: []byte("1234"),
		Counter: tpm.NVVolumeFirst, Share: tpm.NVVolumeShareFirst, Revocation: revocationIndex}
	guard := fscrypt.All(p, newCloud(t).remote("node"))
	d := newCrashFS()
	v, err := fscrypt.CreateOn(t.Context(), d, fscrypt.Config{Label: "x"}, guard)
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("a", []byte("content")))
	lock(t, v)
	whole := slices.Clone(d.files["header.a"].data)
	for at := 0; at < len(whole); at += testenv.N(41, 7) {
		reboot(t, dev, "image 1")
		d = d.Reboot(func() bool { return true })
		d.files["header.a"].data[at] ^= byte(1 << (at % 8))
		v, err := fscrypt.OpenOn(t.Context(), d, fscrypt.Config{}, guard)
		require.NoError(t, err, "byte %d of the header: %.20q", at, whole[max(0, at-10):])
		require.Equal(t, d.files["header.a"].data, d.files["header.b"].data)
		lock(t, v)
	}
}

// TestLeaseFollowsTheSlotOfANewVolume: the share that a volume was created
// with goes when the slot is made anew, and the lease goes over to the new one.
func TestLeaseFollowsTheSlotOfANewVolume(t *testing.T) {
	c := newCloud(t)
	p := fscrypt.All(pass, c.remote("node"))
	v, err := fscrypt.Create(t.Context(), t.TempDir(), loose, pass, p)
	require.NoError(t, err)
	assert.Equal(t, p.Type(), v.Status().Slot)
	require.NoError(t, v.Reseal(t.Context(), p))
	_, err = v.RenewLease(t.Context())
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("f", nil))
	lock(t, v)
}
