package spdm

import (
	"bytes"
	"context"
	"encoding/binary"
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

// ServeEmulator is ServeAll in the socket protocol of DMTF's reference
// emulator, so that its requester, or a test of one, meets this responder. As
// the emulator, it ends when a requester tells it to shut down, and hangs up
// on one that comes with another binding.
func (r *Responder) ServeEmulator(ctx context.Context, l net.Listener, b Binding) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer l.Close()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if !r.emulate(ctx, conn, emuFraming{b}) {
			return nil
		}
	}
}

// emulate serves one requester of ServeEmulator. It reports whether to go on.
func (r *Responder) emulate(ctx context.Context, conn net.Conn, f emuFraming) bool {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	for {
		if conn.SetDeadline(time.Now().Add(idle)) != nil {
			return true
		}
		var head [12]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return true
		}
		command, n := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[8:])
		if Binding(binary.BigEndian.Uint32(head[4:])) != f.b || n > maxFrame {
			return true
		}
		// Read the rest as one frame again: the framing takes off its binding.
		body := io.MultiReader(bytes.NewReader(head[:]), io.LimitReader(conn, int64(n)))
		var err error
		switch command {
		case emuNormal:
			var req []byte
			if req, err = f.read(body); err == nil {
				err = f.write(conn, r.Respond(f.exact(req)))
			}
		case emuHello:
			if _, err = emuRead(body, command, f.b); err == nil {
				err = emuWrite(conn, emuHello, f.b, []byte("Server Hello!\x00"))
			}
		case emuContinue, emuShutdown:
			_ = emuWrite(conn, command, f.b, nil)
			return command == emuContinue
		default:
			_ = emuWrite(conn, emuUnknown, f.b, nil)
			return true
		}
		if err != nil {
			return true
		}
	}
}
