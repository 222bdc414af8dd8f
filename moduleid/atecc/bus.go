package atecc

import (
	"context"
	"errors"
)

// Bus is a two-wire bus with chips on it. The host calls Tx and Wake one at a
// time. Every method honours ctx within a second.
type Bus interface {
	// Tx writes w to the 7-bit address, if w is not empty, and then reads
	// len(r) bytes from it, if r is not empty, each as a transfer of its own
	// that ends with a stop condition. An address that nobody acknowledges is
	// an error that is [ErrNACK]; other errors are the bus's.
	Tx(ctx context.Context, addr uint8, w, r []byte) error

	// Wake holds SDA low for at least 60 µs, which wakes every chip.
	Wake(ctx context.Context) error

	// Lock takes the bus for this process, against others that use it too.
	Lock(ctx context.Context) (unlock func() error, err error)

	Close() error
	String() string // names the bus in errors
}

// ErrNACK says that no chip acknowledged its address: it sleeps, computes, or
// is not there.
var ErrNACK = errors.New("atecc: address not acknowledged")

// ErrBus is the class of errors of a bus that does not work: stuck lines, lost
// arbitration, an adapter that is gone, an address that a kernel driver holds.
var ErrBus = errors.New("atecc: bus failure")
