package fscrypt_test

import (
	"crypto/fips140"
	"os"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/internal/testenv"
)

// TestFIPSProfile: a volume's header, log and age files are XChaCha20-Poly1305,
// which Go's FIPS 140-3 module does not have. Where nothing else is allowed that
// is said, and nothing is written.
func TestFIPSProfile(t *testing.T) { testenv.FIPSOnly(t, "TestFIPSRefusesVolumes") }

// TestFIPSRefusesVolumes is run by TestFIPSProfile.
func TestFIPSRefusesVolumes(t *testing.T) {
	if !fips140.Enforced() {
		t.Skip("TestFIPSProfile runs it")
	}
	const says = "not allowed in FIPS 140-only mode"
	dev := newTPM(t)
	boot(t, dev, "image-1")
	var owner *age.HybridIdentity
	fips140.WithoutEnforcement(func() {
		var err error
		owner, err = age.GenerateHybridIdentity()
		require.NoError(t, err)
	})
	for name, p := range map[string]fscrypt.Protector{
		"TPM":        &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image-1")}},
		"passphrase": &fscrypt.Passphrase{Passphrase: "no secret", WorkFactor: 10},
		"recovery":   &fscrypt.Recovery{Recipients: []age.Recipient{owner.Recipient()}},
	} {
		for _, kernel := range []bool{false, true} {
			dir := filepath.Join(t.TempDir(), "v")
			_, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "data", UnsafeNoFreshness: true, Kernel: kernel}, p)
			assert.Error(t, err, "%s, kernel %v", name, kernel)
			if !kernel && name != "recovery" { // other reasons come first
				assert.ErrorContains(t, err, says, name)
			}
			_, err = os.Stat(filepath.Join(dir, ".fscrypt", "header"))
			assert.ErrorIs(t, err, os.ErrNotExist)
		}
	}
	dir := filepath.Join(t.TempDir(), "v")
	copyTree(t, golden, dir)
	_, err := fscrypt.Open(t.Context(), dir, fscrypt.Config{Label: "golden"}, &fscrypt.Passphrase{Passphrase: "golden", WorkFactor: 10})
	assert.Error(t, err)
	dir = filepath.Join(t.TempDir(), "v")
	p := &fscrypt.TPM{Device: dev, Policies: []fscrypt.BootPolicy{imagePCRs("image-1")}}
	fips140.WithoutEnforcement(func() {
		v, err := fscrypt.Create(t.Context(), dir, fscrypt.Config{Label: "data", UnsafeNoFreshness: true}, p)
		require.NoError(t, err)
		lock(t, v)
	})
	reboot(t, dev, "image-1")
	_, err = fscrypt.Open(t.Context(), dir, fscrypt.Config{Label: "data"}, p)
	assert.ErrorContains(t, err, says)
}
