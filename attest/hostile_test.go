package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"log/slog"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/devid"
	"github.com/trusttree/trusttree/attest/ear"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/internal/tpm"
)

// hugeKey is an RSA key that nobody has the private part of: to check a
// signature by it takes long.
func hugeKey(bits int) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: math.MaxInt32}
}

// T14: certificates and requests with keys so large that one signature costs a
// second are refused before any signature by them is checked.
func TestT14HugeKeysInCertificates(t *testing.T) {
	m := softnode.NewMaker()
	n := softnode.NewNode(m)
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	issuer := &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: m.Issuer.Subject, RawSubject: m.Issuer.RawSubject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, issuer, issuer, hugeKey(16384), signer)
	require.NoError(t, err)
	require.Less(t, len(der), 8<<10)
	e := attest.Endorsers{Anchors: []*x509.Certificate{m.Root}}
	_, err = e.Verify([][]byte{n.EKCert[0], der, m.Issuer.Raw}, time.Now())
	require.ErrorIs(t, err, attest.ErrUntrustedEK)
	require.ErrorIs(t, err, reason.TooLarge)

	c := newCloud(t, e)
	ch, err := c.registrar.Begin(t.Context(), n.EnrollmentRequest())
	require.NoError(t, err)
	rsp, err := n.Activate(ch)
	require.NoError(t, err)
	spki, err := x509.MarshalPKIXPublicKey(hugeKey(16384))
	require.NoError(t, err)
	info, err := asn1.Marshal(struct {
		Version    int
		Subject    pkix.RDNSequence
		Key        asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}{Key: asn1.RawValue{FullBytes: spki}})
	require.NoError(t, err)
	rsp.CSR, err = asn1.Marshal(struct {
		Info asn1.RawValue
		Alg  pkix.AlgorithmIdentifier
		Sig  asn1.BitString
	}{asn1.RawValue{FullBytes: info}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: make([]byte, 2048), BitLength: 8 * 2048}})
	require.NoError(t, err)
	_, err = x509.ParseCertificateRequest(rsp.CSR)
	require.NoError(t, err)
	_, err = c.registrar.Complete(t.Context(), rsp)
	require.ErrorIs(t, err, attest.ErrMalformed)
	require.ErrorIs(t, err, reason.TooLarge)
}

// T14: a message of millions of empty elements would take far more memory than
// it has bytes.
func TestT14MillionsOfElements(t *testing.T) {
	for name, message := range map[string]string{
		"bodies": `{"version":1,"challenge":"a","quote":"","signature":"","pcr_values":"","bodies":[` + strings.Repeat("{},", 5<<20) + `{}]}`,
		"fields": `{"version":1` + strings.Repeat(`,"a":1`, 100) + `,"bodies":{` + distinct(1<<20) + `}}`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := attest.Parse[attest.Evidence]([]byte(message))
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, attest.ErrMalformed, name)
		assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4*attest.MaxEvidence), name)
	}
}

// distinct is n fields of different names.
func distinct(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		for ; i > 0; i /= 26 {
			b.WriteByte('a' + byte(i%26))
		}
		b.WriteString(`":1`)
	}
	return b.String()
}

// What a result says stays, whatever happens to the evidence it came from.
func TestResultOutlivesItsEvidence(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	n.PCRs = map[int][]byte{0: bytes.Repeat([]byte{5}, 32)}
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	ch, err := c.verifier.Challenge(t.Context(), n.Session(nil))
	require.NoError(t, err)
	s := n.Session(ch.Nonce)
	e := n.Evidence(t.Context(), s, ch)
	r, err := c.verifier.Appraise(t.Context(), s, e)
	require.NoError(t, err)
	clear(e.PCRValues)
	assert.Equal(t, bytes.Repeat([]byte{5}, 32), r.Values().PCR(crypto.SHA256, 0))
}

// Who has a challenge, or the configuration, does not have the policy.
func TestPolicyIsTheVerifiersOwn(t *testing.T) {
	var demanded []quote.Selection
	c, m := softCloud(t, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) { demanded = v.PCRs })
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	ch, err := c.verifier.Challenge(t.Context(), n.Session(nil))
	require.NoError(t, err)
	ch.PCRs[0].PCRs[1] = 8
	demanded[0].PCRs[2] = 14
	ch, err = c.verifier.Challenge(t.Context(), n.Session(nil))
	require.NoError(t, err)
	assert.Equal(t, []int{0, 7, 13}, ch.PCRs[0].PCRs)
}

