package attest_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// enrolled returns a node that is enrolled with a cloud.
func enrolled(t *testing.T, change ...func(*attest.RegistrarConfig, *attest.VerifierConfig)) (*attest.Node, *attest.DeviceKey, *cloud, *tpmtest.TPM) {
	t.Helper()
	dev, endorsers := newTPM(t)
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Collectors: []attest.Collector{
		func(context.Context, []byte) (string, []byte, error) { return "text/plain", []byte("body"), nil },
	}})
	c := newCloud(t, endorsers, change...)
	key, _ := c.enroll(n)
	return n, key, c, dev
}

// T1, T11, F6, F9: evidence counts once, in time, and only for the device,
// purpose and TLS session it was asked for.
func TestT1ReplayedAndRelayedEvidence(t *testing.T) {
	n, key, c, _ := enrolled(t)
	s := session(t, n, key)
	ctx := t.Context()
	fresh := func() *attest.Evidence {
		ch, err := c.verifier.Challenge(ctx, s)
		require.NoError(t, err)
		e, err := n.Evidence(ctx, s, ch)
		require.NoError(t, err)
		return e
	}
	refused := func(name string, s attest.Session, e *attest.Evidence, class error, code reason.Code) {
		t.Helper()
		r, err := c.verifier.Appraise(ctx, s, e)
		require.ErrorIs(t, err, class, name)
		assert.Nil(t, r, name)
		var a *attest.AppraisalError
		require.ErrorAs(t, err, &a, name)
		assert.True(t, a.Broken, name)
		require.Len(t, a.Reasons, 1, name)
		assert.Equal(t, string(code), a.Reasons[0].Code, name)
		require.ErrorIs(t, err, code, name)
	}
	a, err := c.verifier.Challenge(ctx, s)
	require.NoError(t, err)
	b, err := c.verifier.Challenge(ctx, s)
	require.NoError(t, err)
	assert.NotEqual(t, a.Nonce, b.Nonce)
	assert.NotEqual(t, a.ID, b.ID)
	assert.Len(t, a.Nonce, 32)

	e := fresh()
	_, err = c.verifier.Appraise(ctx, s, e)
	require.NoError(t, err)
	refused("replayed", s, e, attest.ErrChallenge, reason.NoChallenge)

	relayed := s
	relayed.Binding = sha256.Sum256([]byte("the session of a man in the middle"))
	refused("relayed over another TLS session", relayed, fresh(), quote.ErrNonce, reason.QuoteNonce)

	other := s
	other.Purpose = "key-release"
	refused("for another purpose", other, fresh(), attest.ErrChallenge, reason.OtherPurpose)

	stale := fresh()
	stale.Challenge = a.ID
	refused("quote of another challenge", s, stale, quote.ErrNonce, reason.QuoteNonce)

	swapped := fresh()
	swapped.Bodies[0].Data = []byte("another log")
	refused("body swapped", s, swapped, quote.ErrNonce, reason.QuoteNonce)

	none := fresh()
	none.Bodies = nil
	refused("body left out", s, none, quote.ErrNonce, reason.QuoteNonce)

	late := fresh()
	now := c.now
	c.now = now.Add(3 * time.Minute)
	refused("late", s, late, attest.ErrExpired, reason.Expired)
	c.now = now

	unknown := fresh()
	unknown.Challenge = "0123456789abcdef"
	refused("constant challenge", s, unknown, attest.ErrChallenge, reason.NoChallenge)

	unbound := s
	unbound.Binding = [32]byte{}
	_, err = c.verifier.Appraise(ctx, unbound, fresh())
	require.ErrorIs(t, err, reason.NoBinding)
	_, err = n.Evidence(ctx, unbound, a)
	require.ErrorIs(t, err, reason.NoBinding, "the node gives no evidence without channel binding")

	failed := fresh()
	failed.PCRValues[0] ^= 1
	refused("first try with a wrong value", s, failed, quote.ErrPCRMismatch, reason.OtherValues)
	failed.PCRValues[0] ^= 1
	refused("second try at the same challenge (T9)", s, failed, attest.ErrChallenge, reason.NoChallenge)
}

// T17: a revoked node gets no challenge, no verdict and no certificate, even
// when the revocation comes while evidence is under way.
func TestT17RevokedNode(t *testing.T) {
	n, key, c, _ := enrolled(t)
	s := session(t, n, key)
	ctx := t.Context()
	ch, err := c.verifier.Challenge(ctx, s)
	require.NoError(t, err)
	e, err := n.Evidence(ctx, s, ch)
	require.NoError(t, err)
	c.opinion = func(attest.Input) attest.Opinion { // at the last moment
		require.NoError(t, c.registrar.Revoke(ctx, n.Device(), "stolen"))
		return attest.Opinion{Status: attest.StatusAffirming}
	}
	_, err = c.verifier.Appraise(ctx, s, e)
	require.ErrorIs(t, err, attest.ErrRevoked)
	_, err = c.verifier.Challenge(ctx, s)
	require.ErrorIs(t, err, attest.ErrRevoked)
	_, err = c.registrar.Begin(ctx, n.EnrollmentRequest(nil))
	require.ErrorIs(t, err, attest.ErrRevoked)
	d, err := c.devices.Get(ctx, n.Device())
	require.NoError(t, err)
	assert.Equal(t, registry.Revoked, d.State)
}

