package spdm

import (
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is an SPDM version as its header byte: major and minor nibble.
type Version byte

// The versions.
const (
	Version10 Version = 0x10
	Version11 Version = 0x11
	Version12 Version = 0x12
	Version13 Version = 0x13
	Version14 Version = 0x14
)

// String returns the version as "1.2".
func (v Version) String() string { return fmt.Sprintf("%d.%d", v>>4, v&15) }

// Request and response codes.
const (
	reqDigests      = 0x81
	reqCertificate  = 0x82
	reqChallenge    = 0x83
	reqVersion      = 0x84
	reqMeasurements = 0xe0
	reqChunkSend    = 0x85
	reqChunkGet     = 0x86
	reqCapabilities = 0xe1
	reqAlgorithms   = 0xe3
	reqIfReady      = 0xff

	rspDigests      = 0x01
	rspCertificate  = 0x02
	rspChallenge    = 0x03
	rspVersion      = 0x04
	rspChunkAck     = 0x05
	rspChunk        = 0x06
	rspMeasurements = 0x60
	rspCapabilities = 0x61
	rspAlgorithms   = 0x63
	rspError        = 0x7f
)

// Error codes.
const (
	errInvalidRequest = 0x01
	errBusy           = 0x03
	errUnexpected     = 0x04
	errUnsupported    = 0x07
	errTooLarge       = 0x0d // the response is
	errLarge          = 0x0f // the response comes in chunks
	errVersion        = 0x41
	errNotReady       = 0x42
	errResynch        = 0x43
)

// Capability flags of a responder.
const (
	capCert      = 1 << 1
	capChallenge = 1 << 2
	capMeas      = 3 << 3 // mask: 1 unsigned, 2 signed
	capMeasNoSig = 1 << 3
	capMeasSig   = 2 << 3
	capChunk     = 1 << 17
	capAlias     = 1 << 18
	capMultiKey  = 3 << 26 // mask: 1 always, 2 where it is asked for
	capMultiOnly = 1 << 26
)

// Limits.
const (
	maxMessage     = 0x1200   // bytes of one transfer, as we tell the responder
	maxLarge       = 32 << 10 // bytes of one message in chunks, as we tell the responder
	minTransfer    = 42       // the least that the standard allows for one transfer
	maxChain       = 64 << 10 // bytes of a certificate chain
	maxChainReads  = 300      // GET_CERTIFICATE requests
	maxOpaque      = 1024
	requesterExp   = 0x0c // CTExponent: 2^12 µs
	challengeBlank = 0    // no measurement summary: measurements are asked for themselves
)

// Asymmetric algorithms, a bit each.
const (
	asymRSASSA2048 = 1 << 0
	asymRSAPSS2048 = 1 << 1
	asymRSASSA3072 = 1 << 2
	asymRSAPSS3072 = 1 << 3
	asymP256       = 1 << 4
	asymRSASSA4096 = 1 << 5
	asymRSAPSS4096 = 1 << 6
	asymP384       = 1 << 7
	asymP521       = 1 << 8

	asymPSS     = asymRSAPSS2048 | asymRSAPSS3072 | asymRSAPSS4096
	asymOffered = asymP256 | asymP384 | asymP521 | asymPSS | asymRSASSA2048 | asymRSASSA3072 | asymRSASSA4096
)

// Hash algorithms, a bit each.
const (
	hashSHA256 = 1 << 0
	hashSHA384 = 1 << 1
	hashSHA512 = 1 << 2

	hashOffered = hashSHA256 | hashSHA384 | hashSHA512
)

func hashOf(bit uint32) crypto.Hash {
	switch bit {
	case hashSHA256:
		return crypto.SHA256
	case hashSHA384:
		return crypto.SHA384
	case hashSHA512:
		return crypto.SHA512
	}
	return 0
}

// signatureSize returns the bytes of a signature, 0 for an unknown algorithm.
func signatureSize(asym uint32) int {
	switch asym {
	case asymP256:
		return 64
	case asymP384:
		return 96
	case asymP521:
		return 132
	case asymRSASSA2048, asymRSAPSS2048:
		return 256
	case asymRSASSA3072, asymRSAPSS3072:
		return 384
	case asymRSASSA4096, asymRSAPSS4096:
		return 512
	}
	return 0
}

var le = binary.LittleEndian

// reader takes fields off a message; after the first that is missing, every
// further one is zero and bad is set.
type reader struct {
	p   []byte
	bad bool
}

func (r *reader) bytes(n int) []byte {
	if r.bad || n < 0 || len(r.p) < n {
		r.bad = true
		return nil
	}
	p := r.p[:n:n]
	r.p = r.p[n:]
	return p
}

func (r *reader) u8() byte {
	if p := r.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() int {
	if p := r.bytes(2); p != nil {
		return int(le.Uint16(p))
	}
	return 0
}

func (r *reader) u24() int {
	if p := r.bytes(3); p != nil {
		return int(p[0]) | int(p[1])<<8 | int(p[2])<<16
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.bytes(4); p != nil {
		return le.Uint32(p)
	}
	return 0
}

// errLong says that bytes are left after a message. A transport that pads has
// them taken off; nobody else may add any.
var errLong = errors.New("the message has bytes too many")

// end reports a message that was too short, or has bytes left.
func (r *reader) end() error {
	if r.bad {
		return errors.New("the message is too short")
	}
	if len(r.p) > 0 {
		return fmt.Errorf("%w: %d", errLong, len(r.p))
	}
	return nil
}
