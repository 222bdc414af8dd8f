package secureboot_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/ima"
)

// TestFIPSProfile judges recorded boots, signs policies and verifies them where
// only what is in Go's FIPS 140-3 module is allowed, and has SHA-1 refused.
func TestFIPSProfile(t *testing.T) {
	testenv.FIPSOnly(t, "TestFIPSJudgesABoot", "TestFIPSRefusesSHA1", "TestPCRLockFilesOfAVendorJudgeABoot", "TestSignaturesOfEvmctl")
}

func TestFIPSJudgesABoot(t *testing.T) {
	for _, bank := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		good, other := boot(t, "uki-sb-on", bank), boot(t, "shim-sb-on", bank)
		if bank == crypto.SHA384 { // which these kernels filled with padded SHA-1
			good.IMALog, other.IMALog = nil, nil
			delete(good.PCRs, 10)
		}
		p, err := secureboot.Learn(secureboot.LearnOptions{Name: "node", NotAfter: nextYear}, good)
		require.NoError(t, err)
		_, ed, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		require.NoError(t, err)
		for _, key := range []crypto.Signer{ed, ec} {
			signed, err := secureboot.SignPolicy(p, key)
			require.NoError(t, err)
			_, err = secureboot.VerifyPolicy(signed, []crypto.PublicKey{key.Public()}, 0, now)
			require.NoError(t, err)
		}
		r := p.Appraise(good, now)
		assert.Equal(t, secureboot.Affirming, r.Status, "%v", r.Findings)
		assert.Equal(t, secureboot.Contraindicated, p.Appraise(other, now).Status)
	}
}

// TestFIPSRefusesSHA1 is run by TestFIPSProfile: hostile or old evidence in a
// SHA-1 bank gets a reason, whatever the policy allows.
func TestFIPSRefusesSHA1(t *testing.T) {
	if !fips140.Enforced() {
		t.Skip("TestFIPSProfile runs it")
	}
	const says = "not allowed in FIPS 140-only mode"
	ev := boot(t, "uki-sb-on", crypto.SHA1)
	_, err := secureboot.Learn(secureboot.LearnOptions{Name: "old", NotAfter: nextYear, InsecureSHA1: true}, ev)
	assert.ErrorContains(t, err, says)
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	p.Bank, p.InsecureSHA1 = crypto.SHA1, true
	r := p.Appraise(ev, now)
	assert.Equal(t, secureboot.Contraindicated, r.Status)
	assert.ErrorContains(t, r.Err(), says)
	r = secureboot.Inspect(ev)
	assert.ErrorContains(t, r.Err(), says)

	log, err := eventlog.Parse(ev.EventLog, nil)
	require.NoError(t, err)
	_, err = log.Replay(crypto.SHA1)
	assert.ErrorIs(t, err, eventlog.ErrNoBank)
	_, err = log.Verify(crypto.SHA1, ev.PCRs)
	assert.ErrorContains(t, err, says)
	measured, err := ima.Parse(ev.IMALog, nil)
	require.NoError(t, err)
	_, err = measured.Verify(crypto.SHA1, ev.PCRs)
	assert.ErrorContains(t, err, says)
	ev = boot(t, "uki-sb-on", crypto.SHA384) // which the kernel filled with padded SHA-1
	measured, err = ima.Parse(ev.IMALog, nil)
	require.NoError(t, err)
	_, err = measured.Verify(crypto.SHA384, ev.PCRs)
	assert.ErrorIs(t, err, ima.ErrBehind)
}
