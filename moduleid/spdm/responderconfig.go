package spdm

import (
	"crypto"
	"crypto/x509"
	"fmt"

	"github.com/trusttree/trusttree/moduleid"
)

// ResponderConfig describes a module's side.
type ResponderConfig struct {
	// Key signs, and Chain certifies it, leaf first and with the root last, in
	// slot 0. ECDSA keys on P-256, P-384 and P-521 and RSA keys of 2048, 3072
	// and 4096 bits work.
	Key   crypto.Signer
	Chain []*x509.Certificate

	// Slots are the other slots, 1 to 7. Their keys are of the same algorithm.
	Slots map[int]Slot

	// Hash is SHA-256, SHA-384 or SHA-512. Zero means the one that fits the
	// key. PKCS1v15 signs with RSASSA-PKCS1-v1_5 instead of RSASSA-PSS.
	Hash     crypto.Hash
	PKCS1v15 bool

	// Measurements are signed on request; Index is 1 to 254. A Kind that
	// DSP0274 does not know is sent as firmware.
	Measurements []moduleid.Measurement

	// UnsignedMeasurements says that it has measurements and signs none, and
	// AliasCertificates that the leaves change with the firmware.
	UnsignedMeasurements bool
	AliasCertificates    bool

	// MultiKey makes every connection of version 1.3 and up a multi-key one.
	MultiKey bool

	// Opaque is sent in every signed answer; at most 1024 bytes.
	Opaque []byte

	// Versions are those it speaks. Nil means 1.2 and 1.3.
	Versions []Version

	// MaxPortion is the largest portion of the certificate chain in bytes that
	// it sends at once. Zero means 1024.
	MaxPortion int

	// TransferSize is how many bytes of a message it takes and sends at once,
	// at least 42. Zero means 4608. What is larger travels in chunks.
	TransferSize int
}

// Slot is a key and its chain, leaf first and with the root last.
type Slot struct {
	Key   crypto.Signer
	Chain []*x509.Certificate
}

// algorithm settles what is signed with.
func (r *Responder) algorithm() error {
	for n, s := range r.slots {
		asym := algorithmOf(s.Key.Public())
		if r.cfg.PKCS1v15 {
			asym = map[uint32]uint32{asymRSAPSS2048: asymRSASSA2048, asymRSAPSS3072: asymRSASSA3072, asymRSAPSS4096: asymRSASSA4096}[asym]
		}
		if asym == 0 {
			return fmt.Errorf("spdm: keys of type %T and this size are not supported", s.Key.Public())
		}
		if r.asym != 0 && r.asym != asym {
			return fmt.Errorf("spdm: the key of slot %d is of another algorithm", n)
		}
		r.asym = asym
	}
	h := r.cfg.Hash
	if h == 0 {
		switch r.asym {
		case asymP256:
			h = crypto.SHA256
		case asymP521:
			h = crypto.SHA512
		default:
			h = crypto.SHA384
		}
	}
	for bit := uint32(hashSHA256); bit <= hashSHA512; bit <<= 1 {
		if hashOf(bit) == h {
			r.hash = bit
			return nil
		}
	}
	return fmt.Errorf("spdm: hash %v is not supported", h)
}
