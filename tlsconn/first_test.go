package tlsconn_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tlsconn"
	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// frame returns a frame as the wire has it.
func frame(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// skipFrame reads one frame and not a byte more.
func skipFrame(s io.Reader) error {
	var n uint32
	err := binary.Read(s, binary.BigEndian, &n)
	if err == nil {
		_, err = io.CopyN(io.Discard, s, int64(n))
	}
	return err
}

// scripted is a gateway whose answers to flows a test writes.
func scripted(flow func(s mux.Stream)) func(*rig) {
	return func(r *rig) {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{r.ca.pair(gatewayName)}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"trusttree-tunnel/1"}, SessionTicketsDisabled: true})
		require.NoError(r.tb, err)
		r.clientC.Gateways = []string{ln.Addr().String()}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					if c.(*tls.Conn).Handshake() != nil {
						return
					}
					sess, err := mux.New(c, false, mux.Options{MaxStreams: 16, Window: mux.MinWindow, KeepAlive: time.Minute, WriteTimeout: time.Minute})
					if err != nil {
						return
					}
					defer func() { _ = sess.Abort(1) }()
					ctl, err := sess.Accept()
					if err != nil || skipFrame(ctl) != nil || skipFrame(ctl) != nil {
						return
					}
					_, _ = ctl.Write(frame(hello))
					for {
						s, err := sess.Accept()
						if err != nil {
							return
						}
						wg.Go(func() {
							if skipFrame(s) == nil {
								flow(s)
							}
						})
					}
				})
			}
		})
		r.tb.Cleanup(func() {
			_ = ln.Close()
			_ = r.client.Close()
			wg.Wait()
		})
	}
}

// early has an application send before the forwarder looks, and returns its end.
func (r *rig) early(address, first string) *net.TCPConn {
	r.tb.Helper()
	r.up()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r.tb, err)
	app, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(r.tb, err)
	_, err = io.WriteString(app, first)
	require.NoError(r.tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.client.Forward(ctx, ln, "tcp", address) })
	r.tb.Cleanup(func() { _ = app.Close(); cancel(); wg.Wait() })
	return app.(*net.TCPConn)
}

const accepted = `{"version":1,"code":0}`

// TestFirstBytesGoWithTheOpenFrame: the gateway has them before it has answered,
// and may answer and send in one piece.
func TestFirstBytesGoWithTheOpenFrame(t *testing.T) {
	got := make(chan string, 1)
	r := newRig(t, []tlsconn.Rule{serviceRule("svc")}, scripted(func(s mux.Stream) {
		b := make([]byte, 5)
		_, _ = io.ReadFull(s, b)
		_, _ = s.Write(append(frame(accepted), "world"...))
		rest, _ := io.ReadAll(s)
		got <- string(b) + string(rest)
		_ = s.CloseWrite()
	}))
	app := r.early("svc", "hello")
	b := make([]byte, 5)
	_, err := io.ReadFull(app, b)
	require.NoError(t, err)
	assert.Equal(t, "world", string(b))
	_, err = io.WriteString(app, ", again")
	require.NoError(t, err)
	require.NoError(t, app.CloseWrite())
	assert.Equal(t, "hello, again", <-got)
	_, err = app.Read(b)
	require.ErrorIs(t, err, io.EOF)
	f := r.node.flow(t, "record", func(tlsconn.FlowRecord) bool { return true })
	assert.EqualValues(t, 12, f.Up)
	assert.EqualValues(t, 5, f.Down)
}

