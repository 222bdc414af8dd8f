package attest_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// newTPM returns a TPM for a test, with what vouches for its endorsement keys.
func newTPM(tb testing.TB) (*tpmtest.TPM, attest.Endorsers) {
	tb.Helper()
	t, m := tpmtest.New(tb)
	return t, attest.Endorsers{Anchors: []*x509.Certificate{m.Root}, Intermediates: m.Intermediates}
}

// onEach runs a test on every TPM there is.
func onEach(t *testing.T, f func(t *testing.T, dev *tpmtest.TPM, e attest.Endorsers)) {
	tpmtest.Each(t, func(t *testing.T, dev *tpmtest.TPM, m *tpmtest.Maker) {
		f(t, dev, attest.Endorsers{Anchors: []*x509.Certificate{m.Root}, Intermediates: m.Intermediates})
	})
}

// cloud is an owner's cloud in memory.
type cloud struct {
	tb         testing.TB
	ca         *ca.CA
	devices    registry.DeviceStore
	challenges registry.ChallengeStore
	registrar  *attest.Registrar
	verifier   *attest.Verifier
	now        time.Time
	endorsers  attest.Endorsers
	admit      func(context.Context, attest.Applicant) error
	opinion    func(attest.Input) attest.Opinion
}

func newCloud(tb testing.TB, e attest.Endorsers, change ...func(*attest.RegistrarConfig, *attest.VerifierConfig)) *cloud {
	tb.Helper()
	c := &cloud{tb: tb, devices: registry.NewMemoryDevices(), now: time.Now(), endorsers: e}
	c.admit = func(context.Context, attest.Applicant) error { return nil }
	c.challenges = registry.NewMemoryChallenges(0, func() time.Time { return c.now })
	c.opinion = func(attest.Input) attest.Opinion { return attest.Opinion{Status: attest.StatusAffirming} }
	var err error
	c.ca, err = ca.NewEphemeral("owner")
	require.NoError(tb, err)
	rc := attest.RegistrarConfig{
		Endorsers: e, Devices: c.devices, Challenges: c.challenges, Issuer: c.ca, TrustDomain: "city.example",
		Admit: c.admit, Now: func() time.Time { return c.now },
	}
	vc := attest.VerifierConfig{
		Devices: c.devices, Challenges: c.challenges, PCRs: []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{0, 7, 13}}},
		Extended:   []int{},
		Appraisers: []attest.Appraiser{func(_ context.Context, in attest.Input) attest.Opinion { return c.opinion(in) }},
		Now:        func() time.Time { return c.now },
	}
	for _, f := range change {
		f(&rc, &vc)
	}
	c.registrar, err = attest.NewRegistrar(rc)
	require.NoError(tb, err)
	c.verifier, err = attest.NewVerifier(vc)
	require.NoError(tb, err)
	return c
}

func (c *cloud) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.ca.Certificate())
	return p
}

// over sends a message as it goes over the wire.
func over[M attest.Message](tb testing.TB, m *M) *M {
	tb.Helper()
	b, err := attest.Marshal(m)
	require.NoError(tb, err)
	p, err := attest.Parse[M](b)
	require.NoError(tb, err)
	return p
}

// enroll takes a node through the whole enrolment.
func (c *cloud) enroll(n *attest.Node) (*attest.DeviceKey, *attest.Enrollment) {
	c.tb.Helper()
	ctx := c.tb.Context()
	key, err := n.DeviceKey(ctx)
	require.NoError(c.tb, err)
	ch, err := c.registrar.Begin(ctx, over(c.tb, n.EnrollmentRequest([]byte("token"))))
	require.NoError(c.tb, err)
	rsp, err := n.Activate(ctx, over(c.tb, ch), key)
	require.NoError(c.tb, err)
	e, err := c.registrar.Complete(ctx, over(c.tb, rsp))
	require.NoError(c.tb, err)
	e = over(c.tb, e)
	require.NoError(c.tb, n.StoreCertificate(ctx, e, c.roots()))
	return key, e
}

// session is a TLS session with the node's key, as both ends see it.
func session(tb testing.TB, n *attest.Node, key *attest.DeviceKey) attest.Session {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	require.NoError(tb, err)
	return attest.Session{Device: n.Device(), Purpose: attest.PurposeAttest, LeafSPKI: sha256.Sum256(der), Binding: sha256.Sum256([]byte("exporter"))}
}

func (c *cloud) attest(n *attest.Node, s attest.Session) (*attest.Result, error) {
	c.tb.Helper()
	ctx := c.tb.Context()
	ch, err := c.verifier.Challenge(ctx, s)
	require.NoError(c.tb, err)
	e, err := n.Evidence(ctx, s, over(c.tb, ch))
	require.NoError(c.tb, err)
	return c.verifier.Appraise(ctx, s, over(c.tb, e))
}

