package atecc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Word addresses: the first byte of every write.
const (
	wordReset   = 0x00 // rewinds the response
	wordSleep   = 0x01 // forgets all volatile state
	wordIdle    = 0x02
	wordCommand = 0x03
)

// Operation codes.
const (
	opRead   = 0x02
	opNonce  = 0x16
	opRandom = 0x1b
	opInfo   = 0x30
	opGenKey = 0x40
	opSign   = 0x41
)

// Status codes of 4-byte responses.
const (
	statusOK       = 0x00
	statusECCFault = 0x05
	statusSelfTest = 0x07
	statusWake     = 0x11
	statusWatchdog = 0xee
	statusComm     = 0xff
)

const (
	minResponse = 4
	maxResponse = 75
)

// crc16 is the chips' checksum: polynomial 0x8005, initial value 0, data bits
// least significant first.
func crc16(p []byte) uint16 {
	var r uint16
	for _, b := range p {
		for m := byte(1); m != 0; m <<= 1 {
			top := r&0x8000 != 0
			r <<= 1
			if (b&m != 0) != top {
				r ^= 0x8005
			}
		}
	}
	return r
}

// command is one command with what is known about its answer.
type command struct {
	name   string
	op, p1 byte
	p2     uint16
	data   []byte
	answer int           // bytes of data in a good answer; 0 means a status
	typ    time.Duration // not worth polling before
	max    time.Duration // execution time by the data sheet, slowest clock
}

// packet returns the bytes after the word address.
func (c command) packet() []byte {
	p := append([]byte{byte(7 + len(c.data)), c.op, c.p1, byte(c.p2), byte(c.p2 >> 8)}, c.data...)
	return binary.LittleEndian.AppendUint16(p, crc16(p))
}

// StatusError is a status other than success that the chip answered.
type StatusError struct {
	Command string
	Status  byte
}

// Error explains the status by the data sheet's words.
func (e *StatusError) Error() string {
	what, ok := map[byte]string{
		0x01: "verification failed", 0x03: "parse error: the command, its length or its parameters are illegal",
		statusECCFault: "fault in the curve computation", statusSelfTest: "self test failed", 0x08: "random number generator failed its test",
		0x0f:       "execution error: the slot, the lock or the chip's state does not allow it",
		statusWake: "it just woke up", statusWatchdog: "the watchdog is about to put it to sleep", statusComm: "it received a corrupted command",
	}[e.Status]
	if !ok {
		what = "unknown status"
	}
	return fmt.Sprintf("%s answered status %#02x: %s", e.Command, e.Status, what)
}

var (
	errCRC    = errors.New("the response's checksum is wrong")
	errLength = errors.New("the response has an impossible length")
)

// checkCount bounds the first byte of a response: its length.
func checkCount(n byte) error {
	if n < minResponse || n > maxResponse {
		return fmt.Errorf("%w of %d bytes", errLength, n)
	}
	return nil
}

// parseResponse returns the data of a whole response, or its status as error.
func (c command) parseResponse(p []byte) ([]byte, error) {
	if len(p) < minResponse || len(p) > maxResponse || int(p[0]) != len(p) {
		return nil, fmt.Errorf("%w of %d bytes", errLength, len(p))
	}
	body, sum := p[:len(p)-2], binary.LittleEndian.Uint16(p[len(p)-2:])
	if crc16(body) != sum {
		return nil, errCRC
	}
	data := body[1:]
	if len(data) == 1 {
		if data[0] == statusOK && c.answer == 0 {
			return nil, nil
		}
		if data[0] != statusOK {
			return nil, &StatusError{c.name, data[0]}
		}
	}
	if len(data) != c.answer {
		return nil, fmt.Errorf("%w: %s answered %d bytes, not %d", errLength, c.name, len(data), c.answer)
	}
	return data, nil
}

// checkWake judges the 4 bytes after a wake. Some sources give the self-test
// answer with its checksum swapped, so the status decides.
func checkWake(p [4]byte) error {
	switch {
	case p == [4]byte{4, statusWake, 0x33, 0x43}:
		return nil
	case p[0] == 4 && p[1] == statusSelfTest:
		return &StatusError{"wake", statusSelfTest}
	}
	return fmt.Errorf("%w: the wake answer is % x", errNotAwake, p)
}

var errNotAwake = errors.New("the chip did not wake up")

func info() command {
	return command{name: "Info", op: opInfo, answer: 4, typ: time.Millisecond / 2, max: 5 * time.Millisecond}
}

func random() command {
	return command{name: "Random", op: opRandom, answer: 32, typ: 14 * time.Millisecond, max: 23 * time.Millisecond}
}

// Zones of memory.
const (
	zoneConfig = 0
	zoneData   = 2
)

// read32 reads a 32-byte block of the configuration zone or of a data slot.
func read32(zone byte, slot, block int) command {
	addr := uint16(block) << 3
	if zone == zoneData {
		addr = uint16(block)<<8 | uint16(slot)<<3
	}
	return command{name: "Read", op: opRead, p1: zone | 0x80, p2: addr, answer: 32, typ: time.Millisecond, max: 5 * time.Millisecond}
}

// read4 reads one word of a data slot.
func read4(slot, block, word int) command {
	return command{name: "Read", op: opRead, p1: zoneData, p2: uint16(block)<<8 | uint16(slot)<<3 | uint16(word), answer: 4, typ: time.Millisecond, max: 5 * time.Millisecond}
}

// public computes the public key of a slot.
func public(slot int) command {
	return command{name: "GenKey", op: opGenKey, p2: uint16(slot), answer: 64, typ: 50 * time.Millisecond, max: 653 * time.Millisecond}
}

// load loads a digest: into the message digest buffer of a 608 (target 0x40),
// or into TempKey of a 508A (target 0).
func load(target byte, digest [32]byte) command {
	return command{name: "Nonce", op: opNonce, p1: 3 | target, data: digest[:], typ: 5 * time.Millisecond, max: 29 * time.Millisecond}
}

// sign signs what was loaded; source is 0x20 for the message digest buffer.
func sign(source byte, slot int) command {
	return command{name: "Sign", op: opSign, p1: 0x80 | source, p2: uint16(slot), answer: 64, typ: 50 * time.Millisecond, max: 665 * time.Millisecond}
}

// randomNonce starts TempKey from the chip's random number and the host's 20
// bytes.
func randomNonce(in []byte) command {
	return command{name: "Nonce", op: opNonce, data: in, answer: 32, typ: 10 * time.Millisecond, max: 29 * time.Millisecond}
}

// publicDigest mixes a slot's public key into TempKey.
func publicDigest(slot int) command {
	c := public(slot)
	c.p1 = modeGenKeyDigest
	return c
}

// signInternal signs TempKey with what the chip knows about it.
func signInternal(slot int) command {
	c := sign(0, slot)
	c.p1 = modeSignInternal
	return c
}
