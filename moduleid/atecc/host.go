package atecc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Durations by the data sheets.
const (
	wakeDelay    = 1500 * time.Microsecond // tWHI of the 608
	shareWindow  = time.Second             // how long new chips may join a held lock
	silence      = 800 * time.Millisecond  // longer than any command: nobody is there
	wakeDeadline = 1800 * time.Millisecond // longest command plus a watchdog, after a process died
	pollShort    = 2 * time.Millisecond
	pollLong     = 6 * time.Millisecond
	maxAtOnce    = 16 // chips that compute at the same time; more would outlast the watchdog
)

// Host drives the chips of one bus. Its chips may be used concurrently: while
// one computes, others use the bus. Make one Host per bus and process.
type Host struct {
	bus   Bus
	wire  chan struct{} // holds a token during a transfer
	slots chan struct{} // tokens of the chips that compute

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when what follows changes
	locking bool
	active  int
	since   time.Time
	unlock  func() error
	awake   map[uint8]bool          // known chips that a wake woke and nobody put to sleep
	busy    map[uint8]chan struct{} // a token by address while the chip is used
}

// NewHost returns the host of a bus. Closing the bus is the caller's.
func NewHost(bus Bus) *Host {
	return &Host{bus: bus, wire: make(chan struct{}, 1), slots: make(chan struct{}, maxAtOnce), changed: make(chan struct{}), awake: map[uint8]bool{}, busy: map[uint8]chan struct{}{}}
}

func (h *Host) broadcast() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// acquire joins the chips that hold the bus lock, or takes it.
func (h *Host) acquire(ctx context.Context) error {
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s is busy: %w", h.bus, ctx.Err())
	}
	for {
		h.mu.Lock()
		switch {
		case h.active > 0 && time.Since(h.since) < shareWindow:
			h.active++
			h.mu.Unlock()
			return nil
		case h.active == 0 && !h.locking:
			h.locking = true
			h.mu.Unlock()
			unlock, err := h.bus.Lock(ctx)
			h.mu.Lock()
			h.locking = false
			if err == nil {
				h.active, h.since, h.unlock = 1, time.Now(), unlock
			}
			h.broadcast()
			h.mu.Unlock()
			if err != nil {
				<-h.slots
				return fmt.Errorf("lock %s: %w", h.bus, err)
			}
			return nil
		}
		changed := h.changed
		h.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			<-h.slots
			return fmt.Errorf("%s is busy: %w", h.bus, ctx.Err())
		}
	}
}

