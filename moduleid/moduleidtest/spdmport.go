package moduleidtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

// SPDMPort is a connector with an SPDM responder in it, as [Bus] is one with
// ATECC608s: faults are injected between the responder and who asks it. Safe
// for concurrent use; as the standard has it, one requester asks at a time.
type SPDMPort struct {
	mu        sync.Mutex
	responder *spdm.Responder
	fault     func(*SPDMExchange) error
	hits      int
}

// NewSPDMPort returns a port with a responder in it, such as one of [NewSPDM],
// and no fault.
func NewSPDMPort(r *spdm.Responder) *SPDMPort { return &SPDMPort{responder: r} }

// Plug puts a responder in place of the one that is there: between two proofs
// a module swapped between check and use, or the same one with other firmware.
// Nil leaves the port empty: exchanges then fail with moduleid.ErrAbsent.
func (p *SPDMPort) Plug(r *spdm.Responder) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.responder = r
}

// SPDMRequest is the code of a request (DSP0274, table "SPDM request codes").
type SPDMRequest byte

// The requests of a proof, in their order.
const (
	SPDMGetVersion      SPDMRequest = 0x84
	SPDMGetCapabilities SPDMRequest = 0xe1
	SPDMAlgorithms      SPDMRequest = 0xe3
	SPDMGetDigests      SPDMRequest = 0x81
	SPDMGetCertificate  SPDMRequest = 0x82
	SPDMChallenge       SPDMRequest = 0x83
	SPDMGetMeasurements SPDMRequest = 0xe0
)

const (
	chunkGet       SPDMRequest = 0x86
	respondIfReady SPDMRequest = 0xff
)

// Inject makes the port answer these requests with a fault, each time, in place
// of what was injected before. Without requests it is the one that the fault
// is for, as its comment says; 0 as the fault ends it.
func (p *SPDMPort) Inject(f SPDMFault, at ...SPDMRequest) {
	if len(at) == 0 && f.known() {
		at = []SPDMRequest{spdmFaults[f].at}
	}
	hook := func(x *SPDMExchange) error {
		if f.known() && !slices.Contains(at, x.Of) {
			return nil
		}
		p.mu.Lock()
		p.hits++
		p.mu.Unlock()
		return x.Inject(f)
	}
	if f == 0 {
		hook = nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.hits = hook, 0
}

// Hits returns how many requests met the fault since it was injected: a test
// that expects a refusal sees by it that there was something to refuse.
func (p *SPDMPort) Hits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits
}

// OnExchange calls f for every request, for faults that Inject does not know.
// What f returns is the transport's error. Nil ends it.
func (p *SPDMPort) OnExchange(f func(*SPDMExchange) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.hits = f, 0
}

// SPDMExchange is one request on its way, for faults to alter.
type SPDMExchange struct {
	// Request is what the requester sent; it may be altered. Of is what it is
	// about: the request before it, if it only fetches that one's answer.
	Request []byte
	Of      SPDMRequest

	// Response is what the requester gets. If it is set before Answer was
	// called, the responder is not asked.
	Response []byte

	ctx      context.Context
	conn     *spdmConn
	answered bool
}

// Answer asks the responder, if that was not done, and returns Response.
func (x *SPDMExchange) Answer() []byte {
	if !x.answered {
		x.answered = true
		x.Response = x.conn.ask(x.Request)
	}
	return x.Response
}

// Connect returns a new connection to the port. It breaks for itself: who was
// disconnected connects again.
func (p *SPDMPort) Connect() spdm.Transport { return &spdmConn{port: p} }

// spdmConn is one connection, which one requester uses.
type spdmConn struct {
	port    *SPDMPort
	broken  bool
	before  [][]byte    // requests since GET_VERSION, to bring another module in step
	of      SPDMRequest // that is being answered
	pending []byte      // request that was answered with ResponseNotReady
}

var (
	errLost = errors.New("the answer was lost")
	errCut  = errors.New("the connection was cut in the middle of an answer")
)

// Exchange implements spdm.Transport.
func (c *spdmConn) Exchange(ctx context.Context, req []byte) ([]byte, error) {
	if c.broken {
		return nil, fmt.Errorf("the connection broke earlier: %w", io.ErrClosedPipe)
	}
	rsp, err := c.exchange(ctx, req)
	switch {
	case errors.Is(err, errLost):
		<-ctx.Done()
		return nil, ctx.Err()
	case errors.Is(err, errCut):
		c.broken = true
		return nil, io.ErrUnexpectedEOF
	}
	return rsp, err
}

// Close implements spdm.Transport.
func (c *spdmConn) Close() error { return nil }

func (c *spdmConn) exchange(ctx context.Context, req []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := c.port
	p.mu.Lock()
	fault, empty := p.fault, p.responder == nil
	p.mu.Unlock()
	if empty {
		return nil, moduleid.ErrAbsent
	}
	if of := codeOf(req); of != chunkGet && of != respondIfReady {
		c.of, c.pending = of, nil
	}
	x := &SPDMExchange{Request: bytes.Clone(req), Of: c.of, ctx: ctx, conn: c}
	if fault != nil && len(req) >= 4 {
		if err := fault(x); err != nil {
			return x.Response, err
		}
	}
	if x.Response == nil {
		x.Answer()
	}
	if rsp := x.Response; len(rsp) > 2 && rsp[1] == spdmError && rsp[2] == spdmNotReady && c.pending == nil {
		c.pending = x.Request
	}
	return x.Response, nil
}

// ask asks the responder itself.
func (c *spdmConn) ask(req []byte) []byte {
	if codeOf(req) == respondIfReady && c.pending != nil {
		req = c.pending // the responder has not seen it yet
	}
	if codeOf(req) == SPDMGetVersion {
		c.before = nil
	}
	c.before = append(c.before, req)
	c.port.mu.Lock()
	r := c.port.responder
	c.port.mu.Unlock()
	if r == nil {
		return nil
	}
	return bytes.Clone(r.Respond(req))
}

func codeOf(m []byte) SPDMRequest {
	if len(m) < 2 {
		return 0
	}
	return SPDMRequest(m[1])
}

// ServeTCP offers the port in the framing of spdm.DialTCP (DSP0287), until ctx
// ends; it closes the listener. One connection is served at a time.
func (p *SPDMPort) ServeTCP(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer l.Close()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		p.serve(ctx, conn)
	}
}

func (p *SPDMPort) serve(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	c := &spdmConn{port: p}
	for {
		var head [4]byte // length of what follows it, version, type
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		n := int(binary.LittleEndian.Uint16(head[:])) - 2
		if n < 4 || head[2] != 1 || head[3] != 5 {
			return
		}
		req := make([]byte, n)
		if _, err := io.ReadFull(conn, req); err != nil {
			return
		}
		rsp, err := c.exchange(ctx, req)
		if errors.Is(err, errLost) {
			continue
		}
		frame := append(binary.LittleEndian.AppendUint16(nil, uint16(len(rsp)+2)), 1, 5)
		frame = append(frame, rsp...)
		if errors.Is(err, errCut) {
			_, _ = conn.Write(frame[:len(frame)/2])
		}
		if err != nil {
			return
		}
		if _, err := conn.Write(frame); err != nil {
			return
		}
	}
}
