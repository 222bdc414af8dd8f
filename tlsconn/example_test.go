package tlsconn_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/trusttree/trusttree/tlsconn"
)

// A node asks a service of its cloud through the tunnel.
func Example() {
	ca := newCA(&testing.T{}, "city CA") // in production: the owner's
	trust := ca.trust()
	policy, _ := tlsconn.ParsePolicy([]byte(`{"version":1,"serial":1,"rules":[
		{"name":"telemetry","action":"allow","peers":["spiffe://city.example/node/*"],"direction":"to-cloud","proto":"tcp","services":["ingest"]}]}`))
	rules, _ := tlsconn.NewPolicyStore(policy)
	nodes, _ := tlsconn.AllowIDs("spiffe://city.example/node/*")
	gateways, _ := tlsconn.AllowIDs("spiffe://city.example/gateway/1")

	gw, err := tlsconn.NewGateway(tlsconn.GatewayConfig{
		Config:                tlsconn.Config{Identity: ca.identity("spiffe://city.example/gateway/1"), Trust: trust, Authorize: nodes, Policy: rules},
		InsecureNoAttestation: true, // a real gateway sets Verify
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()
	_ = gw.Handle("ingest", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, _ := tlsconn.PeerFromContext(r.Context())
		fmt.Fprintln(w, "stored for", peer.ID)
	}))
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	go gw.Serve(context.Background(), ln)

	node, err := tlsconn.NewClient(tlsconn.ClientConfig{
		Config:   tlsconn.Config{Identity: ca.identity("spiffe://city.example/node/17"), Trust: trust, Authorize: gateways, Policy: rules},
		Gateways: []string{ln.Addr().String()},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	go node.Run(context.Background())

	tr := node.Transport()
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://ingest/")
	if err != nil {
		fmt.Println(err)
		return
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	fmt.Print(string(body))
	_, err = node.DialContext(context.Background(), "tcp", "victim.example:22")
	fmt.Println(err)
	// Output:
	// stored for spiffe://city.example/node/17
	// tlsconn: tcp!victim.example:22: denied at the node (peer spiffe://city.example/gateway/1): no rule allows it
}

// A policy is a pure function of the flow.
func ExamplePolicy_Evaluate() {
	p, err := tlsconn.ParsePolicy([]byte(`{"version":1,"serial":1,"rules":[
		{"name":"partners","action":"allow","peers":["spiffe://city.example/node/**"],"direction":"to-cloud","proto":"tcp","hosts":["*.partner.example"],"ports":["443"]}]}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	node, _ := tlsconn.ParseID("spiffe://city.example/node/17")
	for _, host := range []string{"api.partner.example", "evil.example"} {
		d := p.Evaluate(tlsconn.Flow{Node: node, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Host: host, Port: 443})
		fmt.Printf("%s %v %q %q\n", host, d.Allowed, d.Rule, d.Reason)
	}
	// Output:
	// api.partner.example true "partners" ""
	// evil.example false "" "no rule allows it"
}
