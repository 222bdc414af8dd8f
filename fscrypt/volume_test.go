package fscrypt_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

var loose = fscrypt.Config{Label: "test", UnsafeNoFreshness: true}

func TestTwoVolumesOfANode(t *testing.T) { bothTPMs(t, twoVolumes) }

func twoVolumes(t *testing.T, dev *tpmtest.TPM) {
	ctx := t.Context()
	c := newCloud(t)
	boss := newAuthority(t)
	v1 := boss.approve(t, imagePCRs("image 1"), "fleet", nil, 1)
	rec := recovery(t)
	sysDir, dataDir := t.TempDir(), t.TempDir()
	boot(t, dev, "image 1")

	sysTPM := func(p ...fscrypt.BootPolicy) *fscrypt.TPM {
		return &fscrypt.TPM{Device: dev, Policies: p, Counter: tpm.NVVolumeSystem, Share: tpm.NVVolumeShareFirst}
	}
	system, err := fscrypt.Create(ctx, sysDir, fscrypt.Config{Label: "system"}, sysTPM(v1), rec)
	require.NoError(t, err)
	require.NoError(t, system.WriteFile("etc/node.json", []byte("identity")))
	latch := system.Latch()
	dataTPM := func(p ...fscrypt.BootPolicy) fscrypt.Protector {
		return fscrypt.All(&fscrypt.TPM{Device: dev, Policies: p, Counter: tpm.NVVolumeData, After: [][]byte{latch}}, c.remote("node-1"))
	}
	data, err := fscrypt.Create(ctx, dataDir, fscrypt.Config{Label: "data"}, dataTPM(v1), rec)
	require.NoError(t, err)
	require.NoError(t, data.WriteFile("camera/0001.jpg", []byte("picture of the street")))
	lock(t, system)
	lock(t, data)
	assert.False(t, grep(t, dataDir, []byte("picture")), "plaintext on disk")
	assert.False(t, grep(t, dataDir, []byte("camera")), "name on disk")

	// The node boots image 2, which came with its own signed policy.
	reboot(t, dev, "image 2")
	v2 := boss.approve(t, imagePCRs("image 2"), "fleet", nil, 2)
	_, err = fscrypt.Open(ctx, dataDir, fscrypt.Config{}, dataTPM(v1, v2))
	require.ErrorIs(t, err, fscrypt.ErrLatched, "data opens after system only")
	reboot(t, dev, "image 2")
	system, err = fscrypt.Open(ctx, sysDir, fscrypt.Config{Label: "system"}, sysTPM(v1, v2))
	require.NoError(t, err)
	b, err := system.ReadFile("etc/node.json")
	require.NoError(t, err)
	assert.Equal(t, "identity", string(b))
	c.down = errors.New("no network")
	_, err = fscrypt.Open(ctx, dataDir, fscrypt.Config{}, dataTPM(v1, v2))
	require.ErrorIs(t, err, fscrypt.ErrUnavailable)
	c.down = nil
	data, err = fscrypt.Open(ctx, dataDir, fscrypt.Config{}, dataTPM(v1, v2))
	require.NoError(t, err, "a try without network leaves the latch open")
	b, err = data.ReadFile("camera/0001.jpg")
	require.NoError(t, err)
	assert.Equal(t, "picture of the street", string(b))
	s := data.Status()
	assert.Equal(t, "witnessed", s.Freshness)
	assert.Equal(t, "all(tpm,remote)", s.Slot)
	assert.WithinDuration(t, time.Now().Add(time.Hour), s.LeaseUntil, time.Minute)

	// The node is reported stolen.
	require.NoError(t, c.Revoke(ctx, "node-1", "stolen"))
	_, err = data.RenewLease(ctx)
	require.ErrorIs(t, err, fscrypt.ErrRevoked)
	_, err = data.ReadFile("camera/0001.jpg")
	require.ErrorIs(t, err, fscrypt.ErrLocked)
	lock(t, data)
	lock(t, system)
	reboot(t, dev, "image 2")
	system, err = fscrypt.Open(ctx, sysDir, fscrypt.Config{}, sysTPM(v2))
	require.NoError(t, err)
	lock(t, system)
	_, err = fscrypt.Open(ctx, dataDir, fscrypt.Config{}, dataTPM(v2))
	require.ErrorIs(t, err, fscrypt.ErrRevoked)

	// Its owner reads the disk elsewhere.
	data, err = fscrypt.Open(ctx, dataDir, fscrypt.Config{}, rec)
	require.NoError(t, err)
	assert.Equal(t, "unchecked", data.Status().Freshness)
	b, err = data.ReadFile("camera/0001.jpg")
	require.NoError(t, err)
	assert.Equal(t, "picture of the street", string(b))
	lock(t, data)
}

