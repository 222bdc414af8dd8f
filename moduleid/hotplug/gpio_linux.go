package hotplug

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pollMilliseconds is how soon the end of a context is seen.
const pollMilliseconds = 200

// Structures and requests of linux/gpio.h, ABI version 2.
type (
	gpioAttribute struct {
		id, _ uint32
		value uint64
		mask  uint64
	}
	gpioLineRequest struct {
		offsets    [64]uint32
		consumer   [32]byte
		flags      uint64
		attributes uint32
		_          [5]uint32
		attrs      [10]gpioAttribute
		lines      uint32
		bufferSize uint32
		_          [5]uint32
		fd         int32
	}
	gpioValues struct{ bits, mask uint64 }
)

const (
	gpioGetLine   = 0xc250b407
	gpioGetValues = 0xc010b40e

	gpioActiveLow = 1 << 1
	gpioInput     = 1 << 2
	gpioRising    = 1 << 4
	gpioFalling   = 1 << 5
)

// Compile-time check of the structure's size, which is part of the request.
var _ = [1]byte{}[592-unsafe.Sizeof(gpioLineRequest{})]

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return errno
	}
	return nil
}

// Watch implements Source. What is there at the start is an event; an edge
// that the kernel could not queue counts as one.
func (g GPIO) Watch(ctx context.Context, emit func(Event)) error {
	chip, err := unix.Open(g.Chip, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", g.Chip, err)
	}
	req := gpioLineRequest{lines: 1, flags: gpioInput | gpioRising | gpioFalling}
	req.offsets[0] = g.Line
	copy(req.consumer[:], "trusttree-moduleid")
	if g.ActiveLow {
		req.flags |= gpioActiveLow
	}
	err = ioctl(chip, gpioGetLine, unsafe.Pointer(&req))
	unix.Close(chip)
	if err != nil {
		return fmt.Errorf("%s line %d: %w", g.Chip, g.Line, err)
	}
	fd := int(req.fd)
	defer unix.Close(fd)
	present := func() (bool, error) {
		v := gpioValues{mask: 1}
		if err := ioctl(fd, gpioGetValues, unsafe.Pointer(&v)); err != nil {
			return false, fmt.Errorf("%s line %d: %w", g.Chip, g.Line, err)
		}
		return v.bits&1 != 0, nil
	}
	is, err := present()
	if err != nil {
		return err
	}
	if is {
		emit(Event{g.Connector, true})
	}
	buf := make([]byte, 16*lineEventSize)
	seq := uint32(0)
	for ctx.Err() == nil {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, pollMilliseconds)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("%s line %d: %w", g.Chip, g.Line, err)
		}
		if ready <= 0 {
			continue
		}
		n, err := unix.Read(fd, buf)
		if err != nil {
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
				continue
			}
			return fmt.Errorf("%s line %d: %w", g.Chip, g.Line, err)
		}
		for _, e := range parseLineEvents(buf[:n]) {
			if e.seq != seq+1 {
				emit(Event{g.Connector, false}) // edges were lost in between
			}
			seq = e.seq
			emit(Event{g.Connector, e.id == risingEdge})
		}
	}
	return nil
}
