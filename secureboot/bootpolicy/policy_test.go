package bootpolicy_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
)

// each runs a test on every software TPM that there is.
func each(t *testing.T, f func(t *testing.T, dev transport.TPM, reboot func())) {
	t.Helper()
	tpmtest.Each(t, func(t *testing.T, d *tpmtest.TPM, _ *tpmtest.Maker) {
		f(t, d, func() { require.NoError(t, d.Reboot(context.Background())) })
	})
}

func extendPCR(t *testing.T, dev transport.TPM, pcr int, what string) {
	t.Helper()
	d := sha256.Sum256([]byte(what))
	require.NoError(t, tpm.ExtendPCR(dev, pcr, map[crypto.Hash][]byte{crypto.SHA256: d[:]}))
}

// after is the value of a PCR after these extends.
func after(what ...string) []byte {
	v := make([]byte, 32)
	for _, w := range what {
		d := sha256.Sum256([]byte(w))
		s := sha256.Sum256(append(bytes.Clone(v), d[:]...))
		v = s[:]
	}
	return v
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

// satisfy runs a policy in a session and checks that the session has the
// policy's digest. It is what a sealer does.
func satisfy(t *testing.T, dev transport.TPM, p bootpolicy.Policy) error {
	t.Helper()
	s, closer, err := tpm2.PolicySession(dev, tpm2.TPMAlgSHA256, 16)
	require.NoError(t, err)
	defer func() { require.NoError(t, closer()) }()
	if err := p.Satisfy(dev, s.Handle(), s.NonceTPM()); err != nil {
		return err
	}
	got, err := tpm2.PolicyGetDigest{PolicySession: s.Handle()}.Execute(dev)
	require.NoError(t, err)
	require.Equal(t, p.Digest(), got.PolicyDigest.Buffer, "digest of the session is not Digest()")
	return nil
}

func literal(t *testing.T, values map[int][]byte) bootpolicy.Policy {
	t.Helper()
	p, err := bootpolicy.Literal(crypto.SHA256, values)
	require.NoError(t, err)
	return p
}

func TestLiteralHoldsInItsBootStateOnly(t *testing.T) {
	each(t, func(t *testing.T, dev transport.TPM, reboot func()) {
		p := literal(t, map[int][]byte{4: after("loader"), 7: after("keys")})
		extendPCR(t, dev, 4, "loader")
		extendPCR(t, dev, 7, "keys")
		require.NoError(t, satisfy(t, dev, p))

		require.NoError(t, bootpolicy.Cap(t.Context(), dev, 7, "done"))
		err := satisfy(t, dev, p)
		require.ErrorIs(t, err, bootpolicy.ErrNotSatisfied)
		assert.Contains(t, err.Error(), "PCR 7", "names the PCR that differs")
		assert.NotContains(t, err.Error(), "PCR 4")

		reboot()
		extendPCR(t, dev, 4, "another loader")
		extendPCR(t, dev, 7, "keys")
		require.ErrorIs(t, satisfy(t, dev, p), bootpolicy.ErrNotSatisfied)
	})
}

func TestPoliciesThatWouldAlwaysHoldAreRefused(t *testing.T) {
	for name, f := range map[string]func() error{
		"no PCR":     func() error { _, err := bootpolicy.Literal(crypto.SHA256, nil); return err },
		"resettable": func() error { _, err := bootpolicy.Literal(crypto.SHA256, map[int][]byte{23: after()}); return err },
		"SHA-1": func() error {
			_, err := bootpolicy.Literal(crypto.SHA1, map[int][]byte{0: make([]byte, 20)})
			return err
		},
		"short value":    func() error { _, err := bootpolicy.Literal(crypto.SHA256, map[int][]byte{0: {1}}); return err },
		"PCR 24":         func() error { _, err := bootpolicy.Literal(crypto.SHA256, map[int][]byte{24: after()}); return err },
		"Or of nothing":  func() error { _, err := bootpolicy.Or(); return err },
		"Or of nil":      func() error { _, err := bootpolicy.Or(nil, nil); return err },
		"cap resettable": func() error { return bootpolicy.Cap(t.Context(), nil, 16, "x") },
	} {
		assert.Error(t, f(), name)
	}
	p := literal(t, map[int][]byte{0: after()})
	_, err := bootpolicy.Or(p, p)
	assert.Error(t, err, "repeated branch")
}

func TestOrIsNestedAboveEight(t *testing.T) {
	each(t, func(t *testing.T, dev transport.TPM, _ func()) {
		extendPCR(t, dev, 11, "image 8")
		for _, n := range []int{2, 8, 9, 17, 65, 70} {
			var branches []bootpolicy.Policy
			for i := range n {
				branches = append(branches, literal(t, map[int][]byte{11: after(fmt.Sprintf("image %d", i))}))
			}
			p, err := bootpolicy.Or(branches...)
			require.NoError(t, err)
			err = satisfy(t, dev, p)
			if n > 8 {
				require.NoError(t, err, "%d branches", n)
			} else {
				require.ErrorIs(t, err, bootpolicy.ErrNotSatisfied, "%d branches", n)
			}
		}
	})
}

func TestSignedPolicyFollowsTheImageWithoutSealingAgain(t *testing.T) {
	each(t, func(t *testing.T, dev transport.TPM, reboot func()) {
		ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		for name, key := range map[string]crypto.Signer{"RSA": rsaKey(), "P-256": ec} {
			sealer, err := bootpolicy.Signed(key.Public(), nil)
			require.NoError(t, err)
			old, err := bootpolicy.SignPCRs(key, crypto.SHA256, map[int][]byte{11: after("v1")})
			require.NoError(t, err)
			both, err := bootpolicy.SignPCRs(key, crypto.SHA256, map[int][]byte{11: after("v1")}, map[int][]byte{11: after("v2")})
			require.NoError(t, err)
			pOld, err := bootpolicy.Signed(key.Public(), old)
			require.NoError(t, err)
			pBoth, err := bootpolicy.Signed(key.Public(), both)
			require.NoError(t, err)
			assert.Equal(t, sealer.Digest(), pOld.Digest(), name)
			assert.Equal(t, sealer.Digest(), pBoth.Digest(), name)

			reboot()
			extendPCR(t, dev, 11, "v2")
			require.NoError(t, satisfy(t, dev, pBoth), name)
			require.ErrorIs(t, satisfy(t, dev, pOld), bootpolicy.ErrNotSatisfied, name)
			require.ErrorIs(t, satisfy(t, dev, sealer), bootpolicy.ErrNotSatisfied, name)
			bank, pcrs := pBoth.PCRs()
			assert.Equal(t, crypto.SHA256, bank)
			assert.Contains(t, pcrs, 11)
		}
	})
}

func TestForgedSignedPolicies(t *testing.T) {
	each(t, func(t *testing.T, dev transport.TPM, _ func()) {
		key := rsaKey()
		good, err := bootpolicy.SignPCRs(key, crypto.SHA256, map[int][]byte{11: after("v1")})
		require.NoError(t, err)
		var doc map[string][]map[string]any
		change := func(f func(e map[string]any)) []byte {
			require.NoError(t, json.Unmarshal(good, &doc))
			f(doc["sha256"][0])
			b, err := json.Marshal(doc)
			require.NoError(t, err)
			return b
		}
		for name, b := range map[string][]byte{
			"other policy":   change(func(e map[string]any) { e["pol"] = fmt.Sprintf("%x", after("evil")) }),
			"resettable PCR": change(func(e map[string]any) { e["pcrs"] = []int{23} }),
			"no PCR":         change(func(e map[string]any) { e["pcrs"] = []int{} }),
			"unknown field":  change(func(e map[string]any) { e["any"] = true }),
			"bytes after it": append(bytes.Clone(good), '{'),
			"no JSON":        []byte("sha256"),
		} {
			_, err := bootpolicy.Signed(key.Public(), b)
			assert.Error(t, err, name)
		}
		// An entry of another key is no entry.
		ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		require.NoError(t, err)
		p, err := bootpolicy.Signed(ec.Public(), good)
		require.NoError(t, err)
		extendPCR(t, dev, 11, "v1")
		require.ErrorIs(t, satisfy(t, dev, p), bootpolicy.ErrNotSatisfied)
		_, err = bootpolicy.SignPCRs(weak(t), crypto.SHA256, map[int][]byte{11: after("v1")})
		require.Error(t, err)
	})
}

func weak(t *testing.T) crypto.Signer {
	k, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)
	return k
}