// tpmVolume is a volume sealed to a TPM in "image 1", locked.
func tpmVolume(t *testing.T, dev *tpmtest.TPM, change func(*fscrypt.TPM)) (string, func(...fscrypt.BootPolicy) *fscrypt.TPM) {
	boot(t, dev, "image 1")
	with := func(p ...fscrypt.BootPolicy) *fscrypt.TPM {
		pr := &fscrypt.TPM{Device: dev, Policies: p, Counter: tpm.NVVolumeFirst}
		if change != nil {
			change(pr)
		}
		return pr
	}
	dir := t.TempDir()
	v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "test"}, with(imagePCRs("image 1")))
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("a", []byte("first")))
	lock(t, v)
	return dir, with
}

func TestOtherImageIsRefusedAndNamesThePCRs(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	reboot(t, dev, "image of the attacker")
	_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	var pe *fscrypt.PolicyError
	require.ErrorAs(t, err, &pe)
	require.ErrorIs(t, err, fscrypt.ErrPolicy)
	assert.Equal(t, []int{7, 11}, pe.PCRs())
	assert.Contains(t, err.Error(), "PCR 7 is")
	// The policy of the attacker's own image does not help.
	reboot(t, dev, "image of the attacker")
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image of the attacker")))
	require.ErrorIs(t, err, fscrypt.ErrPolicy)
}

func TestSecondUnsealInOneBootIsLatched(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrLatched, "Create latches")
	reboot(t, dev, "image 1")
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.NoError(t, err)
	lock(t, v)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrLatched)
}

func TestRefusalLatchesToo(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	require.NoError(t, dev.Reboot(t.Context()))
	_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrPolicy, "before the image was measured")
	boot(t, dev, "image 1")
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrLatched)
}

func TestStolenDiskInAnotherTPMIsRefused(t *testing.T) {
	dev, other := newTPM(t), newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	boot(t, other, "image 1")
	p := with(imagePCRs("image 1"))
	p.Device = other
	_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrTPMChanged)
	// Also when the thief writes the name of his TPM into the header.
	srk, err := tpm.SRK(other, nil)
	require.NoError(t, err)
	require.NoError(t, srk.Flush())
	mine, err := tpm.SRK(dev, nil)
	require.NoError(t, err)
	require.NoError(t, mine.Flush())
	for _, h := range []string{"header.a", "header.b"} {
		name := filepath.Join(dir, ".fscrypt", h)
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		changed := strings.ReplaceAll(string(b), hexOf(mine.Name.Buffer), hexOf(srk.Name.Buffer))
		require.NotEqual(t, string(b), changed)
		require.NoError(t, os.WriteFile(name, []byte(changed), 0o600))
	}
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.Error(t, err)
	require.ErrorIs(t, err, fscrypt.ErrTampered)
	// And the caller who pinned the name from enrolment refuses before that.
	p.ParentName = mine.Name.Buffer
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrTPMChanged)
}

func TestReplayedDiskIsRollback(t *testing.T) { bothTPMs(t, replayedDisk) }

func replayedDisk(t *testing.T, dev *tpmtest.TPM) {
	dir, with := tpmVolume(t, dev, nil)
	old := filepath.Join(t.TempDir(), "old")
	copyTree(t, dir, old)
	reboot(t, dev, "image 1")
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("a", []byte("second")))
	lock(t, v)
	reboot(t, dev, "image 1")
	_, err = fscrypt.Open(t.Context(), old, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrRollback)
	reboot(t, dev, "image 1")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.NoError(t, err)
	b, err := v.ReadFile("a")
	require.NoError(t, err)
	assert.Equal(t, "second", string(b))
	lock(t, v)
}

func TestWithdrawnApprovalIsRevoked(t *testing.T) { bothTPMs(t, withdrawnApproval) }

