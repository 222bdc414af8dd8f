package devid_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/devid"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

func registrar(tb testing.TB, e attest.Endorsers) *attest.Registrar {
	tb.Helper()
	owner, err := ca.NewEphemeral("maker")
	require.NoError(tb, err)
	r, err := attest.NewRegistrar(attest.RegistrarConfig{
		Endorsers: e, Devices: registry.NewMemoryDevices(), Challenges: registry.NewMemoryChallenges(0, nil), Issuer: owner,
		TrustDomain: "maker.example", Admit: func(context.Context, attest.Applicant) error { return nil },
	})
	require.NoError(tb, err)
	return r
}

// A request made by a real TPM for its TLS key.
func TestRequestFromTPM(t *testing.T) {
	dev, m := tpmtest.New(t)
	e := attest.Endorsers{Anchors: []*x509.Certificate{m.Root}, Intermediates: m.Intermediates}
	for _, algorithm := range []string{"P-256", "RSA-2048"} {
		n, err := attest.Open(t.Context(), dev, attest.NodeConfig{Endorsers: e, KeyAlgorithm: algorithm})
		require.NoError(t, err)
		key, err := n.DeviceKey(t.Context())
		require.NoError(t, err)
		ch, err := registrar(t, e).Begin(t.Context(), n.EnrollmentRequest(nil))
		require.NoError(t, err)
		answer, err := n.Activate(t.Context(), ch, key)
		require.NoError(t, err)
		b, err := devid.New("lamp 3", "0815", n.EnrollmentRequest(nil), answer, key)
		require.NoError(t, err)
		r, err := devid.Parse(b)
		require.NoError(t, err)
		v, err := r.Verify(e, time.Now())
		require.NoError(t, err)
		assert.Equal(t, [2]string{"lamp 3", "0815"}, [2]string{v.Model(), v.Serial()})
		assert.Equal(t, n.Device(), v.Endorsement().Device())
		assert.Equal(t, key.Public(), v.Key())
		_, err = quote.ParseKey(v.AttestPublic())
		require.NoError(t, err)
		_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: named(t, dev), PersistentHandle: tpm.HandleLDevID}.Execute(dev)
		require.NoError(t, err)
	}
}

func named(t *testing.T, dev *tpmtest.TPM) tpm2.NamedHandle {
	k, err := tpm.ReadKey(dev, tpm.HandleLDevID)
	require.NoError(t, err)
	return k.Named()
}

// The TCG's templates make keys in a TPM, and the keys are what a verifier
// takes.
func TestTemplates(t *testing.T) {
	dev, _ := tpmtest.New(t)
	for _, curve := range []tpm2.TPMECCCurve{tpm2.TPMECCNistP256, tpm2.TPMECCNistP384} {
		iak, err := devid.IAK(curve)
		require.NoError(t, err)
		k, err := tpm.CreatePrimary(dev, tpm2.TPMRHEndorsement, nil, iak)
		require.NoError(t, err)
		require.NoError(t, k.Flush())
		key, err := quote.ParseKey(tpm2.Marshal(k.Public))
		require.NoError(t, err)
		assert.Equal(t, k.Name.Buffer, key.Name())
		idevid, err := devid.IDevID(curve)
		require.NoError(t, err)
		k, err = tpm.CreatePrimary(dev, tpm2.TPMRHEndorsement, nil, idevid)
		require.NoError(t, err)
		require.NoError(t, k.Flush())
		_, err = quote.ParseKey(tpm2.Marshal(k.Public))
		require.ErrorIs(t, err, quote.ErrKey, "an identity key does not attest")
	}
	_, err := devid.IAK(tpm2.TPMECCNistP521)
	require.Error(t, err)
}

// The policies that are composed of their branches are those that the TCG
// publishes (section 7.3.6).
func TestPublishedPolicies(t *testing.T) {
	for _, want := range []struct {
		make   func(tpm2.TPMECCCurve) (tpm2.TPMTPublic, error)
		curve  tpm2.TPMECCCurve
		policy string
	}{
		{devid.IAK, tpm2.TPMECCNistP256, "5437182326e414fca797d5f174615a1641f61255797c3a2b22c21d120b2d1e07"},
		{devid.IAK, tpm2.TPMECCNistP384, "129d94ebf84556652c6eef43bbb757512ac87e52be7b349ca6ce4d826f749fcf672f51716c5cbb605f313bf345aab312"},
		{devid.IDevID, tpm2.TPMECCNistP256, "ad6b3a2284fd698a0710bf5cc1b9bdf15e2532e3f601fa4b93a6a8fa8de579ea"},
		{devid.IDevID, tpm2.TPMECCNistP384, "4db1aa836d0b5615df6ee53a40ef70c61c217f4303d44695925972bc927006cfa5cbdf6dc18c4dbe329b2f1542c3dd33"},
	} {
		template, err := want.make(want.curve)
		require.NoError(t, err)
		assert.Equal(t, want.policy, hex.EncodeToString(template.AuthPolicy.Buffer))
	}
}

