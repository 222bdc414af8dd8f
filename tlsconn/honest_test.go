package tlsconn_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
)

// forward starts a Forwarder to address and returns where it listens.
func (r *rig) forward(address string) string {
	r.tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r.tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.client.Forward(ctx, ln, "tcp", address) })
	r.tb.Cleanup(func() { cancel(); wg.Wait() })
	return ln.Addr().String()
}

// wires lets a test cut the connection to the gateway.
type wires struct {
	mu    sync.Mutex
	conns []*net.TCPConn
}

func (w *wires) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err == nil {
		w.mu.Lock()
		w.conns = append(w.conns, c.(*net.TCPConn))
		w.mu.Unlock()
	}
	return c, err
}

func (w *wires) cut(reset bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		if reset {
			_ = c.SetLinger(0)
		}
		_ = c.Close()
	}
	w.conns = nil
}

// TestTruncatedUploadIsNeverACleanEnd: the field's proxies turn these into a
// clean end of file, so that a cut camera clip looks complete.
func TestTruncatedUploadIsNeverACleanEnd(t *testing.T) {
	const size = 300_000
	for name, abort := range map[string]func(t *testing.T, app *net.TCPConn, w *wires){
		"application resets": func(t *testing.T, app *net.TCPConn, _ *wires) {
			require.NoError(t, app.SetLinger(0))
			require.NoError(t, app.Close())
		},
		"tunnel's network resets":       func(_ *testing.T, _ *net.TCPConn, w *wires) { w.cut(true) },
		"tunnel ends by a bare TCP FIN": func(_ *testing.T, _ *net.TCPConn, w *wires) { w.cut(false) },
	} {
		t.Run(name, func(t *testing.T) {
			dst := newCounter(t)
			w := &wires{}
			r := newRig(t, []tlsconn.Rule{loopbackRule(dst.port())}, func(r *rig) { r.clientC.DialGateway = w.dial })
			r.up()
			app, err := net.Dial("tcp", r.forward(dst.Addr().String()))
			require.NoError(t, err)
			defer app.Close()
			_, err = app.Write(make([]byte, size))
			require.NoError(t, err)
			require.Eventually(t, func() bool { return dst.n.Load() == size }, waitTime, tickTime)
			abort(t, app.(*net.TCPConn), w)
			end := <-dst.end
			assert.False(t, errors.Is(end, io.EOF), "destination saw a clean end")
			f := r.gate.flow(t, "gateway's record", func(f tlsconn.FlowRecord) bool { return f.Up == size })
			assert.True(t, f.Truncated)
			assert.NotEqual(t, tlsconn.CodeOK, f.Code)
		})
	}
}

func TestTruncatedDownloadIsNeverACleanEnd(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(make([]byte, 100_000))
			b := make([]byte, 1)
			_, _ = io.ReadFull(c, b) // the client has it all
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	r := newRig(t, []tlsconn.Rule{loopbackRule(port)})
	app, err := net.Dial("tcp", r.forward(ln.Addr().String()))
	require.NoError(t, err)
	defer app.Close()
	_, err = io.ReadFull(app, make([]byte, 100_000))
	require.NoError(t, err)
	_, err = app.Write([]byte("x"))
	require.NoError(t, err)
	_, err = app.Read(make([]byte, 1))
	require.Error(t, err)
	assert.NotErrorIs(t, err, io.EOF)
	f := r.node.flow(t, "node's record", func(f tlsconn.FlowRecord) bool { return f.Down == 100_000 })
	assert.True(t, f.Truncated)
}

func TestHalfCloseThroughForwarder(t *testing.T) {
	reply := bytes.Repeat([]byte("down"), 1<<18)
	s := newSink(t, reply)
	r := newRig(t, []tlsconn.Rule{loopbackRule(s.port())})
	app, err := net.Dial("tcp", r.forward(s.Addr().String()))
	require.NoError(t, err)
	defer app.Close()
	up := bytes.Repeat([]byte("up"), 3<<19)
	_, err = app.Write(up)
	require.NoError(t, err)
	require.NoError(t, app.(*net.TCPConn).CloseWrite())
	got := <-s.got
	require.NoError(t, got.err)
	assert.Equal(t, sha256.Sum256(up), got.sum)
	back, err := io.ReadAll(app)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(reply, back))
}

// TestPlainTransportEndWithoutCloseNotify: crypto/tls itself reports a clean end
// when TCP ends between two records.
func TestPlainTransportEndWithoutCloseNotify(t *testing.T) {
	for name, clean := range map[string]bool{"with close_notify": true, "bare TCP FIN": false} {
		t.Run(name, func(t *testing.T) {
			ca := newCA(t, "ca")
			cfg := func(name, peer string) tlsconn.Config {
				return tlsconn.Config{Identity: ca.identity(name), Trust: ca.trust(), Authorize: allow(t, peer)}
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer ln.Close()
			got := make(chan error, 1)
			go func() {
				raw, err := ln.Accept()
				if err != nil {
					got <- err
					return
				}
				s, p, err := cfg(gatewayName, nodeName).PlainServer(context.Background(), raw)
				if err == nil {
					assert.Equal(t, nodeName, p.ID.String())
					_, err = io.Copy(io.Discard, s)
					_ = s.Close()
				}
				got <- err
			}()
			raw, err := net.Dial("tcp", ln.Addr().String())
			require.NoError(t, err)
			c, _, err := cfg(nodeName, gatewayName).PlainClient(context.Background(), raw)
			require.NoError(t, err)
			_, err = c.Write(make([]byte, 300_000))
			require.NoError(t, err)
			if clean {
				require.NoError(t, c.Close())
				require.NoError(t, <-got)
				return
			}
			require.NoError(t, raw.Close())
			assert.ErrorIs(t, <-got, io.ErrUnexpectedEOF)
		})
	}
}