func withdrawnApproval(t *testing.T, dev *tpmtest.TPM) {
	f := defineFloor(t, dev, tpm.NVPolicyFloor)
	boss := newAuthority(t)
	v1 := boss.approve(t, imagePCRs("image 1"), "fleet", f, 1)
	boot(t, dev, "image 1")
	dir := t.TempDir()
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{v1}, Counter: tpm.NVVolumeFirst}
	v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "x"}, p)
	require.NoError(t, err)
	lock(t, v)
	reboot(t, dev, "image 1")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	lock(t, v)
	f.set(t, dev, 2)
	reboot(t, dev, "image 1")
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrRevoked)
	require.NotErrorIs(t, err, fscrypt.ErrPolicy)
}

func TestForeignSignatureAndForeignFleetAreRefused(t *testing.T) {
	dev := newTPM(t)
	boss := newAuthority(t)
	boot(t, dev, "image 1")
	dir := t.TempDir()
	v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "x"},
		&fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{boss.approve(t, imagePCRs("image 1"), "fleet", nil, 1)}, Counter: tpm.NVVolumeFirst})
	require.NoError(t, err)
	lock(t, v)
	for name, p := range map[string]fscrypt.BootPolicy{
		"other key":   newAuthority(t).approve(t, imagePCRs("image 2"), "fleet", nil, 1),
		"other fleet": boss.approve(t, imagePCRs("image 2"), "other fleet", nil, 1),
	} {
		reboot(t, dev, "image 2")
		_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{p}})
		require.ErrorIs(t, err, fscrypt.ErrPolicy, name)
	}
}

func TestPINIsNeededAndLocksOut(t *testing.T) { bothTPMs(t, pinLocksOut) }

func pinLocksOut(t *testing.T, dev *tpmtest.TPM) {
	dir, with := tpmVolume(t, dev, func(p *fscrypt.TPM) { p.PIN = []byte("1234") })
	open := func(pin string) error {
		p := with(imagePCRs("image 1"))
		p.PIN = []byte(pin)
		v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
		if err == nil {
			lock(t, v)
		}
		return err
	}
	reboot(t, dev, "image 1")
	require.ErrorIs(t, open(""), fscrypt.ErrAuth)
	require.ErrorIs(t, open("4321"), fscrypt.ErrAuth)
	require.NoError(t, open("1234"), "a wrong PIN leaves the latch open")
	reboot(t, dev, "image 1")
	for range 8 {
		if err := open("0000"); !errors.Is(err, fscrypt.ErrAuth) {
			break
		}
	}
	err := open("1234")
	require.ErrorIs(t, err, fscrypt.ErrLockout)
	var le *fscrypt.LockoutError
	require.ErrorAs(t, err, &le)
	assert.Positive(t, le.Wait)
}

func TestNothingSecretOnTheBus(t *testing.T) { bothTPMs(t, nothingOnTheBus) }

func nothingOnTheBus(t *testing.T, dev *tpmtest.TPM) {
	bus := &tpmtest.Bus{TPM: dev}
	boot(t, dev, "image 1")
	p := &fscrypt.TPM{Device: bus, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, PIN: []byte("pin pin pin pin!"), Share: tpm.NVVolumeShareFirst}
	key := bytes.Repeat([]byte("secret! "), 4)
	s, err := fscrypt.NewSecret(bytes.Clone(key))
	require.NoError(t, err)
	b := fscrypt.Binding{Volume: "v", Label: "l", Slot: "s"}
	slot, err := p.Wrap(t.Context(), s, b)
	require.NoError(t, err)
	out, err := p.Unwrap(t.Context(), slot, b)
	require.NoError(t, err)
	require.NoError(t, out.Use(func(got []byte) error { assert.Equal(t, key, got); return nil }))
	assert.NotEmpty(t, bus.Bytes())
	assert.False(t, bytes.Contains(bus.Bytes(), key[:16]))
	assert.False(t, bytes.Contains(bus.Bytes(), p.PIN))
	// Without anybody to close the latch, Unwrap closes it itself.
	_, err = p.Unwrap(t.Context(), slot, b)
	require.ErrorIs(t, err, fscrypt.ErrLatched)
}

