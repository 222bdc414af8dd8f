package spdm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// maxFrame bounds what a peer can make us read for one message.
const maxFrame = 64 << 10

// Loopback returns a transport to a responder in the same process.
func Loopback(r *Responder) Transport { return loopback{r} }

type loopback struct{ r *Responder }

func (l loopback) Exchange(ctx context.Context, req []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return l.r.Respond(req), nil
}

func (loopback) Close() error { return nil }

// framing reads and writes one message on a stream.
type framing interface {
	write(w io.Writer, m []byte) error
	read(r io.Reader) ([]byte, error)
}

// stream is a transport over a connection.
type stream struct {
	conn    net.Conn
	framing framing

	mu     sync.Mutex
	asking bool  // an exchange is under way, which Close cuts off
	broken error // after an exchange that was cut off: the stream is out of step
}

// begin and end frame an exchange.
func (s *stream) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking = s.broken == nil
	return s.broken
}

func (s *stream) end(broken error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking, s.broken = false, errors.Join(s.broken, broken)
}

func (s *stream) Exchange(ctx context.Context, req []byte) (rsp []byte, err error) {
	if err := s.begin(); err != nil {
		return nil, fmt.Errorf("the connection broke earlier: %w", err)
	}
	defer func() { s.end(err) }()
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Now()) })
	defer stop()
	if err = s.framing.write(s.conn, req); err == nil {
		rsp, err = s.framing.read(s.conn)
	}
	if err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	return rsp, nil
}

func (s *stream) Close() error {
	s.mu.Lock()
	idle := !s.asking && s.broken == nil
	s.broken = errors.Join(s.broken, net.ErrClosed)
	s.mu.Unlock()
	if f, ok := s.framing.(interface{ bye(net.Conn) }); ok && idle {
		f.bye(s.conn)
	}
	return s.conn.Close()
}

// DialTCP connects to a responder over SPDM's TCP binding (DMTF DSP0287).
func DialTCP(ctx context.Context, address string) (Transport, error) {
	return dial(ctx, address, tcpFraming{})
}

func dial(ctx context.Context, address string, f framing) (*stream, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("spdm: %w", err)
	}
	return &stream{conn: conn, framing: f}, nil
}

func (s *stream) padding() int {
	if p, ok := s.framing.(interface{ padding() int }); ok {
		return p.padding()
	}
	return 0
}

// tcpFraming is DSP0287: length of what follows it, version 1, type 5.
type tcpFraming struct{}

func (tcpFraming) write(w io.Writer, m []byte) error {
	if len(m)+2 > 0xffff {
		return fmt.Errorf("a message of %d bytes does not fit the transport", len(m))
	}
	p := le.AppendUint16(nil, uint16(len(m)+2))
	_, err := w.Write(append(append(p, 1, 5), m...))
	return err
}

func (tcpFraming) read(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(le.Uint16(head[:])) - 2
	if n < 4 || head[2] != 1 || head[3] != 5 {
		return nil, fmt.Errorf("a frame of length %d, version %d, type %d is no SPDM message", n, head[2], head[3])
	}
	p := make([]byte, n)
	_, err := io.ReadFull(r, p)
	return p, err
}
