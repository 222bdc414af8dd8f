package attest_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// enrolKey enrols a node's key, up to the certificate.
func enrolKey(t *testing.T, c *cloud, n *attest.Node, key *attest.DeviceKey) *attest.Enrollment {
	t.Helper()
	ch, err := c.registrar.Begin(t.Context(), n.EnrollmentRequest(nil))
	require.NoError(t, err)
	rsp, err := n.Activate(t.Context(), ch, key)
	require.NoError(t, err)
	e, err := c.registrar.Complete(t.Context(), rsp)
	require.NoError(t, err)
	return e
}

// The TLS key gets a successor, of another kind even, while the old one serves.
func TestTLSKeyRotation(t *testing.T) {
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
		n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
		c := newCloud(t, endorsers)
		old, _ := c.enroll(n)
		for _, algorithm := range []string{"P-384", "P-256", "P-256"} {
			n = open(t, dev, attest.NodeConfig{Endorsers: endorsers, KeyAlgorithm: algorithm})
			abandoned, err := n.NextDeviceKey(t.Context())
			require.NoError(t, err)
			next, err := n.NextDeviceKey(t.Context())
			require.NoError(t, err)
			assert.NotEqual(t, abandoned.Public(), next.Public())
			_, err = c.attest(n, session(t, n, old))
			require.NoError(t, err, "the present key serves")
			e := enrolKey(t, c, n, next)
			_, err = c.verifier.Challenge(t.Context(), session(t, n, old))
			require.ErrorIs(t, err, attest.ErrKeyMismatch, "the old key's sessions end with the enrolment")
			require.NoError(t, n.StoreCertificate(t.Context(), e, c.roots()))
			cert, err := n.Certificate(t.Context())
			require.NoError(t, err)
			assert.Equal(t, next.Public(), cert.Leaf.PublicKey)
			_, err = c.attest(n, session(t, n, cert.PrivateKey.(*attest.DeviceKey)))
			require.NoError(t, err)
			require.NoError(t, handshake(t, c, cert, tls.VersionTLS13))
			_, err = old.Sign(nil, make([]byte, 32), crypto.SHA256)
			require.ErrorIs(t, err, attest.ErrNoKey, "the old key is gone, and says so")
			old = next
		}
		h, err := tpm.LoadedHandles(dev)
		require.NoError(t, err)
		assert.Zero(t, h.Count())
	})
}

// A power cut at any command of a rotation leaves a key with its certificate,
// and the rotation can be done again.
func TestPowerCutDuringRotation(t *testing.T) {
	dev, endorsers := newTPM(t)
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	c := newCloud(t, endorsers)
	c.enroll(n)
	for skip := 0; ; skip++ {
		c.now = c.now.Add(time.Second)
		f := &faulty{TPM: dev.Device, skip: skip, how: "cut"}
		cut := open(t, dev, attest.NodeConfig{EKName: n.EndorsementKey().Name, Now: func() time.Time { return c.now }})
		attest.SetDevice(cut, f)
		next, err := cut.NextDeviceKey(t.Context())
		if err == nil {
			ch, berr := c.registrar.Begin(t.Context(), n.EnrollmentRequest(nil))
			require.NoError(t, berr)
			var rsp *attest.ActivationResponse
			if rsp, err = cut.Activate(t.Context(), ch, next); err == nil {
				e, cerr := c.registrar.Complete(t.Context(), rsp)
				require.NoError(t, cerr)
				err = cut.StoreCertificate(t.Context(), e, c.roots())
			}
		}
		left, lerr := tpm.LoadedHandles(dev) // a power cut empties these
		require.NoError(t, lerr)
		for _, h := range slices.Concat(left.Transient, left.Sessions) {
			require.NoError(t, tpm.Flush(dev, h))
		}
		cert, cerr := n.Certificate(t.Context())
		require.NoError(t, cerr, "cut at command %d", skip)
		key := cert.PrivateKey.(*attest.DeviceKey)
		assert.Equal(t, key.Public(), cert.Leaf.PublicKey)
		require.NoError(t, n.StoreCertificate(t.Context(), enrolKey(t, c, n, key), c.roots()), "what it has can enrol again")
		if f.hit == 0 {
			require.NoError(t, err)
			break
		}
	}
}