func TestFilesRoundTrip(t *testing.T) {
	dir := t.TempDir()
	pass := &fscrypt.Passphrase{Passphrase: "correct horse", WorkFactor: 10}
	v, err := fscrypt.Create(t.Context(), dir, loose, pass)
	require.NoError(t, err)
	content := map[string][]byte{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 4096, 65535, 65536, 65537, 131072, 1 << 20} {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		name := "dir/sub/" + string(rune('a'+len(content)))
		content[name] = b
		require.NoError(t, v.WriteFile(name, b))
	}
	require.NoError(t, v.WriteFile("gone", nil))
	require.NoError(t, v.Remove("gone"))
	require.NoError(t, v.Rename("dir/sub/a", "empty"))
	content["empty"] = content["dir/sub/a"]
	delete(content, "dir/sub/a")
	check := func(v *fscrypt.Volume) {
		var names []string
		for n, want := range content {
			names = append(names, n)
			got, err := v.ReadFile(n)
			require.NoError(t, err)
			require.Equal(t, len(want), len(got))
			require.True(t, bytes.Equal(want, got))
			f, err := v.OpenFile(n)
			require.NoError(t, err)
			all, err := io.ReadAll(f)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, all))
			for range 20 {
				off := rnd.IntN(len(want) + 1)
				p := make([]byte, rnd.IntN(100000))
				n, err := f.ReadAt(p, int64(off))
				require.True(t, bytes.Equal(p[:n], want[off:off+n]))
				if n < len(p) {
					require.ErrorIs(t, err, io.EOF)
				}
			}
			require.NoError(t, f.Close())
		}
		require.NoError(t, fstest.TestFS(v.FS(), names...))
	}
	check(v)
	lock(t, v)
	_, err = v.ReadFile("empty")
	require.ErrorIs(t, err, fscrypt.ErrLocked)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	check(v)
	lock(t, v)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, &fscrypt.Passphrase{Passphrase: "wrong"})
	require.ErrorIs(t, err, fscrypt.ErrAuth)
	assert.Len(t, objects(t, dir), 5, "orphans")
}

func TestBusyVolumeDoesNotLock(t *testing.T) {
	v, err := fscrypt.Create(t.Context(), t.TempDir(), loose, &fscrypt.Passphrase{Passphrase: "p", WorkFactor: 1})
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("a", []byte("x")))
	f, err := v.OpenFile("a")
	require.NoError(t, err)
	var busy *fscrypt.BusyError
	require.ErrorAs(t, v.Lock(t.Context()), &busy)
	assert.Equal(t, []string{"a"}, busy.Paths)
	require.NoError(t, f.Close())
	lock(t, v)
}

func TestRefusedConfigurations(t *testing.T) {
	dev := newTPM(t)
	v := make([]byte, 32)
	_, classic := age.NewScryptRecipient("x")
	require.NoError(t, classic)
	x, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	for name, p := range map[string]fscrypt.Protector{
		"no policy":          &fscrypt.TPM{Device: dev},
		"no device":          &fscrypt.TPM{Policies: []fscrypt.BootPolicy{&literal{map[int][]byte{7: v}}}},
		"no PCR":             &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{&literal{}}},
		"debug PCR":          &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{&literal{map[int][]byte{16: v}}}},
		"resettable PCR":     &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{&literal{map[int][]byte{7: v, 23: v}}}},
		"module PCR":         &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{&literal{map[int][]byte{13: v}}}},
		"resettable latch":   &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{&literal{map[int][]byte{7: v}}}, LatchPCR: 23},
		"PIN with zero byte": &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{&literal{map[int][]byte{7: v}}}, PIN: []byte("12\x0034")},
		"empty remote":       &fscrypt.Remote{},
		"all of one":         fscrypt.All(recovery(t)),
		"no recipient":       &fscrypt.Recovery{},
		"classic recipient":  &fscrypt.Recovery{Recipients: []age.Recipient{x.Recipient()}},
		"empty passphrase":   &fscrypt.Passphrase{},
	} {
		dir := t.TempDir()
		_, err := fscrypt.Create(t.Context(), dir, loose, p)
		require.Error(t, err, name)
		require.True(t, strings.HasPrefix(err.Error(), "fscrypt: create "), err.Error())
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Empty(t, left, name)
	}
	_, err = fscrypt.Create(t.Context(), t.TempDir(), fscrypt.Config{Label: "x"}, recovery(t))
	require.ErrorContains(t, err, "UnsafeNoFreshness")
	_, err = fscrypt.Create(t.Context(), t.TempDir(), loose)
	require.Error(t, err)
	full := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(full, "f"), nil, 0o600))
	_, err = fscrypt.Create(t.Context(), full, loose, recovery(t))
	require.ErrorContains(t, err, "empty directory")
	_, err = fscrypt.Open(t.Context(), t.TempDir(), fscrypt.Config{}, recovery(t))
	require.ErrorIs(t, err, os.ErrNotExist)
}
