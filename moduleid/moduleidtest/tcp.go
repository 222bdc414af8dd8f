package moduleidtest

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// ServeTCP offers the chip in the word-address framing of atecc.OpenTCP, until
// ctx ends; it closes the listener. One connection is served at a time, as one
// chip has one bus.
func (c *ATECC608) ServeTCP(ctx context.Context, l net.Listener) error {
	var conn net.Conn
	var mu sync.Mutex
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		_ = l.Close()
		if conn != nil {
			_ = conn.Close()
		}
	})
	defer stop()
	for {
		next, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		mu.Lock()
		conn = next
		mu.Unlock()
		err = c.serveConn(next)
		_ = next.Close()
		if err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) {
			var op *net.OpError
			if !errors.As(err, &op) {
				return err
			}
		}
	}
}

func (c *ATECC608) serveConn(conn net.Conn) error {
	r := bufio.NewReader(conn)
	for {
		word, err := r.ReadByte()
		if err != nil {
			return err
		}
		c.wake(time.Now()) // the framing has none
		packet := []byte{word}
		if word == 3 {
			count, err := r.ReadByte()
			if err != nil {
				return err
			}
			if count < 1 {
				continue
			}
			rest := make([]byte, count-1)
			if _, err := io.ReadFull(r, rest); err != nil {
				return err
			}
			packet = append(append(packet, count), rest...)
		}
		for !c.receive(packet, time.Now()) {
			time.Sleep(time.Millisecond)
			c.wake(time.Now())
		}
		if word != 3 {
			continue
		}
		var count [1]byte
		for !c.send(count[:], time.Now()) {
			time.Sleep(time.Millisecond)
		}
		answer := make([]byte, int(count[0]))
		answer[0] = count[0]
		if !c.send(answer[1:], time.Now()) {
			return io.ErrUnexpectedEOF
		}
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
}
