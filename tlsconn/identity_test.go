package tlsconn_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
	"github.com/trusttree/trusttree/tlsconn"
)

// tpmSigner is a crypto.Signer over a key that never leaves its TPM.
type tpmSigner struct {
	tpm    transport.TPM
	handle tpm2.AuthHandle
	pub    crypto.PublicKey
}

func (s *tpmSigner) Public() crypto.PublicKey { return s.pub }

func (s *tpmSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, errors.New("this key signs SHA-256 only")
	}
	scheme := tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})}
	if _, ok := s.pub.(*rsa.PublicKey); ok {
		scheme = tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgRSAPSS, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})}
	}
	rsp, err := tpm2.Sign{KeyHandle: s.handle, Digest: tpm2.TPM2BDigest{Buffer: digest}, InScheme: scheme,
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}}.Execute(s.tpm)
	if err != nil {
		return nil, err
	}
	if scheme.Scheme == tpm2.TPMAlgRSAPSS {
		sig, err := rsp.Signature.Signature.RSAPSS()
		if err != nil {
			return nil, err
		}
		return sig.Sig.Buffer, nil
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)})
}

// newTPMSigner makes a P-256 signing key in a TPM.
func newTPMSigner(t *testing.T, dev transport.TPM) *tpmSigner {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}})})}.Execute(dev)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(dev) })
	pub, err := rsp.OutPublic.Contents()
	require.NoError(t, err)
	key, err := tpm2.Pub(*pub)
	require.NoError(t, err)
	return &tpmSigner{dev, tpm2.AuthHandle{Handle: rsp.ObjectHandle, Name: rsp.Name, Auth: tpm2.PasswordAuth(nil)}, key}
}

func TestStolenNodeKeyCannotLeaveItsTPM(t *testing.T) {
	dev, _ := tpmtest.New(t)
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) {
		s := newTPMSigner(t, dev)
		i, err := tlsconn.NewIdentity(tls.Certificate{Certificate: [][]byte{r.ca.issue(nodeName, s.Public()).Raw}, PrivateKey: s})
		require.NoError(t, err)
		r.nodeIdentity, r.clientC.Identity = i, i
	})
	r.echo("echo")
	c := r.dial("echo:7")
	_, err := c.Write([]byte("signed by the chip"))
	require.NoError(t, err)
	closeWrite(t, c)
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Equal(t, "signed by the chip", string(b))
	_ = c.Close()
	require.NoError(t, r.client.Close()) // before the key is flushed
}

// oddSalt signs PSS with a salt of its own length, as some hardware does.
type oddSalt struct{ *rsa.PrivateKey }

func (k oddSalt) Sign(r io.Reader, d []byte, o crypto.SignerOpts) ([]byte, error) {
	if p, ok := o.(*rsa.PSSOptions); ok && p.Hash != crypto.SHA384 {
		o = &rsa.PSSOptions{SaltLength: 20, Hash: p.Hash}
	}
	return k.PrivateKey.Sign(r, d, o)
}

type brokenKey struct{ crypto.Signer }

func (brokenKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return []byte("not a signature"), nil
}

func TestKeyIsTestedWhenLoaded(t *testing.T) {
	ca := newCA(t, "ca")
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	load := func(key any, chain ...*x509.Certificate) error {
		c := tls.Certificate{PrivateKey: key}
		for _, x := range chain {
			c.Certificate = append(c.Certificate, x.Raw)
		}
		_, err := tlsconn.NewIdentity(c)
		return err
	}
	good := ca.issue(nodeName, ec.Public())
	require.NoError(t, load(ec, good))
	assert.ErrorContains(t, load(brokenKey{ec}, good), "self-test")
	assert.ErrorContains(t, load(other, good), "not the certificate's")
	assert.ErrorContains(t, load("key bytes", good), "crypto.Signer")
	assert.ErrorContains(t, load(ec), "no certificate")
	assert.ErrorContains(t, load(ec, ca.issue("https://city.example/node", ec.Public())), "spiffe://")
	two := ca.issue(nodeName, ec.Public(), func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) })
	assert.ErrorContains(t, load(ec, two), "exactly one")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	assert.NoError(t, load(oddSalt{key}, ca.issue(nodeName, key.Public())), "SHA-384 is left")
}

