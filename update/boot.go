package update

import (
	"context"
	"io"
)

// Slot names one of the two places for software, as the boot loader calls it.
type Slot string

// SlotStatus is what the boot loader knows of a slot.
type SlotStatus struct {
	Slot Slot
	// Running says that the system that asks was booted from this slot.
	Running bool
	// Good says that the slot was confirmed: it is booted by default, or
	// when a trial of the other one has used up its tries.
	Good bool
	// Tries is how many more boots a slot on trial has. A slot that is
	// neither Good nor has tries is never booted.
	Tries int
}

// BootControl is the boot loader's choice of slot. Package boot has backends;
// package updatetest has a kit that checks yours. Every change is durable when
// its method returns. Methods are called by one goroutine at a time.
type BootControl interface {
	// Slots returns both slots; exactly one is Running.
	Slots(ctx context.Context) ([]SlotStatus, error)
	// Invalidate makes sure that a slot is not booted.
	Invalidate(ctx context.Context, s Slot) error
	// Arm makes the loader boot s for at most tries boots, and the other
	// slot after that unless MarkGood was called. The running slot stays Good.
	Arm(ctx context.Context, s Slot, tries int) error
	// MarkGood makes s the slot that is booted from now on; the other one
	// stays as it is.
	MarkGood(ctx context.Context, s Slot) error
}

// Slots opens the places that the parts of a release are written to. When it
// also has a method OpenBase(ctx, Slot, part) (SlotFile, error), which opens a
// part for reading only, updates reuse what the running slot holds.
type Slots interface {
	// Open opens the place of one part in a slot for reading and writing. A
	// part that the slots have no place for is an error.
	Open(ctx context.Context, s Slot, part string) (SlotFile, error)
}

// SlotFile is a partition, volume or file that one part is written to.
type SlotFile interface {
	io.ReaderAt
	io.WriterAt
	// Size is how many bytes fit.
	Size() int64
	// Sync makes what was written durable. ReadAt after Sync reads from the
	// medium where that can be arranged, rather than from a cache.
	Sync() error
	Close() error
}
