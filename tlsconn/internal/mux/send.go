package mux

import (
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// smallWrite is the longest write that goes first, in bytes.
	smallWrite = 4 << 10
	// urgentRoom is how many bytes of small writes may wait; more take turns.
	urgentRoom = 32 << 10
	// urgentLimit is how many bytes may wait in all; a peer that makes us owe it
	// more answers does not read.
	urgentLimit = 1 << 20
	// copyBelow is the longest payload that is copied to be sent with its header.
	copyBelow = 8 << 10
	// mostAlone is how many writes in a row do not ask whether others have
	// something to send, too, after it was so seldom.
	mostAlone = 63
	// leadFor is after how many rounds for others a writer goes its own way.
	leadFor = 4
	// A write that takes less than quick makes the next ones larger, up to
	// MaxTurn, and one of more than slow small again: what is urgent waits for
	// the write that is under way.
	quick = 2 * time.Millisecond
	slow  = 20 * time.Millisecond
)

var (
	errDeadline = os.ErrDeadlineExceeded
	errDeaf     = errors.New("the peer does not read what it is owed")
)

// sender lets one goroutine at a time write to the connection: whoever has
// something to send when no one else does.
type sender struct {
	conn    net.Conn
	gather  func(pieces [][]byte) error // writes all, with one system call if it can
	timeout time.Duration
	failed  func(error) // called without the lock

	mu      sync.Mutex
	writing bool   // someone is the one who writes
	urgent  []byte // whole frames that go first
	spare   []byte // a buffer for urgent to grow into
	first   *turn  // bulk frames, in turn
	last    *turn
	err     error         // nothing is sent any more
	parting []byte        // the frame to end with
	parted  chan struct{} // closed when the last word is written, or cannot be

	deadline time.Time // owned by the one who writes, as what follows
	pieces   [][]byte

	alone, ask int // how many writes of one's own do not ask, and how many are left

	batch atomic.Int32 // how many bytes of bulk go into one write
}

// turn is what one stream sends at a time, as one frame, and the goroutine that
// waits to send it.
type turn struct {
	id   uint32
	room int // most bytes of body
	body []byte
	load func(room int) ([]byte, error) // gives body when the turn has come
	fail error                          // of load
	next *turn
	wake chan struct{} // gets one token, when lead or err is set
	lead bool          // its goroutine is the one who writes now
	err  error
}

var turns = sync.Pool{New: func() any { return &turn{wake: make(chan struct{}, 1)} }}

// now sends frames that go first, at once when no one writes.
func (s *sender) now(frames []byte) error { return s.enqueue(frames, func() { s.write(nil) }) }

// answer is now for the goroutine that reads, which must not wait for the
// connection.
func (s *sender) answer(frames []byte) error {
	return s.enqueue(frames, func() { go s.write(nil) })
}

func (s *sender) enqueue(frames []byte, write func()) error {
	s.mu.Lock()
	if s.err != nil || len(s.urgent)+len(frames) > urgentLimit {
		err := s.err
		s.mu.Unlock()
		if err == nil {
			err = errDeaf
			s.failed(err)
		}
		return err
	}
	s.urgent = append(s.urgent, frames...)
	idle := !s.writing
	s.writing = true
	s.mu.Unlock()
	if idle {
		write()
	}
	return nil
}

// data sends a stream's bytes in data frames, with the frames of before ahead of
// them. It returns when they are written or, for a few, when they will be without
// waiting for others: how many that were, and what load failed with. cancel ends
// the wait for the turn.
func (s *sender) data(before []byte, what turn, cancel <-chan struct{}) (n int, loading, err error) {
	s.mu.Lock()
	if s.err != nil {
		err := s.err
		s.mu.Unlock()
		return 0, nil, err
	}
	s.urgent = append(s.urgent, before...)
	idle := !s.writing
	s.writing = true
	if body := what.body; what.load == nil && len(body) <= smallWrite && len(s.urgent) <= urgentRoom {
		s.urgent = append(appendHeader(s.urgent, typeData, 0, what.id, uint32(len(body))), body...)
		s.mu.Unlock()
		if idle {
			s.write(nil)
		}
		return len(body), nil, nil
	}
	t := turns.Get().(*turn)
	what.wake, what.lead = t.wake, idle
	*t = what
	if !idle {
		if s.last == nil {
			s.first = t
		} else {
			s.last.next = t
		}
		s.last = t
	}
	s.mu.Unlock()
	if !idle {
		select {
		case <-t.wake:
		case <-cancel:
			if s.withdraw(t) {
				*t = turn{wake: t.wake}
				turns.Put(t)
				return 0, nil, errDeadline
			}
			<-t.wake
		}
	}
	if t.lead {
		s.write(t)
	}
	n, loading, err = len(t.body), t.fail, t.err
	*t = turn{wake: t.wake}
	turns.Put(t)
	if err != nil {
		n = 0
	}
	return n, loading, err
}

// withdraw takes back a frame whose turn has not come.
func (s *sender) withdraw(t *turn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var before *turn
	for q := s.first; q != nil; before, q = q, q.next {
		if q != t {
			continue
		}
		if before == nil {
			s.first = t.next
		} else {
			before.next = t.next
		}
		if s.last == t {
			s.last = before
		}
		return true
	}
	return false
}

