package attest_test

import (
	"context"
	"crypto/x509"
	"testing"
	"time"

	attestation "github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ekimport"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// The cloud knows the endorsement keys of what it bought, speaks first, and
// has a node after one answer: for every endorsement key of both TPMs.
func TestEnrolmentInOneRoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
		keys, err := open(t, dev, attest.NodeConfig{Endorsers: endorsers}).EndorsementKeys(t.Context())
		require.NoError(t, err)
		for _, ek := range keys {
			n := open(t, dev, attest.NodeConfig{EKName: ek.Name})
			c := newCloud(t, endorsers)
			key, err := n.DeviceKey(t.Context())
			require.NoError(t, err)
			ch, err := c.registrar.BeginImport(t.Context(), [][]byte{ek.Certificate.Raw}, nil)
			require.NoError(t, err)
			rsp, err := n.Import(t.Context(), over(t, ch), key)
			require.NoError(t, err, ek.Template)
			e, err := c.registrar.CompleteImport(t.Context(), over(t, rsp))
			require.NoError(t, err, ek.Template)
			require.NoError(t, n.StoreCertificate(t.Context(), e, c.roots()))
			_, err = c.attest(n, session(t, n, key))
			require.NoError(t, err, "the attestation key that was bound is the one that quotes")
			_, err = c.registrar.CompleteImport(t.Context(), rsp)
			require.ErrorIs(t, err, attest.ErrChallenge, "once")
			_, err = c.registrar.Begin(t.Context(), n.EnrollmentRequest(nil))
			require.NoError(t, err, "both ways of enrolling bind the same")
		}
	})
}

// T11: what is wrong in an answer to an import challenge burns it and names
// itself.
func TestT11ForgedImport(t *testing.T) {
	n, key, c, dev := enrolled(t)
	ctx := t.Context()
	ek := [][]byte{n.EndorsementKey().Certificate.Raw}
	thiefTPM, endorsers := newTPM(t)
	c.now = time.Now()
	thief := open(t, thiefTPM, attest.NodeConfig{Endorsers: endorsers})
	thiefKey, err := thief.DeviceKey(ctx)
	require.NoError(t, err)
	for name, tt := range map[string]struct {
		forge func(*ekimport.Response)
		class error
		code  reason.Code
	}{
		"HMAC guessed":                    {func(r *ekimport.Response) { r.AKSignature[10] ^= 1 }, attest.ErrActivation, reason.WrongSecret},
		"another key certified":           {func(r *ekimport.Response) { r.AKCertify[len(r.AKCertify)-1] ^= 1 }, attest.ErrActivation, reason.WrongSecret},
		"signature of another scheme":     {func(r *ekimport.Response) { r.AKSignature = r.Signature }, attest.ErrActivation, reason.WrongSecret},
		"signature cut short":             {func(r *ekimport.Response) { r.AKSignature = r.AKSignature[:20] }, quote.ErrMalformed, reason.CutShort},
		"attestation key of another":      {func(r *ekimport.Response) { r.AKPublic = thief.EnrollmentRequest(nil).AKPublic }, quote.ErrKey, reason.OtherKey},
		"the TLS key as attestation key":  {func(r *ekimport.Response) { r.AKPublic = r.KeyPublic }, quote.ErrKey, reason.KeyAttributes},
		"certification of the TLS key":    {func(r *ekimport.Response) { r.Signature[len(r.Signature)-1] ^= 1 }, quote.ErrSignature, reason.BadSignature},
		"certificate request of another":  {func(r *ekimport.Response) { r.CSR = must(thiefKey.CSR()) }, quote.ErrNonce, reason.CertifyNonce},
		"not a message":                   {func(r *ekimport.Response) { r.CSR = nil }, attest.ErrMalformed, reason.CutShort},
		"certificate request that is not": {func(r *ekimport.Response) { r.CSR = []byte{1} }, attest.ErrMalformed, reason.Malformed},
	} {
		ch, err := c.registrar.BeginImport(ctx, ek, nil)
		require.NoError(t, err)
		rsp, err := n.Import(ctx, ch, key)
		require.NoError(t, err)
		tt.forge(rsp)
		_, err = c.registrar.CompleteImport(ctx, rsp)
		require.ErrorIs(t, err, tt.class, name)
		require.ErrorIs(t, err, tt.code, name)
	}
	// another TPM can't import the key
	ch, err := c.registrar.BeginImport(ctx, ek, nil)
	require.NoError(t, err)
	_, err = thief.Import(ctx, ch, thiefKey)
	require.ErrorIs(t, err, attest.ErrChallenge)
	ch.Device = thief.Device()
	_, err = thief.Import(ctx, ch, thiefKey)
	require.ErrorIs(t, err, attest.ErrActivation)

	// a node imports nothing else than such a key
	for name, change := range map[string]func(*tpm2.TPMTPublic){
		"unrestricted: signs what the cloud wants": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false },
		"a storage key":    func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true },
		"with a policy":    func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = make([]byte, 32) },
		"name of no bytes": func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 },
	} {
		ch, err := c.registrar.BeginImport(ctx, ek, nil)
		require.NoError(t, err)
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ch.Public)
		require.NoError(t, err)
		change(public)
		ch.Public = tpm2.Marshal(public)
		_, err = n.Import(ctx, ch, key)
		require.ErrorIs(t, err, ekimport.ErrNotHMACKey, name)
	}
	h, err := tpm.LoadedHandles(dev)
	require.NoError(t, err)
	assert.Zero(t, h.Count())

	// challenges of the two ways don't mix, answers come in time, the revoked stay out
	ch, err = c.registrar.BeginImport(ctx, ek, nil)
	require.NoError(t, err)
	rsp, err := n.Import(ctx, ch, key)
	require.NoError(t, err)
	_, err = c.registrar.Complete(ctx, &attest.ActivationResponse{
		Version: 1, ID: ch.ID, Secret: make([]byte, 32), KeyPublic: rsp.KeyPublic, Certify: rsp.Certify, Signature: rsp.Signature, CSR: rsp.CSR,
	})
	require.ErrorIs(t, err, attest.ErrChallenge)
	ch, err = c.registrar.BeginImport(ctx, ek, nil)
	require.NoError(t, err)
	rsp, err = n.Import(ctx, ch, key)
	require.NoError(t, err)
	c.now = c.now.Add(3 * time.Minute)
	_, err = c.registrar.CompleteImport(ctx, rsp)
	require.ErrorIs(t, err, attest.ErrExpired)
	_, err = c.registrar.BeginImport(ctx, [][]byte{{1}}, nil)
	require.ErrorIs(t, err, attest.ErrUntrustedEK)
	_, err = c.registrar.BeginImport(ctx, nil, nil)
	require.ErrorIs(t, err, attest.ErrMalformed)
	require.NoError(t, c.registrar.Revoke(ctx, n.Device(), "stolen"))
	_, err = c.registrar.BeginImport(ctx, ek, nil)
	require.ErrorIs(t, err, attest.ErrRevoked)
}

