package fscrypt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/tpm"
)

// passVolume is a volume under a passphrase, without a TPM.
func passVolume(t testing.TB, files ...string) (string, *fscrypt.Volume) {
	dir := t.TempDir()
	v, err := fscrypt.Create(t.Context(), dir, loose, pass)
	require.NoError(t, err)
	for i, f := range files {
		require.NoError(t, v.WriteFile(f, bytes.Repeat([]byte{byte('a' + i)}, 200_000)))
	}
	return dir, v
}

// hook changes or refuses what passes between the host and the TPM.
type hook struct {
	transport.TPM
	command func(cc tpm2.TPMCC, send func() ([]byte, error)) ([]byte, error)
}

func (h *hook) Send(cmd []byte) ([]byte, error) {
	cc := tpm2.TPMCC(uint32(cmd[6])<<24 | uint32(cmd[7])<<16 | uint32(cmd[8])<<8 | uint32(cmd[9]))
	return h.command(cc, func() ([]byte, error) { return h.TPM.Send(cmd) })
}

// Threat 1: a TPM without parameter encryption, or an interposer that claims
// so, gets no key in clear text.
func TestNoFallbackToClearText(t *testing.T) {
	dev := newTPM(t)
	boot(t, dev, "image 1")
	h := &hook{TPM: dev, command: func(cc tpm2.TPMCC, send func() ([]byte, error)) ([]byte, error) {
		if cc == tpm2.TPMCCStartAuthSession {
			return []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0x04, 0xD6}, nil // TPM_RC_SYMMETRIC, parameter 4
		}
		assert.NotEqual(t, tpm2.TPMCCUnseal, cc)
		assert.NotEqual(t, tpm2.TPMCCCreate, cc)
		return send()
	}}
	_, err := fscrypt.Create(t.Context(), t.TempDir(), loose, &fscrypt.TPM{Device: h, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}})
	require.ErrorIs(t, err, fscrypt.ErrNoSessionEncryption)
}

// Threat 2: an interposer that answers with its own TPM's storage root key is
// noticed before a session is salted to that key.
func TestSubstitutedSaltKeyIsNoticed(t *testing.T) {
	dev, evil := newTPM(t), newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	sessions := 0
	h := &hook{TPM: dev}
	h.command = func(cc tpm2.TPMCC, send func() ([]byte, error)) ([]byte, error) {
		if cc == tpm2.TPMCCStartAuthSession {
			sessions++
		}
		return send()
	}
	p := with(imagePCRs("image 1"))
	p.Device = swapSRK{h, evil}
	_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrTPMChanged)
	assert.Zero(t, sessions)
}

// swapSRK sends what concerns the storage root key to another TPM.
type swapSRK struct {
	transport.TPM
	evil transport.TPM
}

func (s swapSRK) Send(cmd []byte) ([]byte, error) {
	cc := tpm2.TPMCC(uint32(cmd[8])<<8 | uint32(cmd[9]))
	if cc == tpm2.TPMCCCreatePrimary || cc == tpm2.TPMCCReadPublic || cc == tpm2.TPMCCFlushContext {
		return s.evil.Send(cmd)
	}
	return s.TPM.Send(cmd)
}

// Threat 3: a new image that nobody signed for is opened with the recovery key
// and sealed anew.
func TestResealAfterAnUnforeseenImage(t *testing.T) {
	dev := newTPM(t)
	boot(t, dev, "image 1")
	dir := t.TempDir()
	rec := recovery(t)
	with := func(image string) *fscrypt.TPM {
		return &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs(image)}, Counter: tpm.NVVolumeFirst, Share: tpm.NVVolumeShareFirst}
	}
	v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "x"}, with("image 1"), rec)
	require.NoError(t, err)
	lock(t, v)
	reboot(t, dev, "image 2")
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with("image 1"))
	require.ErrorIs(t, err, fscrypt.ErrPolicy)
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with("image 1"), rec)
	require.NoError(t, err)
	assert.Equal(t, "recovery", v.Status().Slot)
	assert.Equal(t, "witnessed", v.Status().Freshness)
	old := filepath.Join(t.TempDir(), "old")
	copyTree(t, dir, old)
	require.NoError(t, v.Reseal(t.Context(), with("image 2")))
	lock(t, v)
	reboot(t, dev, "image 2")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with("image 2"))
	require.NoError(t, err)
	lock(t, v)
	// The slot for image 1 is worth nothing any more, also from a copy.
	reboot(t, dev, "image 1")
	_, err = fscrypt.Open(t.Context(), old, fscrypt.Config{}, with("image 1"))
	require.ErrorIs(t, err, fscrypt.ErrRevoked)
}