// A challenge that was minted under another policy, by an instance that was not
// updated yet, shows less than this policy demands.
func TestChallengeOfAnotherPolicy(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	old, err := attest.NewVerifier(attest.VerifierConfig{
		Devices: c.devices, Challenges: c.challenges, PCRs: []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{7}}}, Now: func() time.Time { return c.now },
		Appraisers: []attest.Appraiser{func(context.Context, attest.Input) attest.Opinion {
			return attest.Opinion{Status: attest.StatusAffirming}
		}},
	})
	require.NoError(t, err)
	ch, err := old.Challenge(t.Context(), n.Session(nil))
	require.NoError(t, err)
	s := n.Session(ch.Nonce)
	_, err = c.verifier.Appraise(t.Context(), s, n.Evidence(t.Context(), s, ch))
	require.ErrorIs(t, err, attest.ErrChallenge)
	require.ErrorIs(t, err, reason.OtherPolicy)
	d, err := c.devices.Get(t.Context(), n.Device)
	require.NoError(t, err)
	assert.Equal(t, registry.Enrolled, d.State, "it is no fault of the node")
	_, err = softAttest(c, n)
	require.NoError(t, err)
}

// T17: a device that is revoked while the CA still signs gets no certificate.
func TestT17RevokedWhileTheCASigns(t *testing.T) {
	m := softnode.NewMaker()
	var c *cloud
	var id registry.DeviceID
	revoke := false
	c = newCloud(t, attest.Endorsers{Anchors: []*x509.Certificate{m.Root}}, func(r *attest.RegistrarConfig, _ *attest.VerifierConfig) {
		inner := r.Issuer
		r.Issuer = issuerFunc(func(ctx context.Context, req attest.IssueRequest) ([]*x509.Certificate, error) {
			if revoke {
				require.NoError(t, c.registrar.Revoke(ctx, id, "stolen"))
			}
			return inner.Issue(ctx, req)
		})
	})
	n := softnode.NewNode(m)
	id = n.Device
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	r, err := softAttest(c, n)
	require.NoError(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, n.Key.Signer)
	require.NoError(t, err)
	revoke = true
	e, err := c.registrar.Renew(t.Context(), r, csr)
	require.ErrorIs(t, err, attest.ErrRevoked)
	assert.Nil(t, e)

	other := softnode.NewNode(m)
	id = other.Device
	e, err = softEnroll(c, other)
	require.ErrorIs(t, err, attest.ErrRevoked)
	assert.Nil(t, e)
}

// cancelling is a log that ends a context at an event.
type cancelling struct {
	slog.Handler
	at     string
	cancel func()
}

func (h cancelling) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "event" && a.Value.String() == h.at {
			h.cancel()
		}
		return true
	})
	return nil
}

func (h cancelling) Enabled(context.Context, slog.Level) bool { return true }

// A node that hangs up when its evidence is refused is failing all the same.
func TestHangingUpDoesNotHideARefusal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, m := softCloud(t, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) {
		v.Log = slog.New(cancelling{slog.DiscardHandler, "attest.evidence-refused", cancel})
	})
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	_, err = softAttest(c, n)
	require.NoError(t, err)
	c.opinion = func(attest.Input) attest.Opinion { return attest.Opinion{Status: attest.StatusContraindicated} }
	ch, err := c.verifier.Challenge(ctx, n.Session(nil))
	require.NoError(t, err)
	s := n.Session(ch.Nonce)
	_, err = c.verifier.Appraise(ctx, s, n.Evidence(ctx, s, ch))
	require.ErrorIs(t, err, attest.ErrNotAffirming)
	require.Error(t, ctx.Err())
	d, err := c.devices.Get(t.Context(), n.Device)
	require.NoError(t, err)
	assert.Equal(t, registry.Failing, d.State)
}

// stuck is a store in which one device can't be written.
type stuck struct {
	registry.DeviceStore
	id registry.DeviceID
}

func (s stuck) Put(ctx context.Context, d registry.Device) (uint64, error) {
	if d.ID == s.id {
		return 0, errors.New("disk is full")
	}
	return s.DeviceStore.Put(ctx, d)
}