// TestFirstBytesThatAreNotTaken: whatever comes instead of an answer that admits
// the flow resets the application, is audited, and is never tried twice once the
// bytes may have been taken.
func TestFirstBytesThatAreNotTaken(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(s mux.Stream)
		want   tlsconn.FlowRecord
	}{
		"refused": {func(s mux.Stream) { _, _ = s.Write(frame(`{"version":1,"code":1,"rule":"gate","reason":"no"}`)) },
			tlsconn.FlowRecord{Code: tlsconn.CodeDenied, DecidedBy: tlsconn.AtGateway, Rule: "gate"}},
		"reset instead of an answer": {func(s mux.Stream) { _ = s.Reset(uint32(tlsconn.CodeLimit)) },
			tlsconn.FlowRecord{Code: tlsconn.CodeLimit, DecidedBy: tlsconn.AtGateway, Rule: "services", Up: 5, Truncated: true}},
		"malformed": {func(s mux.Stream) { _, _ = s.Write(frame(`{"version":1,"code":0,"admin":true}`)) },
			tlsconn.FlowRecord{Code: tlsconn.CodeProtocol, DecidedBy: tlsconn.AtNode, Rule: "services", Up: 5, Truncated: true}},
		"too long": {func(s mux.Stream) { _, _ = s.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")) },
			tlsconn.FlowRecord{Code: tlsconn.CodeProtocol, DecidedBy: tlsconn.AtNode, Rule: "services", Up: 5, Truncated: true}},
		"end instead of an answer": {func(s mux.Stream) { _ = s.CloseWrite() },
			tlsconn.FlowRecord{Code: tlsconn.CodeReset, DecidedBy: tlsconn.AtNode, Rule: "services", Up: 5, Truncated: true}},
		"tunnel ends": {nil,
			tlsconn.FlowRecord{Code: tlsconn.CodeReset, DecidedBy: tlsconn.AtNode, Rule: "services", Up: 5, Truncated: true}},
		"never": {func(mux.Stream) {},
			tlsconn.FlowRecord{Code: tlsconn.CodeTimeout, DecidedBy: tlsconn.AtNode, Rule: "services", Up: 5, Truncated: true}},
	} {
		t.Run(name, func(t *testing.T) {
			var flows atomic.Int32
			w := &wires{}
			r := newRig(t, []tlsconn.Rule{serviceRule("svc")}, func(r *rig) {
				r.clientC.Limits.OpenTimeout, r.clientC.DialGateway = 100*time.Millisecond, w.dial
			}, scripted(func(s mux.Stream) {
				flows.Add(1)
				_, _ = io.ReadFull(s, make([]byte, 5))
				if c.answer == nil {
					w.cut(true)
					return
				}
				c.answer(s)
			}))
			app := r.early("svc", "hello")
			_ = app.SetReadDeadline(time.Now().Add(3 * waitTime))
			_, err := app.Read(make([]byte, 1))
			require.ErrorIs(t, err, syscall.ECONNRESET)
			f := r.node.flow(t, "record", func(tlsconn.FlowRecord) bool { return true })
			if c.answer != nil {
				assert.Equal(t, tlsconn.VerdictDenied, f.Verdict)
			}
			assert.Equal(t, c.want, tlsconn.FlowRecord{Code: f.Code, DecidedBy: f.DecidedBy, Rule: f.Rule, Up: f.Up, Truncated: f.Truncated}, f.Reason)
			assert.EqualValues(t, 1, flows.Load(), "tried once")
		})
	}
}

// TestFirstBytesFindAnotherTunnel: a far end that drains has not taken them.
func TestFirstBytesFindAnotherTunnel(t *testing.T) {
	var flows atomic.Int32
	r := newRig(t, []tlsconn.Rule{serviceRule("svc")}, scripted(func(s mux.Stream) {
		if flows.Add(1) == 1 {
			_, _ = s.Write(frame(`{"version":1,"code":8}`))
			_ = s.Close()
			return
		}
		_, _ = s.Write(frame(accepted))
		_, _ = io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{s})
		_ = s.CloseWrite()
	}))
	app := r.early("svc", "hello")
	require.NoError(t, app.CloseWrite())
	got, err := io.ReadAll(app)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(got))
	assert.EqualValues(t, 2, flows.Load())
}

// TestFirstBytesAreInspectedBeforeTheyLeave: a rule on content holds them back.
func TestFirstBytesAreInspectedBeforeTheyLeave(t *testing.T) {
	left := make(chan int, 1)
	rule := loopbackRule("80")
	rule.HTTPHosts = []string{"good.example"}
	r := newRig(t, []tlsconn.Rule{rule}, scripted(func(s mux.Stream) {
		_, _ = s.Write(frame(accepted))
		n, _ := io.Copy(io.Discard, struct{ io.Reader }{s})
		left <- int(n)
	}))
	app := r.early("127.0.0.1:80", "GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n")
	_, err := app.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	assert.Zero(t, <-left)
	f := r.node.flow(t, "record", func(f tlsconn.FlowRecord) bool { return f.Code == tlsconn.CodeDenied })
	assert.Zero(t, f.Up)
}

// TestFirstBytesAreCountedAtBothEnds, admitted and denied.
func TestFirstBytesAreCountedAtBothEnds(t *testing.T) {
	r := newRig(t, []tlsconn.Rule{serviceRule("echo", "closed")})
	r.echo("echo")
	require.NoError(t, r.gatePolicy.Set(&tlsconn.Policy{Version: 1, Serial: 2, Rules: []tlsconn.Rule{serviceRule("echo")}}))
	app := r.early("echo", "hello")
	require.NoError(t, app.CloseWrite())
	got, err := io.ReadAll(app)
	require.NoError(t, err)
	assert.Equal(t, "hello", string(got))
	_, err = r.early("closed", "hello").Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	for name, side := range map[string]*records{"node": r.node, "gateway": r.gate} {
		f := side.flow(t, name, func(f tlsconn.FlowRecord) bool { return f.Target == "tcp!echo" })
		assert.Equal(t, tlsconn.VerdictAllowed, f.Verdict, name)
		assert.False(t, f.Truncated, "%s: %s", name, f.Reason)
		assert.EqualValues(t, [2]uint64{5, 5}, [2]uint64{f.Up, f.Down}, name)
		f = side.flow(t, name, func(f tlsconn.FlowRecord) bool { return f.Target == "tcp!closed" })
		assert.Equal(t, tlsconn.VerdictDenied, f.Verdict, name)
		assert.Equal(t, tlsconn.AtGateway, f.DecidedBy, name)
		assert.EqualValues(t, [2]uint64{0, 0}, [2]uint64{f.Up, f.Down}, name)
	}
}
