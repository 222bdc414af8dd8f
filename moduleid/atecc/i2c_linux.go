package atecc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// i2cSlave is the ioctl I2C_SLAVE of linux/i2c-dev.h. It refuses an address
// that a kernel driver uses; I2C_SLAVE_FORCE, which does not, is never used.
const i2cSlave = 0x0703

// OpenI2C opens a bus of Linux's i2c-dev driver, such as /dev/i2c-1. The lock
// is flock(2) on that device file, so that every process which opens the bus
// through this package takes turns, and one that is killed gives it back.
func OpenI2C(path string) (Bus, error) {
	b := &i2cBus{path: path, files: map[uint8]*os.File{}}
	f, err := b.file(0) // address 0 also serves the wake
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrBus, err), f.Close())
	}
	b.lock = &fileLock{f: lock}
	return b, nil
}

type i2cBus struct {
	path string
	lock *fileLock // on a file of its own

	mu     sync.Mutex
	files  map[uint8]*os.File // one file per address: none is ever re-addressed
	closed bool
}

// file returns the open file of an address.
func (b *i2cBus) file(addr uint8) (*os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("%w: %s is closed", ErrBus, b.path)
	}
	if f := b.files[addr]; f != nil {
		return f, nil
	}
	fd, err := unix.Open(b.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: open %s: %w (is the i2c-dev module loaded, and may this user use the bus?)", ErrBus, b.path, err)
	}
	if err := unix.IoctlSetInt(fd, i2cSlave, int(addr)); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("%w: a kernel driver uses address %#02x of %s: unbind it, or give the chip another address", ErrBus, addr, b.path)
		}
		return nil, fmt.Errorf("%w: %s: address %#02x: %w", ErrBus, b.path, addr, err)
	}
	f := os.NewFile(uintptr(fd), b.path)
	b.files[addr] = f
	return f, nil
}

// Tx implements Bus. A transfer can't be interrupted: the adapter's driver
// bounds it, usually by one second.
func (b *i2cBus) Tx(ctx context.Context, addr uint8, w, r []byte) error {
	f, err := b.file(addr)
	if err != nil {
		return err
	}
	for _, t := range []struct {
		p  []byte
		io func([]byte) (int, error)
	}{{w, f.Write}, {r, f.Read}} {
		if len(t.p) == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := t.io(t.p)
		if err != nil {
			return b.classify(addr, err)
		}
		if n != len(t.p) {
			return fmt.Errorf("%w: %s moved %d of %d bytes", ErrBus, b.path, n, len(t.p))
		}
	}
	return nil
}

// classify tells a missing acknowledgement from a bus that does not work. The
// adapters' drivers report the former as ENXIO, EREMOTEIO or EIO.
func (b *i2cBus) classify(addr uint8, err error) error {
	for _, nack := range []error{unix.ENXIO, unix.EREMOTEIO, unix.EIO} {
		if errors.Is(err, nack) {
			return fmt.Errorf("%w: address %#02x of %s (%w)", ErrNACK, addr, b.path, nack)
		}
	}
	hint := ""
	switch {
	case errors.Is(err, unix.ETIMEDOUT):
		hint = ": a line is stuck, or a chip holds the clock"
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EBUSY):
		hint = ": another bus master won the arbitration"
	case errors.Is(err, unix.ENODEV):
		hint = ": the adapter is gone"
	}
	return fmt.Errorf("%w: %s: %w%s", ErrBus, b.path, err, hint)
}

// Wake writes to address 0, whose nine low bits hold SDA down for 80 µs at
// 100 kHz. Nobody acknowledges it.
func (b *i2cBus) Wake(ctx context.Context) error {
	err := b.Tx(ctx, 0, []byte{0}, nil)
	if errors.Is(err, ErrNACK) {
		return nil
	}
	return err
}

// Lock implements Bus.
func (b *i2cBus) Lock(ctx context.Context) (func() error, error) { return b.lock.take(ctx) }

// Close closes every file of the bus.
func (b *i2cBus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	err := b.lock.f.Close()
	for _, f := range b.files {
		err = errors.Join(err, f.Close())
	}
	clear(b.files)
	return err
}

func (b *i2cBus) String() string { return b.path }
