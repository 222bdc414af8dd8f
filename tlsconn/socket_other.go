//go:build !unix

package tlsconn

import "net"

// socket is for systems whose sockets can be asked whether they would wait.
type socket struct {
	share int32
	room  int
}

func socketOf(net.Conn) *socket { return nil }

func (*socket) lend() (*[]byte, int, error)    { return nil, 0, net.ErrClosed }
func (*socket) take(int) (*[]byte, int, error) { return nil, 0, net.ErrClosed }
func (*socket) await() error                   { return net.ErrClosed }
func (*socket) give([]byte) int                { return 0 }
