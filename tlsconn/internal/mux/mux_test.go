package mux_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-yamux/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var options = mux.Options{MaxStreams: 16, Window: 1 << 20, KeepAlive: time.Minute, WriteTimeout: time.Minute, LimitCode: 6}

// sockets returns two connected TCP sockets.
func sockets(tb require.TestingT) (a, b net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	defer ln.Close()
	a, err = net.Dial("tcp", ln.Addr().String())
	require.NoError(tb, err)
	b, err = ln.Accept()
	require.NoError(tb, err)
	return a, b
}

// pair returns two ends of a session.
func pair(tb require.TestingT, o mux.Options) (client, server mux.Session, cut func()) {
	a, b := sockets(tb)
	client, err := mux.New(a, true, o)
	require.NoError(tb, err)
	server, err = mux.New(b, false, o)
	require.NoError(tb, err)
	return client, server, func() {
		_ = a.Close()
		_ = b.Close()
		<-client.Done()
		<-server.Done()
	}
}

// stream opens a stream and accepts it.
func stream(tb require.TestingT, client, server mux.Session) (a, b mux.Stream) {
	a, err := client.Open(context.Background())
	require.NoError(tb, err)
	_, err = a.Write([]byte("o"))
	require.NoError(tb, err)
	b, err = server.Accept()
	require.NoError(tb, err)
	_, err = io.ReadFull(b, make([]byte, 1))
	require.NoError(tb, err)
	return a, b
}

func TestHalfCloseBothWays(t *testing.T) {
	client, server, cut := pair(t, options)
	defer cut()
	a, b := stream(t, client, server)
	up, down := bytes.Repeat([]byte("up"), 3<<20), bytes.Repeat([]byte("down"), 1<<20)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := a.Write(up)
		assert.NoError(t, err)
		assert.NoError(t, a.CloseWrite())
	})
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	assert.Equal(t, sha256.Sum256(up), sha256.Sum256(got))
	wg.Go(func() {
		_, err := b.Write(down)
		assert.NoError(t, err)
		assert.NoError(t, b.Close())
	})
	got, err = io.ReadAll(a)
	require.NoError(t, err)
	assert.Equal(t, sha256.Sum256(down), sha256.Sum256(got))
	wg.Wait()
	_, err = a.Write([]byte("x"))
	assert.ErrorIs(t, err, net.ErrClosed)
}

func TestEndsThatAreNotAnEndOfFile(t *testing.T) {
	for name, c := range map[string]struct {
		act  func(client mux.Session, a mux.Stream, conn net.Conn)
		want func(t *testing.T, err error)
	}{
		"stream reset": {func(_ mux.Session, a mux.Stream, _ net.Conn) { _ = a.Reset(77) }, func(t *testing.T, err error) {
			assert.Equal(t, &mux.ResetError{Code: 77, Remote: true}, err)
		}},
		"session aborted": {func(s mux.Session, _ mux.Stream, _ net.Conn) { _ = s.Abort(5) }, func(t *testing.T, err error) {
			assert.Equal(t, &mux.ResetError{Code: 5, Remote: true, Session: true}, err)
		}},
		"connection lost": {func(_ mux.Session, _ mux.Stream, conn net.Conn) { _ = conn.Close() }, func(t *testing.T, err error) {
			assert.ErrorIs(t, err, mux.ErrCut)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			x, y := sockets(t)
			client, err := mux.New(x, true, options)
			require.NoError(t, err)
			server, err := mux.New(y, false, options)
			require.NoError(t, err)
			a, b := stream(t, client, server)
			c.act(client, a, x)
			_, err = b.Read(make([]byte, 1))
			c.want(t, err)
			_, err = b.Write([]byte("x"))
			assert.Error(t, err)
			_ = client.Abort(1)
			_ = server.Abort(1)
		})
	}
}

// gate is a connection whose writes wait to be let through.
type gate struct {
	net.Conn
	open   chan struct{}
	mu     sync.Mutex
	writes [][]byte
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	g.writes = append(g.writes, bytes.Clone(b))
	g.mu.Unlock()
	return g.Conn.Write(b)
}

