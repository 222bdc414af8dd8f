package tlsconn_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// inspectRig dials whatever the policy passes to one loopback server.
func inspectRig(t *testing.T, server string, nodeRules, gateRules []tlsconn.Rule, more ...func(*rig)) *rig {
	rec := &recorder{answers: map[string][][]netip.Addr{"cdn.partner.example": {addrs("9.9.9.9")}}}
	return newRig(t, nil, append([]func(*rig){func(r *rig) {
		r.clientC.Policy, r.gatewayC.Policy = store(t, nodeRules...), store(t, gateRules...)
		r.gatewayC.Resolver = rec
		r.gatewayC.Dial = func(ctx context.Context, network string, _ netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server)
		}
	}}, more...)...)
}

func cdnRule(change func(*tlsconn.Rule)) []tlsconn.Rule {
	r := tlsconn.Rule{Name: "cdn", Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Hosts: []string{"cdn.partner.example"}, Ports: []string{"443"}}
	if change != nil {
		change(&r)
	}
	return []tlsconn.Rule{r}
}

func TestServerNameAndALPNAreHeldToTheRule(t *testing.T) {
	ca := newCA(t, "web")
	cert := ca.pair("spiffe://web.example/cdn")
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}})
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	strict := cdnRule(func(r *tlsconn.Rule) { r.SNI, r.ALPN = []string{"*.partner.example"}, []string{"h2"} })
	open := cdnRule(nil)
	for _, side := range []struct {
		name       string
		node, gate []tlsconn.Rule
	}{{"at the node", strict, open}, {"at the gateway", open, strict}} {
		t.Run(side.name, func(t *testing.T) {
			r := inspectRig(t, ln.Addr().String(), side.node, side.gate)
			try := func(cfg *tls.Config) error {
				raw := r.dial("cdn.partner.example:443")
				defer raw.Close()
				cfg.InsecureSkipVerify = true
				c := tls.Client(raw, cfg)
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := c.Write([]byte("ping")); err != nil {
					return err
				}
				b := make([]byte, 4)
				_, err := io.ReadFull(c, b)
				return err
			}
			require.NoError(t, try(&tls.Config{ServerName: "cdn.partner.example", NextProtos: []string{"h2"}}))
			assert.ErrorIs(t, try(&tls.Config{ServerName: "evil.example", NextProtos: []string{"h2"}}), tlsconn.ErrDenied, "domain fronting")
			assert.ErrorIs(t, try(&tls.Config{ServerName: "", NextProtos: []string{"h2"}}), tlsconn.ErrDenied)
			assert.ErrorIs(t, try(&tls.Config{ServerName: "cdn.partner.example", NextProtos: []string{"h2", "ssh"}}), tlsconn.ErrDenied)
			assert.ErrorIs(t, try(&tls.Config{ServerName: "cdn.partner.example"}), tlsconn.ErrDenied)
		})
	}
}

func TestHTTPHostIsHeldToTheRule(t *testing.T) {
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { _, _ = io.WriteString(w, "host "+q.Host) })}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	strict := cdnRule(func(r *tlsconn.Rule) { r.HTTPHosts = []string{"cdn.partner.example"} })
	r := inspectRig(t, ln.Addr().String(), cdnRule(nil), strict)
	try := func(request string) (string, error) {
		c := r.dial("cdn.partner.example:443")
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(15 * time.Second))
		step := 1 // a byte at a time
		if len(request) > 1000 {
			step = 1000
		}
		for b := range slices.Chunk([]byte(request), step) {
			if _, err := c.Write(b); err != nil {
				return "", err
			}
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	got, err := try("GET / HTTP/1.1\r\nHost: CDN.partner.example:443\r\n\r\n")
	require.NoError(t, err)
	assert.Equal(t, "host CDN.partner.example:443", got)
	for name, req := range map[string]string{
		"another host":  "GET / HTTP/1.1\r\nHost: admin.partner.example\r\n\r\n",
		"two hosts":     "GET / HTTP/1.1\r\nHost: cdn.partner.example\r\nHost: admin.partner.example\r\n\r\n",
		"absolute form": "GET http://admin.partner.example/ HTTP/1.1\r\nHost: cdn.partner.example\r\n\r\n",
		"tunnel":        "CONNECT admin.partner.example:22 HTTP/1.1\r\nHost: cdn.partner.example\r\n\r\n",
		"not HTTP":      "SSH-2.0-OpenSSH_9.2\r\nxxxxxxxxxxxxxxx\r\n\r\n",
		"HTTP/2":        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"endless":       "GET / HTTP/1.1\r\nX: " + string(bytes.Repeat([]byte("a"), 20<<10)),
	} {
		_, err := try(req)
		var re *tlsconn.RefusedError
		if assert.ErrorAs(t, err, &re, name) {
			assert.ErrorIs(t, err, tlsconn.ErrDenied, name)
		}
	}
}

type noTelnet struct{}

func (noTelnet) Inspect(f tlsconn.Flow, head []byte) (bool, error) {
	if bytes.HasPrefix(head, []byte{0xff, 0xfb}) {
		return false, errors.New("telnet negotiation to " + f.Host)
	}
	return len(head) >= 2, nil
}

