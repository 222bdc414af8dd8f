package attest_test

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"encoding/json"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// keep makes a signing key of the application's own, persistent.
func keep(t *testing.T, dev *tpmtest.TPM, at tpm2.TPMHandle, change func(*tpm2.TPMTPublic)) crypto.PublicKey {
	t.Helper()
	template := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}),
	}
	change(&template)
	k, err := tpm.CreatePrimary(dev, tpm2.TPMRHOwner, nil, template)
	require.NoError(t, err)
	_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: k.Named(), PersistentHandle: at}.Execute(dev)
	require.NoError(t, err)
	require.NoError(t, k.Flush())
	key, err := tpm2.Pub(k.Public)
	require.NoError(t, err)
	return key
}

// Evidence attests further keys of the node, and what is wrong with them is
// broken evidence.
func TestKeyAttestations(t *testing.T) {
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
		mine := keep(t, dev, 0x81000200, func(*tpm2.TPMTPublic) {})
		n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Keys: []tpm2.TPMHandle{0x81000200, tpm.HandleLDevID}})
		c := newCloud(t, endorsers)
		key, _ := c.enroll(n)
		var seen []crypto.PublicKey
		c.opinion = func(in attest.Input) attest.Opinion {
			seen = in.Keys
			return attest.Opinion{Status: attest.StatusAffirming}
		}
		_, err := c.attest(n, session(t, n, key))
		require.NoError(t, err)
		require.Len(t, seen, 2)
		assert.True(t, mine.(*rsa.PublicKey).Equal(seen[0]))
		assert.Equal(t, key.Public(), seen[1])

		keep(t, dev, 0x81000201, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM, p.ObjectAttributes.FixedParent = false, false })
		movable := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Keys: []tpm2.TPMHandle{0x81000201}})
		_, err = c.attest(movable, session(t, movable, key))
		require.ErrorIs(t, err, quote.ErrKey, "a key that can leave the TPM")
		absent := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Keys: []tpm2.TPMHandle{0x810002ff}})
		s := session(t, absent, key)
		ch, err := c.verifier.Challenge(t.Context(), s)
		require.NoError(t, err)
		_, err = absent.Evidence(t.Context(), s, ch)
		require.ErrorIs(t, err, attest.ErrNoKey)
		_, err = attest.Open(t.Context(), dev, attest.NodeConfig{Endorsers: endorsers, Keys: make([]tpm2.TPMHandle, 9)})
		require.Error(t, err)
	})
}

// F9, F10: key attestations that a captured node makes up, under a quote that
// holds.
func TestForgedKeyAttestations(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	other := softnode.NewKey(softnode.P256(), softnode.AKAttributes)
	type attestation struct {
		Public    []byte `json:"public"`
		Certify   []byte `json:"certify"`
		Signature []byte `json:"signature"`
	}
	for name, tt := range map[string]struct {
		body  func(s attest.Session, nonce []byte) []byte
		class error
		code  reason.Code
	}{
		"F9 of an older challenge": {func(s attest.Session, _ []byte) []byte {
			return keysBody(1, attestation{n.Key.Public, n.CertifyKey(s, make([]byte, 32), n.Key.Public), nil}, n.AK)
		}, quote.ErrNonce, reason.CertifyNonce},
		"of another session": {func(s attest.Session, nonce []byte) []byte {
			s.Binding[0] ^= 1
			return keysBody(1, attestation{n.Key.Public, n.CertifyKey(s, nonce, n.Key.Public), nil}, n.AK)
		}, quote.ErrNonce, reason.CertifyNonce},
		"by another attestation key": {func(s attest.Session, nonce []byte) []byte {
			return keysBody(1, attestation{n.Key.Public, n.CertifyKey(s, nonce, n.Key.Public), nil}, other)
		}, quote.ErrSignature, reason.BadSignature},
		"F10 software key": {func(s attest.Session, nonce []byte) []byte {
			soft := n.Key.Encode(1<<18|1<<6, 0x18, 0x0B)
			return keysBody(1, attestation{soft, n.CertifyKey(s, nonce, soft), nil}, n.AK)
		}, quote.ErrKey, reason.SoftwareKey},
		"unknown version": {func(attest.Session, []byte) []byte { return []byte(`{"version":2,"keys":[{}]}`) }, attest.ErrMalformed, reason.Malformed},
		"unknown field":   {func(attest.Session, []byte) []byte { return []byte(`{"version":1,"keys":[],"x":1}`) }, attest.ErrMalformed, reason.Malformed},
		"none":            {func(attest.Session, []byte) []byte { return []byte(`{"version":1,"keys":[]}`) }, attest.ErrMalformed, reason.Malformed},
		"too many": {func(attest.Session, []byte) []byte {
			return []byte(`{"version":1,"keys":[{},{},{},{},{},{},{},{},{}]}`)
		}, attest.ErrMalformed, reason.Malformed},
		"huge":  {func(attest.Session, []byte) []byte { return bytes.Repeat([]byte{' '}, 1<<20) }, attest.ErrMalformed, reason.TooLarge},
		"empty": {func(attest.Session, []byte) []byte { return nil }, attest.ErrMalformed, reason.Malformed},
	} {
		ch, err := c.verifier.Challenge(t.Context(), n.Session(nil))
		require.NoError(t, err)
		s := n.Session(ch.Nonce)
		n.Bodies = []attest.Body{{MediaType: "application/vnd.trusttree.keys+json", Data: tt.body(s, ch.Nonce)}}
		r, err := c.verifier.Appraise(t.Context(), s, n.Evidence(t.Context(), s, ch))
		require.ErrorIs(t, err, tt.class, name)
		require.ErrorIs(t, err, tt.code, name)
		var a *attest.AppraisalError
		require.ErrorAs(t, err, &a, name)
		assert.True(t, a.Broken, name)
		assert.Nil(t, r)
	}
}

func keysBody[T any](version int, a T, ak *softnode.Key) []byte {
	b, _ := json.Marshal(a)
	var m map[string][]byte
	_ = json.Unmarshal(b, &m)
	m["signature"] = ak.Sign(m["certify"])
	b, _ = json.Marshal(map[string]any{"version": version, "keys": []any{m}})
	return b
}
