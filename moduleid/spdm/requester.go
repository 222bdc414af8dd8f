package spdm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/moduleid"
)

// Transport carries one SPDM message to the responder and its answer back,
// without the framing of the transport. Exchange honours ctx within a second,
// and bounds an answer to 64 KiB. It is not used concurrently.
type Transport interface {
	Exchange(ctx context.Context, request []byte) (response []byte, err error)
	Close() error
}

// Config says how a responder is asked.
type Config struct {
	// Slot is the certificate slot, 0 to 7.
	Slot int

	// Scheme is the policy that the requester itself holds proofs against, so
	// that it fails early; the Verifier's own decides.
	Scheme Scheme
}

// Requester asks one responder. It implements moduleid.Chip.
type Requester struct {
	cfg  Config
	busy chan struct{} // holds a token while the transport is used
	t    Transport
}

// NewRequester returns the chip behind a transport, which it then owns.
func NewRequester(t Transport, cfg Config) (*Requester, error) {
	if cfg.Slot < 0 || cfg.Slot > 7 {
		return nil, fmt.Errorf("spdm: there is no slot %d; slots are 0 to 7", cfg.Slot)
	}
	if t == nil {
		return nil, errors.New("spdm: a requester needs a transport")
	}
	return &Requester{cfg: cfg, busy: make(chan struct{}, 1), t: t}, nil
}

// Close closes the transport.
func (r *Requester) Close() error { return r.t.Close() }

// Bounds of a responder's requests for patience.
const (
	maxBusy     = 20
	busyWait    = 10 * time.Millisecond
	maxNotReady = 10
	maxResynchs = 2
	maxWait     = 2 * time.Second // longest single wait that a responder may ask for
)

// errRestart is a responder's request to begin with GET_VERSION again.
var errRestart = errors.New("the responder asks to start over")

// Prove runs the exchange from GET_VERSION to CHALLENGE, and GET_MEASUREMENTS
// if the scheme asks for it. An answer that does not hold is refused by an
// error that is moduleid.ErrRefused; other errors mean that none came, and a
// [ResponderError] is the responder's own refusal.
func (r *Requester) Prove(ctx context.Context, c moduleid.Challenge) (*moduleid.Evidence, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	select {
	case r.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-r.busy }()
	for try := 0; ; try++ {
		x := exchange{ctx: ctx, r: r, nonces: noncesOf(c)}
		err := x.run()
		if errors.Is(err, errRestart) && try < maxResynchs {
			continue
		}
		if err == nil {
			_, err = r.cfg.Scheme.proof(&x.t, c)
			x.bad = err != nil
		}
		if err != nil {
			return nil, x.refusal(c, err)
		}
		return &moduleid.Evidence{Scheme: SchemeName, Message: encodePairs(x.messages)}, nil
	}
}

// exchange is one run of the protocol.
type exchange struct {
	ctx      context.Context
	r        *Requester
	nonces   nonces
	t        transcript
	messages [][]byte
	handle   byte // of the last message that was sent in chunks
	bad      bool // the responder answered, and its answer is refused
}

// refusal tells an answer that is refused from one that never came.
func (x *exchange) refusal(c moduleid.Challenge, err error) error {
	if !x.bad {
		return err
	}
	refused := &moduleid.RefusedError{Node: c.Node, Connector: c.Connector, Read: encodePairs(x.messages), Findings: []moduleid.Finding{{Reason: moduleid.ReasonProof, Detail: err.Error()}}}
	var own *moduleid.RefusedError
	if errors.As(err, &own) {
		refused.Findings = own.Findings
	}
	if x.t.certs != nil {
		refused.ID = moduleid.ID(x.t.certs[0])
	}
	return refused
}

func (x *exchange) run() error {
	if err := x.ask([]byte{byte(Version10), reqVersion, 0, 0}); err != nil {
		return err
	}
	if err := x.ask(x.capabilities()); err != nil {
		return err
	}
	if err := x.ask(x.algorithms()); err != nil {
		return err
	}
	if err := x.ask(x.header(reqDigests, 0, 0)); err != nil {
		return err
	}
	if _, err := x.t.slotDigest(byte(x.r.cfg.Slot)); err != nil {
		x.bad = true
		return fmt.Errorf("spdm: %w", err)
	}
	if err := x.chain(); err != nil {
		return err
	}
	challenge := append(x.header(reqChallenge, byte(x.r.cfg.Slot), challengeBlank), x.nonces.challenge[:]...)
	if err := x.ask(x.withContext(challenge)); err != nil {
		return err
	}
	if !x.r.cfg.Scheme.Measurements {
		return nil
	}
	if x.t.flags&capMeas != capMeasSig {
		x.bad = true
		return errors.New("spdm: the responder signs no measurements")
	}
	measure := append(x.header(reqMeasurements, 1, 0xff), x.nonces.measurements[:]...)
	if x.t.version >= Version11 {
		measure = append(measure, byte(x.r.cfg.Slot))
	}
	return x.ask(x.withContext(measure))
}

func (x *exchange) header(code, p1, p2 byte) []byte {
	return []byte{byte(x.t.version), code, p1, p2}
}

func (x *exchange) withContext(m []byte) []byte {
	if x.t.version >= Version13 {
		m = append(m, x.nonces.context[:]...)
	}
	return m
}

