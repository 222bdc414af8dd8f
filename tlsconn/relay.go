package tlsconn

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// relayBuffer is the size of a busy copy buffer in bytes.
// It fills one frame of the multiplexer, which is four TLS records.
const relayBuffer = mux.MaxPayload

// idleBuffer is what a direction holds that moves little, and quietReads after
// how many small reads it counts as such.
const (
	idleBuffer = 1 << 10
	quietReads = 8
	busyRead   = 4 << 10
)

var relayBuffers = sync.Pool{New: func() any { b := make([]byte, relayBuffer); return &b }}

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
	var wg sync.WaitGroup
	wg.Go(func() {
		n, e := copyHalf(b, a)
		if up = n; e != nil {
			fail(e)
		}
	})
	var e error
	if down, e = copyHalf(a, b); e != nil {
		fail(e)
	}
	wg.Wait()
	stop()
	once.Do(func() {
		_ = a.Close()
		_ = b.Close()
	})
	return up, down, err
}

// copyHalf copies one direction and passes its clean end on. A connection that
// waits holds a small buffer, a busy one a large one.
func copyHalf(dst, src net.Conn) (n uint64, err error) {
	small, quiet := make([]byte, idleBuffer), 0
	var large *[]byte
	defer func() {
		if large != nil {
			relayBuffers.Put(large)
		}
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
		}
		if rerr == io.EOF {
			if c, ok := dst.(writeCloser); ok {
				return n, c.CloseWrite()
			}
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
		switch {
		case large == nil && r == len(small):
			large, quiet = relayBuffers.Get().(*[]byte), 0
		case large != nil && r >= busyRead:
			quiet = 0
		case large != nil:
			if quiet++; quiet == quietReads {
				relayBuffers.Put(large)
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
