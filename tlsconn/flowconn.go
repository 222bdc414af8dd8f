package tlsconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// lingerTimeout is how long a closed flow waits for the far end's end of file.
const lingerTimeout = 5 * time.Second

// flowConn is a flow as a net.Conn with half-close. Read returns io.EOF only
// for the far end's clean end; every other end is an error that says why.
type flowConn struct {
	f      *flow
	s      mux.Stream
	closed atomic.Bool
	eof    atomic.Bool // the far end's clean end was read
	fin    atomic.Bool // ours was sent

	rmu        sync.Mutex // one reader at a time: the stream wakes only one
	prepaid    int        // bytes that a sink paid for and did not take
	imu        sync.Mutex
	inspection *inspection // at the opener, until its first bytes have passed

	// guard, when not nil, sees what the opener sends: under imu at the opener,
	// under rmu at the other end, where passed may go on.
	guard  *httpGuard
	passed []byte
	gbuf   []byte
}

func newFlowConn(f *flow, s mux.Stream) *flowConn {
	return &flowConn{f: f, s: s}
}

// Peer returns the far end, with its attestation state now.
func (c *flowConn) Peer() Peer { return c.f.t.Peer() }

func (c *flowConn) Read(b []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	if c.guard != nil && !c.f.opener {
		return c.readGuarded(b)
	}
	n, err := c.s.Read(b)
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	return c.took(n, err)
}

// took accounts for what was read.
func (c *flowConn) took(n int, err error) (int, error) {
	if n > 0 {
		c.f.in.Add(uint64(n))
		paid := min(n, c.prepaid)
		c.prepaid -= paid
		if lerr := c.pay(n - paid); lerr != nil {
			return 0, lerr
		}
	}
	if err == io.EOF {
		c.eof.Store(true)
		c.finished()
		return n, io.EOF
	}
	return n, c.failed(err)
}

func (c *flowConn) Write(b []byte) (int, error) {
	c.imu.Lock()
	defer c.imu.Unlock()
	if c.inspection != nil {
		if err := c.inspect(b, false); err != nil {
			return 0, err
		}
		return len(b), nil
	}
	return c.writeGuarded(b)
}

// writeGuarded writes what the guard lets pass, at the opener.
func (c *flowConn) writeGuarded(b []byte) (int, error) {
	if c.guard == nil || !c.f.opener {
		return c.write(b)
	}
	passed, err := c.guard.pass(b)
	if err != nil {
		return 0, c.guarded(err)
	}
	if _, err := c.write(passed); err != nil {
		return 0, err
	}
	return len(b), nil
}

// inspect holds first bytes back until this end's policy has seen enough.
func (c *flowConn) inspect(b []byte, final bool) error {
	done, err := c.inspection.see(b, final)
	if err != nil {
		c.f.reset(CodeDenied, c.f.decision().Rule, err)
		return err
	}
	if !done {
		return nil
	}
	head := c.inspection.head
	c.inspection, c.guard = nil, c.f.guard()
	_, err = c.writeGuarded(head)
	return err
}

func (c *flowConn) write(b []byte) (int, error) {
	total := 0
	for len(b) > 0 {
		chunk := b[:min(len(b), c.f.t.caps.quantum())]
		if err := c.pay(len(chunk)); err != nil {
			return total, err
		}
		n, err := c.s.Write(chunk)
		c.f.out.Add(uint64(n))
		total += n
		if err != nil {
			return total, c.failed(err)
		}
		b = b[n:]
	}
	return total, nil
}

// writeLoaded writes what load gives when the flow's turn has come, and pays for
// it then. It reports false when bytes must be looked at before they are sent.
func (c *flowConn) writeLoaded(load func(room int) ([]byte, error)) (n int, ok bool, err error) {
	c.imu.Lock()
	defer c.imu.Unlock()
	if c.inspection != nil || c.guard != nil && c.f.opener {
		return 0, false, nil
	}
	n, err = c.s.WriteLoaded(load)
	c.f.out.Add(uint64(n))
	if n > 0 {
		if perr := c.pay(n); perr != nil {
			return n, true, perr
		}
	}
	return n, true, c.failed(err)
}