func TestPeerIDPatterns(t *testing.T) {
	for pattern, c := range map[string]struct{ yes, no []string }{
		"spiffe://a/node/*":  {[]string{"spiffe://a/node/1"}, []string{"spiffe://a/node", "spiffe://a/node/1/2", "spiffe://b/node/1", "spiffe://a/nodes/1"}},
		"spiffe://a/node/**": {[]string{"spiffe://a/node/1", "spiffe://a/node/1/2"}, []string{"spiffe://a/node", "spiffe://a/other/1"}},
		"spiffe://a/*/x":     {[]string{"spiffe://a/1/x"}, []string{"spiffe://a/1/y", "spiffe://a/x"}},
		"spiffe://a/star":    {[]string{"spiffe://a/star"}, []string{"spiffe://a/1"}},
		"spiffe://a":         {[]string{"spiffe://a"}, []string{"spiffe://a/1"}},
	} {
		f := allow(t, pattern)
		for _, s := range c.yes {
			assert.NoError(t, f(t.Context(), tlsconn.Peer{ID: id(t, s)}), "%s %s", pattern, s)
		}
		for _, s := range c.no {
			assert.ErrorIs(t, f(t.Context(), tlsconn.Peer{ID: id(t, s)}), tlsconn.ErrUntrusted, "%s %s", pattern, s)
		}
		assert.Error(t, f(t.Context(), tlsconn.Peer{}), "nobody")
	}
	for _, bad := range [][]string{nil, {""}, {"*"}, {"spiffe://*/a"}, {"spiffe://a/n*"}, {"spiffe://a/../b"}, {"spiffe://a//b"}} {
		_, err := tlsconn.AllowIDs(bad...)
		assert.Error(t, err, bad)
	}
}

func TestNothingLeftOutMeansAllow(t *testing.T) {
	ca := newCA(t, "ca")
	full := tlsconn.Config{Identity: ca.identity(nodeName), Trust: ca.trust(), Authorize: allow(t, gatewayName), Policy: store(t)}
	for name, take := range map[string]func(*tlsconn.Config){
		"Identity": func(c *tlsconn.Config) { c.Identity = nil }, "Trust": func(c *tlsconn.Config) { c.Trust = nil },
		"Authorize": func(c *tlsconn.Config) { c.Authorize = nil }, "Policy": func(c *tlsconn.Config) { c.Policy = nil },
	} {
		c := full
		take(&c)
		_, err := tlsconn.NewClient(tlsconn.ClientConfig{Config: c, Gateways: []string{"a:1"}})
		assert.ErrorContains(t, err, name+" is required")
		_, err = tlsconn.NewGateway(tlsconn.GatewayConfig{Config: c, InsecureNoAttestation: true})
		assert.ErrorContains(t, err, name+" is required")
	}
	_, err := tlsconn.NewGateway(tlsconn.GatewayConfig{Config: full})
	assert.ErrorContains(t, err, "Verify")
	_, err = tlsconn.NewTrustStore(tlsconn.TrustOptions{})
	assert.ErrorContains(t, err, "no roots")
	var zero tlsconn.Policy
	assert.False(t, zero.Evaluate(tlsconn.Flow{}).Allowed)
	denyAll, err := tlsconn.NewPolicyStore(nil)
	require.NoError(t, err)
	assert.False(t, denyAll.Evaluate(tlsconn.Flow{Node: id(t, nodeName), Service: "x"}).Allowed)
	r := serviceRule("x")
	r.Action = ""
	assert.False(t, (&tlsconn.Policy{Version: 1, Rules: []tlsconn.Rule{r}}).Evaluate(tlsconn.Flow{Node: id(t, nodeName), Direction: tlsconn.ToCloud, Proto: "tcp", Service: "x"}).Allowed, "no action is deny")
}

