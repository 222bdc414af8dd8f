package mux

import (
	"fmt"
	"io"
	"net"
	"sync"
)

// half is the state of one direction.
type half struct {
	ended bool  // cleanly
	err   error // reset, or given up
	wake  chan struct{}
	limit deadline
}

// over reports whether the direction has ended, in whichever way.
func (h *half) over() bool { return h.ended || h.err != nil }

type stream struct {
	s  *session
	id uint32

	rmu, wmu sync.Mutex // one reader and one writer at a time

	mu     sync.Mutex
	in     half
	out    half
	buf    buffer
	first  uint16 // SYN or ACK, not sent yet
	credit uint32 // what may be sent
	window uint32 // what the peer may still send
	coming int    // what it has begun to send and is not in buf yet
	gone   bool   // taken off the session

	sink    func([]byte) int
	waiting bool // a Read waits, and has found nothing
}

func newStream(s *session, id uint32, first uint16) *stream {
	st := &stream{s: s, id: id, first: first, credit: MinWindow, window: MinWindow}
	st.in.wake, st.out.wake = make(chan struct{}, 1), make(chan struct{}, 1)
	return st
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// opening returns what must be sent before anything else of this stream: the
// SYN or ACK, and the whole window. It is called with the lock held.
func (st *stream) opening(b []byte) []byte {
	if st.first == 0 {
		return b
	}
	grant := st.s.o.Window - MinWindow
	b = appendHeader(b, typeWindow, st.first, st.id, grant)
	st.window += grant
	st.first = 0
	return b
}

// Read implements net.Conn. io.EOF is the peer's clean end; a reset is a
// ResetError and a lost session ErrCut.
func (st *stream) Read(p []byte) (int, error) {
	st.rmu.Lock()
	defer st.rmu.Unlock()
	for {
		st.mu.Lock()
		st.waiting = false
		switch {
		case st.in.err != nil:
			err := st.in.err
			st.mu.Unlock()
			return 0, err
		case st.in.limit.past:
			st.mu.Unlock()
			return 0, errDeadline
		case st.buf.n > 0 && len(p) > 0:
			n := st.buf.read(p)
			update := st.update()
			st.mu.Unlock()
			if update != nil {
				_ = st.s.out.now(update) // a failure shows in the next call
			}
			return n, nil
		case st.in.ended:
			st.mu.Unlock()
			return 0, io.EOF
		case len(p) == 0:
			st.mu.Unlock()
			return 0, nil
		}
		var open []byte
		if st.first == flagSYN {
			open = st.opening(nil)
		}
		st.waiting = true
		st.mu.Unlock()
		if open != nil {
			if err := st.s.out.now(open); err != nil {
				return 0, st.sessionError(err)
			}
		}
		<-st.in.wake
	}
}

// update returns the frame that gives the peer the window back that was read,
// once that is half of it. It is called with the lock held.
func (st *stream) update() []byte {
	if st.in.over() {
		return nil
	}
	if st.first != 0 {
		if st.window < MinWindow/2 {
			return st.opening(nil)
		}
		return nil
	}
	delta := st.s.o.Window - uint32(st.buf.n+st.coming) - st.window
	if delta < st.s.o.Window/2 {
		return nil
	}
	st.window += delta
	return appendHeader(nil, typeWindow, 0, st.id, delta)
}

// Write implements net.Conn. Long writes take turns with other streams'.
func (st *stream) Write(p []byte) (int, error) {
	st.wmu.Lock()
	defer st.wmu.Unlock()
	if len(p) == 0 {
		return 0, st.writable()
	}
	total := 0
	for len(p) > 0 {
		n, err := st.send(turn{room: len(p), body: p})
		total += n
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

// WriteLoaded writes what load returns when the stream's turn has come: at most
// room bytes, from which it must not wait. Until then no one holds them, and the
// one who sends them has just read them. It returns how many were written, and
// the error of load.
func (st *stream) WriteLoaded(load func(room int) ([]byte, error)) (int, error) {
	st.wmu.Lock()
	defer st.wmu.Unlock()
	return st.send(turn{room: MaxTurn, load: load})
}

// writable returns why nothing can be written, or nil.
func (st *stream) writable() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.unwritable()
}

// unwritable is called with the lock held.
func (st *stream) unwritable() error {
	switch {
	case st.out.err != nil:
		return st.out.err
	case st.out.ended:
		return net.ErrClosed
	case st.out.limit.past:
		return errDeadline
	}
	return nil
}

// send sends as much of t as the window and one turn take, and returns how much.
func (st *stream) send(t turn) (int, error) {
	st.mu.Lock()
	for {
		if err := st.unwritable(); err != nil {
			st.mu.Unlock()
			return 0, err
		}
		if st.credit > 0 {
			break
		}
		var open []byte
		if st.first != 0 {
			open = st.opening(nil)
		}
		st.mu.Unlock()
		if open != nil {
			if err := st.s.out.now(open); err != nil {
				return 0, st.sessionError(err)
			}
		}
		<-st.out.wake
		st.mu.Lock()
	}
	room := min(t.room, int(st.s.out.batch.Load()), int(st.credit))
	st.credit -= uint32(room)
	var space [2 * headerSize]byte
	before := st.opening(space[:0])
	cancel := st.out.limit.channel()
	st.mu.Unlock()
	if t.id, t.room = st.id, room; t.load == nil {
		t.body = t.body[:room]
	}
	n, loading, err := st.s.out.data(before, t, cancel)
	if n < room {
		st.mu.Lock()
		st.credit += uint32(room - n)
		st.mu.Unlock()
	}
	if err != nil && err != errDeadline {
		return n, st.sessionError(err)
	}
	if err == nil {
		err = loading
	}
	return n, err
}

// sessionError is why nothing can be sent: the session's end.
func (st *stream) sessionError(err error) error {
	if f := st.s.failure(); f != nil {
		return f
	}
	return fmt.Errorf("%w: %w", ErrCut, err)
}

// CloseWrite sends a clean end of file.
func (st *stream) CloseWrite() error {
	st.wmu.Lock()
	defer st.wmu.Unlock()
	st.mu.Lock()
	if st.out.over() {
		err := st.out.err
		st.mu.Unlock()
		return err
	}
	st.out.ended = true
	frames := st.opening(nil)
	frames = appendHeader(frames, typeWindow, flagFIN, st.id, 0)
	st.mu.Unlock()
	err := st.s.out.now(frames)
	st.ended()
	if err != nil {
		return st.sessionError(err)
	}
	return nil
}

// CloseRead throws away what comes from now on. The peer is not told.
func (st *stream) CloseRead() error {
	st.mu.Lock()
	if !st.in.over() {
		st.in.err = net.ErrClosed
		st.buf.drop()
	}
	st.mu.Unlock()
	signal(st.in.wake)
	st.ended()
	return nil
}

// Close is CloseRead and CloseWrite.
func (st *stream) Close() error {
	_ = st.CloseRead()
	return st.CloseWrite()
}

// Reset ends both directions that have not ended, and tells the peer.
func (st *stream) Reset(code uint32) error {
	st.mu.Lock()
	if st.gone || st.in.over() && st.out.over() {
		st.mu.Unlock()
		return nil
	}
	unborn := st.first == flagSYN
	st.stop(&ResetError{Code: code})
	st.mu.Unlock()
	st.ended()
	if unborn {
		return nil
	}
	if err := st.s.out.now(appendHeader(nil, typeWindow, flagRST, st.id, code)); err != nil {
		return st.sessionError(err)
	}
	return nil
}

// stop ends both directions with an error, unless they have ended. It is called
// with the lock held.
func (st *stream) stop(err error) {
	if !st.in.over() {
		st.in.err = err
		st.buf.drop()
	}
	if !st.out.over() {
		st.out.err = err
	}
	signal(st.in.wake)
	signal(st.out.wake)
}

// abandon ends the stream because the session has ended.
func (st *stream) abandon(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.stop(err)
	st.release()
}

// ended takes the stream off the session when both directions are over.
func (st *stream) ended() {
	st.mu.Lock()
	over := st.in.over() && st.out.over() && !st.gone
	if over {
		st.release()
	}
	st.mu.Unlock()
	if over {
		st.s.forget(st)
	}
}

// release stops the timers. It is called with the lock held.
func (st *stream) release() {
	st.gone = true
	for _, h := range []*half{&st.in, &st.out} {
		if h.limit.timer != nil {
			h.limit.timer.Stop()
			h.limit.timer = nil
		}
	}
}

// addCredit lets the stream send more.
func (st *stream) addCredit(n uint32) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if n > maxCredit || st.credit+n > maxCredit {
		return fmt.Errorf("%w: a window of more than %d bytes", errProtocol, maxCredit)
	}
	st.credit += n
	signal(st.out.wake)
	return nil
}

// remoteEnd is the peer's clean end.
func (st *stream) remoteEnd() {
	st.mu.Lock()
	if !st.in.over() {
		st.in.ended = true
	}
	st.mu.Unlock()
	signal(st.in.wake)
	st.ended()
}

// remoteReset is the peer's reset.
func (st *stream) remoteReset(code uint32) {
	st.mu.Lock()
	st.stop(&ResetError{Code: code, Remote: true})
	st.mu.Unlock()
	st.ended()
}

func (st *stream) LocalAddr() net.Addr  { return st.s.conn.LocalAddr() }
func (st *stream) RemoteAddr() net.Addr { return st.s.conn.RemoteAddr() }
