package fscrypt_test

import (
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

const revocationIndex = tpm.NVVolumeFirst + 6

// TestReplacedSlotIsRevokedByItsCounter: copies of a slot that was replaced,
// removed or destroyed are refused by the TPM, whose counter went on.
func TestReplacedSlotIsRevokedByItsCounter(t *testing.T) { bothTPMs(t, revokedByCounter) }

func revokedByCounter(t *testing.T, dev *tpmtest.TPM) {
	bind := func(p *fscrypt.TPM) { p.Revocation = revocationIndex }
	dir, with := tpmVolume(t, dev, bind)
	old := func() string {
		d := filepath.Join(t.TempDir(), "old")
		copyTree(t, dir, d)
		return d
	}
	open := func(dir string) (*fscrypt.Volume, error) {
		reboot(t, dev, "image 1")
		return fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	}
	refused := func(dir string) {
		t.Helper()
		_, err := open(dir)
		require.ErrorIs(t, err, fscrypt.ErrRevoked)
		require.NotErrorIs(t, err, fscrypt.ErrPolicy)
	}
	created := old()
	v, err := open(dir)
	require.NoError(t, err)
	require.NoError(t, v.Reseal(t.Context(), with(imagePCRs("image 1"))))
	lock(t, v)
	refused(created)
	resealed := old()
	v, err = open(dir)
	require.NoError(t, err)
	require.NoError(t, v.Rotate(t.Context(), with(imagePCRs("image 1")), pass))
	lock(t, v)
	refused(resealed)
	rotated := old()
	v, err = open(dir)
	require.NoError(t, err)
	_, err = v.AddProtector(t.Context(), with(imagePCRs("image 2")))
	require.ErrorContains(t, err, "belongs to another slot")
	second := with(imagePCRs("image 2"))
	second.Revocation++
	_, err = v.AddProtector(t.Context(), second)
	require.NoError(t, err)
	require.NoError(t, v.RemoveProtector(t.Context(), v.Status().Slots[0].ID))
	lock(t, v)
	refused(rotated)
	_, err = tpm2.NVReadPublic{NVIndex: revocationIndex}.Execute(dev)
	require.Error(t, err, "the counter goes with its last slot")

	// Defining the counter anew brings no old slot back.
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, pass)
	require.NoError(t, err)
	third := with(imagePCRs("image 1"))
	_, err = v.AddProtector(t.Context(), third)
	require.NoError(t, err)
	lock(t, v)
	for _, d := range []string{created, resealed, rotated} {
		refused(d)
	}
	destroyed := old()
	v, err = open(dir)
	require.NoError(t, err)
	require.NoError(t, v.Destroy(t.Context()))
	refused(destroyed)
	h, err := tpm.LoadedHandles(dev)
	require.NoError(t, err)
	assert.Zero(t, h.Count())
}

// TestCounterThatIsNotTheSlots: an index of another kind, or one that another
// slot has, is refused.
func TestCounterThatIsNotTheSlots(t *testing.T) {
	dev := newTPM(t)
	boot(t, dev, "image 1")
	p := func(h tpm2.TPMHandle) *fscrypt.TPM {
		return &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image 1")}, Revocation: h}
	}
	_, err := fscrypt.Create(t.Context(), t.TempDir(), loose, p(0x81000001))
	require.ErrorContains(t, err, "not an NV index")
	_, err = fscrypt.Create(t.Context(), t.TempDir(), loose, p(revocationIndex), p(revocationIndex))
	require.ErrorContains(t, err, "belongs to another slot")
	_, err = tpm2.NVReadPublic{NVIndex: revocationIndex}.Execute(dev)
	require.Error(t, err, "taken back")
	defineFloor(t, dev, revocationIndex)
	_, err = fscrypt.Create(t.Context(), t.TempDir(), loose, p(revocationIndex))
	require.ErrorContains(t, err, "in use")
	s, err := fscrypt.NewSecret(make([]byte, 32))
	require.NoError(t, err)
	_, err = p(revocationIndex).Wrap(t.Context(), s, fscrypt.Binding{Volume: "v", Label: "l", Slot: "s"})
	require.ErrorContains(t, err, "volume's slot")
}

// TestRevocationIsCaughtUpAfterACut: the power goes after a new slot is in
// force and before the counter went on; the next Open finishes it.
func TestRevocationIsCaughtUpAfterACut(t *testing.T) {
	dev := newTPM(t)
	dir, with := tpmVolume(t, dev, func(p *fscrypt.TPM) { p.Revocation = revocationIndex })
	old := filepath.Join(t.TempDir(), "old")
	copyTree(t, dir, old)
	reboot(t, dev, "image 1")
	cut := false
	p := with(imagePCRs("image 1"))
	p.Device = &hook{TPM: dev, command: func(cc tpm2.TPMCC, send func() ([]byte, error)) ([]byte, error) {
		if cut && cc == tpm2.TPMCCNVIncrement {
			return nil, errCut
		}
		return send()
	}}
	v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, p)
	require.NoError(t, err)
	cut = true
	require.ErrorIs(t, v.Reseal(t.Context(), p), errCut)
	cut = false
	lock(t, v)
	reboot(t, dev, "image 1")
	v, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.NoError(t, err, "the new slot opens before the counter went on")
	lock(t, v)
	reboot(t, dev, "image 1")
	_, err = fscrypt.Open(t.Context(), old, fscrypt.Config{}, with(imagePCRs("image 1")))
	require.ErrorIs(t, err, fscrypt.ErrRevoked)
}
