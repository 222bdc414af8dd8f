package tlsconn_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trusttree/trusttree/tlsconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority is a test CA.
type authority struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	mu   sync.Mutex
	last int64
}

func newCA(tb testing.TB, name string) *authority {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(tb, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(tb, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(tb, err)
	return &authority{tb: tb, cert: cert, key: key, last: 1}
}

// issue signs a leaf for a public key.
func (a *authority) issue(id string, pub crypto.PublicKey, change ...func(*x509.Certificate)) *x509.Certificate {
	a.tb.Helper()
	u, err := url.Parse(id)
	require.NoError(a.tb, err)
	a.mu.Lock()
	a.last++
	serial := a.last
	a.mu.Unlock()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, URIs: []*url.URL{u}}
	for _, c := range change {
		c(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	require.NoError(a.tb, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.tb, err)
	return cert
}

func (a *authority) pair(id string, change ...func(*x509.Certificate)) tls.Certificate {
	a.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.tb, err)
	return tls.Certificate{Certificate: [][]byte{a.issue(id, key.Public(), change...).Raw}, PrivateKey: key}
}

func (a *authority) identity(id string, change ...func(*x509.Certificate)) *tlsconn.Identity {
	a.tb.Helper()
	i, err := tlsconn.NewIdentity(a.pair(id, change...))
	require.NoError(a.tb, err)
	return i
}

func (a *authority) trust(change ...func(*tlsconn.TrustOptions)) *tlsconn.TrustStore {
	a.tb.Helper()
	o := tlsconn.TrustOptions{Roots: []*x509.Certificate{a.cert}}
	for _, c := range change {
		c(&o)
	}
	t, err := tlsconn.NewTrustStore(o)
	require.NoError(a.tb, err)
	return t
}

func (a *authority) crl(number int64, next time.Time, serials ...*big.Int) []byte {
	a.tb.Helper()
	t := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-2 * time.Minute), NextUpdate: next}
	for _, s := range serials {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, a.cert, a.key)
	require.NoError(a.tb, err)
	return der
}

const (
	waitTime = 10 * time.Second
	tickTime = 2 * time.Millisecond
)

const (
	nodeName    = "spiffe://city.example/node/17"
	gatewayName = "spiffe://city.example/gateway/1"
)

func id(tb testing.TB, s string) tlsconn.ID {
	tb.Helper()
	i, err := tlsconn.ParseID(s)
	require.NoError(tb, err)
	return i
}

func allow(tb testing.TB, patterns ...string) tlsconn.Authorizer {
	tb.Helper()
	a, err := tlsconn.AllowIDs(patterns...)
	require.NoError(tb, err)
	return a
}

// records collects audit records and tunnel events.
type records struct {
	mu     sync.Mutex
	flows  []tlsconn.FlowRecord
	events []tlsconn.TunnelEvent
}

func (r *records) audit(f tlsconn.FlowRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flows = append(r.flows, f)
}

func (r *records) event(e tlsconn.TunnelEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *records) all() ([]tlsconn.FlowRecord, []tlsconn.TunnelEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]tlsconn.FlowRecord(nil), r.flows...), append([]tlsconn.TunnelEvent(nil), r.events...)
}

// flow waits for the first record that matches.
func (r *records) flow(tb testing.TB, what string, match func(tlsconn.FlowRecord) bool) tlsconn.FlowRecord {
	tb.Helper()
	var got tlsconn.FlowRecord
	require.Eventually(tb, func() bool {
		flows, _ := r.all()
		for _, f := range flows {
			if match(f) {
				got = f
				return true
			}
		}
		return false
	}, 10*time.Second, 5*time.Millisecond, what)
	return got
}

func (r *records) hasEvent(tb testing.TB, typ string, code tlsconn.Code) tlsconn.TunnelEvent {
	tb.Helper()
	var got tlsconn.TunnelEvent
	require.Eventually(tb, func() bool {
		_, events := r.all()
		for _, e := range events {
			if e.Type == typ && e.Code == code {
				got = e
				return true
			}
		}
		return false
	}, 10*time.Second, 5*time.Millisecond, "event %s %s", typ, code)
	return got
}

