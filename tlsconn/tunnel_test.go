package tlsconn_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

func TestServiceOverHTTPKnowsItsPeer(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("ingest")})
	require.NoError(t, r.gateway.Handle("ingest", http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		p, ok := tlsconn.PeerFromContext(q.Context())
		body, err := io.ReadAll(q.Body)
		fmt.Fprintf(w, "%v %s %d %v", ok, p.ID, len(body), err)
	})))
	tr := r.client.Transport()
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr}
	for range 3 {
		resp, err := hc.Post("http://ingest/v1/records", "text/plain", strings.NewReader("22.5 C"))
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, "true "+nodeName+" 6 <nil>", string(body))
	}
	tr.CloseIdleConnections()
	f := r.gate.flow(t, "gateway's record", func(f tlsconn.FlowRecord) bool { return f.Code == tlsconn.CodeOK })
	n := r.node.flow(t, "node's record", func(n tlsconn.FlowRecord) bool { return n.Flow == f.Flow })
	assert.Equal(t, tlsconn.VerdictAllowed, f.Verdict)
	assert.Equal(t, "services", f.Rule)
	assert.Equal(t, nodeName, f.Node.String())
	assert.Equal(t, [2]uint64{f.Up, f.Down}, [2]uint64{n.Up, n.Down})
	assert.False(t, f.Truncated || n.Truncated)
}

func TestForbiddenDestinationIsRefusedAtTheNode(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("ingest")})
	r.up()
	_, err := r.client.DialContext(r.ctx(), "tcp", "victim.example:22")
	var re *tlsconn.RefusedError
	require.ErrorAs(t, err, &re)
	assert.ErrorIs(t, err, tlsconn.ErrDenied)
	assert.Equal(t, tlsconn.AtNode, re.Side)
	assert.Contains(t, err.Error(), "no rule allows it")
	f := r.node.flow(t, "refusal", func(f tlsconn.FlowRecord) bool { return f.Verdict == tlsconn.VerdictDenied })
	assert.Equal(t, "tcp!victim.example:22", f.Target)
	flows, _ := r.gate.all()
	assert.Empty(t, flows, "the gateway never heard of it")
}

func TestForbiddenDestinationIsRefusedAtTheGatewayWhenTheNodeIsCaptured(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("ingest")}, func(r *rig) {
		// The captured node allows itself everything.
		r.clientC.Policy = store(t, tlsconn.Rule{Name: "all mine", Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP,
			Hosts: []string{"victim.example"}, Ports: []string{"1-65535"}})
		r.gatewayC.Resolver = failResolver{t}
	})
	r.up()
	_, err := r.client.DialContext(r.ctx(), "tcp", "victim.example:22")
	var re *tlsconn.RefusedError
	require.ErrorAs(t, err, &re)
	assert.ErrorIs(t, err, tlsconn.ErrDenied)
	assert.Equal(t, tlsconn.AtGateway, re.Side)
	assert.Contains(t, re.Reason, "no rule allows it")
	f := r.gate.flow(t, "refusal", func(f tlsconn.FlowRecord) bool { return f.Verdict == tlsconn.VerdictDenied })
	assert.Equal(t, tlsconn.AtGateway, f.DecidedBy)
	assert.Equal(t, nodeName, f.Node.String())
}

// failResolver fails the test when a name is resolved.
type failResolver struct{ tb testing.TB }

func (r failResolver) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	r.tb.Error("a name was resolved before policy allowed it")
	return nil, errors.New("no")
}

func loopbackRule(port string) tlsconn.Rule {
	return tlsconn.Rule{Name: "exact loopback", Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP,
		CIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Ports: []string{port}}
}

// sink is a TCP destination; its result is what one connection delivered.
type sink struct {
	net.Listener
	got chan sinkResult
}

type sinkResult struct {
	n   int64
	sum [32]byte
	err error // nil is a clean end of file
}

