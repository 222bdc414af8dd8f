package mux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// readBuffer is the size of the session's read buffer in bytes.
const readBuffer = 16 << 10

// maxStreamID is where a session ends rather than use a name twice.
const maxStreamID = 1<<31 - 1

// maxCredit is the most that a peer may let one stream send ahead.
const maxCredit = 1 << 30

type session struct {
	conn   net.Conn
	client bool
	o      Options
	out    sender

	accepts chan *stream
	done    chan struct{}
	heard   atomic.Int64 // when bytes last came, Unix nanoseconds
	timer   *time.Timer  // of keep-alive

	mu       sync.Mutex
	streams  map[uint32]*stream
	incoming uint32
	nextID   uint32
	err      error
}

// New starts a session over conn, whose client opens odd streams. It owns conn.
// A conn with a method WriteAll(pieces [][]byte) error gets frames by it.
func New(conn net.Conn, client bool, o Options) (Session, error) {
	if o.MaxStreams == 0 || o.Window < MinWindow || o.KeepAlive <= 0 || o.WriteTimeout <= 0 {
		return nil, fmt.Errorf("mux: options %+v", o)
	}
	s := &session{conn: conn, client: client, o: o, accepts: make(chan *stream, o.MaxStreams), done: make(chan struct{}), streams: map[uint32]*stream{}, nextID: 2}
	if client {
		s.nextID = 1
	}
	s.out.conn, s.out.timeout, s.out.failed = conn, o.WriteTimeout, s.fail
	s.out.batch.Store(MinTurn)
	s.out.gather = func(pieces [][]byte) error {
		for _, p := range pieces {
			if _, err := conn.Write(p); err != nil {
				return err
			}
		}
		return nil
	}
	if g, ok := conn.(interface{ WriteAll([][]byte) error }); ok {
		s.out.gather = g.WriteAll
	}
	s.heard.Store(time.Now().UnixNano())
	s.mu.Lock()
	s.timer = time.AfterFunc(o.KeepAlive, s.keepAlive)
	s.mu.Unlock()
	go s.receive()
	return s, nil
}

func (s *session) Done() <-chan struct{} { return s.done }

func (s *session) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Open opens a stream. Nothing is sent before the first write.
func (s *session) Open(ctx context.Context) (Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if s.nextID > maxStreamID {
		return nil, fmt.Errorf("%w: stream names are used up", ErrCut)
	}
	st := newStream(s, s.nextID, flagSYN)
	s.streams[st.id] = st
	s.nextID += 2
	return st, nil
}

// Accept waits for a stream that the peer opened.
func (s *session) Accept() (Stream, error) {
	select {
	case st := <-s.accepts:
		return st, nil
	case <-s.done:
		return nil, s.failure()
	}
}

// fail ends the session at once.
func (s *session) fail(err error) {
	s.end(err, func() { s.out.stop(err) })
}

func (s *session) Abort(code uint32) error {
	err := &ResetError{Code: code, Session: true}
	s.end(err, func() { s.out.part(appendHeader(nil, typeGoAway, 0, 0, code), err) })
	return nil
}

func (s *session) end(err error, last func()) {
	var re *ResetError
	if !errors.As(err, &re) && !errors.Is(err, ErrCut) {
		err = fmt.Errorf("%w: %w", ErrCut, err)
	}
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	s.timer.Stop()
	list := make([]*stream, 0, len(s.streams))
	for _, st := range s.streams {
		list = append(list, st)
	}
	clear(s.streams)
	s.mu.Unlock()
	for _, st := range list {
		st.abandon(err)
	}
	close(s.done)
	last()
	_ = s.conn.Close()
}

// keepAlive asks a peer that was not heard for a while, and ends the session
// when it does not answer.
func (s *session) keepAlive() {
	quiet := time.Since(time.Unix(0, s.heard.Load()))
	if quiet >= s.o.KeepAlive+s.o.WriteTimeout {
		s.fail(errors.New("the peer does not answer"))
		return
	}
	next := s.o.KeepAlive - quiet
	if next <= 0 {
		next = min(s.o.KeepAlive, s.o.WriteTimeout) / 2
		_ = s.out.answer(appendHeader(nil, typePing, flagSYN, 0, 0))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.timer.Reset(max(next, 10*time.Millisecond))
	}
}

// receive reads frames until the session ends.
func (s *session) receive() {
	r := &reader{r: heardReader{s}, buf: make([]byte, readBuffer)}
	for {
		var h header
		err := r.full(h[:])
		if err == nil {
			err = s.frame(&h, r)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, errProtocol) {
			_ = s.out.answer(appendHeader(nil, typeGoAway, 0, 0, goAwayProtocol))
		}
		s.fail(err)
		return
	}
}

// heardReader notes when bytes come.
type heardReader struct{ s *session }

func (r heardReader) Read(b []byte) (int, error) {
	n, err := r.s.conn.Read(b)
	if n > 0 {
		r.s.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

func (s *session) frame(h *header, r *reader) error {
	if h[0] != 0 {
		return fmt.Errorf("%w: version %d", errProtocol, h[0])
	}
	switch h.kind() {
	case typeData, typeWindow:
		return s.streamFrame(h, r)
	case typePing:
		if h.flags()&flagSYN != 0 {
			return s.out.answer(appendHeader(nil, typePing, flagACK, 0, h.length()))
		}
		return nil
	case typeGoAway:
		if h.length() == 0 {
			return ErrCut
		}
		return &ResetError{Code: h.length(), Remote: true, Session: true}
	}
	return fmt.Errorf("%w: frame type %d", errProtocol, h.kind())
}

func (s *session) streamFrame(h *header, r *reader) error {
	id, flags := h.id(), h.flags()
	st, err := s.find(id, flags)
	if err != nil {
		return err
	}
	if h.kind() == typeData {
		if h.length() > maxCredit { // no window is that large; and it fits an int of 32 bits
			return fmt.Errorf("%w: frame of %d bytes", errProtocol, h.length())
		}
		if h.length() > 0 {
			if err := st.receive(int(h.length()), r); err != nil {
				return err
			}
		}
	} else if flags&flagRST == 0 && st != nil {
		if err := st.addCredit(h.length()); err != nil {
			return err
		}
	}
	if st == nil {
		return nil
	}
	if flags&flagFIN != 0 {
		st.remoteEnd()
	}
	if flags&flagRST != 0 {
		code := uint32(0)
		if h.kind() == typeWindow {
			code = h.length()
		}
		st.remoteReset(code)
	}
	return nil
}

// find returns the stream of a frame, and enters one that the peer opens. It is
// nil for streams that have ended, and for those that are refused.
func (s *session) find(id uint32, flags uint16) (*stream, error) {
	s.mu.Lock()
	st := s.streams[id]
	if flags&flagSYN == 0 {
		s.mu.Unlock()
		return st, nil
	}
	if st != nil || id == 0 || (id%2 == 1) == s.client {
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: stream %d opened", errProtocol, id)
	}
	if s.err == nil && s.incoming < s.o.MaxStreams {
		st = newStream(s, id, flagACK)
		select {
		case s.accepts <- st:
			s.incoming++
			s.streams[id] = st
			s.mu.Unlock()
			return st, nil
		default: // streams that ended while they waited still have places
		}
	}
	s.mu.Unlock()
	return nil, s.out.answer(appendHeader(nil, typeWindow, flagRST, id, s.o.LimitCode))
}

// forget takes a stream off that has ended on both sides.
func (s *session) forget(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st.id] != st {
		return
	}
	delete(s.streams, st.id)
	if (st.id%2 == 1) != s.client {
		s.incoming--
	}
}