// rig is a node and a gateway on loopback.
type rig struct {
	tb            testing.TB
	ca            *authority
	nodeTrust     *tlsconn.TrustStore
	gateTrust     *tlsconn.TrustStore
	nodePolicy    *tlsconn.PolicyStore
	gatePolicy    *tlsconn.PolicyStore
	nodeIdentity  *tlsconn.Identity
	client        *tlsconn.Client
	gateway       *tlsconn.Gateway
	addr          string
	node, gate    *records
	clientC       tlsconn.ClientConfig
	gatewayC      tlsconn.GatewayConfig
	stopClient    context.CancelFunc
	clientRunning sync.WaitGroup
}

func store(tb testing.TB, rules ...tlsconn.Rule) *tlsconn.PolicyStore {
	tb.Helper()
	s, err := tlsconn.NewPolicyStore(&tlsconn.Policy{Version: 1, Serial: 1, Rules: rules})
	require.NoError(tb, err)
	return s
}

func serviceRule(names ...string) tlsconn.Rule {
	return tlsconn.Rule{Name: "services", Action: tlsconn.Allow, Peers: []string{"spiffe://city.example/node/*"}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Services: names}
}

// newRig makes both ends; options change the configurations before they are used.
func newRig(tb testing.TB, rules []tlsconn.Rule, options ...func(*rig)) *rig {
	tb.Helper()
	r := &rig{tb: tb, ca: newCA(tb, "city CA"), node: &records{}, gate: &records{}}
	r.nodeTrust, r.gateTrust = r.ca.trust(), r.ca.trust()
	r.nodePolicy, r.gatePolicy = store(tb, rules...), store(tb, rules...)
	r.nodeIdentity = r.ca.identity(nodeName)
	r.clientC = tlsconn.ClientConfig{Config: tlsconn.Config{Identity: r.nodeIdentity, Trust: r.nodeTrust, Authorize: allow(tb, gatewayName), Policy: r.nodePolicy, Audit: r.node.audit, Events: r.node.event}}
	r.gatewayC = tlsconn.GatewayConfig{Config: tlsconn.Config{Identity: r.ca.identity(gatewayName), Trust: r.gateTrust, Authorize: allow(tb, "spiffe://city.example/node/*"), Policy: r.gatePolicy, Audit: r.gate.audit, Events: r.gate.event},
		InsecureNoAttestation: true}
	for _, o := range options {
		o(r)
	}
	var err error
	r.gateway, err = tlsconn.NewGateway(r.gatewayC)
	require.NoError(tb, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	r.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.gateway.Serve(context.Background(), ln) })
	if r.clientC.Gateways == nil {
		r.clientC.Gateways = []string{r.addr}
	}
	r.client, err = tlsconn.NewClient(r.clientC)
	require.NoError(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	r.stopClient = cancel
	r.clientRunning.Go(func() { _ = r.client.Run(ctx) })
	tb.Cleanup(func() {
		cancel()
		_ = r.client.Close()
		r.clientRunning.Wait()
		_ = r.gateway.Close()
		wg.Wait()
	})
	return r
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	r.tb.Cleanup(cancel)
	return ctx
}

func (r *rig) up() tlsconn.Peer {
	r.tb.Helper()
	p, err := r.client.Wait(r.ctx())
	require.NoError(r.tb, err)
	return p
}

// echo serves a service that echoes with half-close, and a reset for a reset.
func (r *rig) echo(name string) {
	ln, err := r.gateway.Listen(name)
	require.NoError(r.tb, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); err == nil {
					_ = c.(interface{ CloseWrite() error }).CloseWrite()
				}
			})
		}
	})
	r.tb.Cleanup(func() {
		_ = ln.Close()
		_ = r.gateway.Close()
		wg.Wait()
	})
}

func (r *rig) dial(address string) net.Conn {
	r.tb.Helper()
	c, err := r.client.DialContext(r.ctx(), "tcp", address)
	require.NoError(r.tb, err)
	return c
}

func closeWrite(tb testing.TB, c net.Conn) {
	tb.Helper()
	require.NoError(tb, c.(interface{ CloseWrite() error }).CloseWrite())
}
