package tlsconn

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// idleBuffer is what a direction holds that moves little, and quietReads after
// how many small reads it counts as such.
const (
	idleBuffer = 1 << 10
	quietReads = 8
	busyRead   = 4 << 10
)

type writeCloser interface{ CloseWrite() error }

// Relay copies between two connections, honestly, until both directions have
// ended: an end of file is passed on (CloseWrite) only when it was clean on
// every layer, and anything else resets both sides, so that what was cut never
// looks complete. When ctx ends, both sides are reset. up is what was delivered
// from a to b. Both connections are closed when it returns. Connections without
// CloseWrite get no half-close: the end of one direction waits for the other's.
func Relay(ctx context.Context, a, b net.Conn) (up, down uint64, err error) {
	var once sync.Once
	fail := func(e error) {
		once.Do(func() {
			err = e
			resetConn(a, e)
			resetConn(b, e)
		})
	}
	stop := context.AfterFunc(ctx, func() { fail(context.Cause(ctx)) })
	var ends atomic.Int32
	half := func(dst, src net.Conn) uint64 {
		n, e := copyHalf(dst, src)
		if e == io.EOF {
			e = endHalf(dst, ends.Add(1) == 2)
		}
		if e != nil {
			fail(e)
		}
		return n
	}
	var wg sync.WaitGroup
	wg.Go(func() { up = half(b, a) })
	down = half(a, b)
	wg.Wait()
	stop()
	once.Do(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return up, down, err
}

// lender is a connection that lends a buffer with what came, so that one that
// waits holds none.
type lender interface {
	lend() (*[]byte, int, error)
}

func lenderOf(c net.Conn) lender {
	switch c := c.(type) {
	case *plainConn:
		if c.under.sock != nil {
			return c
		}
	case *secureConn:
		if c.under.sock != nil {
			return c
		}
	default:
		if s := socketOf(c); s != nil {
			return s
		}
	}
	return nil
}

// copyHalf copies one direction. io.EOF is its clean end.
func copyHalf(dst, src net.Conn) (n uint64, err error) {
	l := lenderOf(src)
	if l == nil {
		return copyFlow(dst, src)
	}
	if f, ok := dst.(*flowConn); ok {
		if s, ok := l.(*socket); ok {
			return copyToFlow(f, s)
		}
	}
	for {
		b, r, err := l.lend()
		if err != nil {
			return n, err
		}
		w, err := dst.Write((*b)[:r])
		buffers.put(b)
		n += uint64(w)
		if err != nil {
			return n, err
		}
	}
}

// copyToFlow is copyHalf into a tunnel. While much comes, bytes are read when the
// flow's turn to send has come: one buffer then serves all flows, and who
// encrypts has the bytes in its cache.
func copyToFlow(dst *flowConn, src *socket) (n uint64, err error) {
	var b *[]byte
	load := func(room int) ([]byte, error) {
		var r int
		var err error
		if b, r, err = src.take(room); b == nil {
			return nil, err
		}
		return (*b)[:r], nil
	}
	for busy := false; ; {
		var w int
		sent := false
		if busy {
			if err := src.await(); err != nil {
				return n, err
			}
			w, sent, err = dst.writeLoaded(load)
			if b != nil {
				buffers.put(b)
				b = nil
			}
		}
		if !sent {
			var r int
			src.room = mux.MinTurn
			if b, r, err = src.lend(); err == nil {
				w, err = dst.Write((*b)[:r])
				buffers.put(b)
				b = nil
			}
		}
		n += uint64(w)
		if err != nil {
			return n, err
		}
		busy = w >= busyRead
	}
}

// endHalf passes the clean end of a direction on. A socket is told the last one
// by closing it.
func endHalf(dst net.Conn, last bool) error {
	switch c := dst.(type) {
	case *net.TCPConn:
		if last {
			return nil
		}
		return c.CloseWrite()
	case writeCloser:
		return c.CloseWrite()
	}
	return nil
}

// copyFlow is copyHalf for a flow of a tunnel, or any other connection. One that
// waits holds a small buffer, a busy one a large one.
func copyFlow(dst, src net.Conn) (n uint64, err error) {
	small, quiet := make([]byte, idleBuffer), 0
	var large *[]byte
	var sunk uint64
	var stop func() // of the sink, once there is one
	defer func() {
		if large != nil {
			buffers.put(large)
		}
		if stop != nil {
			stop()
		}
		n += sunk
	}()
	for {
		buf := small
		if large != nil {
			buf = *large
		}
		r, rerr := src.Read(buf)
		if r > 0 {
			w, werr := dst.Write(buf[:r])
			n += uint64(w)
			if werr != nil {
				return n, werr
			}
			if f, ok := src.(*flowConn); ok && stop == nil {
				stop = f.sinkTo(dst, &sunk)
			}
		}
		if rerr != nil {
			return n, rerr
		}
		switch {
		case large == nil && r == len(small):
			large, quiet = buffers.get(relayShare), 0
		case large != nil && r >= busyRead:
			quiet = 0
		case large != nil:
			if quiet++; quiet == quietReads {
				buffers.put(large)
				large = nil
			}
		}
	}
}

// resetConn ends a connection so that its far side sees a reset: streams by
// their code, TCP by RST, TLS by no close_notify.
func resetConn(c net.Conn, cause error) {
	switch c := c.(type) {
	case *flowConn:
		c.f.reset(codeOf(cause), "", cause)
	case interface{ NetConn() net.Conn }: // *tls.Conn
		abortConn(c.NetConn())
	default:
		abortConn(c)
	}
}

// isClosed reports whether err is what our own closing causes.
func isClosed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe)
}
