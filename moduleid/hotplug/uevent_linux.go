package hotplug

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Watch implements Source. It takes events from the kernel alone: any process
// may send to the group, and none is believed.
func (u Uevents) Watch(ctx context.Context, emit func(Event)) error {
	if u.Match == nil {
		return errors.New("uevents: Match is missing")
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("uevents: %w", err)
	}
	defer unix.Close(fd)
	const kernelGroup = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return fmt.Errorf("uevents: %w", err)
	}
	buf := make([]byte, maxUevent)
	for ctx.Err() == nil {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, pollMilliseconds)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("uevents: %w", err)
		}
		if ready <= 0 {
			continue
		}
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.ENOBUFS) {
			emit(Event{}) // the kernel dropped some: look at everything
			continue
		}
		if err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			return fmt.Errorf("uevents: %w", err)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue
		}
		device, err := parseUevent(buf[:n])
		if err != nil {
			continue
		}
		if e, ok := u.translate(device); ok {
			emit(e)
		}
	}
	return nil
}