// soft is a request of a simulated node.
func soft(tb testing.TB) ([]byte, attest.Endorsers, *softnode.Node) {
	tb.Helper()
	m := softnode.NewMaker()
	e := attest.Endorsers{Anchors: []*x509.Certificate{m.Root}, Intermediates: []*x509.Certificate{m.Issuer}}
	n := softnode.NewNode(m)
	ch, err := registrar(tb, e).Begin(tb.Context(), n.EnrollmentRequest())
	require.NoError(tb, err)
	answer, err := n.Activate(ch)
	require.NoError(tb, err)
	b, err := devid.New("m", "s", n.EnrollmentRequest(), answer, n.Key.Signer)
	require.NoError(tb, err)
	return b, e, n
}

func TestRequestsRefused(t *testing.T) {
	good, e, n := soft(t)
	r, err := devid.Parse(good)
	require.NoError(t, err)
	_, err = r.Verify(e, time.Now())
	require.NoError(t, err)
	for i := range good { // every byte counts
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if r, err := devid.Parse(bad); err == nil {
			_, err = r.Verify(e, time.Now())
			require.True(t, errors.Is(err, devid.ErrSignature) || reason.Of(err) != "", "byte %d: %v", i, err)
		} else {
			require.ErrorIs(t, err, devid.ErrMalformed, "byte %d", i)
		}
	}
	for i := range good {
		_, err := devid.Parse(good[:i])
		require.ErrorIs(t, err, devid.ErrMalformed)
	}
	_, err = devid.Parse(append(bytes.Clone(good), 0))
	require.ErrorIs(t, err, devid.ErrMalformed)
	_, err = devid.Parse(make([]byte, devid.MaxSize+1))
	require.ErrorIs(t, err, devid.ErrMalformed)
	huge := bytes.Clone(good)
	binary.BigEndian.PutUint32(huge[4:], 0xffffffff)
	_, err = devid.Parse(huge)
	require.ErrorIs(t, err, devid.ErrMalformed)

	_, err = r.Verify(attest.Endorsers{}, time.Now())
	require.ErrorIs(t, err, attest.ErrUntrustedEK)
	thief, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ch, err := registrar(t, e).Begin(t.Context(), n.EnrollmentRequest())
	require.NoError(t, err)
	answer, err := n.Activate(ch)
	require.NoError(t, err)
	b, err := devid.New("m", "s", n.EnrollmentRequest(), answer, thief)
	require.NoError(t, err)
	r, err = devid.Parse(b)
	require.NoError(t, err)
	_, err = r.Verify(e, time.Now())
	require.ErrorIs(t, err, devid.ErrSignature, "signed by another key")
	_, err = devid.New("", "s", n.EnrollmentRequest(), answer, thief)
	require.ErrorIs(t, err, devid.ErrMalformed)
	_, err = devid.New("m", "s", nil, nil, thief)
	require.Error(t, err)
}

func FuzzParse(f *testing.F) {
	b, e, _ := soft(f)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := devid.Parse(b); err == nil {
			_, _ = r.Verify(e, time.Now())
		}
	})
}

// A request that another implementation made, where one is at hand:
// ATTEST_CSR_CONTENTS names a file with a TCG_CSR_IDEVID_CONTENT,
// ATTEST_CSR_SIGNATURE one with its TPMT_SIGNATURE.
func TestForeignRequest(t *testing.T) {
	contents, err := os.ReadFile(os.Getenv("ATTEST_CSR_CONTENTS"))
	if err != nil {
		t.Skip("missing: a request of another implementation (ATTEST_CSR_CONTENTS, ATTEST_CSR_SIGNATURE)")
	}
	sig, err := os.ReadFile(os.Getenv("ATTEST_CSR_SIGNATURE"))
	require.NoError(t, err)
	b := binary.BigEndian.AppendUint32(nil, 0x100)
	b = binary.BigEndian.AppendUint32(b, uint32(len(contents)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(sig)))
	r, err := devid.Parse(append(append(b, contents...), sig...))
	require.NoError(t, err)
	ak, err := quote.ParseKey(r.AttestPublic)
	require.NoError(t, err)
	key, err := ak.InsecureVerifyCertifyAnyNonce(r.Certify, r.CertifySig, r.KeyPublic)
	require.NoError(t, err)
	ek, err := x509.ParseCertificate(r.EKCertificate)
	require.NoError(t, err)
	v, err := r.Verify(attest.Endorsers{Anchors: []*x509.Certificate{ek}}, ek.NotBefore.Add(time.Hour))
	require.NoError(t, err)
	assert.Equal(t, key, v.Key())
	t.Logf("%s %s: %T", v.Model(), v.Serial(), v.Key())
}