func TestFloorRevokesOlderPolicies(t *testing.T) {
	each(t, func(t *testing.T, dev transport.TPM, reboot func()) {
		authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		f, err := bootpolicy.NewFloor(tpm.NVPolicyFloor, authority.Public())
		require.NoError(t, err)
		require.NoError(t, f.Define(t.Context(), dev, nil))
		v1, v2 := literal(t, map[int][]byte{11: after("v1")}), literal(t, map[int][]byte{11: after("v2")})
		p1, err := f.AuthorizeNV(v1)
		require.NoError(t, err)
		p2, err := f.AuthorizeNV(v2)
		require.NoError(t, err)
		assert.Equal(t, p1.Digest(), p2.Digest(), "sealing does not change")

		approve := func(p bootpolicy.Policy, version uint64, first bool) []byte {
			b, err := f.Approve(authority, p, version, first)
			require.NoError(t, err)
			return b
		}
		extendPCR(t, dev, 11, "v1")
		require.ErrorIs(t, satisfy(t, dev, p1), bootpolicy.ErrNotSatisfied, "index was never written")
		require.ErrorIs(t, f.Write(t.Context(), dev, approve(v1, 5, false)), bootpolicy.ErrNotSatisfied, "approval for later writes")
		first := approve(v1, 5, true)
		require.NoError(t, f.Write(t.Context(), dev, first))
		require.NoError(t, satisfy(t, dev, p1))
		require.ErrorIs(t, satisfy(t, dev, p2), bootpolicy.ErrNotSatisfied)

		second := approve(v2, 6, false)
		require.NoError(t, f.Write(t.Context(), dev, second))
		require.ErrorIs(t, satisfy(t, dev, p1), bootpolicy.ErrNotSatisfied, "v1 is revoked, although it fits the PCRs")
		for name, b := range map[string][]byte{"first write": first, "same write": second, "older": approve(v1, 5, false), "equal version": approve(v1, 6, false)} {
			require.ErrorIs(t, f.Write(t.Context(), dev, b), bootpolicy.ErrNotSatisfied, "replay: %s", name)
		}
		reboot()
		extendPCR(t, dev, 11, "v2")
		require.NoError(t, satisfy(t, dev, p2))
		require.NoError(t, f.Write(t.Context(), dev, approve(v1, 7, false)), "a new version may name an old policy")
	})
}