// TestControlGoesBeforeBulk: a short write, and an answer, overtake bulk frames
// that wait for a slow connection, and streams of bulk take turns.
func TestControlGoesBeforeBulk(t *testing.T) {
	x, y := sockets(t)
	g := &gate{Conn: x, open: make(chan struct{})}
	client, err := mux.New(g, true, options)
	require.NoError(t, err)
	server, err := mux.New(y, false, options)
	require.NoError(t, err)
	defer func() { _ = server.Abort(1) }()
	defer func() { _ = client.Abort(1) }()
	const bulk = 4
	var wg sync.WaitGroup
	var streams []mux.Stream
	for range bulk + 1 {
		s, err := client.Open(context.Background())
		require.NoError(t, err)
		streams = append(streams, s)
	}
	for _, s := range streams[:bulk] {
		wg.Go(func() { _, _ = s.Write(make([]byte, 2*mux.MinTurn)) })
	}
	require.Eventually(t, func() bool { // all of them wait
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		return bytes.Count(stacks, []byte("mux.(*sender).data(")) == bulk
	}, 10*time.Second, time.Millisecond)
	time.Sleep(10 * time.Millisecond)
	done := make(chan struct{})
	go func() { _, _ = streams[bulk].Write([]byte("alarm")); close(done) }()
	select {
	case <-done: // it does not wait for the connection
	case <-time.After(10 * time.Second):
		t.Fatal("a short write waits behind bulk")
	}
	close(g.open)
	wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	var order []uint32
	for _, w := range g.writes {
		for len(w) >= 12 && w[0] == 0 && w[1] <= 3 && binary.BigEndian.Uint32(w[4:]) != 0 {
			n := 0
			if w[1] == 0 {
				order = append(order, binary.BigEndian.Uint32(w[4:]))
				n = int(binary.BigEndian.Uint32(w[8:]))
			}
			w = w[min(12+n, len(w)):]
		}
	}
	require.Len(t, order, 2*bulk+1)
	assert.EqualValues(t, 9, order[1], "the short write follows the frame that was under way")
	order = append(order[:1], order[2:]...)
	assert.ElementsMatch(t, []uint32{1, 3, 5, 7}, order[:bulk], "bulk takes turns")
}

func TestUnreadStreamCostsItsWindowOnly(t *testing.T) {
	client, server, cut := pair(t, options)
	defer cut()
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 8 {
		a, _ := stream(t, client, server)
		defer func() { _ = a.Reset(1) }()
		wg.Go(func() { _, _ = a.Write(make([]byte, 4<<20)) })
	}
	a, b := stream(t, client, server)
	for range 100 {
		_, err := a.Write([]byte("ping"))
		require.NoError(t, err)
		_, err = io.ReadFull(b, make([]byte, 4))
		require.NoError(t, err)
	}
}

func TestTooManyStreamsAreResetWithTheCode(t *testing.T) {
	client, server, cut := pair(t, options)
	defer cut()
	for range options.MaxStreams {
		stream(t, client, server)
	}
	s, err := client.Open(context.Background())
	require.NoError(t, err)
	_, err = s.Write([]byte("x"))
	require.NoError(t, err)
	_, err = s.Read(make([]byte, 1))
	assert.Equal(t, &mux.ResetError{Code: options.LimitCode, Remote: true}, err)
}