func open(tb testing.TB, t transport.TPM, c attest.NodeConfig) *attest.Node {
	tb.Helper()
	n, err := attest.Open(tb.Context(), t, c)
	require.NoError(tb, err)
	return n
}

func TestNodeEnrolsAndAttests(t *testing.T) { onEach(t, enrolsAndAttests) }

func enrolsAndAttests(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
	log := func(_ context.Context, nonce []byte) (string, []byte, error) {
		return "application/x-log", append([]byte("log "), nonce...), nil
	}
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Collectors: []attest.Collector{log}})
	c := newCloud(t, endorsers)
	key, e := c.enroll(n)

	leaf, err := x509.ParseCertificate(e.Chain[0])
	require.NoError(t, err)
	require.Len(t, leaf.URIs, 1)
	assert.Equal(t, "spiffe://city.example/node/"+n.Device().String(), leaf.URIs[0].String())
	assert.LessOrEqual(t, leaf.NotAfter.Sub(c.now), 24*time.Hour)

	seen := attest.Input{}
	c.opinion = func(in attest.Input) attest.Opinion {
		seen = in
		return attest.Opinion{Status: attest.StatusAffirming, Reasons: []attest.Reason{{Code: "boot", Detail: "as published"}}}
	}
	d := sha256.Sum256([]byte("module"))
	require.NoError(t, tpm.ExtendPCR(dev, 13, map[crypto.Hash][]byte{crypto.SHA256: d[:]}))
	r, err := c.attest(n, session(t, n, key))
	require.NoError(t, err)
	assert.Equal(t, n.Device(), r.Device())
	want := sha256.Sum256(append(make([]byte, 32), d[:]...))
	assert.Equal(t, want[:], seen.PCRs[13])
	assert.Equal(t, want[:], r.Values().PCR(crypto.SHA256, 13))
	assert.Equal(t, append([]byte("log "), seen.Nonce...), seen.Bodies["application/x-log"])
	assert.True(t, r.Values().Plain(), "counters and firmware version are the true ones")
	assert.NotZero(t, seen.Clock.ResetCount, "the attestation key is in the endorsement hierarchy: counters are not obfuscated")
	assert.Equal(t, []attest.Reason{{Code: "boot", Detail: "as published"}}, r.Reasons())
	stored, err := c.devices.Get(t.Context(), n.Device())
	require.NoError(t, err)
	assert.Equal(t, registry.Affirming, stored.State)
}

func TestIdentitySurvivesReboot(t *testing.T) { onEach(t, tIdentitySurvivesReboot) }

func tIdentitySurvivesReboot(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	c := newCloud(t, endorsers)
	key, _ := c.enroll(n)
	_, err := c.attest(n, session(t, n, key))
	require.NoError(t, err)
	pin := n.EndorsementKey().Name
	require.NoError(t, dev.Reboot(t.Context()))
	again := open(t, dev, attest.NodeConfig{EKName: pin})
	assert.Equal(t, n.Device(), again.Device())
	cert, err := again.Certificate(t.Context())
	require.NoError(t, err)
	key2 := cert.PrivateKey.(*attest.DeviceKey)
	assert.True(t, key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key2.Public()))
	_, err = c.attest(again, session(t, again, key2))
	require.NoError(t, err)
}

func TestDeviceKeyServesTLS13(t *testing.T) { onEach(t, tDeviceKeyServesTLS13) }

func tDeviceKeyServesTLS13(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	c := newCloud(t, endorsers)
	c.enroll(n)
	cert, err := n.Certificate(t.Context())
	require.NoError(t, err)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conf := &tls.Config{
			Certificates: []tls.Certificate{cert}, RootCAs: c.roots(), ClientCAs: c.roots(), ClientAuth: tls.RequireAndVerifyClientCert,
			MinVersion: version, MaxVersion: version, InsecureSkipVerify: true, // no DNS name in a node's certificate; the client is what is tested
		}
		a, b := net.Pipe()
		client, server := tls.Client(a, conf), tls.Server(b, conf)
		done := make(chan error, 1)
		go func() { done <- client.HandshakeContext(t.Context()) }()
		require.NoError(t, server.HandshakeContext(t.Context()))
		require.NoError(t, <-done)
		assert.Len(t, server.ConnectionState().VerifiedChains, 1)
		_ = a.Close()
		_ = b.Close()
	}
	h, err := tpm.LoadedHandles(dev)
	require.NoError(t, err)
	assert.Zero(t, h.Count(), "the key takes no transient slot")
}

