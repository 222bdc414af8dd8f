package fscrypt_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/tpm"
)

var pass = &fscrypt.Passphrase{Passphrase: "p", WorkFactor: 1}

// job is one change of a volume, with what it makes of the files if it is
// done.
type job struct {
	name string
	do   func(*fscrypt.Volume) error
	then func(map[string]string)
}

func put(name, content string) job {
	return job{"put " + name, func(v *fscrypt.Volume) error { return v.WriteFile(name, []byte(content)) },
		func(m map[string]string) { m[name] = content }}
}

func same(map[string]string) {}

func jobs(t testing.TB) []job {
	big := string(bytes.Repeat([]byte("0123456789abcdef"), 9000)) // three chunks
	return []job{
		put("a", "first"),
		put("dir/b", big),
		put("a", "second"),
		{"rename", func(v *fscrypt.Volume) error { return v.Rename("a", "c") },
			func(m map[string]string) { m["c"] = m["a"]; delete(m, "a") }},
		{"rename over", func(v *fscrypt.Volume) error { return v.Rename("c", "dir/b") },
			func(m map[string]string) { m["dir/b"] = m["c"]; delete(m, "c") }},
		put("d", "third"),
		{"checkpoint", func(v *fscrypt.Volume) error { return v.Checkpoint(t.Context()) }, same},
		{"add protector", func(v *fscrypt.Volume) error {
			_, err := v.AddProtector(t.Context(), &fscrypt.Passphrase{Passphrase: "q", WorkFactor: 1})
			return err
		}, same},
		{"rotate", func(v *fscrypt.Volume) error { return v.Rotate(t.Context(), pass) }, same},
		{"reseal", func(v *fscrypt.Volume) error { return v.Reseal(t.Context(), pass) }, same},
		put("d", "fourth"),
		{"remove", func(v *fscrypt.Volume) error { return v.Remove("d") }, func(m map[string]string) { delete(m, "d") }},
		{"lock", func(v *fscrypt.Volume) error { return v.Lock(t.Context()) }, same},
	}
}

// TestPowerCutAtEveryStep cuts the power at every write and flush of every
// kind of change: the volume opens, what was acknowledged is there, and what
// was not is there whole or not at all.
func TestPowerCutAtEveryStep(t *testing.T) {
	t.Run("small files in the log", func(t *testing.T) { cutEverywhere(t, 1<<20) })
	t.Run("small files packed at once", func(t *testing.T) { cutEverywhere(t, 300) })
}

func cutEverywhere(t *testing.T, maxLogged int) {
	total := 0
	for cut := 1; ; cut++ {
		d := newCrashFS()
		v, err := fscrypt.CreateOn(t.Context(), d, loose, pass)
		require.NoError(t, err)
		fscrypt.SetMaxLogged(v, maxLogged)
		d.cut = d.steps + cut
		acked, maybe := map[string]string{}, map[string]string{}
		var at string
		for _, j := range jobs(t) {
			maybe = maps.Clone(acked)
			j.then(maybe)
			if err := j.do(v); err != nil {
				require.ErrorIs(t, err, errCut, j.name)
				at = j.name
				break
			}
			acked = maybe
		}
		if at == "" {
			break
		}
		total++
		for i, fate := range fates(uint64(cut)) {
			where := fmt.Sprintf("cut %d in %s, fate %d", cut, at, i)
			again := d.Reboot(fate)
			v, err := fscrypt.OpenOn(t.Context(), again, fscrypt.Config{}, pass)
			require.NoError(t, err, where)
			if v.Status().Rotating {
				require.NoError(t, v.Rotate(t.Context()), where)
			}
			got := contents(t, v)
			if !maps.Equal(got, acked) {
				require.Equal(t, maybe, got, where)
			}
			require.NoError(t, v.WriteFile("after", []byte("x")), where)
			require.NoError(t, v.Lock(t.Context()), where)
			require.Empty(t, again.leftovers(), where)
			_, err = fscrypt.OpenOn(t.Context(), again, fscrypt.Config{}, pass)
			require.NoError(t, err, where)
		}
	}
	require.Greater(t, total, 60)
	t.Logf("%d cuts", total)
}

// TestPowerCutInCreate leaves no volume, or a whole one.
func TestPowerCutInCreate(t *testing.T) {
	for cut := 1; ; cut++ {
		d := newCrashFS()
		d.cut = cut
		_, err := fscrypt.CreateOn(t.Context(), d, loose, pass)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, errCut)
		for i, fate := range fates(uint64(cut)) {
			again := d.Reboot(fate)
			v, err := fscrypt.OpenOn(t.Context(), again, fscrypt.Config{}, pass)
			if err == nil {
				require.NoError(t, v.WriteFile("a", nil), "cut %d fate %d", cut, i)
			}
		}
	}
}

// TestPowerCutBetweenDiskAndCounter cuts around the increments of the TPM's
// counter: the volume never locks its owner out as a rollback.
func TestPowerCutBetweenDiskAndCounter(t *testing.T) {
	dev := newTPM(t)
	boot(t, dev, "image 1")
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, UnsafeNoLatch: true, UnsafeReplaceNV: true,
		Counter: tpm.NVVolumeFirst, Share: tpm.NVVolumeShareFirst, Revocation: revocationIndex}
	for cut := 1; ; cut++ {
		d := newCrashFS()
		v, err := fscrypt.CreateOn(t.Context(), d, fscrypt.Config{Label: "x"}, p)
		require.NoError(t, err)
		d.cut = d.steps + cut
		err = v.WriteFile("a", []byte("x"))
		acked := err == nil
		for _, f := range []func() error{
			func() error { return v.Checkpoint(t.Context()) },
			func() error { return v.Reseal(t.Context(), p) },
			func() error { return v.Rotate(t.Context(), p) },
			func() error { return v.Lock(t.Context()) },
		} {
			if err == nil {
				err = f()
			}
		}
		for i, fate := range fates(uint64(cut)) {
			v, err := fscrypt.OpenOn(t.Context(), d.Reboot(fate), fscrypt.Config{}, p)
			require.NoError(t, err, "cut %d fate %d", cut, i)
			if acked {
				b, err := v.ReadFile("a")
				require.NoError(t, err)
				require.Equal(t, "x", string(b))
			}
			break // the counter moved: the other fates are other pasts
		}
		if err == nil {
			break
		}
		require.True(t, errors.Is(err, errCut), err)
	}
}

func contents(t testing.TB, v *fscrypt.Volume) map[string]string {
	m := map[string]string{}
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := readDir(v, dir)
		require.NoError(t, err)
		for _, e := range entries {
			name := e.Name()
			if dir != "." {
				name = dir + "/" + name
			}
			if e.IsDir() {
				walk(name)
				continue
			}
			b, err := v.ReadFile(name)
			require.NoError(t, err)
			m[name] = string(b)
		}
	}
	walk(".")
	return m
}
