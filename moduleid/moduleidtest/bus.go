package moduleidtest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/trusttree/trusttree/moduleid/atecc"
)

// Bus emulates an I2C bus with chips on it. It implements atecc.Bus. Safe for
// concurrent use.
type Bus struct {
	hertz int
	lock  chan struct{}

	mu    sync.Mutex
	chips map[uint8]*ATECC608
	free  time.Time // when the last transfer ends
	fault func(*Transfer) error
	stats BusStats
}

// BusStats counts what happened on a bus.
type BusStats struct {
	Wakes, Writes, Reads, NACKs, Bytes int
}

// Transfer is one read or write, for faults to alter.
type Transfer struct {
	Addr uint8  // 0 for a wake
	Read bool   // otherwise a write
	Data []byte // what is written, or was read; may be altered in place
}

// NewBus returns a bus with a clock of so many hertz; 0 takes no time.
func NewBus(hertz int) *Bus {
	return &Bus{hertz: hertz, lock: make(chan struct{}, 1), chips: map[uint8]*ATECC608{}}
}

// Plug puts a chip at a 7-bit address, in place of what is there.
func (b *Bus) Plug(addr uint8, c *ATECC608) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.chips[addr] = c
}

// Unplug removes the chip at an address.
func (b *Bus) Unplug(addr uint8) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.chips, addr)
}

// OnTransfer calls f for every transfer: before a write or a wake reaches the
// chips, and after a read. What f returns is the bus's error. Nil ends it.
func (b *Bus) OnTransfer(f func(*Transfer) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = f
}

// Stats returns the counts so far.
func (b *Bus) Stats() BusStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stats
}

func (b *Bus) String() string { return "emulated I2C bus" }

// Close does nothing.
func (b *Bus) Close() error { return nil }

// Lock takes the bus; an emulated bus is in one process.
func (b *Bus) Lock(ctx context.Context) (func() error, error) {
	select {
	case b.lock <- struct{}{}:
		return func() error { <-b.lock; return nil }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// lateness is how much later than asked for a sleep may end.
const lateness = time.Millisecond

// spend takes the time of so many bytes on the wire, with start and stop.
func (b *Bus) spend(bytes int) time.Time {
	now := time.Now()
	b.stats.Bytes += bytes
	if b.hertz == 0 {
		return now
	}
	// The scheduler wakes us late: a bus in steady use catches that up.
	if b.free.Before(now.Add(-lateness)) {
		b.free = now
	}
	b.free = b.free.Add(time.Duration(9*bytes+2) * time.Second / time.Duration(b.hertz))
	time.Sleep(time.Until(b.free))
	return b.free
}

func (b *Bus) tap(t *Transfer) error {
	if b.fault == nil {
		return nil
	}
	return b.fault(t)
}

// Wake holds SDA low.
func (b *Bus) Wake(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.spend(1)
	b.stats.Wakes++
	if err := b.tap(&Transfer{}); err != nil {
		return err
	}
	for _, c := range b.chips {
		c.wake(now)
	}
	return ctx.Err()
}

// Tx implements atecc.Bus.
func (b *Bus) Tx(ctx context.Context, addr uint8, w, r []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(w) > 0 {
		if err := b.transfer(&Transfer{Addr: addr, Data: append([]byte(nil), w...)}); err != nil {
			return err
		}
	}
	if len(r) > 0 {
		return b.transfer(&Transfer{Addr: addr, Read: true, Data: r})
	}
	return nil
}

func (b *Bus) transfer(t *Transfer) error {
	chip := b.chips[t.Addr]
	ack := false
	if t.Read {
		b.stats.Reads++
		ack = chip != nil && chip.send(t.Data, time.Now())
	} else {
		b.stats.Writes++
		if err := b.tap(t); err != nil {
			return err
		}
		// The packet is complete when its last byte went over the wire; the
		// address alone is enough for a chip that does not answer.
		if chip != nil && chip.receive(nil, time.Now()) {
			ack = chip.receive(t.Data, b.spend(1+len(t.Data)))
		} else {
			b.spend(1)
		}
	}
	if t.Read {
		if n := 1; ack {
			b.spend(n + len(t.Data))
		} else {
			b.spend(n)
		}
		if ack {
			if err := b.tap(t); err != nil {
				return err
			}
		}
	}
	if !ack {
		b.stats.NACKs++
		return fmt.Errorf("%w: address %#02x", atecc.ErrNACK, t.Addr)
	}
	return nil
}
