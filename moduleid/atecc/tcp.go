package atecc

import (
	"bufio"
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
	wake    []byte // rest of the wake answer, which the framing does not carry
	pending bool   // a command was sent whose answer was not read
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
	if w[0] == wordCommand {
		b.wake, b.pending = nil, true
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
	if len(b.wake) > 0 {
		n := copy(r, b.wake)
		b.wake = b.wake[n:]
		return nil
	}
	if b.closed || b.conn == nil {
		return fmt.Errorf("%w: %s is closed", ErrBus, b.address)
	}
	if err := b.conn.SetReadDeadline(time.Now().Add(tcpPoll)); err != nil {
		return fmt.Errorf("%w: %w", ErrBus, err)
	}
	p, err := b.r.Peek(len(r))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w by %s", ErrNACK, b.address)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrBus, b.address, err)
	}
	copy(r, p)
	if _, err := b.r.Discard(len(r)); err != nil {
		return fmt.Errorf("%w: %w", ErrBus, err)
	}
	if len(r) > 1 {
		b.pending = false // the rest after the count
	}
	return nil
}

// Wake makes the wake answer that the framing lacks. After an answer that was
// not read to its end it connects again, so that it is never taken for the
// next one.
func (b *tcpBus) Wake(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("%w: %s is closed", ErrBus, b.address)
	}
	if b.pending || b.conn == nil {
		if b.conn != nil {
			_ = b.conn.Close()
			b.conn = nil
		}
		if err := b.dial(ctx); err != nil {
			return err
		}
		b.pending = false
	}
	b.wake = []byte{4, statusWake, 0x33, 0x43}
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
