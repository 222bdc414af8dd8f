package mux

import (
	"fmt"
	"io"
)

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
			if err := st.received(); err != nil {
				return err
			}
			return st.receiveRest(n, r)
		}
		k := st.sunk(r.buf[r.i:min(r.j, r.i+n)])
		if r.i, n = r.i+k, n-k; n == 0 || r.i == r.j {
			continue
		}
		k = copy(st.buf.room(n), r.buf[r.i:r.j])
		r.i += k
		st.buf.added(k)
		n -= k
	}
	return st.received()
}

// received wakes who reads, or gives the window back of what the sink took. It is
// called with the lock held, and lets it go.
func (st *stream) received() error {
	if st.buf.n > 0 {
		st.mu.Unlock()
		signal(st.in.wake)
		return nil
	}
	update := st.update()
	st.mu.Unlock()
	if update == nil {
		return nil
	}
	return st.s.out.answer(update)
}

// receiveRest takes bytes that the connection has yet to bring into segments of
// their own, which join the stream's when they are full.
func (st *stream) receiveRest(n int, r *reader) error {
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
			st.mu.Unlock()
			continue
		}
		if took := st.sunk(*seg); took == k {
			freeSegment(seg)
		} else {
			st.buf.join(seg, took)
		}
		if err := st.received(); err != nil {
			return err
		}
	}
	return nil
}

// SetSink has bytes that come while a Read waits go to sink, which takes what it
// can without waiting and returns how many that were; the rest is for the Read.
// It is called by the goroutine that reads the connection, which saves waking
// another, and must not call the stream. Nil takes it off; then it is not called
// any more.
func (st *stream) SetSink(sink func([]byte) int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.sink = sink
}

// sunk gives bytes to the sink, if they are next. It is called with the lock held.
func (st *stream) sunk(p []byte) int {
	if st.sink == nil || !st.waiting || st.buf.n > 0 || st.in.limit.past {
		return 0
	}
	return st.sink(p)
}

// discard reads n bytes that no stream wants.
func discard(r *reader, n int) error {
	p := newSegment(min(n, 1<<maxSegmentBits))
	defer freeSegment(p)
	b := (*p)[:cap(*p)]
	for n > 0 {
		k := min(n, len(b))
		if err := r.full(b[:k]); err != nil {
			return noEOF(err)
		}
		n -= k
	}
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
