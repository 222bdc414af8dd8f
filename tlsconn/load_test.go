package tlsconn_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tlsconn"
)

func unlimited(r *rig) {
	l := tlsconn.Limits{FlowsPerSecond: tlsconn.Unlimited, BytesPerSecond: tlsconn.Unlimited, Destinations: tlsconn.Unlimited, BytesPerDay: tlsconn.Unlimited, RatePerDestination: tlsconn.Unlimited}
	r.clientC.Limits, r.gatewayC.Limits = l, l
}

// TestUnreadStreamsSlowNoOtherStream: eight flows whose destination never reads
// are full; the ninth goes on.
func TestUnreadStreamsSlowNoOtherStream(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("deaf", "echo")}, unlimited)
	r.echo("echo")
	ln, err := r.gateway.Listen("deaf")
	require.NoError(t, err)
	defer ln.Close()
	var full sync.WaitGroup
	var conns []net.Conn
	for range 8 {
		c := r.dial("deaf:1")
		conns = append(conns, c)
		full.Go(func() {
			_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
			n, err := c.Write(make([]byte, 8<<20))
			assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
			assert.Less(t, n, 2<<20, "no more than its window")
		})
	}
	full.Wait()
	c := r.dial("echo:7")
	msg := bytes.Repeat([]byte("goes on "), 1<<19)
	go func() {
		_, _ = c.Write(msg)
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	back, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(msg, back))
	for _, c := range append(conns, c) {
		_ = c.Close()
	}
}

func TestWindowsOverTheMemoryBudgetAreRefused(t *testing.T) {
	ca := newCA(t, "ca")
	c := tlsconn.GatewayConfig{Config: tlsconn.Config{Identity: ca.identity(gatewayName), Trust: ca.trust(), Authorize: allow(t, nodeName), Policy: store(t)}, InsecureNoAttestation: true}
	c.Limits = tlsconn.Limits{MaxStreams: 1000, StreamWindow: 16 << 20}
	_, err := tlsconn.NewGateway(c)
	assert.ErrorContains(t, err, "TunnelMemory")
}

// TestStreamsAndReloadsLoseNothing: thousands of flows, while identity, trust
// and policy are replaced under them; every byte arrives, and afterwards there
// are as many goroutines and files as before.
func TestStreamsAndReloadsLoseNothing(t *testing.T) {
	flows := testenv.N(600, 10_000)
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, unlimited)
	r.echo("echo")
	r.up()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	var next, lost atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for next.Add(1) <= int64(flows) {
				msg := make([]byte, 1+rand.IntN(20_000))
				for i := range msg {
					msg[i] = byte(i)
				}
				c, err := r.client.DialContext(r.ctx(), "tcp", "echo:7")
				if err != nil {
					t.Error(err)
					lost.Add(1)
					continue
				}
				go func() {
					_, _ = c.Write(msg)
					_ = c.(interface{ CloseWrite() error }).CloseWrite()
				}()
				back, err := io.ReadAll(c)
				if err != nil || sha256.Sum256(back) != sha256.Sum256(msg) {
					t.Errorf("%d of %d bytes: %v", len(back), len(msg), err)
					lost.Add(1)
				}
				_ = c.Close()
			}
		})
	}
	for i := range 5 {
		target := int64(flows) * int64(i+1) / 6
		require.Eventually(t, func() bool { return next.Load() >= target }, time.Minute, time.Millisecond)
		require.NoError(t, r.nodeIdentity.Set(r.ca.pair(nodeName)), "make before break")
		require.NoError(t, r.gatePolicy.Set(&tlsconn.Policy{Version: 1, Serial: uint64(i + 2), Rules: []tlsconn.Rule{serviceRule("echo")}}))
		require.NoError(t, r.gateTrust.AddCRL(r.ca.crl(int64(i+1), time.Now().Add(time.Hour))))
	}
	wg.Wait()
	assert.Zero(t, lost.Load())
	require.Eventually(t, func() bool { return len(r.gateway.Peers()) == 1 }, waitTime, tickTime, "the replaced tunnels are gone")
	if !assert.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+8 && openFiles(t) <= files }, waitTime, 10*time.Millisecond, "goroutines and files are back") {
		t.Logf("%d goroutines, were %d; %d files, were %d", runtime.NumGoroutine(), goroutines, openFiles(t), files)
	}
	require.Eventually(t, func() bool { flowsSeen, _ := r.gate.all(); return len(flowsSeen) >= flows }, waitTime, tickTime, "one record for each")
	records, _ := r.gate.all()
	for _, f := range records {
		assert.Equal(t, tlsconn.CodeOK, f.Code, f.Reason)
		assert.False(t, f.Truncated, f.Reason)
	}
	assert.Equal(t, flows, len(records))
}