// release leaves the lock; the last one puts to sleep whom the wakes woke.
func (h *Host) release(ctx context.Context) error {
	defer func() { <-h.slots }()
	h.mu.Lock()
	last := h.active == 1
	var awake []uint8
	for addr, on := range h.awake {
		if last && on {
			awake = append(awake, addr)
		}
	}
	h.mu.Unlock()
	for _, addr := range awake {
		h.sleep(ctx, addr)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.active--; h.active > 0 {
		return nil
	}
	unlock := h.unlock
	h.unlock = nil
	h.broadcast()
	return unlock()
}

// tx is one transfer; nobody else's is in between.
func (h *Host) tx(ctx context.Context, addr uint8, w, r []byte) error {
	select {
	case h.wire <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-h.wire }()
	return h.bus.Tx(ctx, addr, w, r)
}

// sleep makes a chip forget everything volatile. A chip that does not
// acknowledge sleeps already, or its watchdog will see to it.
func (h *Host) sleep(ctx context.Context, addr uint8) {
	// Also when ctx is over: a chip left awake is what others stumble upon.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 200*time.Millisecond)
	defer cancel()
	_ = h.tx(ctx, addr, []byte{wordSleep}, nil)
	h.mu.Lock()
	h.awake[addr] = false
	h.mu.Unlock()
}

// wake brings one chip from any state to a fresh start. Whatever a process
// that died left behind is over after the longest command and the watchdog.
func (h *Host) wake(ctx context.Context, addr uint8) error {
	start, silent, heard := time.Now(), 0, false
	for {
		// A chip that is awake sleeps first, so that its answer is the wake's.
		if err := h.tx(ctx, addr, []byte{wordSleep}, nil); err != nil && !errors.Is(err, ErrNACK) {
			return err
		}
		if err := h.pulse(ctx); err != nil {
			return err
		}
		if err := pause(ctx, wakeDelay); err != nil {
			return err
		}
		var r [4]byte
		err := h.tx(ctx, addr, nil, r[:])
		if err == nil {
			err = checkWake(r)
		}
		var status *StatusError
		switch {
		case err == nil, errors.As(err, &status):
			return err
		case errors.Is(err, ErrNACK):
			silent++
		case errors.Is(err, errNotAwake):
			heard = true
		default:
			return err
		}
		if waited := time.Since(start); waited > wakeDeadline || waited > silence && !heard {
			if !heard {
				return fmt.Errorf("no chip answers at address %#02x of %s (7-bit; is it plugged in, and the bus at 100 kHz or less?): %w", addr, h.bus, err)
			}
			return fmt.Errorf("address %#02x of %s: %w", addr, h.bus, err)
		}
		if err := pause(ctx, time.Duration(min(silent+1, 25))*2*time.Millisecond); err != nil {
			return err
		}
	}
}

// pulse wakes every chip of the bus.
func (h *Host) pulse(ctx context.Context) error {
	select {
	case h.wire <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-h.wire }()
	h.mu.Lock()
	for addr := range h.awake {
		h.awake[addr] = true
	}
	h.mu.Unlock()
	return h.bus.Wake(ctx)
}

// errLost says that the chip no longer holds what was loaded: start over.
var errLost = errors.New("the chip lost its state or its answer")

// run sends one command and waits for its answer.
func (h *Host) run(ctx context.Context, addr uint8, c command) ([]byte, error) {
	for try := 0; ; try++ {
		data, err := h.once(ctx, addr, c)
		var status *StatusError
		switch {
		case errors.As(err, &status) && status.Status == statusComm && try < 2:
			continue // it did not understand the packet; nothing was executed
		case errors.As(err, &status) && (status.Status == statusWatchdog || status.Status == statusWake):
			return nil, fmt.Errorf("%w: %w", errLost, err)
		}
		return data, err
	}
}

func (h *Host) once(ctx context.Context, addr uint8, c command) ([]byte, error) {
	if err := h.tx(ctx, addr, append([]byte{wordCommand}, c.packet()...), nil); err != nil {
		if errors.Is(err, ErrNACK) {
			return nil, fmt.Errorf("%w: %s: %w", errLost, c.name, err)
		}
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	patience := 2*c.max + 50*time.Millisecond
	if b, ok := h.bus.(interface{ patience() time.Duration }); ok {
		patience += b.patience()
	}
	deadline := time.Now().Add(patience)
	if err := pause(ctx, c.typ); err != nil {
		return nil, err
	}
	poll := pollShort
	if c.max > 100*time.Millisecond {
		poll = pollLong
	}
	corrupt := 0
	for {
		data, err := h.response(ctx, addr, c)
		switch {
		case err == nil:
			return data, nil
		case errors.Is(err, errCRC) || errors.Is(err, errLength):
			if corrupt++; corrupt > 2 {
				return nil, fmt.Errorf("%w: %s: %w, three times", errLost, c.name, err)
			}
		case !errors.Is(err, ErrNACK):
			return nil, err
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%w: no answer to %s in %s", errLost, c.name, patience)
		}
		if err := pause(ctx, poll); err != nil {
			return nil, err
		}
	}
}

// response rewinds and reads the answer: its count, then the rest. Transfers
// with other chips may come in between.
func (h *Host) response(ctx context.Context, addr uint8, c command) ([]byte, error) {
	if err := h.tx(ctx, addr, []byte{wordReset}, nil); err != nil {
		return nil, err
	}
	var p [maxResponse]byte
	if err := h.tx(ctx, addr, nil, p[:1]); err != nil {
		return nil, err
	}
	if err := checkCount(p[0]); err != nil {
		return nil, err
	}
	n := int(p[0])
	if err := h.tx(ctx, addr, nil, p[1:n]); err != nil {
		return nil, err
	}
	return c.parseResponse(p[:n])
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
