package tlsconn

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds on what is read before a peer is authenticated (threat: floods).
const (
	maxHelloBytes     = 16 << 10 // until we have answered the first flight
	maxHandshakeBytes = 96 << 10 // until the handshake is done
)

var errHandshakeSize = errors.New("handshake messages are too large")

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
	sock *socket // nil when the connection is not a socket
	in   *inbox
	got  []byte // bytes in it that are not taken yet
	// nowait makes a read that would wait fail with errWouldWait instead. It is
	// used by who reads, like got.
	nowait bool

	pre     atomic.Bool // handshake not done
	read    int         // bytes read while pre; only the handshake reads then
	replied atomic.Bool
	eof     atomic.Bool // the transport ended

	mu   sync.Mutex
	held bool
	out  *[]byte // pooled, while records wait in it
	n    int     // how many bytes of it
}

// inbox is a buffer of the pool, while bytes in it are not taken yet.
type inbox struct{ b *[]byte }

func newBatchConn(c net.Conn) *batchConn {
	b := &batchConn{Conn: c, sock: socketOf(c), in: &inbox{}}
	runtime.AddCleanup(b, (*inbox).drop, b.in) // bytes that nobody ever took
	if b.sock != nil {
		b.sock.share = tunnelShare
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
		if c.sock == nil {
			return c.Conn.Read(b)
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.got)
	if c.got = c.got[n:]; len(c.got) == 0 {
		c.got = nil
		c.in.drop()
	}
	return n, nil
}

func (i *inbox) drop() {
	if i.b != nil {
		buffers.put(i.b)
		i.b = nil
	}
}

// fill waits for bytes, with nothing in got.
func (c *batchConn) fill() error {
	in, n, err := c.sock.lend()
	if err == io.EOF {
		c.eof.Store(true)
	}
	if err == nil {
		c.in.b, c.got = in, (*in)[:n]
	}
	return err
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
	if !c.held {
		return c.Conn.Write(b)
	}
	if c.out != nil && c.n+len(b) > cap(*c.out) {
		if err := c.flushLocked(); err != nil {
			return 0, err
		}
	}
	if c.out == nil {
		c.out = buffers.get(tunnelShare)
	}
	if len(b) > cap(*c.out) {
		return c.Conn.Write(b)
	}
	c.n += copy((*c.out)[c.n:cap(*c.out)], b)
	return len(b), nil
}

func (c *batchConn) flushLocked() error {
	if c.out == nil {
		return nil
	}
	var err error
	if c.n > 0 {
		_, err = c.Conn.Write((*c.out)[:c.n])
	}
	buffers.put(c.out)
	c.out, c.n = nil, 0
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

// WriteAll writes pieces, with one system call for all that fit a buffer.
func (c *secureConn) WriteAll(pieces [][]byte) error {
	if len(pieces) == 1 {
		_, err := c.Write(pieces[0])
		return err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.under.hold()
	var err error
	for _, p := range pieces {
		if _, err = c.Conn.Write(p); err != nil {
			break
		}
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
	if err == nil {
		n += c.readMore(b[n:])
	}
	return n, c.ended(err)
}

// readMore takes what else is here already, so that the next write is a large
// one. An error shows again in the next read.
func (c *secureConn) readMore(b []byte) (n int) {
	for len(b)-n >= recordSize && len(c.under.got) > 0 {
		more, err := c.readNow(b[n:])
		n += more
		if err != nil {
			break
		}
	}
	return n
}

// readNow reads without waiting for the transport.
func (c *secureConn) readNow(b []byte) (int, error) {
	c.under.nowait = true
	n, err := c.Conn.Read(b)
	c.under.nowait = false
	return n, err
}

// ended says that a transport that ends between two records, which crypto/tls
// takes for a clean end, is a cut: there was no close_notify (RFC 8446 6.1).
func (c *secureConn) ended(err error) error {
	if err == io.EOF && c.under.eof.Load() {
		return io.ErrUnexpectedEOF
	}
	return err
}

// lend waits for bytes and returns them in a buffer that the caller puts back.
func (c *secureConn) lend() (*[]byte, int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	for {
		b := buffers.get(relayShare)
		n, err := c.readNow(*b)
		if err == nil {
			n += c.readMore((*b)[n:])
		}
		if n > 0 { // what came with it shows again in the next read
			return b, n, nil
		}
		buffers.put(b)
		if _, wait := err.(errWouldWait); wait {
			err = c.under.fill()
		}
		if err != nil {
			return nil, 0, c.ended(err)
		}
	}
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