func TestClockThatIsNotSet(t *testing.T) {
	ca := newCA(t, "ca")
	leaf := ca.identity(nodeName).Leaf()
	past := func() time.Time { return time.Unix(0, 0) }
	s := ca.trust(func(o *tlsconn.TrustOptions) { o.Clock = past })
	_, err := s.Verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth)
	assert.ErrorIs(t, err, tlsconn.ErrExpired)
	require.NoError(t, s.AddCRL(ca.crl(1, time.Now().Add(time.Hour))), "a signed time that has passed")
	_, err = s.Verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth)
	assert.NotErrorIs(t, err, nil)
	s = ca.trust(func(o *tlsconn.TrustOptions) { o.Clock, o.NotBefore = past, time.Now() })
	_, err = s.Verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth)
	assert.NoError(t, err, "known to have passed")
	s = ca.trust(func(o *tlsconn.TrustOptions) { o.Clock, o.NotBefore = past, time.Now().Add(-48*time.Hour) })
	_, err = s.Verify([]*x509.Certificate{leaf}, x509.ExtKeyUsageClientAuth)
	assert.ErrorIs(t, err, tlsconn.ErrClockUnset, "says what is wrong")
}

func TestPostQuantumKeyExchangeIsUsedAndCanBeRequired(t *testing.T) {
	r := newRig(t, nil, func(r *rig) { r.gatewayC.RequirePQ = true })
	assert.Equal(t, tls.X25519MLKEM768, r.up().KeyExchange)
	c, err := tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"trusttree-tunnel/1"}, CurvePreferences: []tls.CurveID{tls.X25519}, Certificates: []tls.Certificate{r.ca.pair(nodeName)}})
	if err == nil {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	assert.Error(t, err)
	assert.False(t, errors.Is(err, os.ErrDeadlineExceeded))
}

func TestResumptionIsNoWayRound(t *testing.T) {
	r := newRig(t, nil)
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"trusttree-tunnel/1"}, ClientSessionCache: tls.NewLRUClientSessionCache(8), Certificates: []tls.Certificate{r.ca.pair(nodeName)}, ServerName: "gw"}
	for range 3 {
		c, err := tls.Dial("tcp", r.addr, cfg)
		require.NoError(t, err)
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = c.Read(make([]byte, 1)) // tickets would come here
		assert.False(t, c.ConnectionState().DidResume)
		_ = c.Close()
	}
}

func TestFIPSProfile(t *testing.T) {
	if os.Getenv("TLSCONN_FIPS") == "1" {
		r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) { r.gatewayC.RequirePQ, r.clientC.RequirePQ = true, true })
		r.echo("echo")
		c := r.dial("echo:7")
		_ = c.Close()
		return
	}
	for _, mode := range []string{"on", "only"} {
		t.Run(mode, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestFIPSProfile$")
			cmd.Env = append(os.Environ(), "GODEBUG=fips140="+mode, "TLSCONN_FIPS=1")
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, string(out))
		})
	}
}

