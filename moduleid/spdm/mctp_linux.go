package spdm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
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
	peer := sockaddrMCTP{family: unix.AF_MCTP, network: network, eid: eid, typ: mctpType, tag: mctpTagOwner}
	send := func(ctx context.Context, m []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		// The kernel puts the message type in front by the address.
		p := m[1:]
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0,
			uintptr(unsafe.Pointer(&peer)), unsafe.Sizeof(peer))
		runtime.KeepAlive(p)
		if errno != 0 {
			return fmt.Errorf("send to MCTP endpoint %d: %w", eid, errno)
		}
		return nil
	}
	receive := func(ctx context.Context) ([]byte, error) {
		buf := make([]byte, maxFrame)
		for {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, mctpPoll)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return nil, err
			}
			if ready <= 0 {
				continue
			}
			var from sockaddrMCTP
			size := uint32(unsafe.Sizeof(from))
			n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0,
				uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)))
			switch {
			case errno == unix.EAGAIN || errno == unix.EINTR:
				continue
			case errno != 0:
				return nil, fmt.Errorf("receive from MCTP endpoint %d: %w", eid, errno)
			case from.eid != eid:
				continue // somebody else
			}
			return append([]byte{from.typ}, buf[:n]...), nil
		}
	}
	return MCTP(send, receive, func() error { return unix.Close(fd) }), nil
}