// The owner's certificate authority gets a successor: nodes renew under the new
// one while relying parties trust both.
func TestOwnerRootRotation(t *testing.T) {
	n, key, c, _ := enrolled(t)
	next, err := ca.NewEphemeral("owner, second root")
	require.NoError(t, err)
	both := c.roots()
	both.AddCert(next.Certificate())
	r, err := c.attest(n, session(t, n, key))
	require.NoError(t, err)
	old, err := n.Certificate(t.Context())
	require.NoError(t, err)
	c.registrar, err = attest.NewRegistrar(attest.RegistrarConfig{
		Endorsers: c.endorsers, Devices: c.devices, Challenges: c.challenges, Issuer: next, TrustDomain: "city.example",
		Admit: c.admit, Now: func() time.Time { return c.now },
	})
	require.NoError(t, err)
	csr, err := key.CSR()
	require.NoError(t, err)
	e, err := c.registrar.Renew(t.Context(), r, csr)
	require.NoError(t, err)
	err = n.StoreCertificate(t.Context(), e, c.roots())
	require.ErrorAs(t, err, &x509.UnknownAuthorityError{}, "a node that was not told of the new root keeps what it has")
	kept, err := n.Certificate(t.Context())
	require.NoError(t, err)
	assert.Equal(t, old.Certificate, kept.Certificate)
	require.NoError(t, n.StoreCertificate(t.Context(), e, both))
	cert, err := n.Certificate(t.Context())
	require.NoError(t, err)
	for _, leaf := range []*x509.Certificate{old.Leaf, cert.Leaf} {
		_, err = leaf.Verify(x509.VerifyOptions{Roots: both, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		require.NoError(t, err)
	}
}

// T8, T19: another attestation key is taken by the owner's explicit decision.
func TestAttestationKeyRotation(t *testing.T) {
	n, key, c, dev := enrolled(t)
	_, err := c.attest(n, session(t, n, key))
	require.NoError(t, err)
	again := open(t, dev, attest.NodeConfig{EKName: n.EndorsementKey().Name, AKLabel: "2027"})
	_, err = c.registrar.Begin(t.Context(), again.EnrollmentRequest(nil))
	require.ErrorIs(t, err, attest.ErrBound)
	require.NoError(t, c.registrar.Revoke(t.Context(), n.Device(), "new attestation key"))
	require.NoError(t, c.registrar.Release(t.Context(), n.Device()))
	key, _ = c.enroll(again)
	_, err = c.attest(again, session(t, again, key))
	require.NoError(t, err)
	_, err = c.attest(n, session(t, n, key))
	require.ErrorIs(t, err, quote.ErrSignature, "the old attestation key counts no more")
	require.ErrorIs(t, err, reason.BadSignature)
	_, err = attest.Open(t.Context(), dev, attest.NodeConfig{EKName: n.EndorsementKey().Name, AKLabel: string(make([]byte, 33))})
	require.ErrorContains(t, err, "AKLabel")
	_, err = attest.Open(t.Context(), dev, attest.NodeConfig{EKName: n.EndorsementKey().Name, AttestationKey: "AK"})
	require.ErrorContains(t, err, "AttestationKey")
}

// The owner's attestation key (LAK) enrols and attests, and is not taken where
// true firmware versions are asked for.
func TestLocalAttestationKey(t *testing.T) {
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
		n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, AttestationKey: "LAK"})
		c := newCloud(t, endorsers)
		key, _ := c.enroll(n)
		r, err := c.attest(n, session(t, n, key))
		require.NoError(t, err)
		assert.False(t, r.Values().Plain())
		pin := n.EndorsementKey().Name
		again := open(t, dev, attest.NodeConfig{EKName: pin, AttestationKey: "LAK"})
		assert.Equal(t, n.EnrollmentRequest(nil).AKPublic, again.EnrollmentRequest(nil).AKPublic, "it is persistent")

		floor := newCloud(t, endorsers, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) {
			v.Endorsers.MinFirmware = map[string]uint64{"id:00001014": 1, "id:54524553": 1}
		})
		key, _ = floor.enroll(n)
		_, err = floor.attest(n, session(t, n, key))
		require.ErrorIs(t, err, attest.ErrFirmware)
		ch, err := floor.registrar.BeginImport(t.Context(), [][]byte{n.EndorsementKey().Certificate.Raw}, nil)
		require.NoError(t, err)
		rsp, err := n.Import(t.Context(), ch, key)
		require.NoError(t, err)
		_, err = floor.registrar.CompleteImport(t.Context(), rsp)
		require.ErrorIs(t, err, quote.ErrKey)
		require.ErrorIs(t, err, reason.NotPrimary)

		require.NoError(t, evictKey(t, dev, tpm.HandleLAK))
		s := session(t, n, key)
		vc, err := floor.verifier.Challenge(t.Context(), s)
		require.NoError(t, err)
		_, err = n.Evidence(t.Context(), s, vc)
		require.ErrorIs(t, err, attest.ErrNoKey, "a key that went away is not made anew silently")
	})
}

// The machine maker's IAK, of the TCG's exact template, is proven by credential
// activation and by the import challenge, and quotes for the node.
func TestInitialAttestationKey(t *testing.T) {
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
		for _, kind := range []string{"IAK-P-256", "IAK-P-384"} {
			n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, AttestationKey: kind})
			c := newCloud(t, endorsers)
			before, err := tpm.LoadedHandles(dev)
			require.NoError(t, err)
			key, _ := c.enroll(n)
			r, err := c.attest(n, session(t, n, key))
			require.NoError(t, err)
			assert.True(t, r.Values().Plain())
			ch, err := c.registrar.BeginImport(t.Context(), [][]byte{n.EndorsementKey().Certificate.Raw}, nil)
			require.NoError(t, err)
			rsp, err := n.Import(t.Context(), ch, key)
			require.NoError(t, err)
			_, err = c.registrar.CompleteImport(t.Context(), rsp)
			require.NoError(t, err)
			after, err := tpm.LoadedHandles(dev)
			require.NoError(t, err)
			assert.Equal(t, before.Count(), after.Count(), "every handle and session is flushed")
		}
	})
}

func evictKey(t *testing.T, dev *tpmtest.TPM, at tpm2.TPMHandle) error {
	t.Helper()
	k, err := tpm.ReadKey(dev, at)
	require.NoError(t, err)
	_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: k.Named(), PersistentHandle: at}.Execute(dev)
	return err
}
