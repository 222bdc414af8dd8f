//go:build unix

package tlsconn

import (
	"net"
	"os"
	"syscall"
)

// readNow reads what has come already, and nothing when nothing has. An end of
// file is left to the next read.
func readNow(c net.Conn, b []byte) (int, error) {
	var s syscall.Conn
	switch c := c.(type) {
	case *net.TCPConn:
		s = c
	case *net.UnixConn:
		s = c
	default:
		return 0, nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, rerr = syscall.Read(int(fd), b)
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case rerr == syscall.EAGAIN || rerr == syscall.EINTR:
		return 0, nil
	case rerr != nil:
		// Told once only: what is read after it would look like a clean end.
		return 0, os.NewSyscallError("read", rerr)
	}
	return n, nil
}
