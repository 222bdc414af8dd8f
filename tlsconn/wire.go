package tlsconn

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// wireVersion is the version of every frame. Readers accept it and the one
// before it, once there is one.
const wireVersion = 1

// maxFrame is the size of the largest frame in bytes.
const maxFrame = 8 << 10

// Kinds of streams. The node opens the control stream first, and an attestation
// stream whenever the gateway asks, or when it wants the gateway's evidence.
const (
	kindControl = "control"
	kindAttest  = "attest"
	kindGateway = "attest-gateway" // the gateway's own evidence, when the node asks
	kindFlow    = "flow"
)

// openFrame begins every stream.
type openFrame struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`
	Flow    string `json:"flow,omitempty"` // 32 hex digits, the flow's name in both audits
	Proto   string `json:"proto,omitempty"`
	Host    string `json:"host,omitempty"`
	Port    uint16 `json:"port,omitempty"`
}

// replyFrame answers an openFrame of a flow.
type replyFrame struct {
	Version int    `json:"version"`
	Code    Code   `json:"code"`
	Rule    string `json:"rule,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// Types of control frames.
const (
	ctlHello    = "hello"    // both, first
	ctlReattest = "reattest" // gateway: open an attestation stream
	ctlAttested = "attested" // gateway: until when
	ctlEnd      = "end"      // both: a flow's byte counts
	ctlDrain    = "drain"    // both: open no more flows here
	ctlBye      = "bye"      // both: no flow is left, close
)

type controlFrame struct {
	Version int        `json:"version"`
	Type    string     `json:"type"`
	Attest  bool       `json:"attest,omitempty"` // hello of a gateway: evidence is required
	Policy  uint64     `json:"policy,omitempty"` // hello: serial of the policy in force
	Until   *time.Time `json:"until,omitempty"`
	Flow    string     `json:"flow,omitempty"`
	Up      uint64     `json:"up,omitempty"`
	Down    uint64     `json:"down,omitempty"`
	Code    Code       `json:"code,omitempty"`
	Reason  string     `json:"reason,omitempty"`
}

func writeFrame(w io.Writer, v any) error {
	b, err := appendFrame(nil, v)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// appendFrame appends a frame to b.
func appendFrame(b []byte, v any) ([]byte, error) {
	begin := len(b) + 4
	b, ok := appendPlain(append(b, 0, 0, 0, 0), v)
	if !ok {
		body, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		b = append(b, body...)
	}
	n := len(b) - begin
	if n > maxFrame {
		return nil, fmt.Errorf("%w: frame of %d bytes, at most %d", ErrProtocol, n, maxFrame)
	}
	binary.BigEndian.PutUint32(b[begin-4:], uint32(n))
	return b, nil
}

// readFrame reads exactly one frame and not a byte more.
func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return fmt.Errorf("%w: frame of %d bytes, at most %d", ErrProtocol, n, maxFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if readPlain(body, v) {
		return nil
	}
	if err := strictJSON(body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	version := 0
	switch f := v.(type) {
	case *openFrame:
		version = f.Version
	case *replyFrame:
		version = f.Version
	case *controlFrame:
		version = f.Version
	}
	if version != wireVersion {
		return fmt.Errorf("%w: frame version %d, this program speaks %d", ErrProtocol, version, wireVersion)
	}
	return nil
}

// clip bounds what a peer or an error can put into a frame or a log.
func clip(s string) string {
	if len(s) > 512 {
		return s[:512] + "…"
	}
	return s
}