func openFiles(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(e)
}

func TestRotationKeepsLiveFlows(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")})
	r.echo("echo")
	c := r.dial("echo:7")
	old := c.(interface{ Peer() tlsconn.Peer })
	_ = old
	require.NoError(t, r.nodeIdentity.Set(r.ca.pair(nodeName)))
	require.Eventually(t, func() bool { return len(r.gateway.Peers()) == 2 }, waitTime, tickTime, "the new tunnel is up before the old one is gone")
	_, err := c.Write([]byte("still here"))
	require.NoError(t, err)
	closeWrite(t, c)
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Equal(t, "still here", string(b))
	_ = c.Close()
	require.Eventually(t, func() bool { return len(r.gateway.Peers()) == 1 }, waitTime, tickTime, "then the old one goes")
	assert.ErrorContains(t, r.nodeIdentity.Set(r.ca.pair("spiffe://city.example/node/18")), "changes the name")
}

func TestGatewayDrainsAndClientFindsAnother(t *testing.T) {
	first := newRig(t, []tlsconn.Rule{serviceRule("echo")})
	first.echo("echo")
	second := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) {
		r.ca = first.ca
		r.gatewayC.Identity, r.gatewayC.Trust = first.ca.identity(gatewayName), first.ca.trust()
		r.clientC.Identity, r.clientC.Trust = first.ca.identity("spiffe://city.example/node/99"), first.ca.trust()
	})
	second.echo("echo")
	cfg := first.clientC
	cfg.Gateways = []string{first.addr, second.addr}
	c, err := tlsconn.NewClient(cfg)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(context.Background()) }()
	defer func() { _ = c.Close(); <-done }()
	live, err := c.DialContext(first.ctx(), "tcp", "echo:7")
	require.NoError(t, err)
	// Whichever it is on drains; what is live there ends in peace.
	drained := make(chan error, 2)
	on := first
	if !hasPeer(first, nodeName) || len(first.gateway.Peers()) < 2 {
		on = second
	}
	go func() { drained <- on.gateway.Shutdown(first.ctx()) }()
	require.Eventually(t, func() bool {
		n, err := c.DialContext(first.ctx(), "tcp", "echo:7")
		if err == nil {
			_ = n.Close()
		}
		return err == nil
	}, waitTime, 10*time.Millisecond)
	_, err = live.Write([]byte("in peace"))
	require.NoError(t, err)
	closeWrite(t, live)
	b, err := io.ReadAll(live)
	require.NoError(t, err)
	assert.Equal(t, "in peace", string(b))
	_ = live.Close()
	require.NoError(t, <-drained)
}

func hasPeer(r *rig, name string) bool {
	for _, p := range r.gateway.Peers() {
		if p.ID.String() == name {
			return true
		}
	}
	return false
}

func TestHandshakeFloodIsBounded(t *testing.T) {
	before := runtime.NumGoroutine()
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) {
		r.gatewayC.Limits = tlsconn.Limits{MaxHandshakes: 8, HandshakesPerIP: tlsconn.Unlimited, HandshakeTimeout: 300 * time.Millisecond}
	})
	r.echo("echo")
	r.up()
	var conns []net.Conn
	for range 200 {
		if c, err := net.Dial("tcp", r.addr); err == nil { // or reset at once
			conns = append(conns, c)
		}
	}
	assert.LessOrEqual(t, runtime.NumGoroutine(), before+8*3+40, "half-open handshakes are bounded")
	c := r.dial("echo:7") // what is up goes on
	_ = c.Close()
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err := c.Read(make([]byte, 1))
		assert.Error(t, err)
		_ = c.Close()
	}
	r.gate.hasEvent(t, "refused", tlsconn.CodeLimit)
	r.gate.hasEvent(t, "refused", tlsconn.CodeTimeout)

	t.Run("oversized hello", func(t *testing.T) {
		c, err := net.Dial("tcp", r.addr)
		require.NoError(t, err)
		defer c.Close()
		hello := append([]byte{0x16, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0xff}, make([]byte, 64<<10)...)
		go func() { _, _ = c.Write(hello) }()
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = io.ReadAll(c)
		_ = err // an alert and an end, or a reset; the event tells
		r.gate.hasEvent(t, "refused", tlsconn.CodeReset)
	})
	t.Run("TLS 1.2 and other protocols", func(t *testing.T) {
		for _, cfg := range []*tls.Config{{MaxVersion: tls.VersionTLS12}, {NextProtos: []string{"h2"}}, {}} {
			cfg.InsecureSkipVerify = true
			cfg.Certificates = []tls.Certificate{r.ca.pair(nodeName)}
			c, err := tls.Dial("tcp", r.addr, cfg)
			if err == nil {
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				_, err = c.Read(make([]byte, 1))
				_ = c.Close()
			}
			assert.Error(t, err)
		}
	})
}

