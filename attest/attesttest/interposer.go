package attesttest

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// ErrLost says that a fault lost a command or its response.
var ErrLost = errors.New("attesttest: the interposer lost the response")

// Fault is what an Interposer does to one command: it gets the command and the
// way to the TPM, and says what the program is answered.
type Fault func(command []byte, t transport.TPM) ([]byte, error)

// Exchange is one command and what the program was answered.
type Exchange struct {
	Command, Response []byte // Response is nil when it was lost
}

// Interposer sits on the wires between a program and its TPM, as an attacker
// with a probe would: it records what passes, and does harm when told to. It
// implements transport.TPM and is safe for concurrent use.
type Interposer struct {
	t transport.TPM

	mu     sync.Mutex
	faults []scheduled
	log    []Exchange
}

type scheduled struct {
	cc    tpm2.TPMCC // 0 means any command
	skip  int
	times int
	fault Fault
}

// Interpose returns an interposer before a TPM.
func Interpose(t transport.TPM) *Interposer { return &Interposer{t: t} }

// Inject applies a fault to the next n commands with a code (0 means any
// command), after skipping skip of them. Faults apply in the order in which
// they were injected, one to a command.
func (i *Interposer) Inject(cc tpm2.TPMCC, skip, n int, f Fault) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.faults = append(i.faults, scheduled{cc, skip, n, f})
}

// Recorded returns what has passed so far.
func (i *Interposer) Recorded() []Exchange {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]Exchange(nil), i.log...)
}

// Send passes a command on.
func (i *Interposer) Send(command []byte) ([]byte, error) {
	rsp, err := i.next(command)(command, i.t)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.log = append(i.log, Exchange{append([]byte(nil), command...), append([]byte(nil), rsp...)})
	return rsp, err
}

// next takes the fault of a command from the schedule.
func (i *Interposer) next(command []byte) Fault {
	i.mu.Lock()
	defer i.mu.Unlock()
	for k := range i.faults {
		s := &i.faults[k]
		if s.times == 0 || len(command) < 10 || s.cc != 0 && s.cc != tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) {
			continue
		}
		if s.skip > 0 {
			s.skip--
			continue
		}
		s.times--
		return s.fault
	}
	return func(c []byte, t transport.TPM) ([]byte, error) { return t.Send(c) }
}

// Drop loses the command before it reaches the TPM.
func Drop() Fault {
	return func([]byte, transport.TPM) ([]byte, error) { return nil, ErrLost }
}

// DropResponse lets the TPM execute the command and loses its response.
func DropResponse() Fault {
	return func(c []byte, t transport.TPM) ([]byte, error) {
		if _, err := t.Send(c); err != nil {
			return nil, err
		}
		return nil, ErrLost
	}
}

// Delay holds the response back.
func Delay(d time.Duration) Fault {
	return func(c []byte, t transport.TPM) ([]byte, error) {
		rsp, err := t.Send(c)
		time.Sleep(d)
		return rsp, err
	}
}

// Truncate cuts the response after n bytes.
func Truncate(n int) Fault {
	return func(c []byte, t transport.TPM) ([]byte, error) {
		rsp, err := t.Send(c)
		return rsp[:min(n, len(rsp))], err
	}
}

// Corrupt inverts one byte of the response; a negative position counts from
// its end.
func Corrupt(at int) Fault {
	return func(c []byte, t transport.TPM) ([]byte, error) {
		rsp, err := t.Send(c)
		if at < 0 {
			at += len(rsp)
		}
		if at >= 0 && at < len(rsp) {
			rsp = append([]byte(nil), rsp...)
			rsp[at] ^= 0xFF
		}
		return rsp, err
	}
}

// Answer gives a response code instead of executing the command:
// tpm2.TPMRCRetry, tpm2.TPMRCObjectMemory, tpm2.TPMRCLockout, ….
func Answer(code tpm2.TPMRC) Fault {
	return func([]byte, transport.TPM) ([]byte, error) {
		return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, uint32(code)), nil
	}
}

// CutPower cuts the TPM's power before the command reaches it, or with after,
// when it has been executed and before the response is seen.
func CutPower(t *TPM, after bool) Fault {
	return func(c []byte, to transport.TPM) ([]byte, error) {
		if after {
			if _, err := to.Send(c); err != nil {
				return nil, err
			}
		}
		t.PowerOff()
		return nil, ErrLost
	}
}