func newSink(t *testing.T, reply []byte) *sink {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &sink{ln, make(chan sinkResult, 16)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			h := sha256.New()
			n, err := io.Copy(h, c)
			if err == nil {
				_, _ = c.Write(reply)
			}
			_ = c.Close()
			s.got <- sinkResult{n, [32]byte(h.Sum(nil)), err}
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return s
}

func (s *sink) port() string {
	_, p, _ := net.SplitHostPort(s.Addr().String())
	return p
}

func TestDialledDestinationWithHalfClose(t *testing.T) {
	reply := bytes.Repeat([]byte("r"), 1<<20)
	s := newSink(t, reply)
	r := newRig(t, []tlsconn.Rule{loopbackRule(s.port())})
	c := r.dial(s.Addr().String())
	up := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	_, err := c.Write(up)
	require.NoError(t, err)
	closeWrite(t, c)
	got := <-s.got
	assert.NoError(t, got.err)
	assert.Equal(t, sha256.Sum256(up), got.sum)
	back, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(reply, back))
	require.NoError(t, c.Close())
	f := r.gate.flow(t, "gateway's record", func(f tlsconn.FlowRecord) bool { return f.Code == tlsconn.CodeOK })
	assert.False(t, f.Truncated, f.Reason)
	assert.EqualValues(t, len(up), f.Up)
	assert.EqualValues(t, len(reply), f.Down)
	assert.Equal(t, s.Addr().String(), f.Addr)
	n := r.node.flow(t, "node's record", func(n tlsconn.FlowRecord) bool { return n.Flow == f.Flow })
	assert.Equal(t, [2]uint64{f.Up, f.Down}, [2]uint64{n.Up, n.Down})
}

func TestCloudReachesNodeOnlyByTheNodesOwnPolicy(t *testing.T) {
	toNode := func(name string) tlsconn.Rule {
		return tlsconn.Rule{Name: "maintenance", Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToNode, Proto: tlsconn.TCP, Services: []string{name}}
	}
	r := newRig(t, nil, func(r *rig) {
		r.gatewayC.Policy = store(t, toNode("diag"), func() tlsconn.Rule { x := toNode("shell"); x.Name = "too much"; return x }())
		r.clientC.Policy = store(t, toNode("diag"))
	})
	require.NoError(t, r.client.Handle("diag", http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		p, _ := tlsconn.PeerFromContext(q.Context())
		fmt.Fprint(w, "diag for ", p.ID)
	})))
	require.NoError(t, r.client.Handle("shell", http.NotFoundHandler()))
	r.up()
	r.gate.hasEvent(t, "up", tlsconn.CodeOK)
	require.Eventually(t, func() bool { return len(r.gateway.Peers()) == 1 }, waitTime, tickTime)
	tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return r.gateway.DialContext(ctx, id(t, nodeName), network, addr)
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://diag/")
	require.NoError(t, err)
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	assert.Equal(t, "diag for "+gatewayName, string(body))

	_, err = r.gateway.DialContext(r.ctx(), id(t, nodeName), "tcp", "shell:80")
	var re *tlsconn.RefusedError
	require.ErrorAs(t, err, &re)
	assert.ErrorIs(t, err, tlsconn.ErrDenied)
	assert.Equal(t, tlsconn.AtNode, re.Side, "the node's veto")
}

func TestForwarderServesLoopbackOnly(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")})
	r.echo("echo")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.client.Forward(ctx, ln, "tcp", "echo:7") }()
	c, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	back, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(back))
	_ = c.Close()
	cancel()
	require.NoError(t, <-done)

	all, err := net.Listen("tcp", "0.0.0.0:0")
	require.NoError(t, err)
	defer all.Close()
	assert.ErrorContains(t, r.client.Forward(r.ctx(), all, "tcp", "echo:7"), "not a loopback address")
}

func TestUntrustedPeersAreRefused(t *testing.T) {
	for name, change := range map[string]func(*rig){
		"node of another CA": func(r *rig) {
			other := newCA(t, "other")
			r.clientC.Identity = other.identity(nodeName)
		},
		"node that is not admitted": func(r *rig) { r.clientC.Identity = r.ca.identity("spiffe://city.example/tenant/9") },
		"node revoked before":       func(r *rig) { require.NoError(t, r.gateTrust.Revoke(tlsconn.Revocation{ID: id(t, nodeName)})) },
		"gateway is another node":   func(r *rig) { r.gatewayC.Identity = r.ca.identity("spiffe://city.example/node/18") },
		"gateway without post-quantum key exchange wanted by nobody": func(r *rig) {
			r.clientC.Trust = newCA(t, "third").trust()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, change)
			r.echo("echo")
			ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
			defer cancel()
			_, err := r.client.DialContext(ctx, "tcp", "echo:7")
			require.Error(t, err)
			flows, _ := r.gate.all()
			assert.Empty(t, flows)
		})
	}
}
