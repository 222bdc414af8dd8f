//go:build unix

package tlsconn

import (
	"io"
	"net"
	"os"
	"syscall"
)

// socket reads a socket into buffers that it takes when there are bytes, and
// writes to it without waiting. One goroutine at a time may read, and one write.
type socket struct {
	c  net.Conn
	rc syscall.RawConn

	share int32 // of the large buffers
	room  int   // most bytes of the next read; 0 is the buffer's size
	now   bool  // it does not wait

	in  *[]byte // of the last read, with n bytes, or err
	n   int
	err error
	one [1]byte

	out     []byte
	written int

	read, peek, write func(fd uintptr) bool // made once
}

// socketOf returns nil for what is no stream socket itself: what wraps one may do
// more than read and write.
func socketOf(c net.Conn) *socket {
	var rc syscall.RawConn
	var err error
	switch c := c.(type) {
	case *net.TCPConn:
		rc, err = c.SyscallConn()
	case *net.UnixConn:
		if c.LocalAddr().Network() != "unix" {
			return nil
		}
		rc, err = c.SyscallConn()
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	s := &socket{c: c, rc: rc, share: relayShare}
	s.read, s.write, s.peek = s.tryRead, s.tryWrite, s.tryPeek
	return s
}

func (s *socket) tryRead(fd uintptr) bool {
	s.in = buffers.get(s.share)
	b := (*s.in)[:cap(*s.in)]
	if s.room > 0 && s.room < len(b) {
		b = b[:s.room]
	}
	for {
		if s.n, s.err = syscall.Read(int(fd), b); s.err != syscall.EINTR {
			break
		}
	}
	if s.err != syscall.EAGAIN {
		return true
	}
	buffers.put(s.in)
	s.in = nil
	return s.now
}

// lend waits for bytes and returns them in a buffer that the caller puts back.
func (s *socket) lend() (*[]byte, int, error) {
	s.now = false
	return s.lent(s.rc.Read(s.read))
}

// lent is what came of a read.
func (s *socket) lent(err error) (*[]byte, int, error) {
	in := s.in
	s.in = nil
	switch {
	case err != nil:
	case s.err == syscall.EAGAIN:
		return nil, 0, nil
	case s.err != nil:
		err = s.failed(s.err)
	case s.n == 0:
		err = io.EOF
	}
	if err != nil && in != nil {
		buffers.put(in)
		in = nil
	}
	return in, s.n, err
}

// await waits until there are bytes, or the clean end. A reset shows once: here.
func (s *socket) await() error {
	err := s.rc.Read(s.peek)
	if err == nil && s.err != nil {
		err = s.failed(s.err)
	}
	return err
}

func (s *socket) tryPeek(fd uintptr) bool {
	for {
		if _, _, s.err = syscall.Recvfrom(int(fd), s.one[:], syscall.MSG_PEEK); s.err != syscall.EINTR {
			return s.err != syscall.EAGAIN
		}
	}
}

func (s *socket) failed(err error) error {
	return &net.OpError{Op: "read", Net: "tcp", Source: s.c.LocalAddr(), Addr: s.c.RemoteAddr(), Err: os.NewSyscallError("read", err)}
}

// take is lend for who does not wait: without bytes the buffer is nil.
func (s *socket) take(room int) (*[]byte, int, error) {
	s.room, s.now = room, true
	return s.lent(s.rc.Read(s.read))
}

func (s *socket) tryWrite(fd uintptr) bool {
	for {
		var err error
		if s.written, err = syscall.Write(int(fd), s.out); err != syscall.EINTR {
			return true
		}
	}
}

// give writes what the socket takes without waiting, and returns how many bytes
// that were. A failure shows in the next write that waits.
func (s *socket) give(b []byte) int {
	s.out, s.written = b, 0
	_ = s.rc.Write(s.write)
	s.out = nil
	return max(s.written, 0)
}