// Threat 5: the header of another volume of the same TPM.
func TestHeaderOfAnotherVolume(t *testing.T) {
	dirA, a := passVolume(t, "f")
	dirB, b := passVolume(t, "f")
	lock(t, a)
	lock(t, b)
	for _, h := range []string{"header.a", "header.b"} {
		c, err := os.ReadFile(filepath.Join(dirB, ".fscrypt", h))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dirA, ".fscrypt", h), c, 0o600))
	}
	_, err := fscrypt.Open(t.Context(), dirA, fscrypt.Config{}, pass)
	require.ErrorIs(t, err, fscrypt.ErrTampered, "the manifest is another volume's")
	_, err = fscrypt.Open(t.Context(), dirB, fscrypt.Config{Label: "other"}, pass)
	require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
}

// Threat 5: a slot that opens, in a header that it does not authenticate,
// latches all the same.
func TestChangedHeaderLatches(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	reboot(t, dev, "image 1")
	for _, n := range []string{"header.a", "header.b"} {
		name := filepath.Join(dir, ".fscrypt", n)
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, bytes.Replace(b, []byte(`"label":"test"`), []byte(`"label":"evil"`), 1), 0o600))
	}
	_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrWrongVolume)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrLatched)
}

// Threat 6: a latch that can't be closed keeps the volume closed.
func TestUnclosableLatchFailsClosed(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	reboot(t, dev, "image 1")
	p := with(imagePCRs("image 1"))
	p.Device = &hook{TPM: dev, command: func(cc tpm2.TPMCC, send func() ([]byte, error)) ([]byte, error) {
		if cc == tpm2.TPMCCPCRExtend {
			return nil, errors.New("bus cut")
		}
		return send()
	}}
	_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorContains(t, err, "close the latch")
}

// Threat 7: the counter is undefined, and defined anew by who has owner
// authorisation.
func TestCounterRemovedOrRedefinedIsNoticed(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	pub, err := tpm2.NVReadPublic{NVIndex: tpm.NVVolumeFirst}.Execute(dev)
	require.NoError(t, err)
	_, err = tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: tpm.NVVolumeFirst, Name: pub.NVName}}.Execute(dev)
	require.NoError(t, err)
	reboot(t, dev, "image 1")
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrRollback)
	require.ErrorContains(t, err, "gone")

	p, err := pub.NVPublic.Contents()
	require.NoError(t, err)
	p.Attributes.Written = false
	_, err = tpm2.NVDefineSpace{AuthHandle: owner, Auth: tpm2.TPM2BAuth{Buffer: []byte("evil")}, PublicInfo: tpm2.New2B(*p)}.Execute(dev)
	require.NoError(t, err)
	again, err := tpm2.NVReadPublic{NVIndex: tpm.NVVolumeFirst}.Execute(dev)
	require.NoError(t, err)
	_, err = tpm2.NVIncrement{AuthHandle: tpm2.AuthHandle{Handle: tpm.NVVolumeFirst, Name: again.NVName, Auth: tpm2.PasswordAuth([]byte("evil"))},
		NVIndex: tpm2.NamedHandle{Handle: tpm.NVVolumeFirst, Name: again.NVName}}.Execute(dev)
	require.NoError(t, err)
	reboot(t, dev, "image 1")
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrRollback)
	require.ErrorContains(t, err, "replaced")
}

// Threat 7: a header from before a slot was removed.
func TestReplayedHeaderIsRollback(t *testing.T) {
	dir, v := passVolume(t)
	id, err := v.AddProtector(t.Context(), &fscrypt.Passphrase{Passphrase: "dismissed", WorkFactor: 1})
	require.NoError(t, err)
	old, err := os.ReadFile(filepath.Join(dir, ".fscrypt", "header.a"))
	require.NoError(t, err)
	require.NoError(t, v.RemoveProtector(t.Context(), id))
	require.Error(t, v.RemoveProtector(t.Context(), v.Status().Slots[0].ID), "the last one")
	lock(t, v)
	for _, h := range []string{"header.a", "header.b"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, ".fscrypt", h), old, 0o600))
	}
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, &fscrypt.Passphrase{Passphrase: "dismissed"})
	require.ErrorIs(t, err, fscrypt.ErrRollback)
}