// One device that can't be written does not shield those behind it from their
// deadlines.
func TestT17SweepPassesADeviceThatFails(t *testing.T) {
	c, m := softCloud(t)
	nodes := []*softnode.Node{softnode.NewNode(m), softnode.NewNode(m), softnode.NewNode(m)}
	first := nodes[0].Device
	for _, n := range nodes {
		_, err := softEnroll(c, n)
		require.NoError(t, err)
		_, err = softAttest(c, n)
		require.NoError(t, err)
		if bytes.Compare(n.Device[:], first[:]) < 0 {
			first = n.Device
		}
	}
	v, err := attest.NewVerifier(attest.VerifierConfig{
		Devices: stuck{c.devices, first}, Challenges: c.challenges, PCRs: []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{7}}}, Now: func() time.Time { return c.now.Add(time.Hour) },
		Appraisers: []attest.Appraiser{func(context.Context, attest.Input) attest.Opinion { return attest.Opinion{} }},
	})
	require.NoError(t, err)
	missed, err := v.Sweep(t.Context())
	require.ErrorContains(t, err, "disk is full")
	assert.Len(t, missed, 2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = v.Sweep(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

// What was not made by its constructor, or is nil, refuses and does not panic.
func TestZeroValuesRefuse(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	e := n.Evidence(t.Context(), n.Session(nil), &attest.Challenge{Nonce: make([]byte, 32), ID: "a", PCRs: []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{7}}}})
	for _, v := range []*attest.Verifier{nil, {}} {
		_, err := v.Challenge(t.Context(), n.Session(nil))
		require.Error(t, err)
		_, err = v.Appraise(t.Context(), n.Session(make([]byte, 32)), e)
		require.Error(t, err)
		_, err = v.Sweep(t.Context())
		require.Error(t, err)
	}
	for _, r := range []*attest.Registrar{nil, {}} {
		_, err := r.Begin(t.Context(), n.EnrollmentRequest())
		require.Error(t, err)
		_, err = r.BeginImport(t.Context(), n.EKCert, nil)
		require.Error(t, err)
		_, err = r.Complete(t.Context(), &attest.ActivationResponse{Version: 1, ID: "a", Secret: []byte{1}, KeyPublic: []byte{1}, Certify: []byte{1}, Signature: []byte{1}, CSR: []byte{1}})
		require.Error(t, err)
		require.Error(t, r.Revoke(t.Context(), n.Device, ""))
		require.Error(t, r.Release(t.Context(), n.Device))
		_, err = r.Renew(t.Context(), nil, nil)
		require.Error(t, err)
	}
	_, err := c.registrar.Renew(t.Context(), &attest.Result{}, nil)
	require.ErrorIs(t, err, attest.ErrExpired)
	for _, k := range []*quote.Key{nil, {}} {
		_, err := k.VerifyQuote(e.Quote, e.Signature, e.PCRValues, []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{7}}}, make([]byte, 32))
		require.ErrorIs(t, err, quote.ErrKey)
		_, err = k.VerifyCertify(e.Quote, e.Signature, n.Key.Public, make([]byte, 32))
		require.ErrorIs(t, err, quote.ErrKey)
		assert.Empty(t, k.Name())
		assert.Nil(t, k.Public())
	}
	_, err = attest.Endorsers{Anchors: []*x509.Certificate{nil}, Intermediates: []*x509.Certificate{nil}}.Verify(n.EKCert, time.Now())
	require.ErrorIs(t, err, attest.ErrUntrustedEK)
	require.ErrorIs(t, err, reason.NoAnchors)
	assert.Empty(t, (&devid.Verified{}).Model())
	assert.Empty(t, (&devid.Verified{}).Serial())
	assert.Empty(t, (&devid.Verified{}).AttestPublic())
	assert.Zero(t, (&ear.Claims{}).Device())
	assert.Zero(t, (&ear.Claims{}).LeafSPKI())
	assert.Empty(t, (&ear.Claims{}).Vector())
	_, err = (&ca.CA{}).Issue(t.Context(), attest.IssueRequest{})
	require.Error(t, err)

	dev, endorsers := newTPM(t)
	node := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
	for _, key := range []*attest.DeviceKey{nil, {}} {
		_, err = node.Activate(t.Context(), &attest.ActivationChallenge{Version: 1, ID: "a", Device: node.Device(), Nonce: make([]byte, 32), Credential: []byte{1}, Secret: []byte{1}}, key)
		require.Error(t, err)
	}
	_, err = attest.Open(t.Context(), dev, attest.NodeConfig{Endorsers: endorsers, Collectors: []attest.Collector{nil}})
	require.Error(t, err)
	_, err = attest.Open(t.Context(), nil, attest.NodeConfig{Endorsers: endorsers})
	require.Error(t, err)
}