// pay takes n bytes off the node's caps, waiting for the rate.
func (c *flowConn) pay(n int) error {
	err := c.f.t.caps.pay(n, func() (context.Context, context.CancelFunc) {
		return c.f.t.context(c.f.t.e.cfg.Limits.IdleTimeout)
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errDayUsedUp):
		c.f.reset(CodeLimit, "", err)
	default:
		if f := c.f.t.failure(); f != nil {
			return f
		}
	}
	return err
}

// failed turns a stream's error into one that says why, and ends the flow.
func (c *flowConn) failed(err error) error {
	if err == nil {
		return nil
	}
	var re *mux.ResetError
	if errors.As(err, &re) || errors.Is(err, mux.ErrCut) {
		err = c.f.t.flowError(err)
		c.f.reset(codeOf(err), "", err)
		return err
	}
	return err
}

// finished ends the flow when both directions have ended cleanly.
func (c *flowConn) finished() {
	if c.eof.Load() && c.fin.Load() {
		c.f.end(CodeOK, "", nil)
	}
}

// CloseWrite sends a clean end of file; reading goes on.
func (c *flowConn) CloseWrite() error {
	c.f.mu.Lock()
	why := c.f.why
	c.f.mu.Unlock()
	c.imu.Lock()
	defer c.imu.Unlock()
	if c.inspection != nil {
		if err := c.inspect(nil, true); err != nil {
			return err
		}
	}
	if c.guard != nil && c.f.opener && why == CodeOK && !c.guard.whole() {
		return c.guarded(fmt.Errorf("%w: it ends within a request", errHTTP))
	}
	if why != CodeOK {
		// The reset is on its way; a clean end must not overtake it.
		return &RefusedError{Code: why, Side: c.f.t.e.side, Peer: c.f.t.peer.ID, Reason: "flow was reset"}
	}
	if err := c.s.CloseWrite(); err != nil {
		return c.failed(err)
	}
	c.fin.Store(true)
	c.finished()
	return nil
}

// Close ends the flow. What was written arrives with a clean end of file; when
// the far end goes on sending, it is reset.
func (c *flowConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	err := c.CloseWrite()
	if c.eof.Load() || err != nil {
		if err != nil {
			c.f.reset(CodeClosed, "", err)
		}
		return nil
	}
	_ = c.s.SetReadDeadline(time.Unix(1, 0)) // wakes whoever reads
	go c.linger()
	return nil
}

func (c *flowConn) linger() {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	_ = c.s.SetReadDeadline(time.Now().Add(lingerTimeout))
	var b [1]byte
	switch n, err := c.s.Read(b[:]); {
	case n > 0:
		c.f.reset(CodeClosed, "", errors.New("closed before all was read"))
	case err == io.EOF:
		c.eof.Store(true)
		c.finished()
		_ = c.s.Close()
	default:
		c.f.reset(CodeClosed, "", err)
	}
}

// Reset ends the flow so that the far end sees a reset, never an end of file.
func (c *flowConn) Reset() error {
	c.f.reset(CodeReset, "", errors.New("reset by the application"))
	return nil
}

type flowAddr struct{ name string }

func (flowAddr) Network() string  { return "tunnel" }
func (a flowAddr) String() string { return a.name }

func (c *flowConn) LocalAddr() net.Addr {
	if c.f.opener {
		return flowAddr{c.f.t.e.cfg.Identity.ID().String()}
	}
	return flowAddr{c.f.target.String()}
}

func (c *flowConn) RemoteAddr() net.Addr {
	if c.f.opener {
		return flowAddr{c.f.target.String()}
	}
	return flowAddr{c.f.t.peer.ID.String()}
}

func (c *flowConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *flowConn) SetReadDeadline(t time.Time) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.s.SetReadDeadline(t)
}
func (c *flowConn) SetWriteDeadline(t time.Time) error { return c.s.SetWriteDeadline(t) }

var _ interface {
	net.Conn
	writeCloser
} = (*flowConn)(nil)
