package seams_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
)

// TestVolumeOpensUnderSignedPoliciesOfBothSlots seals a volume to policies that
// secureboot makes and fscrypt only knows by its own interface: it opens in
// either signed boot state and in no other.
func TestVolumeOpensUnderSignedPoliciesOfBothSlots(t *testing.T) {
	dev, _ := tpmtest.NewSoft(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	extend := func(what string) {
		d := sha256.Sum256([]byte(what))
		require.NoError(t, tpm.ExtendPCR(dev, 11, map[crypto.Hash][]byte{crypto.SHA256: d[:]}))
	}
	state := func(what string) fscrypt.BootPolicy {
		require.NoError(t, dev.Reboot(t.Context()))
		extend(what)
		values, err := tpm.ReadPCRs(dev, crypto.SHA256, 11)
		require.NoError(t, err)
		signed, err := bootpolicy.SignPCRs(key, crypto.SHA256, values)
		require.NoError(t, err)
		p, err := bootpolicy.Signed(key.Public(), signed)
		require.NoError(t, err)
		return p
	}
	policies := []fscrypt.BootPolicy{state("slot a"), state("slot b")}
	dir := filepath.Join(t.TempDir(), "v")
	v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "system"}, &fscrypt.TPM{Device: dev, Policies: policies, Counter: tpm.NVVolumeSystem})
	require.NoError(t, err)
	require.NoError(t, v.Lock(t.Context()))

	for _, boot := range []string{"slot a", "slot b"} {
		require.NoError(t, dev.Reboot(t.Context()))
		extend(boot)
		v, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{}, &fscrypt.TPM{Device: dev, Policies: policies})
		require.NoError(t, err, boot)
		require.NoError(t, v.Lock(t.Context()))
	}
	require.NoError(t, dev.Reboot(t.Context()))
	extend("another system")
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{}, &fscrypt.TPM{Device: dev, Policies: policies})
	require.ErrorIs(t, err, fscrypt.ErrPolicy)
	assert.ErrorContains(t, err, "PCR 11")
}
