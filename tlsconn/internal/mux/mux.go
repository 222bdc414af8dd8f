// Package mux is the multiplexer of a tunnel's streams. It speaks the protocol
// of yamux (the libp2p variant, in which resets and the end of a session carry
// a code), so that it interoperates with github.com/libp2p/go-yamux/v5, and
// adds what a tunnel needs:
//
//   - What is small goes first. Window updates, answers, resets and short writes
//     overtake the frames of bulk streams, which take turns one frame at a time;
//     frames are the smaller the slower the connection takes them.
//   - What waits together is written together: one record, one system call.
//   - A stream's payload is not copied on its way out, may be read from its source
//     when its turn has come, and no goroutine is woken to send it when no one
//     else sends, nor to receive it when a sink takes it.
//   - No receive window is shared, so a stream that nobody reads costs its own
//     window and slows no other. Memory is bounded by streams × window, however
//     small the pieces are in which it comes.
//
// A session that was cut is never an end of file.
package mux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Session is one connection's set of streams.
type Session interface {
	Open(ctx context.Context) (Stream, error)
	Accept() (Stream, error)
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
	// WriteLoaded writes what load returns when the stream's turn has come.
	WriteLoaded(load func(room int) ([]byte, error)) (int, error)
	// SetSink has what comes while a Read waits be given to sink, which takes
	// what it can without waiting.
	SetSink(sink func([]byte) int)
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

// errProtocol says that the peer broke the protocol; the session is cut.
var errProtocol = errors.New("multiplexing protocol broken")

// Options bound a session.
type Options struct {
	MaxStreams   uint32 // incoming, concurrent
	Window       uint32 // bytes that one stream may have unread
	KeepAlive    time.Duration
	WriteTimeout time.Duration // a connection that takes or brings no byte for so long is dead
	LimitCode    uint32        // of the reset of streams beyond MaxStreams
}

// A stream sends so many bytes in one frame before the next gets its turn: the
// fewer the slower the connection takes them.
const (
	MinTurn = 64 << 10
	MaxTurn = 256 << 10
)

// MinWindow is the smallest window that the protocol knows.
const MinWindow = 256 << 10

// Frames: a header of version, type, flags, stream and length, big-endian.
const (
	headerSize = 12

	typeData   = 0 // length bytes follow
	typeWindow = 1 // length is how many bytes more may be sent, or a reset's code
	typePing   = 2 // length is echoed
	typeGoAway = 3 // length is a code

	flagSYN = 1
	flagACK = 2
	flagFIN = 4
	flagRST = 8

	goAwayProtocol = 1
)

type header [headerSize]byte

func (h *header) kind() byte     { return h[1] }
func (h *header) flags() uint16  { return uint16(h[2])<<8 | uint16(h[3]) }
func (h *header) id() uint32     { return be32(h[4:]) }
func (h *header) length() uint32 { return be32(h[8:]) }

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func appendHeader(b []byte, kind byte, flags uint16, id, length uint32) []byte {
	return append(b, 0, kind, byte(flags>>8), byte(flags),
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id),
		byte(length>>24), byte(length>>16), byte(length>>8), byte(length))
}
