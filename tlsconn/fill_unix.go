//go:build unix

package tlsconn

import (
	"io"
	"net"
	"os"
	"syscall"
)

// fill waits until the socket is readable and reads into a pooled buffer.
func (c *batchConn) fill() error {
	var n int
	var rerr error
	err := c.rc.Read(func(fd uintptr) bool {
		if c.in == nil {
			c.in = readBuffers.Get().(*[]byte)
		}
		for {
			n, rerr = syscall.Read(int(fd), *c.in)
			if rerr != syscall.EINTR {
				break
			}
		}
		if rerr == syscall.EAGAIN {
			readBuffers.Put(c.in)
			c.in = nil
			return false
		}
		return true
	})
	if err == nil && rerr != nil {
		err = &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("read", rerr)}
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		if c.in != nil {
			readBuffers.Put(c.in)
			c.in = nil
		}
		return err
	}
	c.got = (*c.in)[:n]
	return nil
}