// take takes the first frame in turn. It is called with the lock held.
func (s *sender) take() *turn {
	t := s.first
	if s.first, t.next = t.next, nil; s.first == nil {
		s.last = nil
	}
	return t
}

// invite lets who else is ready to send add to what goes out, for fewer and larger
// writes. It is called by the one who writes, and the less often the less came of
// it.
func (s *sender) invite() {
	if s.ask > 0 {
		s.ask--
		return
	}
	waiting := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.urgent)
	}
	before := waiting()
	runtime.Gosched()
	if waiting() > before {
		s.alone = 0
	} else {
		s.alone = min(s.alone+1, mostAlone)
	}
	s.ask = s.alone
}

// write is called by the one who writes. It sends what goes first and its own
// frame, if it has one, and then lets whose turn it is go on.
func (s *sender) write(own *turn) {
	if own == nil {
		s.invite()
	}
	for round := 0; ; round++ {
		s.mu.Lock()
		switch {
		case s.err != nil:
			s.finish(own)
			return
		case own != nil:
		case s.first != nil:
			t := s.take()
			t.lead = true
			s.mu.Unlock()
			t.wake <- struct{}{}
			return
		case len(s.urgent) == 0:
			s.writing = false
			s.mu.Unlock()
			return
		case round >= leadFor:
			s.mu.Unlock()
			go s.write(nil)
			return
		}
		head := s.urgent
		s.urgent, s.spare = s.spare[:0], nil
		if own != nil { // who is next comes along, while the connection is quick
			size, last := own.room, own
			for s.first != nil && size+s.first.room <= int(s.batch.Load()) {
				last.next = s.take()
				last = last.next
				size += last.room
			}
		}
		s.mu.Unlock()

		head, err := s.put(head, own)
		for t := own; t != nil; {
			next := t.next
			t.err, t.next = err, nil
			if t != own {
				t.wake <- struct{}{} // and t is its goroutine's again
			}
			t = next
		}
		own = nil
		s.mu.Lock()
		if cap(head) <= 2*urgentRoom {
			s.spare = head[:0]
		}
		s.mu.Unlock()
		if err != nil {
			s.failed(err) // which stops this sender
			s.stop(err)
		}
	}
}

// stop lets nothing be sent any more.
func (s *sender) stop(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	if s.writing {
		s.mu.Unlock() // the one who writes finds it
		return
	}
	s.finish(nil)
}

// part sends a last frame, in place of all that waits, and nothing after it. It
// returns when that is written or cannot be.
func (s *sender) part(frame []byte, err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err, s.parting = err, frame
	done := make(chan struct{})
	s.parted = done
	idle := !s.writing
	s.writing = true
	s.mu.Unlock()
	if idle {
		s.write(nil)
	}
	<-done
}

// finish fails all that waits, and ends writing. It is called with the lock held
// by the one who writes, or when no one does, and lets the lock go.
func (s *sender) finish(own *turn) {
	if f := s.parting; f != nil {
		s.parting = nil
		s.mu.Unlock()
		_, _ = s.put(f, nil)
		s.mu.Lock()
	}
	var list []*turn
	for s.first != nil {
		t := s.take()
		t.err = s.err
		list = append(list, t)
	}
	if own != nil {
		own.err = s.err
	}
	s.urgent, s.spare, s.writing = nil, nil, false
	if s.parted != nil {
		close(s.parted)
		s.parted = nil
	}
	s.mu.Unlock()
	for _, t := range list {
		t.wake <- struct{}{}
	}
}

// put writes to the connection what goes first and the frames of turns, and
// returns head, which may have grown. The deadline is renewed when half of it is
// over.
func (s *sender) put(head []byte, turns *turn) ([]byte, error) {
	began := time.Now()
	if s.deadline.Sub(began) < s.timeout/2 {
		s.deadline = began.Add(s.timeout)
		if err := s.conn.SetWriteDeadline(s.deadline); err != nil {
			return head, err
		}
	}
	pieces, from, size := s.pieces[:0], 0, 0
	for t := turns; t != nil; t = t.next {
		if t.load != nil {
			t.body, t.fail = t.load(t.room)
		}
		n := len(t.body)
		if n == 0 {
			continue
		}
		size += n
		head = appendHeader(head, typeData, 0, t.id, uint32(n))
		if n < copyBelow {
			head = append(head, t.body...)
		} else {
			pieces = append(pieces, head[from:], t.body)
			from = len(head)
		}
	}
	if from < len(head) {
		pieces = append(pieces, head[from:])
	}
	if len(pieces) == 0 {
		return head, nil
	}
	err := s.gather(pieces)
	clear(pieces)
	s.pieces = pieces
	batch := int(s.batch.Load())
	switch took := time.Since(began); {
	case took > slow:
		s.batch.Store(MinTurn)
	case took < quick && size > batch/2:
		s.batch.Store(int32(min(2*batch, MaxTurn)))
	}
	return head, err
}