func TestRevokedBetweenBeginAndComplete(t *testing.T) {
	n, key, c, _ := enrolled(t)
	ch, err := c.registrar.Begin(t.Context(), n.EnrollmentRequest(nil))
	require.NoError(t, err)
	rsp, err := n.Activate(t.Context(), ch, key)
	require.NoError(t, err)
	require.NoError(t, c.registrar.Revoke(t.Context(), n.Device(), "stolen"))
	_, err = c.registrar.Complete(t.Context(), rsp)
	require.ErrorIs(t, err, attest.ErrRevoked)
}

// T9, T11: what is wrong in an answer burns the challenge and names itself.
func TestT11ForgedActivation(t *testing.T) {
	n, key, c, dev := enrolled(t)
	ctx := t.Context()
	soft, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	softCSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, soft)
	require.NoError(t, err)
	for name, tt := range map[string]struct {
		forge func(*attest.ActivationResponse)
		class error
		code  reason.Code
	}{
		"guessed secret":             {func(r *attest.ActivationResponse) { r.Secret = make([]byte, 32) }, attest.ErrActivation, reason.WrongSecret},
		"certificate for a soft key": {func(r *attest.ActivationResponse) { r.CSR = softCSR }, quote.ErrNonce, reason.CertifyNonce},
		"certify signature changed":  {func(r *attest.ActivationResponse) { r.Signature[len(r.Signature)-1] ^= 1 }, quote.ErrSignature, reason.BadSignature},
		"certify of another kind":    {func(r *attest.ActivationResponse) { r.Certify[5] ^= 1 }, quote.ErrSignature, reason.BadSignature},
		"another public area":        {func(r *attest.ActivationResponse) { r.KeyPublic[5] ^= 1 }, quote.ErrKey, reason.OtherKey},
	} {
		ch, err := c.registrar.Begin(ctx, n.EnrollmentRequest(nil))
		require.NoError(t, err)
		rsp, err := n.Activate(ctx, ch, key)
		require.NoError(t, err)
		good := *rsp
		good.Signature, good.Certify, good.KeyPublic = append([]byte(nil), rsp.Signature...), append([]byte(nil), rsp.Certify...), append([]byte(nil), rsp.KeyPublic...)
		tt.forge(rsp)
		_, err = c.registrar.Complete(ctx, rsp)
		require.ErrorIs(t, err, tt.class, name)
		require.ErrorIs(t, err, tt.code, name)
		_, err = c.registrar.Complete(ctx, &good)
		require.ErrorIs(t, err, attest.ErrChallenge, name+": the challenge is burnt")
		require.ErrorIs(t, err, reason.NoActivation, name)
	}
	// F10: a restricted key certifies a software key that was loaded from outside.
	ch, err := c.registrar.Begin(ctx, n.EnrollmentRequest(nil))
	require.NoError(t, err)
	rsp, err := n.Activate(ctx, ch, key)
	require.NoError(t, err)
	point, err := soft.Bytes()
	require.NoError(t, err)
	pubBytes, err := soft.PublicKey.Bytes()
	require.NoError(t, err)
	public := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: pubBytes[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: pubBytes[33:]}}),
	}
	loaded, err := tpm2.LoadExternal{
		InPrivate: tpm2.New2B(tpm2.TPMTSensitive{SensitiveType: tpm2.TPMAlgECC, Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: point})}),
		InPublic:  tpm2.New2B(public), Hierarchy: tpm2.TPMRHNull,
	}.Execute(dev)
	require.NoError(t, err)
	ak, err := tpm.CreatePrimary(dev, tpm2.TPMRHEndorsement, nil, attest.AKTemplate())
	require.NoError(t, err)
	spki, err := x509.MarshalPKIXPublicKey(soft.Public())
	require.NoError(t, err)
	certified, err := tpm2.Certify{
		ObjectHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: tpm2.PasswordAuth(nil)}, SignHandle: ak.Auth(nil),
		QualifyingData: tpm2.TPM2BData{Buffer: attest.EnrollBinding(n.Device(), ch.Nonce, sha256.Sum256(spki))},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(dev)
	require.NoError(t, err)
	require.NoError(t, ak.Flush())
	require.NoError(t, tpm.Flush(dev, loaded.ObjectHandle))
	rsp.KeyPublic, rsp.Certify, rsp.Signature, rsp.CSR = tpm2.Marshal(public), certified.CertifyInfo.Bytes(), tpm2.Marshal(certified.Signature), softCSR
	_, err = c.registrar.Complete(ctx, rsp)
	require.ErrorIs(t, err, quote.ErrKey)
	require.ErrorIs(t, err, reason.LoadedKey)
}