// A limit without end is no limit of nothing.
func TestFileCollectorWithoutALimit(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(name, []byte("measured"), 0o600))
	_, body, err := attest.FileCollector("text/plain", name, math.MaxInt64)(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, "measured", string(body))
	_, _, err = attest.FileCollector("text/plain", name, -1)(t.Context(), nil)
	require.Error(t, err)
}

// hung is a TPM whose driver does not come back until it is let go.
type hung struct {
	transport.TPM
	on  atomic.Bool
	let chan struct{}
}

func (h *hung) Send(command []byte) ([]byte, error) {
	if h.on.Load() {
		<-h.let
	}
	return h.TPM.Send(command)
}

// T20: a TPM or a collector that hangs does not hold up who waits with a
// context, and what was under way ends and leaves nothing in the TPM.
func TestT20HungTPM(t *testing.T) {
	dev, endorsers := newTPM(t)
	h := &hung{TPM: dev, let: make(chan struct{})}
	n := open(t, h, attest.NodeConfig{Endorsers: endorsers})
	c := newCloud(t, endorsers)
	key, e := c.enroll(n)
	s := session(t, n, key)
	ch, err := c.verifier.Challenge(t.Context(), s)
	require.NoError(t, err)
	ac, err := c.registrar.Begin(t.Context(), n.EnrollmentRequest(nil))
	require.NoError(t, err)
	before, err := tpm.LoadedHandles(dev)
	require.NoError(t, err)
	h.on.Store(true)
	for name, f := range map[string]func(context.Context) error{
		"Open": func(ctx context.Context) error {
			_, err := attest.Open(ctx, h, attest.NodeConfig{Endorsers: endorsers})
			return err
		},
		"Evidence":            func(ctx context.Context) error { _, err := n.Evidence(ctx, s, ch); return err },
		"Activate":            func(ctx context.Context) error { _, err := n.Activate(ctx, ac, key); return err },
		"Certificate":         func(ctx context.Context) error { _, err := n.Certificate(ctx); return err },
		"DeviceKey":           func(ctx context.Context) error { _, err := n.DeviceKey(ctx); return err },
		"NextDeviceKey":       func(ctx context.Context) error { _, err := n.NextDeviceKey(ctx); return err },
		"EndorsementKeys":     func(ctx context.Context) error { _, err := n.EndorsementKeys(ctx); return err },
		"InitialCertificates": func(ctx context.Context) error { _, err := n.InitialCertificates(ctx); return err },
		"StoreCertificate":    func(ctx context.Context) error { return n.StoreCertificate(ctx, e, c.roots()) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		done := make(chan error, 1)
		go func() { done <- f(ctx) }()
		select {
		case err := <-done:
			require.ErrorIs(t, err, context.DeadlineExceeded, name)
		case <-time.After(time.Minute):
			require.Fail(t, "it does not return", name)
		}
		cancel()
	}
	close(h.let)
	require.NoError(t, tpm.Wrap(h).Do(t.Context(), func(d *tpm.Device) error {
		after, err := tpm.LoadedHandles(d)
		require.NoError(t, err)
		assert.Equal(t, before.Count(), after.Count())
		return nil
	}))
}

// A collector that hangs ends with the context of who asked.
func TestHangingCollector(t *testing.T) {
	dev, endorsers := newTPM(t)
	let := make(chan struct{})
	defer close(let)
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Collectors: []attest.Collector{
		func(context.Context, []byte) (string, []byte, error) { <-let; return "text/plain", nil, nil },
	}})
	c := newCloud(t, endorsers)
	key, _ := c.enroll(n)
	s := session(t, n, key)
	ch, err := c.verifier.Challenge(t.Context(), s)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := n.Evidence(ctx, s, ch)
		done <- err
	}()
	select {
	case err := <-done:
		require.ErrorIs(t, err, context.DeadlineExceeded)
	case <-time.After(time.Minute):
		require.Fail(t, "it does not return")
	}
}
