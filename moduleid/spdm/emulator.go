package spdm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Binding is what the reference emulator wraps messages in, inside its socket
// protocol: its option --trans.
type Binding uint32

// The bindings, by their numbers in the protocol.
const (
	BindingNone   Binding = 0 // the message alone
	BindingMCTP   Binding = 1 // MCTP, DMTF DSP0275: the emulator's default
	BindingPCIDOE Binding = 2 // PCI data object exchange
	BindingTCP    Binding = 3 // DMTF DSP0287
)

// Commands of the emulator's socket protocol.
const (
	emuNormal   = 0x0001
	emuContinue = 0xfffd // keep the responder, but for somebody else
	emuShutdown = 0xfffe
	emuUnknown  = 0xffff
	emuHello    = 0xdead
)

const emuPatience = 500 * time.Millisecond // for its answer to a farewell

// DialEmulator connects to DMTF's reference emulator (spdm-emu) as it is
// started without --trans: with MCTP inside its socket protocol. Close tells
// it to go on and serve the next one.
func DialEmulator(ctx context.Context, address string) (Transport, error) {
	return DialEmulatorWith(ctx, address, BindingMCTP)
}

// DialEmulatorWith is DialEmulator for an emulator with another --trans.
func DialEmulatorWith(ctx context.Context, address string, b Binding) (Transport, error) {
	if b > BindingTCP {
		return nil, fmt.Errorf("spdm: the emulator has no binding %d", b)
	}
	s, err := dial(ctx, address, emuFraming{b})
	if err != nil {
		return nil, err
	}
	if b == BindingNone {
		return s, nil // it greets nobody
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Now()) })
	defer stop()
	if err = emuWrite(s.conn, emuHello, b, []byte("Client Hello!\x00")); err == nil {
		_, err = emuRead(s.conn, emuHello, b)
	}
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
			err = fmt.Errorf("%w (it hangs up on who comes with another --trans than its own, or while it serves another requester)", err)
		}
		return nil, errors.Join(fmt.Errorf("spdm: greet the emulator: %w", err), ctx.Err(), s.conn.Close())
	}
	return s, nil
}

type emuFraming struct{ b Binding }

func (f emuFraming) write(w io.Writer, m []byte) error {
	var p bytes.Buffer
	switch f.b {
	case BindingMCTP:
		p.WriteByte(mctpType)
		p.Write(m)
	case BindingPCIDOE:
		p.Write(doeObject(m))
	case BindingTCP:
		if err := (tcpFraming{}).write(&p, m); err != nil {
			return err
		}
	default:
		p.Write(m)
	}
	return emuWrite(w, emuNormal, f.b, p.Bytes())
}

func (f emuFraming) read(r io.Reader) ([]byte, error) {
	p, err := emuRead(r, emuNormal, f.b)
	if err != nil {
		return nil, err
	}
	switch f.b {
	case BindingMCTP:
		if len(p) < 5 || p[0]&0x7f != mctpType {
			return nil, errors.New("the emulator answered something else than SPDM over MCTP")
		}
		return p[1:], nil
	case BindingPCIDOE:
		return doeMessage(p)
	case BindingTCP:
		in := bytes.NewReader(p)
		m, err := tcpFraming{}.read(in)
		if err == nil && in.Len() > 0 {
			err = errors.New("the emulator sent bytes after a frame")
		}
		return m, err
	}
	if len(p) < 4 {
		return nil, errors.New("the emulator's message is shorter than a header")
	}
	return p, nil
}

// padding is how many zeros a message may have behind it.
func (f emuFraming) padding() int {
	if f.b == BindingPCIDOE {
		return doeUnit - 1
	}
	return 0
}

// exact takes the padding off a request.
func (f emuFraming) exact(req []byte) []byte {
	v, n := Version(req[0]), len(req)
	switch req[1] {
	case reqVersion, reqDigests:
		n = 4
	case reqChunkGet:
		n = len(appendSeq(req[:4:4], v, 0))
	case reqChunkSend:
		if len(req) >= chunkHeader+4 {
			n = chunkHeader + int(min(le.Uint32(req[8:]), maxFrame))
			if le.Uint16(req[4:]) == 0 {
				n += 4
			}
		}
	case reqChallenge, reqMeasurements:
		n = 36
		if req[1] == reqMeasurements && v >= Version11 {
			n++
		}
		if v >= Version13 {
			n += 8
		}
	}
	if n > len(req) || len(req)-n > f.padding() {
		return req
	}
	return req[:n]
}

// bye makes the emulator wait for its next requester: without it, some
// versions end with the connection.
func (f emuFraming) bye(c net.Conn) {
	if f.b == BindingNone || c.SetDeadline(time.Now().Add(emuPatience)) != nil {
		return
	}
	if emuWrite(c, emuContinue, f.b, nil) == nil {
		_, _ = emuRead(c, emuContinue, f.b)
	}
}

func emuWrite(w io.Writer, command uint32, b Binding, p []byte) error {
	var head []byte
	for _, v := range []uint32{command, uint32(b), uint32(len(p))} {
		head = binary.BigEndian.AppendUint32(head, v)
	}
	_, err := w.Write(append(head, p...))
	return err
}

func emuRead(r io.Reader, command uint32, b Binding) ([]byte, error) {
	var head [12]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	got, as, n := binary.BigEndian.Uint32(head[:]), Binding(binary.BigEndian.Uint32(head[4:])), binary.BigEndian.Uint32(head[8:])
	if got != command || n > maxFrame {
		return nil, fmt.Errorf("the emulator answered command %#x with %d bytes", got, n)
	}
	if as != b {
		return nil, fmt.Errorf("the emulator answered with binding %d, not %d", as, b)
	}
	p := make([]byte, n)
	_, err := io.ReadFull(r, p)
	return p, err
}

// A PCI data object: vendor 1 (PCI-SIG), type 1 (SPDM), and its length in
// units of 4 bytes with these 8; zeros fill the last unit.
const (
	doeHeader = 8
	doeUnit   = 4
)

func doeObject(m []byte) []byte {
	units := (doeHeader + len(m) + doeUnit - 1) / doeUnit
	p := make([]byte, units*doeUnit)
	p[0], p[2] = 1, 1
	le.PutUint32(p[4:], uint32(units))
	copy(p[doeHeader:], m)
	return p
}

func doeMessage(p []byte) ([]byte, error) {
	if len(p) < doeHeader+4 || le.Uint16(p) != 1 || p[2] != 1 || int(le.Uint32(p[4:])&0x3ffff)*doeUnit != len(p) {
		return nil, errors.New("the emulator answered something else than an SPDM data object")
	}
	return p[doeHeader:], nil
}