func TestDeadlines(t *testing.T) {
	client, server, cut := pair(t, options)
	defer cut()
	a, b := stream(t, client, server)
	require.NoError(t, b.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err := b.Read(make([]byte, 1))
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	assert.True(t, ne.Timeout())
	require.NoError(t, a.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = a.Write(make([]byte, 4<<20)) // nobody reads
	require.ErrorAs(t, err, &ne)
	require.NoError(t, b.SetReadDeadline(time.Time{}))
	n, err := b.Read(make([]byte, 10))
	require.NoError(t, err)
	assert.Equal(t, 10, n)
}

func TestSilentPeerIsGivenUp(t *testing.T) {
	a, b := sockets(t)
	defer b.Close()
	o := options
	o.KeepAlive, o.WriteTimeout = 20*time.Millisecond, 60*time.Millisecond
	s, err := mux.New(a, true, o)
	require.NoError(t, err)
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the session stayed")
	}
	_, err = s.Accept()
	assert.ErrorIs(t, err, mux.ErrCut)
}

// TestPeerThatBreaksTheProtocol: each ends the session; none panics.
func TestPeerThatBreaksTheProtocol(t *testing.T) {
	frame := func(version, kind byte, flags uint16, id, length uint32, body ...byte) []byte {
		b := []byte{version, kind}
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint32(b, id)
		return append(binary.BigEndian.AppendUint32(b, length), body...)
	}
	for name, bytes := range map[string][]byte{
		"unknown version":        frame(1, 0, 1, 1, 0),
		"unknown type":           frame(0, 4, 1, 1, 0),
		"stream of our side":     frame(0, 1, 1, 2, 0),
		"stream zero":            frame(0, 1, 1, 0, 0),
		"stream opened twice":    append(frame(0, 1, 1, 1, 0), frame(0, 1, 1, 1, 0)...),
		"more than the window":   frame(0, 0, 1, 1, mux.MinWindow+1),
		"window of the sky":      append(frame(0, 1, 1, 1, 0), frame(0, 1, 0, 1, 1<<31)...),
		"frame of 4 GiB":         frame(0, 0, 0, 3, 0xffffffff),
		"bytes after the end":    append(frame(0, 0, 5, 1, 1, 'x'), frame(0, 0, 0, 1, 1, 'y')...),
		"cut within a frame":     frame(0, 0, 1, 1, 100, 'x'),
		"session ends by a code": frame(0, 3, 0, 0, 9),
	} {
		t.Run(name, func(t *testing.T) {
			a, b := sockets(t)
			s, err := mux.New(b, false, options)
			require.NoError(t, err)
			_, err = a.Write(bytes)
			require.NoError(t, err)
			require.NoError(t, a.(*net.TCPConn).CloseWrite())
			<-s.Done()
			for {
				_, err = s.Accept()
				if err != nil {
					break
				}
			}
			assert.NotErrorIs(t, err, io.EOF)
			_ = a.Close()
		})
	}
}

// TestSpeaksWithYamux lets go-yamux be the other end, in both roles.
func TestSpeaksWithYamux(t *testing.T) {
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = io.Discard
	for _, ours := range []string{"client", "server"} {
		t.Run("ours is the "+ours, func(t *testing.T) {
			a, b := sockets(t)
			s, err := mux.New(a, ours == "client", options)
			require.NoError(t, err)
			start := yamux.Server
			if ours == "server" {
				start = yamux.Client
			}
			y, err := start(b, cfg, nil)
			require.NoError(t, err)
			defer y.Close()
			echo := func(c io.ReadWriteCloser, closeWrite func() error) {
				_, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				if err == nil {
					_ = closeWrite()
				}
			}
			go func() {
				for {
					c, err := y.AcceptStream()
					if err != nil {
						return
					}
					go echo(c, c.CloseWrite)
				}
			}()
			go func() {
				for {
					c, err := s.Accept()
					if err != nil {
						return
					}
					go echo(c, c.CloseWrite)
				}
			}()
			msg := bytes.Repeat([]byte("frame"), 1<<20)
			trip := func(c io.ReadWriter, closeWrite func() error) {
				go func() { _, _ = c.Write(msg); _ = closeWrite() }()
				got, err := io.ReadAll(c)
				require.NoError(t, err)
				assert.Equal(t, sha256.Sum256(msg), sha256.Sum256(got))
			}
			for range 3 {
				c, err := s.Open(context.Background())
				require.NoError(t, err)
				trip(c, c.CloseWrite)
				d, err := y.OpenStream(context.Background())
				require.NoError(t, err)
				trip(d, d.CloseWrite)
			}
			d, err := y.OpenStream(context.Background())
			require.NoError(t, err)
			_, err = d.Write([]byte("x"))
			require.NoError(t, err)
			_, err = io.ReadFull(d, make([]byte, 1))
			require.NoError(t, err)
			_ = s.Abort(42)
			_, err = d.Read(make([]byte, 1))
			var ga *yamux.GoAwayError
			if errors.As(err, &ga) {
				assert.EqualValues(t, 42, ga.ErrorCode)
			}
			require.Error(t, err)
			assert.NotErrorIs(t, err, io.EOF)
		})
	}
}
