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
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// slowly reads at random speeds, so that what comes must wait.
func slowly(c net.Conn) ([32]byte, int, error) {
	h, n, b := sha256.New(), 0, make([]byte, 200_000)
	for {
		k, err := c.Read(b[:1+rand.IntN(len(b))])
		n += k
		_, _ = h.Write(b[:k])
		if err == io.EOF {
			return [32]byte(h.Sum(nil)), n, nil
		}
		if err != nil {
			return [32]byte{}, n, err
		}
		if rand.IntN(8) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// forwarded returns connections to a destination through tunnel and forwarder,
// which serve serves.
func forwarded(t *testing.T, serve func(c net.Conn), options ...func(*rig)) (*rig, string) {
	dst, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := dst.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c) })
		}
	})
	port := dst.Addr().(*net.TCPAddr).AddrPort().Port()
	rule := tlsconn.Rule{Name: "destination", Action: tlsconn.Allow, Peers: []string{"spiffe://city.example/node/*"}, Direction: tlsconn.ToCloud, Proto: tlsconn.TCP,
		CIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Ports: []string{strconv.Itoa(int(port))}}
	r := newRig(t, []tlsconn.Rule{rule}, options...)
	r.up()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { assert.NoError(t, r.client.Forward(ctx, ln, "tcp", dst.Addr().String())) })
	t.Cleanup(func() {
		cancel()
		_ = dst.Close()
		wg.Wait()
	})
	return r, ln.Addr().String()
}

// TestSlowReadersGetEveryByte: both directions at once, through readers that let
// bytes pile up on every layer; afterwards no buffer is held.
func TestSlowReadersGetEveryByte(t *testing.T) {
	const size = 24 << 20
	up, down := make([]byte, size), make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(up)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(down)
	both := func(t *testing.T, c net.Conn, send, want []byte) {
		defer c.Close()
		var wg sync.WaitGroup
		wg.Go(func() {
			for rest := send; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(300_000))
				if _, err := c.Write(rest[:n]); !assert.NoError(t, err) {
					return
				}
				rest = rest[n:]
			}
			closeWrite(t, c)
		})
		sum, n, err := slowly(c)
		assert.NoError(t, err)
		assert.Equal(t, len(want), n)
		assert.Equal(t, sha256.Sum256(want), sum)
		wg.Wait()
	}
	_, local := forwarded(t, func(c net.Conn) { both(t, c, down, up) })
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			c, err := net.Dial("tcp", local)
			if assert.NoError(t, err) {
				both(t, c, up, down)
			}
		})
	}
	wg.Wait()
	assert.Eventually(t, func() bool { return tlsconn.BuffersInUse() == 0 }, time.Minute, 10*time.Millisecond)
}

// TestBuffersComeBackFromBrokenRelays: flows that are reset in the midst of bulk
// leave no buffer behind.
func TestBuffersComeBackFromBrokenRelays(t *testing.T) {
	_, local := forwarded(t, func(c net.Conn) {
		_, _ = io.CopyN(io.Discard, c, rand.Int64N(1<<20))
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			c, err := net.Dial("tcp", local)
			if !assert.NoError(t, err) {
				return
			}
			defer c.Close()
			for err == nil {
				_, err = c.Write(make([]byte, 100_000))
			}
		})
	}
	wg.Wait()
	assert.Eventually(t, func() bool { return tlsconn.BuffersInUse() == 0 }, time.Minute, 10*time.Millisecond)
}

// TestDayCapHoldsForRelayedBytes: what is written to a destination without
// waking the flow's own reader is paid for all the same.
func TestDayCapHoldsForRelayedBytes(t *testing.T) {
	const day = 3 << 20
	got := make(chan int, 1)
	r, local := forwarded(t, func(c net.Conn) {
		defer c.Close()
		_, n, _ := slowly(c)
		got <- n
	}, func(r *rig) { r.gatewayC.Limits.BytesPerDay = day })
	c, err := net.Dial("tcp", local)
	require.NoError(t, err)
	defer c.Close()
	for sent := 0; err == nil && sent < 16*day; {
		var n int
		n, err = c.Write(make([]byte, 10_000))
		sent += n
	}
	assert.Error(t, err)
	n := <-got
	assert.LessOrEqual(t, n, day)
	rec := r.gate.flow(t, "capped", func(f tlsconn.FlowRecord) bool { return f.Code == tlsconn.CodeLimit })
	assert.Contains(t, rec.Reason, "of this day are used up")
}

// TestRateHoldsForRelayedBytes: a node's bytes per second bound what reaches a
// destination, whoever writes them there.
func TestRateHoldsForRelayedBytes(t *testing.T) {
	const rate = 1 << 20
	done := make(chan time.Duration, 1)
	began := time.Now()
	_, local := forwarded(t, func(c net.Conn) {
		defer c.Close()
		_, n, err := slowly(c)
		assert.NoError(t, err)
		assert.Equal(t, 2*rate, n)
		done <- time.Since(began)
	}, func(r *rig) { r.gatewayC.Limits.BytesPerSecond = rate })
	c, err := net.Dial("tcp", local)
	require.NoError(t, err)
	defer c.Close()
	for range 2 * rate / 4096 {
		_, err := c.Write(make([]byte, 4096))
		require.NoError(t, err)
	}
	closeWrite(t, c)
	assert.Greater(t, <-done, time.Second, "two seconds' worth, of which a quarter of a second's may come at once")
}

// TestLastWordsArriveWithTheEnd: bytes that come together with the end of a TLS
// connection are relayed before it.
func TestLastWordsArriveWithTheEnd(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, size := range []int{1, 100, 400, 5000, 16 << 10, 300_000} {
			t.Run(fmt.Sprintf("%s/%d", tls.VersionName(version), size), func(t *testing.T) { lastWords(t, version, size) })
		}
	}
}

func lastWords(t *testing.T, version uint16, size int) {
	ca := newCA(t, "ca")
	cfg := tlsconn.Config{Identity: ca.identity(gatewayName), Trust: ca.trust(), Authorize: allow(t, nodeName), InsecureTLS12: true}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	dst, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer dst.Close()
	said := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		raw, err := ln.Accept()
		if !assert.NoError(t, err) {
			return
		}
		s, _, err := cfg.PlainServer(context.Background(), raw)
		if !assert.NoError(t, err) {
			return
		}
		far, err := net.Dial("tcp", dst.Addr().String())
		if !assert.NoError(t, err) {
			return
		}
		<-said // all of it is here
		_, _, err = tlsconn.Relay(context.Background(), s, far)
		assert.NoError(t, err)
	})
	c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{ca.pair(nodeName)}, MaxVersion: version})
	require.NoError(t, err)
	words := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(words)
	_, err = c.Write(words)
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	close(said)
	d, err := dst.Accept()
	require.NoError(t, err)
	got, err := io.ReadAll(d)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(words, got), "%d bytes of %d", len(got), size)
	require.NoError(t, d.Close())
	_, err = io.ReadAll(c)
	require.NoError(t, err)
	require.NoError(t, c.Close())
}