// Threat 12: guessing PINs locks out who has the PIN, but not volumes without.
func TestLockoutLeavesVolumesWithoutPINAlone(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	pinDir := t.TempDir()
	p := with(imagePCRs("image 1"))
	p.Counter, p.PIN, p.UnsafeNoLatch = tpm.NVVolumeFirst+1, []byte("1234"), true
	v, err := fscrypt.Create(t.Context(), pinDir, fscrypt.Config{Label: "pin"}, p)
	require.NoError(t, err)
	lock(t, v)
	p.PIN = []byte("9999")
	for range 20 {
		if _, err = fscrypt.Open(t.Context(), pinDir, fscrypt.Config{}, p); errors.Is(err, fscrypt.ErrLockout) {
			break
		}
	}
	require.ErrorIs(t, err, fscrypt.ErrLockout)
	reboot(t, dev, "image 1")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.NoError(t, err)
	lock(t, v)
}

// Threat 13: secrets do not print.
func TestSecretNeverPrints(t *testing.T) {
	raw := bytes.Repeat([]byte("k"), 32)
	s, err := fscrypt.NewSecret(raw)
	require.NoError(t, err)
	assert.Equal(t, make([]byte, 32), raw, "the source is erased")
	for _, f := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		assert.Equal(t, "[secret]", fmt.Sprintf(f, s), f)
		assert.NotContains(t, fmt.Sprintf(f, struct{ S *fscrypt.Secret }{s}), "kkk")
	}
	_, err = json.Marshal(s)
	require.Error(t, err)
	s.Erase()
	s.Erase()
	require.ErrorIs(t, s.Use(func([]byte) error { return nil }), fscrypt.ErrLocked)
	_, err = fscrypt.NewSecret(make([]byte, 31))
	require.Error(t, err)
	(*fscrypt.Secret)(nil).Erase()
}

// Threat 15: a destroyed volume does not open, from a copy neither.
func TestDestroyedVolumeIsGoneAlsoFromACopy(t *testing.T) {
	dev := newTPM(t)
	c := newCloud(t)
	dir, with := tpmVolume(t, dev, func(p *fscrypt.TPM) { p.Share = tpm.NVVolumeShareFirst })
	reboot(t, dev, "image 1")
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.NoError(t, err)
	_, err = v.AddProtector(t.Context(), fscrypt.All(c.remote("node"), pass))
	require.NoError(t, err)
	old := filepath.Join(t.TempDir(), "old")
	copyTree(t, dir, old)
	v.Status()
	require.NoError(t, v.Destroy(t.Context()))
	assert.False(t, grep(t, dir, []byte("uuid")))
	reboot(t, dev, "image 1")
	_, err = fscrypt.Open(t.Context(), old, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrRevoked)
	for _, h := range []tpm2.TPMHandle{tpm.NVVolumeFirst, tpm.NVVolumeShareFirst} {
		_, err = tpm2.NVReadPublic{NVIndex: h}.Execute(dev)
		require.Error(t, err, "index 0x%x", h)
	}
}

// Threat 17: without a TPM, or with other algorithms in the header, there is
// an error and no volume.
func TestNoDowngrade(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, nil)
	reboot(t, dev, "image 1")
	p := with(imagePCRs("image 1"))
	p.Device = &hook{TPM: dev, command: func(tpm2.TPMCC, func() ([]byte, error)) ([]byte, error) { return nil, errors.New("no TPM") }}
	_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrUnavailable)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{})
	require.ErrorIs(t, err, fscrypt.ErrNoSlot)
	_, err = fscrypt.Create(t.Context(), filepath.Join(t.TempDir(), "new"), fscrypt.Config{Label: "x"}, p)
	require.ErrorIs(t, err, fscrypt.ErrUnavailable)
	for from, to := range map[string]string{
		`"object":"age-v1"`: `"object":"plain"`, `"mode":"portable"`: `"mode":"plain"`, `"version":1`: `"version":0`,
		`"log":"xchacha20-poly1305"`: `"log":"none"`,
	} {
		h := read(t, filepath.Join(dir, ".fscrypt", "header.a"))
		require.ErrorIs(t, fscrypt.ParseHeader([]byte(strings.Replace(string(h), from, to, 1))), fscrypt.ErrUnsupported, to)
	}
	h := read(t, filepath.Join(dir, ".fscrypt", "header.a"))
	require.Error(t, fscrypt.ParseHeader([]byte(strings.Replace(string(h), `"version":1`, `"version":1,"x":1`, 1))), "unknown field")
	require.Error(t, fscrypt.ParseHeader(append(h, ' ', '1')), "trailing data")
}

