package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"time"
	"weak"

	"github.com/google/go-tpm/tpm2/transport"
)

// Limits of one exchange with a TPM.
const (
	// MaxMessage is the largest command or response passed on, in bytes. A
	// TPM's own limit (TPM_PT_MAX_COMMAND_SIZE) is 4096 in all known parts.
	MaxMessage = 8192
	// maxRetries bounds how often a command is sent again when the TPM answers
	// that it is busy; the pauses between grow from 1 ms and add up to 4 s.
	maxRetries = 12
)

// ErrBusy says that the TPM kept answering RETRY, YIELDED or TESTING.
var ErrBusy = errors.New("tpm: device stays busy")

// Device is a transport.TPM that is safe for concurrent use: it serialises
// commands, and it sends a command again when the TPM asks for that. Do keeps
// the TPM for a sequence of commands.
type Device struct {
	c    *core
	held bool // this Device was handed out by Do, which holds the lock
}

type core struct {
	t    transport.TPM
	lock chan struct{} // capacity 1; full while somebody uses the TPM
}

var (
	coresMu sync.Mutex
	cores   = map[transport.TPM]weak.Pointer[core]{} // one core for each transport in use
)

// Wrap returns the Device of a transport. A transport that is wrapped twice,
// even by packages that do not know of each other, gets one lock.
func Wrap(t transport.TPM) *Device {
	if d, ok := t.(*Device); ok {
		return d
	}
	if !reflect.TypeOf(t).Comparable() {
		return &Device{c: &core{t: t, lock: make(chan struct{}, 1)}}
	}
	coresMu.Lock()
	defer coresMu.Unlock()
	if c := cores[t].Value(); c != nil {
		return &Device{c: c}
	}
	c := &core{t: t, lock: make(chan struct{}, 1)}
	cores[t] = weak.Make(c)
	runtime.AddCleanup(c, func(t transport.TPM) {
		coresMu.Lock()
		defer coresMu.Unlock()
		if cores[t].Value() == nil {
			delete(cores, t)
		}
	}, t)
	return &Device{c: c}
}

// Do calls f with a Device that nobody else uses until f returns. It waits for
// the TPM until ctx is done. Inside f, use only the Device that f was given.
func (d *Device) Do(ctx context.Context, f func(*Device) error) error {
	if d.held {
		return f(d)
	}
	select {
	case d.c.lock <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("tpm: wait for the device: %w", ctx.Err())
	}
	defer func() { <-d.c.lock }()
	return f(&Device{c: d.c, held: true})
}

// Send implements transport.TPM.
func (d *Device) Send(command []byte) ([]byte, error) {
	if !d.held {
		d.c.lock <- struct{}{}
		defer func() { <-d.c.lock }()
	}
	if len(command) > MaxMessage {
		return nil, fmt.Errorf("tpm: command of %d bytes, limit %d", len(command), MaxMessage)
	}
	pause := time.Millisecond
	for range maxRetries {
		rsp, err := d.c.t.Send(command)
		if err != nil {
			return nil, err
		}
		if len(rsp) < 10 || len(rsp) > MaxMessage || int(binary.BigEndian.Uint32(rsp[2:])) != len(rsp) {
			return nil, fmt.Errorf("tpm: malformed response of %d bytes", len(rsp))
		}
		switch binary.BigEndian.Uint32(rsp[6:]) {
		case 0x922, 0x908, 0x90A: // TPM_RC_RETRY, TPM_RC_YIELDED, TPM_RC_TESTING
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
		default:
			return rsp, nil
		}
	}
	return nil, ErrBusy
}

// Close closes the transport, if it can be closed.
func (d *Device) Close() error {
	if c, ok := d.c.t.(transport.TPMCloser); ok {
		return c.Close()
	}
	return nil
}