func TestEndorsementKeysOfSwtpm(t *testing.T) {
	dev, m := tpmtest.NewSwtpm(t)
	endorsers := attest.Endorsers{Anchors: []*x509.Certificate{m.Root}, Intermediates: m.Intermediates}
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	keys, err := n.EndorsementKeys(t.Context())
	require.NoError(t, err)
	var names []string
	for _, k := range keys {
		names = append(names, k.Template)
		en, err := endorsers.Verify([][]byte{k.Certificate.Raw}, time.Now())
		require.NoError(t, err)
		assert.Equal(t, "id:00001014", en.Manufacturer())
		assert.Equal(t, "swtpm", en.Model())

		pinned := open(t, dev, attest.NodeConfig{EKName: k.Name})
		assert.Equal(t, en.Device(), pinned.Device())
		c := newCloud(t, endorsers)
		c.enroll(pinned)
	}
	assert.Equal(t, []string{"H-3", "L-1"}, names)
}

func TestUnknownEndorsementKeyIsRefused(t *testing.T) {
	dev, _ := newTPM(t)
	_, err := attest.Open(t.Context(), dev, attest.NodeConfig{})
	require.ErrorIs(t, err, attest.ErrPin)
	_, err = attest.Open(t.Context(), dev, attest.NodeConfig{EKName: make([]byte, 34)})
	require.ErrorIs(t, err, attest.ErrPin)
	other, err := ca.NewEphemeral("another maker")
	require.NoError(t, err)
	_, err = attest.Open(t.Context(), dev, attest.NodeConfig{Endorsers: attest.Endorsers{Anchors: []*x509.Certificate{other.Certificate()}}})
	require.ErrorIs(t, err, attest.ErrUntrustedEK)

}

// What a machine's maker left in NV for IAK and IDevID is found.
func TestInitialCertificates(t *testing.T) {
	dev, endorsers := newTPM(t)
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	certs, err := n.InitialCertificates(t.Context())
	require.NoError(t, err)
	assert.Empty(t, certs)
	maker, err := ca.NewEphemeral("machine maker")
	require.NoError(t, err)
	der := maker.Certificate().Raw
	for i, content := range [][]byte{der, []byte("no certificate"), der} {
		writeNV(t, dev, tpm.NVIDevIDCertFirst+tpm2.TPMHandle(i), content)
	}
	certs, err = n.InitialCertificates(t.Context())
	require.NoError(t, err)
	require.Len(t, certs, 2)
	assert.Equal(t, der, certs[1].Raw)
}

// One quote over several banks.
func TestEvidenceOverSeveralBanks(t *testing.T) {
	n, key, c, _ := enrolled(t, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) {
		v.PCRs = []quote.Selection{{Bank: crypto.SHA384, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 13}}, {Bank: crypto.SHA256, PCRs: []int{7, 17}}}
	})
	c.opinion = func(in attest.Input) attest.Opinion {
		assert.Equal(t, crypto.SHA384, in.Bank)
		assert.Len(t, in.PCRs, 9)
		assert.Len(t, in.Banks[crypto.SHA256], 2)
		assert.Len(t, in.Banks[crypto.SHA384][13], 48)
		return attest.Opinion{Status: attest.StatusAffirming}
	}
	_, err := c.attest(n, session(t, n, key))
	require.NoError(t, err)
}

// Collectors that fail, come twice or never end give no evidence.
func TestCollectorsThatFail(t *testing.T) {
	dev, endorsers := newTPM(t)
	c := newCloud(t, endorsers)
	body := func(mediaType string, err error) attest.Collector {
		return func(context.Context, []byte) (string, []byte, error) { return mediaType, nil, err }
	}
	big := filepath.Join(t.TempDir(), "big")
	require.NoError(t, os.WriteFile(big, make([]byte, 100), 0o600))
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for text, collectors := range map[string][]attest.Collector{
		"bay is open":                 {body("a/a", errors.New("bay is open"))},
		"is twice there":              {body("a/a", nil), body("a/a", nil)},
		"media type has 0 characters": {body("", nil)},
		"no such file":                {attest.FileCollector("a/a", big+"x", 10)},
		"larger than 99 bytes":        {attest.FileCollector("a/a", big, 99)},
		"not a regular file":          {attest.FileCollector("a/a", pipe, 99)},
	} {
		n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Collectors: collectors})
		key, _ := c.enroll(n)
		s := session(t, n, key)
		ch, err := c.verifier.Challenge(t.Context(), s)
		require.NoError(t, err)
		_, err = n.Evidence(t.Context(), s, ch)
		require.ErrorContains(t, err, text)
	}
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Collectors: []attest.Collector{attest.FileCollector("a/a", big, 100)}})
	key, err := n.DeviceKey(t.Context())
	require.NoError(t, err)
	_, err = c.attest(n, session(t, n, key))
	require.NoError(t, err)
}
