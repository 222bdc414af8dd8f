package tlsconn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// batchSize is how many bytes of TLS records one system call takes at most.
const batchSize = 68 << 10 // four records with their headers

// Bounds on what is read before a peer is authenticated (threat: floods).
const (
	maxHelloBytes     = 16 << 10 // until we have answered the first flight
	maxHandshakeBytes = 96 << 10 // until the handshake is done
)

var errHandshakeSize = errors.New("handshake messages are too large")

// readBuffers are held only by connections that have bytes to read.
var readBuffers = sync.Pool{New: func() any { b := make([]byte, batchSize); return &b }}

// errWouldWait is temporary, so crypto/tls keeps what it has and goes on later.
type errWouldWait struct{}

func (errWouldWait) Error() string   { return "would wait" }
func (errWouldWait) Timeout() bool   { return true }
func (errWouldWait) Temporary() bool { return true }

// batchConn lies under a tls.Conn. It gathers the records of one Write into one
// system call, reads many records with one, and bounds what an unauthenticated
// peer may send.
type batchConn struct {
	net.Conn
	rc  syscall.RawConn // nil when the connection is not a socket
	in  *[]byte         // pooled, while bytes in it are not taken yet
	got []byte          // those bytes, within in
	// nowait makes a read that would wait fail with errWouldWait instead. It is
	// used by who reads, like got.
	nowait bool

	pre     atomic.Bool // handshake not done
	read    int         // bytes read while pre; only the handshake reads then
	replied atomic.Bool
	eof     atomic.Bool // the transport ended

	mu   sync.Mutex
	held bool
	buf  []byte
}

func newBatchConn(c net.Conn) *batchConn {
	b := &batchConn{Conn: c}
	if s, ok := c.(syscall.Conn); ok {
		b.rc, _ = s.SyscallConn()
	}
	b.pre.Store(true)
	return b
}

// fetch reads as much as is there, with one system call. The buffer is taken
// when there are bytes, so that a connection that waits holds none.
func (c *batchConn) fetch(b []byte) (int, error) {
	if len(c.got) == 0 {
		if c.nowait {
			return 0, errWouldWait{}
		}
		if c.rc == nil {
			return c.Conn.Read(b)
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.got)
	if c.got = c.got[n:]; len(c.got) == 0 {
		readBuffers.Put(c.in)
		c.in, c.got = nil, nil
	}
	return n, nil
}

func (c *batchConn) Read(b []byte) (n int, err error) {
	defer func() {
		if err == io.EOF {
			c.eof.Store(true)
		}
	}()
	if !c.pre.Load() {
		return c.fetch(b)
	}
	limit := maxHandshakeBytes
	if !c.replied.Load() {
		limit = maxHelloBytes
	}
	if c.read >= limit {
		return 0, errHandshakeSize
	}
	n, err = c.fetch(b[:min(len(b), limit-c.read)])
	c.read += n
	return n, err
}

func (c *batchConn) Write(b []byte) (int, error) {
	c.replied.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held || len(c.buf)+len(b) > batchSize {
		if err := c.flushLocked(); err != nil {
			return 0, err
		}
		if !c.held || len(b) > batchSize {
			return c.Conn.Write(b)
		}
	}
	c.buf = append(c.buf, b...)
	return len(b), nil
}

func (c *batchConn) flushLocked() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

// hold begins a batch; flush ends it.
func (c *batchConn) hold() {
	c.mu.Lock()
	c.held = true
	c.mu.Unlock()
}

func (c *batchConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	return c.flushLocked()
}

// secureConn is a TLS connection whose writes are batched.
type secureConn struct {
	*tls.Conn
	under *batchConn
	wmu   sync.Mutex
	rmu   sync.Mutex
}

func (c *secureConn) Write(b []byte) (int, error) {
	if len(b) <= recordSize {
		return c.Conn.Write(b)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.under.hold()
	n, err := c.Conn.Write(b)
	if ferr := c.under.flush(); err == nil {
		err = ferr
	}
	return n, err
}

// WriteAll writes head and then body, with one system call for both.
func (c *secureConn) WriteAll(head, body []byte) error {
	if len(body) == 0 {
		_, err := c.Write(head)
		return err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.under.hold()
	_, err := c.Conn.Write(head)
	if err == nil {
		_, err = c.Conn.Write(body)
	}
	if ferr := c.under.flush(); err == nil {
		err = ferr
	}
	return err
}

// recordSize is the most plaintext that one TLS record holds.
const recordSize = 16 << 10

// Close ends the connection for the multiplexer. The last record, which says
// why, must not be lost to the reset that TCP sends when unread bytes are thrown
// away; so what still arrives is discarded for a moment.
func (c *secureConn) Close() error {
	raw := c.under.Conn
	_ = raw.SetWriteDeadline(time.Now().Add(cutGrace))
	_ = c.Conn.CloseWrite()
	_ = raw.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
	half, ok := raw.(writeCloser)
	if !ok {
		return raw.Close()
	}
	_ = half.CloseWrite()
	c.rmu.Lock()
	defer c.rmu.Unlock()
	_ = raw.SetReadDeadline(time.Now().Add(byeGrace))
	go func() {
		_, _ = io.Copy(struct{ io.Writer }{io.Discard}, raw)
		abortConn(raw)
	}()
	return nil
}

// Read is tls.Conn's, told apart from Close's reading.
func (c *secureConn) Read(b []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	n, err := c.Conn.Read(b)
	// Take what else is here already, so that the next write is a large one.
	for err == nil && len(b)-n >= recordSize && len(c.under.got) > 0 {
		c.under.nowait = true
		more, merr := c.Conn.Read(b[n:])
		c.under.nowait = false
		n += more
		if merr != nil {
			break // it shows again in the next read, if it is more than errWouldWait
		}
	}
	if err == io.EOF && c.under.eof.Load() {
		// crypto/tls takes a transport that ends between two records for a clean
		// end. Without close_notify it is a cut (RFC 8446 6.1).
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// abort closes the connection below with a reset, so that no buffer and no lost
// peer delays the end.
func (c *secureConn) abort() { abortConn(c.under.Conn) }

func abortConn(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// SetLinger passes through to TCP.
func (c *batchConn) SetLinger(sec int) error {
	if l, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(sec)
	}
	return nil
}