// T8: a device's binding is made once; another attestation key does not get
// in, and neither does the victim's key under another endorsement key.
func TestT8IdentityTakeover(t *testing.T) {
	n, _, c, dev := enrolled(t)
	ctx := t.Context()
	template := attest.AKTemplate()
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte("other")}})
	ak, err := tpm.CreatePrimary(dev, tpm2.TPMRHEndorsement, nil, template)
	require.NoError(t, err)
	require.NoError(t, ak.Flush())
	req := n.EnrollmentRequest(nil)
	req.AKPublic = tpm2.Marshal(ak.Public)
	_, err = c.registrar.Begin(ctx, req)
	require.ErrorIs(t, err, attest.ErrBound)
	require.ErrorIs(t, err, reason.Bound)

	thief, endorsers := newTPM(t)
	c.now = time.Now() // the thief's TPM was made after the cloud
	other := open(t, thief, attest.NodeConfig{Endorsers: endorsers})
	req = other.EnrollmentRequest(nil)
	req.AKPublic = n.EnrollmentRequest(nil).AKPublic
	ch, err := c.registrar.Begin(ctx, req)
	require.NoError(t, err)
	key, err := other.DeviceKey(ctx)
	require.NoError(t, err)
	_, err = other.Activate(ctx, ch, key)
	require.ErrorIs(t, err, attest.ErrActivation, "the credential opens only beside the key it names")
	require.ErrorIs(t, err, reason.OtherTPM)
}

// The owner decides: nobody is admitted by default, and a token counts when
// the TPM has proven itself.
func TestAdmission(t *testing.T) {
	dev, endorsers := newTPM(t)
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	used := 0
	deny := errors.New("unknown token")
	c := newCloud(t, endorsers, func(r *attest.RegistrarConfig, _ *attest.VerifierConfig) {
		r.Admit = func(_ context.Context, a attest.Applicant) error {
			if string(a.Token) != "token" || used > 0 {
				return deny
			}
			if a.Proven {
				used++
			}
			return nil
		}
	})
	_, err := c.registrar.Begin(t.Context(), n.EnrollmentRequest([]byte("guess")))
	require.ErrorIs(t, err, attest.ErrNotAdmitted)
	require.ErrorIs(t, err, deny)
	c.enroll(n)
	assert.Equal(t, 1, used)
	_, err = c.registrar.Begin(t.Context(), n.EnrollmentRequest([]byte("token")))
	require.ErrorIs(t, err, attest.ErrNotAdmitted)
}

// Zero values of every policy deny.
func TestZeroPoliciesDeny(t *testing.T) {
	_, err := attest.NewRegistrar(attest.RegistrarConfig{})
	require.ErrorContains(t, err, "no Endorsers.Anchors")
	_, err = attest.NewVerifier(attest.VerifierConfig{})
	require.ErrorIs(t, err, reason.NothingSelected)
	_, err = attest.Endorsers{}.Verify([][]byte{{1}}, time.Now())
	require.ErrorIs(t, err, attest.ErrUntrustedEK)
	require.ErrorIs(t, err, reason.NoAnchors)
	n, key, c, _ := enrolled(t)
	c.opinion = func(attest.Input) attest.Opinion { return attest.Opinion{} }
	_, err = c.attest(n, session(t, n, key))
	require.ErrorIs(t, err, attest.ErrNotAffirming)
}

// An opinion that affirms while one of its claims does not is none that
// affirms, and a claim that nobody knows affirms nothing.
func TestClaimsCountAsStatus(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	for name, tt := range map[string]struct {
		claims map[string]attest.Status
		status attest.Status
	}{
		"affirmed":      {map[string]attest.Status{"executables": attest.StatusAffirming, "configuration": attest.StatusAffirming}, 0},
		"warning":       {map[string]attest.Status{"executables": attest.StatusAffirming, "configuration": attest.StatusWarning}, attest.StatusWarning},
		"refused":       {map[string]attest.Status{"hardware": attest.StatusContraindicated}, attest.StatusContraindicated},
		"unknown name":  {map[string]attest.Status{"weather": attest.StatusAffirming}, attest.StatusContraindicated},
		"unknown value": {map[string]attest.Status{"hardware": 7}, attest.StatusContraindicated},
	} {
		c.opinion = func(attest.Input) attest.Opinion {
			return attest.Opinion{Status: attest.StatusAffirming, Claims: tt.claims}
		}
		r, err := softAttest(c, n)
		if tt.status == 0 {
			require.NoError(t, err, name)
			assert.Equal(t, attest.StatusAffirming, r.Claims()["executables"])
			assert.Equal(t, attest.StatusAffirming, r.Claims()["instance-identity"])
			continue
		}
		require.ErrorIs(t, err, attest.ErrNotAffirming, name)
		var a *attest.AppraisalError
		require.ErrorAs(t, err, &a, name)
		assert.Equal(t, tt.status, a.Status, name)
	}
}