// T8: the one-round-trip way does not replace an attestation key either.
func TestT8ImportDoesNotRebind(t *testing.T) {
	n, key, c, dev := enrolled(t)
	d, err := c.devices.Get(t.Context(), n.Device())
	require.NoError(t, err)
	other := tpm.Wrap(dev.Device)
	template := attest.AKTemplate()
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte("other")}})
	ak, err := tpm.CreatePrimary(other, tpm2.TPMRHEndorsement, nil, template)
	require.NoError(t, err)
	require.NoError(t, ak.Flush())
	d.AKPublic = tpm2.Marshal(ak.Public)
	_, err = c.devices.Put(t.Context(), d)
	require.NoError(t, err)
	ch, err := c.registrar.BeginImport(t.Context(), [][]byte{n.EndorsementKey().Certificate.Raw}, nil)
	require.NoError(t, err)
	rsp, err := n.Import(t.Context(), ch, key)
	require.NoError(t, err)
	_, err = c.registrar.CompleteImport(t.Context(), rsp)
	require.ErrorIs(t, err, attest.ErrBound)
}

// The owner is asked before and after, as in the other way of enrolling.
func TestImportAdmission(t *testing.T) {
	dev, endorsers := newTPM(t)
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	ek := [][]byte{n.EndorsementKey().Certificate.Raw}
	var asked []bool
	c := newCloud(t, endorsers, func(r *attest.RegistrarConfig, _ *attest.VerifierConfig) {
		r.Admit = func(_ context.Context, a attest.Applicant) error {
			if string(a.Token) != "order 17" {
				return registry.ErrNotFound
			}
			asked = append(asked, a.Proven)
			return nil
		}
	})
	_, err := c.registrar.BeginImport(t.Context(), ek, nil)
	require.ErrorIs(t, err, attest.ErrNotAdmitted)
	ch, err := c.registrar.BeginImport(t.Context(), ek, []byte("order 17"))
	require.NoError(t, err)
	key, err := n.DeviceKey(t.Context())
	require.NoError(t, err)
	rsp, err := n.Import(t.Context(), ch, key)
	require.NoError(t, err)
	_, err = c.registrar.CompleteImport(t.Context(), rsp)
	require.NoError(t, err)
	assert.Equal(t, []bool{false, true}, asked)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// go-attestation's challenge is answered by our node, and ours by its attester.
func TestImportWithGoAttestation(t *testing.T) {
	dev, endorsers := newTPM(t)
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	keys, err := n.EndorsementKeys(t.Context())
	require.NoError(t, err)
	key, err := n.DeviceKey(t.Context())
	require.NoError(t, err)
	for _, ek := range keys {
		if ek.Template != "L-1" && ek.Template != "L-2" {
			continue // go-attestation knows the low range only
		}
		pinned := open(t, dev, attest.NodeConfig{EKName: ek.Name})
		theirs, secret, err := attestation.GenerateEkChallenge(ek.Certificate.PublicKey)
		require.NoError(t, err)
		rsp, err := pinned.Import(t.Context(), &ekimport.Challenge{
			Version: 1, ID: "x", Device: pinned.Device(), Nonce: make([]byte, 32), Public: theirs.ObjectPublic, Duplicate: theirs.Duplicate, Seed: theirs.InSymSeed,
		}, key)
		require.NoError(t, err, ek.Template)
		require.NoError(t, attestation.VerifySolvedDecryptionEkChallenge(rsp.AKPublic,
			&attestation.CertificationParameters{Public: rsp.AKPublic, CreateAttestation: rsp.AKCertify, CreateSignature: rsp.AKSignature}, *secret))
	}

	tpmTheirs, err := attestation.OpenTPM(&attestation.OpenConfig{CommandChannel: tpm.NewChannel(dev.Device, nil)})
	require.NoError(t, err)
	eks, err := tpmTheirs.EKs()
	require.NoError(t, err)
	for _, algorithm := range []attestation.Algorithm{attestation.ECDSA, attestation.RSA} {
		ak, err := tpmTheirs.NewAK(&attestation.AKConfig{Algorithm: algorithm})
		require.NoError(t, err)
		im, secret, err := ekimport.New(must(attest.EKPublic("L-1", eks[0].Public)))
		require.NoError(t, err)
		certified, err := ak.CertifyWithDecryptionEk(tpmTheirs, &eks[0], attestation.DecryptionEkChallenge{ObjectPublic: im.Public, Duplicate: im.Duplicate, InSymSeed: im.Seed})
		require.NoError(t, err)
		_, primary, err := quote.InsecureVerifyImportedAnyNonce(secret, certified.CreateAttestation, certified.CreateSignature, certified.Public)
		require.NoError(t, err)
		assert.False(t, primary, "its key is a child of the storage root key: our registrar would want another")
		require.NoError(t, ak.Close(tpmTheirs))
	}
}

// tpm2-tools import our key and certify with it.
func TestImportWithTPM2Tools(t *testing.T) {
	dev, m := tpmtest.NewSwtpm(t)
	endorsers := attest.Endorsers{Anchors: []*x509.Certificate{m.Root}, Intermediates: m.Intermediates}
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	keys, err := n.EndorsementKeys(t.Context())
	require.NoError(t, err)
	key, err := n.DeviceKey(t.Context())
	require.NoError(t, err)
	x := newTools(t, dev)
	for _, ek := range keys {
		if ek.Template != "L-1" {
			continue
		}
		c := newCloud(t, endorsers)
		ch, err := c.registrar.BeginImport(t.Context(), [][]byte{ek.Certificate.Raw}, nil)
		require.NoError(t, err)
		x.write("hmac.pub", tpm2.Marshal(tpm2.New2B(*must(tpm2.Unmarshal[tpm2.TPMTPublic](ch.Public)))))
		x.write("hmac.dup", tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: ch.Duplicate}))
		x.write("hmac.seed", tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: ch.Seed}))
		auth := func() {
			x.run("tpm2_startauthsession", "--policy-session", "-S", "session")
			x.run("tpm2_policysecret", "-S", "session", "-c", "e")
		}
		auth()
		x.run("tpm2_import", "-C", "0x81010001", "-P", "session:session", "-i", "hmac.dup", "-s", "hmac.seed", "-u", "hmac.pub", "-r", "hmac.priv")
		x.run("tpm2_flushcontext", "session")
		auth()
		x.run("tpm2_load", "-C", "0x81010001", "-P", "session:session", "-u", "hmac.pub", "-r", "hmac.priv", "-c", "hmac.ctx")
		x.run("tpm2_flushcontext", "session")
		x.run("tpm2_createprimary", "-C", "e", "-G", "ecc256:ecdsa-sha256:null", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign", "-c", "ak.ctx")
		x.run("tpm2_readpublic", "-c", "ak.ctx", "-o", "ak.pub", "-f", "tss")
		x.run("tpm2_certify", "-c", "ak.ctx", "-C", "hmac.ctx", "-g", "sha256", "--scheme", "hmac", "-o", "attest", "-s", "sig")
		csr, err := key.CSR()
		require.NoError(t, err)
		_, err = c.registrar.CompleteImport(t.Context(), &ekimport.Response{
			Version: 1, ID: ch.ID, AKPublic: x.read("ak.pub")[2:], AKCertify: x.read("attest"), AKSignature: x.read("sig"), KeyPublic: []byte{1}, Certify: []byte{1}, Signature: []byte{1}, CSR: csr,
		})
		require.ErrorIs(t, err, quote.ErrNonce, "the HMAC was right: it gets as far as the nonce, which the tool has no option for")
	}
}