// Threat 18: a hostile header can't make the node compute or allocate without
// bound.
func TestHostileHeaderIsBounded(t *testing.T) {
	r, err := age.NewScryptRecipient("p")
	require.NoError(t, err)
	r.SetWorkFactor(4)
	var file bytes.Buffer
	w, err := age.Encrypt(&file, r)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	costly := strings.Replace(file.String(), " 4\n", " 30\n", 1)
	data, err := json.Marshal(map[string][]byte{"age": []byte(costly)})
	require.NoError(t, err)
	_, err = pass.Unwrap(t.Context(), fscrypt.Slot{ID: "x", Type: "passphrase", Data: data}, fscrypt.Binding{})
	require.Error(t, err)
	require.NotErrorIs(t, err, fscrypt.ErrAuth)
	require.Error(t, fscrypt.ParseHeader(make([]byte, 1<<20)))
	dir, v := passVolume(t)
	lock(t, v)
	for _, h := range []string{"header.a", "header.b"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, ".fscrypt", h), make([]byte, 1<<20), 0o600))
	}
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.Error(t, err)
}

// Threat 19: no key is shared between volumes or nodes.
func TestVolumesShareNoKeys(t *testing.T) {
	dirA, a := passVolume(t, "f")
	dirB, b := passVolume(t, "f")
	edit(t, objects(t, dirA)[0], func([]byte) []byte { return read(t, objects(t, dirB)[0]) })
	_, err := a.ReadFile("f")
	require.ErrorIs(t, err, fscrypt.ErrTampered)
	assert.NotEqual(t, a.Latch(), b.Latch())
	lock(t, a)
	lock(t, b)
}

// Threat 20: a lease that is not renewed shuts the volume, over open files.
func TestLeaseEndsWithoutTheCloud(t *testing.T) {
	c := newCloud(t)
	p := fscrypt.All(pass, c.remote("node"))
	dir := t.TempDir()
	v, err := fscrypt.Create(t.Context(), dir, loose, p)
	require.NoError(t, err)
	require.NoError(t, v.WriteFile("a", bytes.Repeat([]byte("x"), 300_000)))
	lock(t, v)
	c.lease = time.Second
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	f, err := v.OpenFile("a")
	require.NoError(t, err)
	_, err = v.RenewLease(t.Context())
	require.NoError(t, err)
	c.down = errors.New("jammed")
	until, err := v.RenewLease(t.Context())
	require.ErrorIs(t, err, fscrypt.ErrUnavailable)
	assert.False(t, until.IsZero(), "the lease runs on")
	require.Eventually(t, func() bool {
		_, err := f.ReadAt(make([]byte, 10), 0)
		return errors.Is(err, fscrypt.ErrLocked)
	}, 10*time.Second, 20*time.Millisecond)
	require.ErrorIs(t, v.WriteFile("b", nil), fscrypt.ErrLocked)
	assert.True(t, v.Status().Locked)
	require.NoError(t, f.Close())
	lock(t, v)
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.ErrorIs(t, err, fscrypt.ErrUnavailable)
}

// A hundred refusals leave no handle in the TPM.
func TestRefusalsLeakNoHandles(t *testing.T) {
	dev := newTPM(t)
	boss := newAuthority(t)
	boot(t, dev, "image 1")
	good := boss.approve(t, imagePCRs("image 1"), "fleet", nil, 1)
	bad := newAuthority(t).approve(t, imagePCRs("image 1"), "fleet", nil, 1)
	other := boss.approve(t, imagePCRs("image 2"), "fleet", nil, 1)
	p := func(b fscrypt.BootPolicy) *fscrypt.TPM {
		return &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{b}, UnsafeNoLatch: true}
	}
	b := fscrypt.Binding{Volume: "v", Label: "l", Slot: "s"}
	s, err := fscrypt.NewSecret(make([]byte, 32))
	require.NoError(t, err)
	slot, err := p(good).Wrap(t.Context(), s, b)
	require.NoError(t, err)
	cut := p(good)
	n := 0
	cut.Device = &hook{TPM: dev, command: func(cc tpm2.TPMCC, send func() ([]byte, error)) ([]byte, error) {
		if cc == tpm2.TPMCCUnseal {
			return []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1}, nil // TPM_RC_FAILURE
		}
		return send()
	}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 100 {
		var err error
		switch i % 4 {
		case 0:
			_, err = p(bad).Unwrap(t.Context(), slot, b)
		case 1:
			_, err = p(other).Unwrap(t.Context(), slot, b)
		case 2:
			_, err = cut.Unwrap(t.Context(), slot, b)
		case 3:
			_, err = p(good).Unwrap(ctx, slot, b)
		}
		require.Error(t, err)
		n++
	}
	h, err := tpm.LoadedHandles(dev)
	require.NoError(t, err)
	assert.Zero(t, h.Count(), "after %d refusals", n)
	out, err := p(good).Unwrap(t.Context(), slot, b)
	require.NoError(t, err)
	out.Erase()
}
