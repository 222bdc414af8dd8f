// Package clients lets the clients that vendors use go through a tunnel by
// Client.DialContext: gRPC, MQTT and net/http. It is a module of its own because
// of what they depend on.
package clients

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/trusttree/trusttree/tlsconn"
)

const (
	nodeID    = "spiffe://city.example/node/17"
	gatewayID = "spiffe://city.example/gateway/1"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pair makes a node and a gateway on loopback, with services that rules allow.
func pair(t *testing.T, services ...string) (*tlsconn.Client, *tlsconn.Gateway) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "city CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, root, root, key.Public(), key))))
	config := func(id, peer string) tlsconn.Config {
		leaf := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, URIs: []*url.URL{must(url.Parse(id))}}
		return tlsconn.Config{
			Identity:  must(tlsconn.NewIdentity(tls.Certificate{Certificate: [][]byte{must(x509.CreateCertificate(rand.Reader, c, ca, leaf.Public(), key))}, PrivateKey: leaf})),
			Trust:     must(tlsconn.NewTrustStore(tlsconn.TrustOptions{Roots: []*x509.Certificate{ca}})),
			Authorize: must(tlsconn.AllowIDs(peer)),
			Policy: must(tlsconn.NewPolicyStore(&tlsconn.Policy{Version: 1, Rules: []tlsconn.Rule{{Name: "services", Action: tlsconn.Allow, Peers: []string{nodeID},
				Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Services: services}}})),
		}
	}
	g := must(tlsconn.NewGateway(tlsconn.GatewayConfig{Config: config(gatewayID, nodeID), InsecureNoAttestation: true}))
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	go func() { _ = g.Serve(context.Background(), ln) }()
	c := must(tlsconn.NewClient(tlsconn.ClientConfig{Config: config(nodeID, gatewayID), Gateways: []string{ln.Addr().String()}}))
	go func() { _ = c.Run(context.Background()) }()
	t.Cleanup(func() { _ = c.Close(); _ = g.Close() })
	return c, g
}

func TestGRPCThroughATunnel(t *testing.T) {
	c, g := pair(t, "grpc")
	s := grpc.NewServer()
	h := health.NewServer()
	healthpb.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(must(g.Listen("grpc"))) }()
	defer s.Stop()
	conn := must(grpc.NewClient("passthrough:///grpc:443", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return c.DialContext(ctx, "tcp", addr) })))
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client := healthpb.NewHealthClient(conn)
	for range 50 {
		r, err := client.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		if err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
			t.Fatal(r, err)
		}
	}
	w, err := client.Watch(ctx, &healthpb.HealthCheckRequest{}) // a stream, both ways
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	if r, err := w.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Fatal(r, err)
	}
}

func TestMQTTThroughATunnel(t *testing.T) {
	c, g := pair(t, "mqtt")
	b := broker.New(nil)
	if err := b.AddHook(new(auth.AllowHook), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.AddListener(listeners.NewNet("tunnel", must(g.Listen("mqtt")))); err != nil {
		t.Fatal(err)
	}
	go func() { _ = b.Serve() }()
	defer b.Close()
	o := mqtt.NewClientOptions().AddBroker("tcp://mqtt:1883").SetClientID("node-17").SetConnectTimeout(10 * time.Second)
	o.SetCustomOpenConnectionFn(func(u *url.URL, _ mqtt.ClientOptions) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return c.DialContext(ctx, "tcp", u.Host)
	})
	m := mqtt.NewClient(o)
	wait := func(what string, tok mqtt.Token) {
		t.Helper()
		if !tok.WaitTimeout(15*time.Second) || tok.Error() != nil {
			t.Fatal(what, tok.Error())
		}
	}
	wait("connect", m.Connect())
	got := make(chan string, 100)
	wait("subscribe", m.Subscribe("lamp/+/air", 1, func(_ mqtt.Client, msg mqtt.Message) { got <- string(msg.Payload()) }))
	for range 20 {
		wait("publish", m.Publish("lamp/17/air", 1, false, "pm10=7"))
	}
	for range 20 {
		select {
		case p := <-got:
			if p != "pm10=7" {
				t.Fatal(p)
			}
		case <-time.After(15 * time.Second):
			t.Fatal("a message is lost")
		}
	}
	m.Disconnect(100)
}

func TestHTTPThroughATunnel(t *testing.T) {
	c, g := pair(t, "ingest")
	if err := g.Handle("ingest", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := tlsconn.PeerFromContext(r.Context())
		_, _ = io.WriteString(w, p.ID.String())
	})); err != nil {
		t.Fatal(err)
	}
	h := &http.Client{Transport: &http.Transport{DialContext: c.DialContext}, Timeout: 15 * time.Second}
	for range 20 {
		r, err := h.Get("http://ingest/")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if string(b) != nodeID {
			t.Fatal(string(b))
		}
	}
}