func (x *exchange) capabilities() []byte {
	m := x.header(reqCapabilities, 0, 0)
	if x.t.version >= Version11 {
		m = append(m, 0, requesterExp, 0, 0)
		flags := uint32(capCert | capChallenge)
		if x.t.version >= Version12 {
			flags |= capChunk
		}
		m = le.AppendUint32(m, flags)
	}
	if x.t.version >= Version12 {
		m = le.AppendUint32(m, maxMessage)
		m = le.AppendUint32(m, maxLarge)
	}
	return m
}

func (x *exchange) algorithms() []byte {
	m := make([]byte, 32)
	copy(m, x.header(reqAlgorithms, 0, 0))
	le.PutUint16(m[4:], 32)
	m[6] = 1 // DMTF measurements
	if x.t.version >= Version12 {
		m[7] = 2 // opaque data format 1
	}
	if x.t.version >= Version13 && x.t.flags&capMultiKey == capMultiOnly {
		m[7] |= otherMultiKey // it knows no other way
	}
	le.PutUint32(m[8:], asymOffered)
	le.PutUint32(m[12:], hashOffered)
	return m
}

// chain reads the certificate chain. Some responders refuse portions that are
// too large, others those that are too small: the sizes are tried in turn, and
// an answer may be shorter than was asked for.
func (x *exchange) chain() error {
	sizes := []uint16{0x400, 0xffff, 0x100}
	for range maxChainReads {
		if x.t.certs != nil {
			return nil
		}
		m := x.header(reqCertificate, byte(x.r.cfg.Slot), 0)
		m = le.AppendUint16(m, uint16(len(x.t.chain)))
		m = le.AppendUint16(m, sizes[0])
		err := x.ask(m)
		var told *ResponderError
		if errors.As(err, &told) && told.Code == errInvalidRequest && len(sizes) > 1 {
			sizes = sizes[1:]
			continue
		}
		if err != nil {
			return err
		}
	}
	if x.t.certs != nil {
		return nil
	}
	return fmt.Errorf("spdm: the certificate chain takes more than %d requests", maxChainReads)
}

// ask sends a request, waits as the responder asks within bounds, and takes the
// answer into the transcript.
func (x *exchange) ask(req []byte) error {
	rsp, err := x.patient(req, x.t.chunks)
	if err != nil {
		return err
	}
	// Where the transport pads messages, the zeros behind one are not of it.
	padding := 0
	if p, ok := x.r.t.(interface{ padding() int }); ok {
		padding = p.padding()
	}
	for err = x.t.add(req, rsp); errors.Is(err, errLong) && padding > 0 && rsp[len(rsp)-1] == 0; padding-- {
		rsp = rsp[:len(rsp)-1]
		err = x.t.add(req, rsp)
	}
	x.messages = append(x.messages, req, rsp) // also what is refused, for who looks into it
	x.bad = err != nil
	return err
}

// patient sends a request until it is answered otherwise than with a plea for
// patience, within bounds. If chunks is set, it fetches an answer that is too
// large for one transfer.
func (x *exchange) patient(req []byte, chunks bool) ([]byte, error) {
	send := req
	for busy, late := 0, 0; ; {
		rsp, err := x.send(send)
		if err != nil {
			return nil, err
		}
		if len(rsp) < 4 || rsp[1] != rspError {
			return rsp, nil
		}
		wait := busyWait
		switch code := rsp[2]; {
		case code == errBusy && busy < maxBusy:
			busy++
		case code == errNotReady && late < maxNotReady && len(rsp) >= 8:
			late++
			wait = time.Microsecond << min(rsp[4], 31)
			if wait > maxWait {
				return nil, fmt.Errorf("spdm: the responder asks to wait %s; at most %s are granted", wait, maxWait)
			}
			send = x.header(reqIfReady, rsp[5], rsp[6])
		case code == errLarge && chunks && len(rsp) >= 5:
			return x.fetch(rsp[4])
		case code == errResynch:
			return nil, errRestart
		default:
			return nil, &ResponderError{Request: req[1], Code: code, Data: rsp[3]}
		}
		timer := time.NewTimer(wait)
		select {
		case <-x.ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("spdm: %w", x.ctx.Err())
		case <-timer.C:
		}
	}
}

// ResponderError is an ERROR message that ended the exchange.
type ResponderError struct {
	Request byte // code of the request
	Code    byte // error code
	Data    byte // error data
}

// Error names the code by the standard's word.
func (e *ResponderError) Error() string {
	what, ok := map[byte]string{
		errInvalidRequest: "InvalidRequest", errBusy: "Busy", errUnexpected: "UnexpectedRequest", 0x05: "Unspecified", errUnsupported: "UnsupportedRequest",
		0x08: "RequestInFlight", 0x0b: "SessionRequired", 0x0c: "ResetRequired", errTooLarge: "ResponseTooLarge", 0x0e: "RequestTooLarge",
		errLarge: "LargeResponse", 0x10: "MessageLost", errVersion: "VersionMismatch", errNotReady: "ResponseNotReady", 0xff: "VendorDefined",
	}[e.Code]
	if !ok {
		what = "error"
	}
	return fmt.Sprintf("spdm: the responder answered request %#02x with %s (%#02x, %#02x)", e.Request, what, e.Code, e.Data)
}
