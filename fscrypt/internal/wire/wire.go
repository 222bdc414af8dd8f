// Package wire is what a node and a releasing service say to each other, in
// strict JSON.
package wire

import (
	"bytes"
	"crypto/hpke"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// Limits.
const (
	Version  = 1
	MaxSize  = 16 << 10 // bytes of a request or response
	maxName  = 128      // bytes of a name in a request
	maxLease = 366 * 24 * 3600
)

// Operations and statuses.
const (
	OpMint    = "mint"
	OpRelease = "release"
	OpRenew   = "renew"
	OpDrop    = "drop"

	StatusOK      = "ok"
	StatusRevoked = "revoked"
	StatusRefused = "refused"
	StatusLater   = "later"
)

// Request asks for a share. Key is an HPKE public key made for this request:
// the share travels sealed to it, so that what inspects the tunnel does not
// see it.
type Request struct {
	Version int    `json:"version"`
	Op      string `json:"op"`
	Volume  string `json:"volume"`
	Label   string `json:"label"`
	Slot    string `json:"slot"`
	Key     []byte `json:"key,omitempty"`
}

// Response answers a Request.
type Response struct {
	Version      int    `json:"version"`
	Status       string `json:"status"`
	Reason       string `json:"reason,omitempty"`
	Share        []byte `json:"share,omitempty"`
	LeaseSeconds int64  `json:"lease_seconds,omitempty"`
}

// KEM, KDF and AEAD of the share's encryption.
func KEM() hpke.KEM   { return hpke.MLKEM768X25519() }
func KDF() hpke.KDF   { return hpke.HKDFSHA256() }
func AEAD() hpke.AEAD { return hpke.ChaCha20Poly1305() }

// Info binds a sealed share to its request.
func (r *Request) Info() []byte {
	info := []byte("trusttree fscrypt share v1")
	for _, s := range []string{r.Op, r.Volume, r.Label, r.Slot} {
		info = binary.BigEndian.AppendUint32(info, uint32(len(s)))
		info = append(info, s...)
	}
	return info
}

// ParseRequest decodes and checks a request.
func ParseRequest(b []byte) (*Request, error) {
	r := new(Request)
	if err := strict(b, r); err != nil {
		return nil, err
	}
	switch r.Op {
	case OpMint, OpRelease, OpRenew, OpDrop:
	default:
		return nil, fmt.Errorf("unknown operation %.20q", r.Op)
	}
	for _, s := range []string{r.Volume, r.Label, r.Slot} {
		if s == "" || len(s) > maxName {
			return nil, fmt.Errorf("a name has %d bytes, want 1 to %d", len(s), maxName)
		}
	}
	return r, version(r.Version)
}

// ParseResponse decodes and checks a response.
func ParseResponse(b []byte) (*Response, error) {
	r := new(Response)
	if err := strict(b, r); err != nil {
		return nil, err
	}
	switch r.Status {
	case StatusOK, StatusRevoked, StatusRefused, StatusLater:
	default:
		return nil, fmt.Errorf("unknown status %.20q", r.Status)
	}
	if r.LeaseSeconds < 0 || r.LeaseSeconds > maxLease || len(r.Reason) > 1024 {
		return nil, errors.New("value out of range")
	}
	return r, version(r.Version)
}

func version(v int) error {
	if v != Version {
		return fmt.Errorf("version %d, this program speaks %d", v, Version)
	}
	return nil
}

func strict(b []byte, v any) error {
	if len(b) > MaxSize {
		return fmt.Errorf("message of %d bytes, limit %d", len(b), MaxSize)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if len(bytes.TrimSpace(b[d.InputOffset():])) > 0 {
		return errors.New("data behind the JSON value")
	}
	return nil
}
