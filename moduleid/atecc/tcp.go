package atecc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

const (
	tcpPoll  = 20 * time.Millisecond // an answer that takes longer is a missing acknowledgement
	tcpWrite = 900 * time.Millisecond
)

// OpenTCP connects to one chip that is emulated behind a TCP socket in the
// word-address framing: the client sends the word address as one byte, and
// after 0x03 the command packet; the server answers 0x03 with the response
// packet once it is ready, and 0x00 to 0x02 with nothing. Such a chip has no
// I2C address, needs no wake, and is for development only: nothing protects
// the connection.
func OpenTCP(ctx context.Context, address string) (Bus, error) {
	b := &tcpBus{address: address, lock: make(chan struct{}, 1)}
	if err := b.dial(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

type tcpBus struct {
	address string
	lock    chan struct{}

	mu      sync.Mutex
	conn    net.Conn
	r       *bufio.Reader
	answer  []byte // what a read gives: the wake's answer or a command's, whole
	at      int    // how much of it was read
	pending bool   // a command was sent whose answer did not come yet, or is out of step
	closed  bool
}

func (b *tcpBus) dial(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", b.address)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBus, err)
	}
	b.conn, b.r = conn, bufio.NewReader(conn)
	return nil
}

// Tx implements Bus for any address: there is one chip.
func (b *tcpBus) Tx(ctx context.Context, _ uint8, w, r []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(w) > 0 {
		if err := b.write(w); err != nil {
			return err
		}
	}
	if len(r) > 0 {
		return b.read(r)
	}
	return nil
}

func (b *tcpBus) write(w []byte) error {
	if b.closed || b.conn == nil {
		return fmt.Errorf("%w: %s is closed", ErrBus, b.address)
	}
	switch w[0] {
	case wordReset:
		b.at = 0 // the answer is here already, and the server has nothing to say to it
		return nil
	case wordCommand:
		b.answer, b.at, b.pending = nil, 0, true
	}
	if err := b.conn.SetWriteDeadline(time.Now().Add(tcpWrite)); err != nil {
		return fmt.Errorf("%w: %w", ErrBus, err)
	}
	if _, err := b.conn.Write(w); err != nil {
		return fmt.Errorf("%w: %w", ErrBus, err)
	}
	return nil
}

func (b *tcpBus) read(r []byte) error {
	if b.closed || b.conn == nil {
		return fmt.Errorf("%w: %s is closed", ErrBus, b.address)
	}
	if b.answer == nil {
		if err := b.receive(); err != nil {
			return err
		}
	}
	n := copy(r, b.answer[b.at:])
	b.at += n
	for i := range r[n:] {
		r[n+i] = 0xff // as a chip answers that has no more
	}
	return nil
}

// receive waits a moment for a whole answer: its count tells its length.
func (b *tcpBus) receive() error {
	if err := b.conn.SetReadDeadline(time.Now().Add(tcpPoll)); err != nil {
		return fmt.Errorf("%w: %w", ErrBus, err)
	}
	p, err := b.r.Peek(1)
	if err == nil && p[0] >= minResponse && p[0] <= maxResponse {
		p, err = b.r.Peek(int(p[0]))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w by %s", ErrNACK, b.address)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrBus, b.address, err)
	}
	b.answer, b.at = bytes.Clone(p), 0
	b.pending = len(p) == 1 // an impossible count: nobody knows where the next answer begins
	if _, err := b.r.Discard(len(p)); err != nil {
		return fmt.Errorf("%w: %w", ErrBus, err)
	}
	return nil
}

// patience is how much longer than a chip an emulated one may take: it shares
// its machine with others.
func (b *tcpBus) patience() time.Duration { return 2 * time.Second }

// Wake makes the wake answer that the framing lacks. After an answer that was
// not read to its end it connects again, so that it is never taken for the
// next one.
func (b *tcpBus) Wake(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("%w: %s is closed", ErrBus, b.address)
	}
	if b.pending || b.conn == nil || b.r.Buffered() > 0 {
		if b.conn != nil {
			_ = b.conn.Close()
			b.conn = nil
		}
		if err := b.dial(ctx); err != nil {
			return err
		}
		b.pending = false
	}
	b.answer, b.at = []byte{4, statusWake, 0x33, 0x43}, 0
	return nil
}

// Lock implements Bus: the connection is this process's own.
func (b *tcpBus) Lock(ctx context.Context) (func() error, error) {
	select {
	case b.lock <- struct{}{}:
		return func() error { <-b.lock; return nil }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close closes the connection.
func (b *tcpBus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.conn == nil {
		return nil
	}
	return b.conn.Close()
}

func (b *tcpBus) String() string { return "tcp:" + b.address }