func TestPolicyDocument(t *testing.T) {
	golden, err := os.ReadFile("testdata/policy-v1.json")
	require.NoError(t, err)
	p, err := tlsconn.ParsePolicy(golden)
	require.NoError(t, err)
	out, err := json.Marshal(p)
	require.NoError(t, err)
	assert.JSONEq(t, string(golden), string(out), "nothing is lost")
	flow := tlsconn.Flow{Node: id(t, nodeName), Direction: tlsconn.ToCloud, Proto: "udp", Host: "10.1.2.3", Port: 5514}
	d := p.Evaluate(flow)
	assert.True(t, d.Allowed && d.Report, "on trial")
	flow = tlsconn.Flow{Node: id(t, nodeName), Direction: tlsconn.ToCloud, Proto: "tcp", Host: "api.weather.example", Port: 443}
	assert.True(t, p.Evaluate(flow).Inspect)
	flow.Inspected, flow.SNI, flow.ALPN = true, "api.weather.example", []string{"h2"}
	assert.True(t, p.Evaluate(flow).Allowed)
	flow.HTTPHost = "admin.weather.example"
	assert.Equal(t, "no admin pages", p.Evaluate(flow).Rule, "deny outranks allow")
	for name, change := range map[string][2]string{
		"unknown field":      {`"serial"`, `"default": "allow", "serial"`},
		"unknown action":     {`"allow"`, `"permit"`},
		"no peers":           {`["spiffe://city.example/node/*"]`, `[]`},
		"other version":      {`"version": 1`, `"version": 2`},
		"nameless":           {`"name": "telemetry"`, `"name": ""`},
		"same name":          {`"name": "telemetry"`, `"name": "depot printer"`},
		"host bits":          {`10.1.2.0/24`, `10.1.2.3/24`},
		"port zero":          {`"5514"`, `"0"`},
		"host with a star":   {`"api.weather.example", "*`, `"a*.weather.example", "*`},
		"service with a dot": {`"tuf"`, `"tuf.example"`},
		"two documents":      {"\n}\n", "\n}\n{}"},
	} {
		in := strings.Replace(string(golden), change[0], change[1], 1)
		require.NotEqual(t, string(golden), in, name)
		_, err := tlsconn.ParsePolicy([]byte(in))
		assert.Error(t, err, name)
	}
	s, err := tlsconn.NewPolicyStore(p)
	require.NoError(t, err)
	assert.ErrorContains(t, s.Set(&tlsconn.Policy{Version: 1, Serial: 41}), "older than 42")
	assert.EqualValues(t, 42, s.Policy().Serial, "the present one stays")
}

func TestReportModeTriesARule(t *testing.T) {
	allowed, trial := serviceRule("echo"), serviceRule("echo")
	trial.Name, trial.Action, trial.Report = "later denied", tlsconn.Deny, true
	r := newRig(t, []tlsconn.Rule{allowed, trial})
	r.echo("echo")
	c := r.dial("echo:7")
	_ = c.Close()
	f := r.gate.flow(t, "record", func(f tlsconn.FlowRecord) bool { return f.Verdict == tlsconn.VerdictReport })
	assert.Equal(t, "services", f.Rule)
}

func TestEvidenceOfTheOtherDirectionAndSessionDiffers(t *testing.T) {
	seen := make(chan []byte, 4)
	nonce := []byte("0123456789abcdef")
	hook := func(r *rig) {
		r.clientC.Attest = func(_ context.Context, s io.ReadWriter, bind func([]byte) ([]byte, error)) error {
			b, err := bind(nonce)
			if err != nil {
				return err
			}
			_, err = s.Write(b)
			return err
		}
		r.gatewayC.InsecureNoAttestation = false
		r.gatewayC.Verify = func(_ context.Context, _ tlsconn.Peer, s io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error) {
			got := make([]byte, 32)
			if _, err := io.ReadFull(s, got); err != nil {
				return time.Time{}, err
			}
			want, err := bind(nonce)
			if err != nil || string(want) != string(got) {
				return time.Time{}, errors.New("another session")
			}
			fresh, err := bind([]byte("fedcba9876543210"))
			if err != nil || string(fresh) == string(got) {
				return time.Time{}, errors.New("the nonce is not in it")
			}
			seen <- got
			return time.Now().Add(time.Hour), nil
		}
	}
	newRig(t, nil, hook).up()
	newRig(t, nil, hook).up()
	assert.NotEqual(t, <-seen, <-seen, "another session, another binding")
}

var _ net.Error = (*tlsconn.RefusedError)(nil)
