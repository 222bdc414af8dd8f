// Package mux is the small interface behind which a tunnel's streams live, so
// that the multiplexer can be replaced. The implementation is yamux (the
// libp2p variant): no receive window is shared between streams, a cut session
// is never an end of file, and resets carry a code.
package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/libp2p/go-yamux/v5"
)

// Session is one connection's set of streams.
type Session interface {
	Open(ctx context.Context) (Stream, error)
	Accept() (Stream, error)
	NumStreams() int
	// Abort ends the session and tells the peer the code if the connection
	// still takes it. It may block while a write is stuck; closing the
	// connection below unblocks it.
	Abort(code uint32) error
	Done() <-chan struct{}
}

// Stream is a bidirectional byte stream with half-close and reset.
type Stream interface {
	net.Conn
	CloseWrite() error
	CloseRead() error
	Reset(code uint32) error
}

// ResetError says that a stream, or its whole session, was reset with a code.
type ResetError struct {
	Code    uint32
	Remote  bool
	Session bool // the whole session ended
}

func (e *ResetError) Error() string {
	who, what := "locally", "stream"
	if e.Remote {
		who = "by the peer"
	}
	if e.Session {
		what = "session"
	}
	return fmt.Sprintf("%s reset %s with code %d", what, who, e.Code)
}

// ErrCut says that the session ended without a code: the connection was lost.
var ErrCut = errors.New("session cut")

// Options bound a session.
type Options struct {
	MaxStreams   uint32 // incoming, concurrent
	Window       uint32 // bytes that one stream may have unread
	KeepAlive    time.Duration
	WriteTimeout time.Duration // a connection that takes no byte for so long is dead
}

// frameSize is the most that one stream sends before the next gets its turn.
const frameSize = 64 << 10

// MaxPayload is what one frame carries; its header has twelve bytes.
const MaxPayload = frameSize - 12

// readBuffer is the size of the session's read buffer in bytes.
const readBuffer = 64 << 10

// backlog is how many streams may wait to be accepted.
const backlog = 64

// MinWindow is the smallest window that the protocol knows.
const MinWindow = 256 << 10

// New starts a session over conn. It owns conn.
func New(conn net.Conn, client bool, o Options) (Session, error) {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = backlog
	c.MaxIncomingStreams = o.MaxStreams
	c.InitialStreamWindowSize = MinWindow
	c.MaxStreamWindowSize = o.Window
	c.EnableKeepAlive = true
	c.KeepAliveInterval = o.KeepAlive
	c.ConnectionWriteTimeout = o.WriteTimeout
	c.MaxMessageSize = frameSize
	c.ReadBufSize = readBuffer
	c.LogOutput = io.Discard
	start := yamux.Server
	if client {
		start = yamux.Client
	}
	s, err := start(conn, c, nil)
	if err != nil {
		return nil, err
	}
	return session{s}, nil
}

type session struct{ s *yamux.Session }

func (s session) Open(ctx context.Context) (Stream, error) {
	st, err := s.s.OpenStream(ctx)
	if err != nil {
		return nil, translate(err)
	}
	return stream{st}, nil
}

func (s session) Accept() (Stream, error) {
	st, err := s.s.AcceptStream()
	if err != nil {
		return nil, translate(err)
	}
	return stream{st}, nil
}

func (s session) NumStreams() int         { return s.s.NumStreams() }
func (s session) Abort(code uint32) error { return s.s.CloseWithError(code) }
func (s session) Done() <-chan struct{}   { return s.s.CloseChan() }

type stream struct{ *yamux.Stream }

func (s stream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	if n > 0 {
		// What follows a window update that could not be sent shows in the
		// next read; the bytes are good.
		return n, nil
	}
	return n, translate(err)
}

func (s stream) Write(b []byte) (int, error) {
	n, err := s.Stream.Write(b)
	return n, translate(err)
}

func (s stream) CloseWrite() error       { return translate(s.Stream.CloseWrite()) }
func (s stream) Reset(code uint32) error { return translate(s.ResetWithError(code)) }

// translate keeps io.EOF (a clean end of the stream) apart from every other
// end, and takes yamux's types off.
func translate(err error) error {
	var se *yamux.StreamError
	var ga *yamux.GoAwayError
	switch {
	case err == nil || err == io.EOF:
		return err
	case errors.As(err, &se):
		return &ResetError{Code: se.ErrorCode, Remote: se.Remote}
	case errors.As(err, &ga):
		if ga.ErrorCode == 0 {
			return ErrCut
		}
		return &ResetError{Code: ga.ErrorCode, Remote: ga.Remote, Session: true}
	case errors.Is(err, yamux.ErrTimeout):
		return os.ErrDeadlineExceeded
	case errors.Is(err, yamux.ErrStreamClosed):
		return net.ErrClosed
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, yamux.ErrStreamReset) && !errors.Is(err, yamux.ErrSessionShutdown) && err.Error() == yamux.ErrStreamReset.Error():
		return &ResetError{Remote: true}
	}
	return fmt.Errorf("%w: %w", ErrCut, err)
}
