package spdm

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// idle is how long a served connection may be silent.
const idle = 5 * time.Minute

// Serve answers requests on one connection in the framing of DSP0287, until
// the peer closes it, breaks the framing, is silent for 5 minutes, or ctx
// ends. It closes the connection.
func (r *Responder) Serve(ctx context.Context, conn net.Conn) error {
	return r.serve(ctx, conn, tcpFraming{})
}

func (r *Responder) serve(ctx context.Context, conn net.Conn, f framing) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	for {
		if err := conn.SetDeadline(time.Now().Add(idle)); err != nil {
			return err
		}
		req, err := f.read(conn)
		if err == nil {
			err = f.write(conn, r.Respond(req))
		}
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// ServeAll accepts connections until ctx ends, and serves them one after the
// other: a responder has one requester at a time. It closes the listener.
func (r *Responder) ServeAll(ctx context.Context, l net.Listener) error {
	var once sync.Once
	closeListener := func() { once.Do(func() { _ = l.Close() }) }
	stop := context.AfterFunc(ctx, closeListener)
	defer stop()
	defer closeListener()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		_ = r.Serve(ctx, conn) // one bad peer ends its own connection only
	}
}
