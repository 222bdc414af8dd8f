package softtpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// maxClients is how many connections Serve holds at a time; more wait.
const maxClients = 16

// Serve executes the commands that come over the connections of l, as raw TPM
// commands (what swtpm calls a unixio or tcp server): each whole command is
// answered by one whole response. A connection that sends what is no command
// is closed. What a connection has left loaded when it closes is flushed, as
// /dev/tpmrm0 does; saved contexts stay. Serve returns when ctx is done or l fails, and closes l and all
// connections.
func (t *TPM) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	slots := make(chan struct{}, maxClients)
	for {
		client := t.clients.Add(1)
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.Accept()
		if err != nil {
			_ = l.Close()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("softtpm: accept: %w", err)
		}
		wg.Go(func() {
			defer func() { <-slots }()
			closed := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer closed()
			defer conn.Close()
			defer t.release(client)
			for t.serveCommand(client, conn) == nil {
			}
		})
	}
}

var errCommand = errors.New("softtpm: not a TPM command")

func (t *TPM) serveCommand(client uint64, conn io.ReadWriter) error {
	var head [10]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < 10 || size > maxCommand {
		return errCommand
	}
	command := make([]byte, size)
	copy(command, head[:])
	if _, err := io.ReadFull(conn, command[10:]); err != nil {
		return err
	}
	rsp, err := t.send(client, 0, command)
	if err != nil {
		return err
	}
	_, err = conn.Write(rsp)
	return err
}
