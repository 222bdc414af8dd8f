package moduleidtest

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"
)

// SPDMFault is something that a responder, or who sits on its wire, does wrong.
// Zero is none.
type SPDMFault int

// The faults, each with the request that it is for unless Inject is told
// others. All but a delay within the requester's patience end in a refusal.
const (
	_ SPDMFault = iota

	// SPDMDrop loses the answer: nothing comes (CHALLENGE).
	SPDMDrop

	// SPDMDelay is 100 ms late with an answer that is good (CHALLENGE).
	SPDMDelay

	// SPDMDisconnect cuts the connection in the middle of the answer
	// (GET_CERTIFICATE).
	SPDMDisconnect

	// SPDMTruncate leaves out the last byte of the answer (CHALLENGE).
	SPDMTruncate

	// SPDMFlip flips one bit of the byte in the middle of the answer
	// (NEGOTIATE_ALGORITHMS).
	SPDMFlip

	// SPDMWrongSignature fills the last 32 bytes, which in a signed answer are
	// of the signature, with random ones (CHALLENGE).
	SPDMWrongSignature

	// SPDMStaleNonce has the responder sign an answer to another nonce and
	// requester's context, as one that was recorded earlier (CHALLENGE; also
	// for GET_MEASUREMENTS).
	SPDMStaleNonce

	// SPDMBusy, SPDMNotReady and SPDMUnexpected answer with ERROR Busy,
	// ResponseNotReady and UnexpectedRequest, for ever (CHALLENGE).
	SPDMBusy
	SPDMNotReady
	SPDMUnexpected

	// SPDMEndlessChunks announces an answer of 32767 bytes in chunks of 16
	// bytes, and never ends them (CHALLENGE).
	SPDMEndlessChunks

	// SPDMLyingLength announces more than the answer has: the largest number
	// in its field of a length or count (GET_CERTIFICATE; CAPABILITIES and
	// CHALLENGE_AUTH have none at a fixed place, which is then the transport's
	// error).
	SPDMLyingLength

	// SPDMWrongChain answers with another module's, of another maker
	// (GET_CERTIFICATE).
	SPDMWrongChain

	// SPDMSwap puts that other module into the port for good, in step with
	// what was exchanged before (CHALLENGE: between the check of the
	// certificate and its use).
	SPDMSwap

	// SPDMChangedMeasurements says that measurements changed while they were
	// read (GET_MEASUREMENTS, since 1.2).
	SPDMChangedMeasurements
)

type spdmFault struct {
	name  string
	at    SPDMRequest
	apply func(*SPDMExchange) error
}

// spdmFaults is constant.
var spdmFaults = [...]spdmFault{
	{"none", 0, nil},
	{"drop", SPDMChallenge, func(*SPDMExchange) error { return errLost }},
	{"delay", SPDMChallenge, delay},
	{"disconnect", SPDMGetCertificate, func(x *SPDMExchange) error { x.Answer(); return errCut }},
	{"truncate", SPDMChallenge, func(x *SPDMExchange) error {
		rsp := x.Answer()
		x.Response = rsp[:max(len(rsp)-1, 0)]
		return nil
	}},
	{"flip", SPDMAlgorithms, func(x *SPDMExchange) error {
		if rsp := x.Answer(); len(rsp) > 0 {
			rsp[len(rsp)/2] ^= 1
		}
		return nil
	}},
	{"wrong signature", SPDMChallenge, func(x *SPDMExchange) error {
		rsp := x.Answer()
		rand.Read(rsp[max(len(rsp)-32, 0):])
		return nil
	}},
	{"stale nonce", SPDMChallenge, staleNonce},
	{"busy", SPDMChallenge, answerError(spdmBusy)},
	{"not ready", SPDMChallenge, answerError(spdmNotReady)},
	{"unexpected request", SPDMChallenge, answerError(spdmUnexpected)},
	{"endless chunks", SPDMChallenge, endlessChunks},
	{"lying length", SPDMGetCertificate, lyingLength},
	{"wrong chain", SPDMGetCertificate, func(x *SPDMExchange) error { return stranger(x, false) }},
	{"swap", SPDMChallenge, func(x *SPDMExchange) error { return stranger(x, true) }},
	{"changed measurements", SPDMGetMeasurements, func(x *SPDMExchange) error {
		if rsp := x.Answer(); len(rsp) > 3 {
			rsp[3] = rsp[3]&^0x30 | 0x10
		}
		return nil
	}},
}