// Every reason is given, and a violated policy is told from broken evidence.
func TestEveryReasonIsGiven(t *testing.T) {
	n, key, c, dev := enrolled(t, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) {
		v.Extended = []int{0, 7}
		v.Endorsers.MinFirmware = map[string]uint64{"id:53545341": 1 << 63}
	})
	c.opinion = func(attest.Input) attest.Opinion {
		return attest.Opinion{Status: attest.StatusContraindicated, Reasons: []attest.Reason{{Code: "pcr7", Detail: "Secure Boot is off"}}}
	}
	d := sha256.Sum256([]byte("x"))
	require.NoError(t, tpm.ExtendPCR(dev, 7, map[crypto.Hash][]byte{crypto.SHA256: d[:]}))
	_, err := c.attest(n, session(t, n, key))
	var a *attest.AppraisalError
	require.ErrorAs(t, err, &a)
	assert.False(t, a.Broken)
	assert.Equal(t, attest.StatusContraindicated, a.Status)
	require.ErrorIs(t, err, attest.ErrUnmeasured)
	require.ErrorIs(t, err, attest.ErrFirmware)
	require.ErrorIs(t, err, attest.ErrNotAffirming)
	var codes []string
	for _, r := range a.Reasons {
		codes = append(codes, r.Code)
	}
	assert.Equal(t, []string{"firmware-no-floor", "unmeasured", "pcr7"}, codes)
	stored, err := c.devices.Get(t.Context(), n.Device())
	require.NoError(t, err)
	assert.Equal(t, registry.Failing, stored.State)
}

// T12, T21: what passes the TPM's bus holds neither the activation secret nor
// the owner's auth value.
func TestT12BusProbeLearnsNothing(t *testing.T) { onEach(t, tT12BusProbeLearnsNothing) }

func tT12BusProbeLearnsNothing(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
	bus := &tpmtest.Bus{TPM: dev.Device}
	auth := []byte("the owner's password")
	_, err := tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NewAuth: tpm2.TPM2BAuth{Buffer: auth}}.Execute(dev)
	require.NoError(t, err)
	keys, err := open(t, dev, attest.NodeConfig{Endorsers: endorsers}).EndorsementKeys(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, keys)
	for _, ek := range keys {
		n := open(t, bus, attest.NodeConfig{EKName: ek.Name, OwnerAuth: auth})
		c := newCloud(t, endorsers)
		key, err := n.DeviceKey(t.Context())
		require.NoError(t, err)
		ch, err := c.registrar.Begin(t.Context(), n.EnrollmentRequest(nil))
		require.NoError(t, err)
		rsp, err := n.Activate(t.Context(), ch, key)
		require.NoError(t, err)
		e, err := c.registrar.Complete(t.Context(), rsp)
		require.NoError(t, err)
		require.NoError(t, n.StoreCertificate(t.Context(), e, c.roots()))
		im, err := c.registrar.BeginImport(t.Context(), [][]byte{ek.Certificate.Raw}, nil)
		require.NoError(t, err)
		kept := spied(t, c.challenges, im.ID)
		imported, err := n.Import(t.Context(), im, key)
		require.NoError(t, err)
		_, err = c.registrar.CompleteImport(t.Context(), imported)
		require.NoError(t, err)
		require.Len(t, kept, 32)
		assert.Contains(t, string(bus.Bytes()), string(im.Duplicate))
		assert.NotContains(t, string(bus.Bytes()), string(kept), "the imported key")
		assert.Contains(t, string(bus.Bytes()), string(ch.Nonce[:0])+string(ch.Credential), "the probe sees what is sent")
		assert.NotContains(t, string(bus.Bytes()), string(rsp.Secret))
		assert.NotContains(t, string(bus.Bytes()), string(auth))
	}
}

// spied returns the HMAC key that a store keeps for an import challenge.
func spied(t *testing.T, s registry.ChallengeStore, id string) []byte {
	t.Helper()
	value, err := s.Take(t.Context(), id)
	require.NoError(t, err)
	var p struct {
		ImportKey []byte `json:"import_key"`
	}
	require.NoError(t, json.Unmarshal(value, &p))
	require.NoError(t, s.Put(t.Context(), id, value, time.Now().Add(time.Hour)))
	return p.ImportKey
}