func TestOwnInspector(t *testing.T) {
	s := newSink(t, []byte("ok"))
	r := inspectRig(t, s.Addr().String(), cdnRule(nil), cdnRule(nil), func(r *rig) { r.gatewayC.Inspectors = []tlsconn.Inspector{noTelnet{}} })
	c := r.dial("cdn.partner.example:443")
	_, err := c.Write([]byte("hello"))
	require.NoError(t, err)
	closeWrite(t, c)
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Equal(t, "ok", string(b))
	_ = c.Close()
	c = r.dial("cdn.partner.example:443")
	_, err = c.Write([]byte{0xff, 0xfb, 1})
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, tlsconn.ErrDenied)
	f := r.gate.flow(t, "refusal", func(f tlsconn.FlowRecord) bool { return f.Code == tlsconn.CodeDenied })
	assert.Contains(t, f.Reason, "telnet negotiation")
}

func TestDatagramsKeepTheirBoundaries(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, a, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(b[:n], a)
		}
	})
	t.Cleanup(func() { _ = pc.Close(); wg.Wait() })
	_, port, _ := net.SplitHostPort(pc.LocalAddr().String())
	rule := loopbackRule(port)
	rule.Proto = tlsconn.UDP
	r := newRig(t, []tlsconn.Rule{rule})
	c, err := r.client.DialContext(r.ctx(), "udp", pc.LocalAddr().String())
	require.NoError(t, err)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	for _, size := range []int{0, 1, 1400, 9000, 65507} {
		msg := bytes.Repeat([]byte{byte(size)}, size)
		n, err := c.Write(msg)
		require.NoError(t, err)
		require.Equal(t, size, n)
		b := make([]byte, 65536)
		n, err = c.Read(b)
		require.NoError(t, err)
		require.True(t, bytes.Equal(msg, b[:n]), size)
	}
	_, err = c.Write(make([]byte, 65508))
	require.Error(t, err)
	require.NoError(t, c.Close())
	f := r.gate.flow(t, "record", func(f tlsconn.FlowRecord) bool { return f.Proto == tlsconn.UDP })
	assert.Equal(t, tlsconn.CodeOK, f.Code, f.Reason)
}

func TestAmplifierPortsMustBeNamed(t *testing.T) {
	rule := tlsconn.Rule{Name: "wide", Action: tlsconn.Allow, Peers: []string{nodeName}, Direction: tlsconn.ToCloud, Proto: tlsconn.UDP, Hosts: []string{"x.example"}, Ports: []string{"1-65535"}}
	p := &tlsconn.Policy{Version: 1, Rules: []tlsconn.Rule{rule}}
	f := tlsconn.Flow{Node: id(t, nodeName), Direction: tlsconn.ToCloud, Proto: tlsconn.UDP, Host: "x.example"}
	for _, port := range []uint16{19, 53, 123, 161, 389, 1900, 11211} {
		f.Port = port
		assert.False(t, p.Evaluate(f).Allowed, port)
	}
	f.Port = 514
	assert.True(t, p.Evaluate(f).Allowed)
	rule.Ports = []string{"123"}
	p = &tlsconn.Policy{Version: 1, Rules: []tlsconn.Rule{rule}}
	f.Port = 123
	assert.True(t, p.Evaluate(f).Allowed)
}

func TestCapOverTheFleet(t *testing.T) {
	dst := newCounter(t)
	r := newRig(t, []tlsconn.Rule{loopbackRule(dst.port())}, func(r *rig) { r.gatewayC.Limits.FlowsPerDestination = 3 })
	second, err := tlsconn.NewClient(func() tlsconn.ClientConfig {
		c := r.clientC
		c.Identity = r.ca.identity("spiffe://city.example/node/18")
		rule := loopbackRule(dst.port())
		rule.Peers = []string{"spiffe://city.example/node/*"}
		c.Policy = store(t, rule)
		require.NoError(t, r.gatePolicy.Set(&tlsconn.Policy{Version: 1, Serial: 2, Rules: []tlsconn.Rule{rule}}))
		return c
	}())
	require.NoError(t, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = second.Run(context.Background()) }()
	defer func() { _ = second.Close(); <-done }()
	var conns []net.Conn
	for range 2 {
		conns = append(conns, r.dial(dst.Addr().String()))
	}
	c, err := second.DialContext(r.ctx(), "tcp", dst.Addr().String())
	require.NoError(t, err)
	_, err = second.DialContext(r.ctx(), "tcp", dst.Addr().String())
	assert.ErrorIs(t, err, tlsconn.ErrLimit)
	var re *tlsconn.RefusedError
	require.ErrorAs(t, err, &re)
	assert.Contains(t, re.Error(), "the fleet has 3 flows")
	_ = conns[0].Close()
	require.Eventually(t, func() bool {
		c2, err := second.DialContext(r.ctx(), "tcp", dst.Addr().String())
		if err == nil {
			_ = c2.Close()
		}
		return err == nil
	}, waitTime, 10*time.Millisecond)
	_, _ = c.Close(), conns[1].Close()
}