// SPDMFaults returns every fault, for tests that meet them all.
func SPDMFaults() []SPDMFault {
	var all []SPDMFault
	for f := range spdmFaults[1:] {
		all = append(all, SPDMFault(f+1))
	}
	return all
}

// String returns the fault as "wrong signature".
func (f SPDMFault) String() string {
	if !f.known() {
		return fmt.Sprintf("fault %d", int(f))
	}
	return spdmFaults[f].name
}

func (f SPDMFault) known() bool { return f >= 0 && int(f) < len(spdmFaults) }

// Inject makes this exchange meet a fault, for functions of OnExchange that
// decide when; what it returns is theirs to return.
func (x *SPDMExchange) Inject(f SPDMFault) error {
	if !f.known() {
		return fmt.Errorf("moduleidtest: there is no %s", f)
	}
	if f == 0 {
		return nil
	}
	return spdmFaults[f].apply(x)
}

const (
	spdmError      = 0x7f
	spdmBusy       = 0x03
	spdmUnexpected = 0x04
	spdmLarge      = 0x0f
	spdmNotReady   = 0x42
)

func delay(x *SPDMExchange) error {
	timer := time.NewTimer(100 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-x.ctx.Done():
		return x.ctx.Err()
	}
}

// staleNonce asks with another nonce, and, where there is one, another context
// at the end.
func staleNonce(x *SPDMExchange) error {
	if (x.Of != SPDMChallenge && x.Of != SPDMGetMeasurements) || len(x.Request) < 36 {
		return fmt.Errorf("moduleidtest: request %#02x has no nonce", byte(x.Of))
	}
	rand.Read(x.Request[4:36])
	if x.Request[0] >= 0x13 {
		rand.Read(x.Request[max(len(x.Request)-8, 36):])
	}
	return nil
}

func answerError(code byte) func(*SPDMExchange) error {
	return func(x *SPDMExchange) error {
		x.Response = []byte{x.Request[0], spdmError, code, 0}
		if code == spdmNotReady { // for 1 ms more, a token, and no longer than twice that
			x.Response = append(x.Response, 10, byte(x.Of), 1, 1)
		}
		return nil
	}
}

func endlessChunks(x *SPDMExchange) error {
	const handle, total, each = 1, 32<<10 - 1, 16
	if codeOf(x.Request) != chunkGet {
		x.Response = []byte{x.Request[0], spdmError, spdmLarge, 0, handle}
		return nil
	}
	if len(x.Request) < 6 {
		return nil // the responder's to refuse
	}
	seq := binary.LittleEndian.Uint16(x.Request[4:])
	p := binary.LittleEndian.AppendUint16([]byte{x.Request[0], 0x06, 0, handle}, seq)
	p = append(p, 0, 0) // reserved; of the number since 1.4
	p = binary.LittleEndian.AppendUint32(p, each)
	if seq == 0 {
		p = binary.LittleEndian.AppendUint32(p, total)
	}
	x.Response = append(p, make([]byte, each)...)
	return nil
}

// lyingLength finds the field by the answer's code.
func lyingLength(x *SPDMExchange) error {
	rsp := x.Answer()
	at, size := 0, 0
	switch codeOf(rsp) {
	case 0x04: // VERSION: count of versions
		at, size = 5, 1
	case 0x63: // ALGORITHMS: length
		at, size = 4, 2
	case 0x01: // DIGESTS: bits of the slots
		at, size = 3, 1
	case 0x02: // CERTIFICATE: length of the portion
		at, size = 4, 2
	case 0x60: // MEASUREMENTS: length of the record
		at, size = 5, 3
	}
	if size == 0 || len(rsp) < at+size {
		return fmt.Errorf("moduleidtest: the answer to request %#02x has no length at a fixed place", byte(x.Of))
	}
	for i := range size {
		rsp[at+i] = 0xff
	}
	return nil
}

// stranger answers as another module would that saw what was asked before.
func stranger(x *SPDMExchange, stays bool) error {
	ca, err := NewCA("Another Maker")
	if err != nil {
		return err
	}
	other, _, err := NewSPDM(ca, "another module", []byte("another firmware"))
	if err != nil {
		return err
	}
	for _, req := range x.conn.before {
		other.Respond(req)
	}
	if stays {
		x.conn.port.Plug(other)
		return nil
	}
	x.Response = other.Respond(x.Request)
	return nil
}