func TestFloorIsWrittenByItsAuthorityOnly(t *testing.T) {
	each(t, func(t *testing.T, dev transport.TPM, _ func()) {
		authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		thief, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		f, err := bootpolicy.NewFloor(tpm.NVPolicyFloor, authority.Public())
		require.NoError(t, err)
		require.NoError(t, f.Define(t.Context(), dev, nil))
		p := literal(t, map[int][]byte{11: after("v1")})
		_, err = f.Approve(thief, p, 1, true)
		require.Error(t, err)
		g, err := bootpolicy.NewFloor(tpm.NVPolicyFloor, thief.Public())
		require.NoError(t, err)
		b, err := g.Approve(thief, p, 1, true)
		require.NoError(t, err)
		require.ErrorIs(t, f.Write(t.Context(), dev, b), bootpolicy.ErrNotSatisfied)
		require.Error(t, g.Write(t.Context(), dev, b), "the TPM's index has the authority's policy")
		_, err = tpm2.NVWrite{AuthHandle: tpm2.AuthHandle{Handle: tpm.NVPolicyFloor, Auth: tpm2.PasswordAuth(nil)},
			NVIndex: tpm.NVPolicyFloor, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 42)}}.Execute(dev)
		require.Error(t, err, "no write by password")

		good, err := f.Approve(authority, p, 1, true)
		require.NoError(t, err)
		evil := bytes.Replace(good, []byte(`"policyVersion":1`), []byte(`"policyVersion":9`), 1)
		require.ErrorIs(t, f.Write(t.Context(), dev, evil), bootpolicy.ErrNotSatisfied)
		for name, b := range map[string][]byte{"empty": nil, "unknown field": []byte(`{"version":1,"force":true}`), "other version": []byte(`{"version":2}`), "large": make([]byte, 9000)} {
			require.Error(t, f.Write(t.Context(), dev, b), name)
		}
		_, err = f.Approve(authority, p, 0, true)
		require.Error(t, err)
	})
}

func TestOrMixesKindsAndRecoversFromAFailedBranch(t *testing.T) {
	each(t, func(t *testing.T, dev transport.TPM, _ func()) {
		authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		f, err := bootpolicy.NewFloor(tpm.NVPolicyFloor, authority.Public())
		require.NoError(t, err)
		require.NoError(t, f.Define(t.Context(), dev, nil))
		v1 := literal(t, map[int][]byte{11: after("v1")})
		byNV, err := f.AuthorizeNV(v1)
		require.NoError(t, err)
		js, err := bootpolicy.SignPCRs(authority, crypto.SHA256, map[int][]byte{11: after("v1")})
		require.NoError(t, err)
		bySig, err := bootpolicy.Signed(authority.Public(), js)
		require.NoError(t, err)
		p, err := bootpolicy.Or(byNV, bySig)
		require.NoError(t, err)
		extendPCR(t, dev, 11, "v1")
		require.NoError(t, satisfy(t, dev, p), "the first branch fails after it changed the session")
	})
}

func TestSignedValuesNameThePCRsAndMustBeThoseSigned(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	good := map[int][]byte{7: bytes.Repeat([]byte{7}, 32), 11: bytes.Repeat([]byte{11}, 32)}
	signed, err := bootpolicy.SignPCRs(key, crypto.SHA256, good)
	require.NoError(t, err)
	p, err := bootpolicy.Signed(key.Public(), signed)
	require.NoError(t, err)
	_, values := p.PCRs()
	assert.Equal(t, good, values)

	forged := bytes.Replace(signed, []byte(strings.Repeat("0b", 32)), []byte(strings.Repeat("0c", 32)), 1)
	require.NotEqual(t, signed, forged)
	_, err = bootpolicy.Signed(key.Public(), forged)
	require.ErrorContains(t, err, "not those that were signed")

	other := map[int][]byte{7: good[7], 11: bytes.Repeat([]byte{12}, 32)}
	signed, err = bootpolicy.SignPCRs(key, crypto.SHA256, good, other)
	require.NoError(t, err)
	p, err = bootpolicy.Signed(key.Public(), signed)
	require.NoError(t, err)
	_, values = p.PCRs()
	assert.Equal(t, map[int][]byte{7: good[7], 11: nil}, values, "alternatives agree on PCR 7 alone")
}
