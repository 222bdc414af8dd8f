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
	total := 0
	for {
		st.mu.Lock()
		switch {
		case st.out.err != nil:
			err := st.out.err
			st.mu.Unlock()
			return total, err
		case st.out.ended:
			st.mu.Unlock()
			return total, net.ErrClosed
		case st.out.limit.past:
			st.mu.Unlock()
			return total, errDeadline
		case len(p) == 0:
			st.mu.Unlock()
			return total, nil
		case st.credit == 0:
			var open []byte
			if st.first != 0 {
				open = st.opening(nil)
			}
			st.mu.Unlock()
			if open != nil {
				if err := st.s.out.now(open); err != nil {
					return total, st.sessionError(err)
				}
			}
			<-st.out.wake
			continue
		}
		n := min(len(p), MaxPayload, int(st.credit))
		st.credit -= uint32(n)
		var space [2 * headerSize]byte
		before := st.opening(space[:0])
		cancel := st.out.limit.channel()
		st.mu.Unlock()
		var h header
		appendHeader(h[:0], typeData, 0, st.id, uint32(n))
		if err := st.s.out.data(before, h, p[:n], cancel); err != nil {
			if err == errDeadline {
				st.mu.Lock()
				st.credit += uint32(n)
				st.mu.Unlock()
				return total, err
			}
			return total, st.sessionError(err)
		}
		total += n
		if p = p[n:]; len(p) == 0 {
			return total, nil
		}
	}
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

// receive takes n bytes of payload from the connection. A nil stream, or one
// that is not read any more, throws them away.
func (st *stream) receive(n int, r *reader) error {
	if st == nil {
		return discard(r, n)
	}
	st.mu.Lock()
	if n > int(st.window) {
		st.mu.Unlock()
		return fmt.Errorf("%w: %d bytes for a window of %d", errProtocol, n, st.window)
	}
	if st.in.ended {
		st.mu.Unlock()
		return fmt.Errorf("%w: bytes after the end of stream %d", errProtocol, st.id)
	}
	st.window -= uint32(n)
	for n > 0 {
		if st.in.err != nil {
			st.mu.Unlock()
			return discard(r, n)
		}
		if r.i == r.j {
			// The rest is not here yet: wait for it without the lock.
			st.coming = n
			st.mu.Unlock()
			return st.receiveRest(n, r)
		}
		k := copy(st.buf.room(n), r.buf[r.i:r.j])
		r.i += k
		st.buf.added(k)
		n -= k
	}
	st.mu.Unlock()
	signal(st.in.wake)
	return nil
}

// receiveRest takes bytes that the connection has yet to bring into segments of
// their own, which join the stream's when they are full.
func (st *stream) receiveRest(n int, r *reader) error {
	signal(st.in.wake)
	for n > 0 {
		seg := newSegment(min(n, 1<<maxSegmentBits))
		k := min(n, cap(*seg))
		*seg = (*seg)[:k]
		if err := r.full(*seg); err != nil {
			freeSegment(seg)
			return noEOF(err)
		}
		n -= k
		st.mu.Lock()
		st.coming = n
		if st.in.err != nil {
			freeSegment(seg)
		} else {
			st.buf.list = append(st.buf.list, seg)
			st.buf.n += k
		}
		st.mu.Unlock()
		signal(st.in.wake)
	}
	return nil
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
