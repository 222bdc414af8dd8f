package tlsconn_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// plainPair is a server and a client in plain mode before a destination.
type plainPair struct {
	ca         *authority
	server     tlsconn.Config
	gate, node *records
	local      string
	stop       context.CancelFunc
	done       chan error
}

func newPlainPair(t *testing.T, dst string, change func(*plainPair)) *plainPair {
	p := &plainPair{ca: newCA(t, "city CA"), gate: &records{}, node: &records{}, done: make(chan error, 2)}
	rules := serviceRule("target")
	p.server = tlsconn.Config{Identity: p.ca.identity(gatewayName), Trust: p.ca.trust(), Authorize: allow(t, "spiffe://city.example/node/*"), Policy: store(t, rules), Audit: p.gate.audit, Events: p.gate.event}
	client := tlsconn.Config{Identity: p.ca.identity(nodeName), Trust: p.ca.trust(), Authorize: allow(t, gatewayName), Policy: store(t, rules), Audit: p.node.audit, Events: p.node.event}
	if change != nil {
		change(p)
	}
	gw, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	local, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.local = local.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	to := func(addr string) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
	}
	go func() {
		p.done <- p.server.ServePlain(ctx, gw, tlsconn.PlainOptions{Server: true, Service: "target", Dial: to(dst)})
	}()
	go func() {
		p.done <- client.ServePlain(ctx, local, tlsconn.PlainOptions{Service: "target", Dial: to(gw.Addr().String())})
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-p.done)
		assert.NoError(t, <-p.done)
	})
	return p
}

func (p *plainPair) dial(t *testing.T) net.Conn {
	c, err := net.Dial("tcp", p.local)
	require.NoError(t, err)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestPlainModeIsAuditedAndCapped: what holds for tunnels holds in plain mode.
func TestPlainModeIsAuditedAndCapped(t *testing.T) {
	s := newSink(t, []byte("answer"))
	t.Run("records of both ends", func(t *testing.T) {
		p := newPlainPair(t, s.Addr().String(), nil)
		c := p.dial(t)
		_, err := c.Write(make([]byte, 100_000))
		require.NoError(t, err)
		closeWrite(t, c)
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "answer", string(b))
		<-s.got
		for _, r := range []*records{p.gate, p.node} {
			f := r.flow(t, "record", func(f tlsconn.FlowRecord) bool { return f.Up == 100_000 })
			assert.EqualValues(t, 6, f.Down)
			assert.Equal(t, tlsconn.CodeOK, f.Code, f.Reason)
			assert.Equal(t, nodeName, f.Node.String())
			assert.Equal(t, "services", f.Rule)
			assert.Equal(t, tlsconn.VerdictAllowed, f.Verdict)
			assert.False(t, f.Truncated)
		}
	})
	t.Run("bytes a day", func(t *testing.T) {
		dst := newCounter(t)
		p := newPlainPair(t, dst.Addr().String(), func(p *plainPair) { p.server.Limits.BytesPerDay = 50_000 })
		c := p.dial(t)
		_, _ = c.Write(make([]byte, 200_000))
		assert.NotErrorIs(t, <-dst.end, io.EOF)
		f := p.gate.flow(t, "record", func(f tlsconn.FlowRecord) bool { return f.Code == tlsconn.CodeLimit })
		assert.True(t, f.Truncated)
	})
	t.Run("flows a second", func(t *testing.T) {
		dst := newCounter(t)
		p := newPlainPair(t, dst.Addr().String(), func(p *plainPair) { p.server.Limits.FlowsPerSecond = 1 })
		for range 4 {
			p.dial(t)
		}
		f := p.gate.flow(t, "refusal", func(f tlsconn.FlowRecord) bool { return f.Code == tlsconn.CodeLimit })
		assert.Equal(t, tlsconn.VerdictDenied, f.Verdict)
	})
	t.Run("handshakes of one address", func(t *testing.T) {
		dst := newCounter(t)
		p := newPlainPair(t, dst.Addr().String(), func(p *plainPair) { p.server.Limits.HandshakesPerIP = 1 })
		for range 8 { // what is over the cap is reset, perhaps before connect returns
			if c, err := net.Dial("tcp", p.local); err == nil {
				t.Cleanup(func() { _ = c.Close() })
			}
		}
		p.gate.hasEvent(t, "refused", tlsconn.CodeLimit)
	})
	t.Run("unknown service name", func(t *testing.T) {
		ca := newCA(t, "ca")
		cfg := tlsconn.Config{Identity: ca.identity(gatewayName), Trust: ca.trust(), Authorize: allow(t, nodeName), Policy: store(t)}
		assert.Error(t, cfg.ServePlain(t.Context(), nil, tlsconn.PlainOptions{Service: "a.b", Dial: func(context.Context) (net.Conn, error) { return nil, io.EOF }}))
		assert.Error(t, cfg.ServePlain(t.Context(), nil, tlsconn.PlainOptions{Service: "a"}))
	})
}

// TestLivePlainFlowIsCutWithinASecond is TestLiveTunnelIsCutWithinASecond for
// plain mode.
func TestLivePlainFlowIsCutWithinASecond(t *testing.T) {
	for name, c := range map[string]struct {
		code tlsconn.Code
		act  func(p *plainPair)
	}{
		"revoked": {tlsconn.CodeRevoked, func(p *plainPair) {
			require.NoError(t, p.server.Trust.Revoke(tlsconn.Revocation{ID: id(t, nodeName)}))
		}},
		"policy": {tlsconn.CodeDenied, func(p *plainPair) {
			require.NoError(t, p.server.Policy.Set(&tlsconn.Policy{Version: 1, Serial: 2}))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dst := newCounter(t)
			p := newPlainPair(t, dst.Addr().String(), nil)
			conn := p.dial(t)
			stop := make(chan struct{})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := conn.Write(make([]byte, 1024)); err != nil {
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			require.Eventually(t, func() bool { return dst.n.Load() > 4096 }, 5*time.Second, time.Millisecond)
			c.act(p)
			time.Sleep(time.Second)
			at := dst.n.Load()
			time.Sleep(250 * time.Millisecond)
			assert.Equal(t, at, dst.n.Load(), "bytes arrived more than a second after")
			close(stop)
			<-ended
			assert.NotErrorIs(t, <-dst.end, io.EOF)
			f := p.gate.flow(t, "record", func(f tlsconn.FlowRecord) bool { return f.Code == c.code })
			assert.True(t, f.Truncated)
		})
	}
}

// TestDatagramsBeyondTheRateAreDropped: a node's flood of datagrams reaches the
// destination at the rate of Limits, and the record counts the rest.
func TestDatagramsBeyondTheRateAreDropped(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer pc.Close()
	_, port, _ := net.SplitHostPort(pc.LocalAddr().String())
	rule := loopbackRule(port)
	rule.Proto = tlsconn.UDP
	r := newRig(t, []tlsconn.Rule{rule}, func(r *rig) { r.gatewayC.Limits.PacketsPerSecond = 10 })
	c, err := r.client.DialContext(r.ctx(), "udp", pc.LocalAddr().String())
	require.NoError(t, err)
	for range 500 {
		_, err := c.Write([]byte("flood"))
		require.NoError(t, err)
	}
	require.NoError(t, c.Close())
	f := r.gate.flow(t, "record", func(f tlsconn.FlowRecord) bool { return f.Proto == tlsconn.UDP })
	assert.Greater(t, f.Dropped, uint64(300))
	assert.Less(t, f.Dropped, uint64(500), "up to the rate they pass")
}
