package spdm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockaddrMCTP is struct sockaddr_mctp of linux/mctp.h.
type sockaddrMCTP struct {
	family  uint16
	_       uint16
	network uint32
	eid     uint8
	typ     uint8
	tag     uint8
	_       uint8
}

const (
	mctpTagOwner = 0x08
	mctpPoll     = 100 // milliseconds between looks at the context
)

// DialMCTP returns a transport to the endpoint of an MCTP network of the
// kernel (AF_MCTP, Linux 5.15; network 0 is the default one).
func DialMCTP(network uint32, eid uint8) (Transport, error) {
	fd, err := unix.Socket(unix.AF_MCTP, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("spdm: this kernel has no MCTP (CONFIG_MCTP): %w", err)
		}
		return nil, fmt.Errorf("spdm: open an MCTP socket: %w", err)
	}
	m := &mctpSocket{fd: fd, peer: sockaddrMCTP{family: unix.AF_MCTP, network: network, eid: eid, typ: mctpType, tag: mctpTagOwner}}
	return MCTP(m.send, m.receive, m.close), nil
}

// mctpSocket is a socket to one endpoint.
type mctpSocket struct {
	fd   int
	peer sockaddrMCTP

	mu     sync.Mutex // held during each system call: the number of a closed socket may be somebody else's
	closed bool
}

// usable says why the socket can't be used. The caller holds mu.
func (m *mctpSocket) usable(ctx context.Context) error {
	if m.closed {
		return net.ErrClosed
	}
	return ctx.Err()
}

func (m *mctpSocket) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	return unix.Close(m.fd)
}

func (m *mctpSocket) send(ctx context.Context, message []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(ctx); err != nil {
		return err
	}
	// The kernel puts the message type in front by the address.
	p := message[1:]
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(m.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0,
		uintptr(unsafe.Pointer(&m.peer)), unsafe.Sizeof(m.peer))
	runtime.KeepAlive(p)
	if errno != 0 {
		return fmt.Errorf("send to MCTP endpoint %d: %w", m.peer.eid, errno)
	}
	return nil
}

func (m *mctpSocket) receive(ctx context.Context) ([]byte, error) {
	buf := make([]byte, maxFrame)
	for {
		if p, err := m.look(ctx, buf); p != nil || err != nil {
			return p, err
		}
	}
}

// look waits a moment for a message; nil is none.
func (m *mctpSocket) look(ctx context.Context, buf []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(ctx); err != nil {
		return nil, err
	}
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}}, mctpPoll)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return nil, err
	}
	if ready <= 0 {
		return nil, nil
	}
	var from sockaddrMCTP
	size := uint32(unsafe.Sizeof(from))
	n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(m.fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0,
		uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)))
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return nil, nil
	case errno != 0:
		return nil, fmt.Errorf("receive from MCTP endpoint %d: %w", m.peer.eid, errno)
	case from.eid != m.peer.eid:
		return nil, nil // somebody else
	}
	return append([]byte{from.typ}, buf[:n]...), nil
}