func TestHandshakesPerAddressAreLimited(t *testing.T) {
	r := newRig(t, nil, func(r *rig) { r.gatewayC.Limits = tlsconn.Limits{HandshakesPerIP: 1} })
	for range 12 {
		if c, err := net.Dial("tcp", r.addr); err == nil {
			_ = c.Close()
		}
	}
	e := r.gate.hasEvent(t, "refused", tlsconn.CodeLimit)
	assert.Contains(t, e.Reason, "this address")
}

func TestIdleFlowIsReset(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("echo")}, func(r *rig) { r.gatewayC.Limits.IdleTimeout = 200 * time.Millisecond })
	r.echo("echo")
	c := r.dial("echo:7")
	_, err := c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	f := r.gate.flow(t, "record", func(f tlsconn.FlowRecord) bool { return f.Code == tlsconn.CodeTimeout })
	assert.Contains(t, f.Reason, "no byte for")
}

// BenchmarkDial opens and closes flows through one tunnel.
func BenchmarkDial(b *testing.B) {
	r := newRig(b, []tlsconn.Rule{serviceRule("echo")}, unlimited)
	r.echo("echo")
	r.up()
	b.ResetTimer()
	for b.Loop() {
		c, err := r.client.DialContext(r.ctx(), "tcp", "echo:7")
		require.NoError(b, err)
		closeWrite(b, c)
		_, err = io.ReadAll(c)
		require.NoError(b, err)
		_ = c.Close()
	}
}

// BenchmarkBulk sends through one flow.
func BenchmarkBulk(b *testing.B) {
	for _, n := range []int{1, 4} {
		b.Run(fmt.Sprint(n, "flows"), func(b *testing.B) {
			r := newRig(b, []tlsconn.Rule{serviceRule("sink")}, unlimited)
			ln, err := r.gateway.Listen("sink")
			require.NoError(b, err)
			defer ln.Close()
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					go func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{c}); _ = c.Close() }()
				}
			}()
			const chunk = 1 << 20
			var conns []net.Conn
			for range n {
				conns = append(conns, r.dial("sink:1"))
			}
			b.SetBytes(chunk)
			b.ResetTimer()
			var wg sync.WaitGroup
			for _, c := range conns {
				wg.Go(func() {
					buf := make([]byte, chunk)
					for range b.N/n + 1 {
						_, _ = c.Write(buf)
					}
					closeWrite(b, c)
					_, _ = io.ReadAll(c)
				})
			}
			wg.Wait()
		})
	}
}

// TestServiceThatIsSlowToAccept: flows beyond its backlog wait for it, and are
// reset when it closes.
func TestServiceThatIsSlowToAccept(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("svc")}, unlimited)
	ln, err := r.gateway.Listen("svc")
	require.NoError(t, err)
	const flows = 150
	open := func() (list []net.Conn) {
		for range flows {
			list = append(list, r.dial("svc"))
		}
		return list
	}
	for _, c := range open() {
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		closeWrite(t, c)
	}
	for range flows {
		c, err := ln.Accept()
		require.NoError(t, err)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, "x", string(got))
		require.NoError(t, c.Close())
	}
	list := open()
	first, err := ln.Accept()
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	_, err = first.Write([]byte("x"))
	require.NoError(t, err)
	kept := 0
	for _, c := range list {
		_ = c.SetReadDeadline(time.Now().Add(waitTime))
		_, err := c.Read(make([]byte, 1))
		if err == nil {
			kept++
			continue
		}
		var refused *tlsconn.RefusedError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, tlsconn.CodeUnreachable, refused.Code)
	}
	require.Equal(t, 1, kept, "the one that was accepted goes on")
}
