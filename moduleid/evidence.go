package moduleid

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/trusttree/trusttree/moduleid/internal/keysize"
)

// Chip is one module's secure element.
//
// Prove answers the challenge with evidence that a [Scheme] of the same name
// can check from its bytes alone; it honours ctx within a second. Prove and
// Close are safe for concurrent use. A Chip that has been closed answers no
// more.
type Chip interface {
	Prove(ctx context.Context, c Challenge) (*Evidence, error)
	Close() error
}

// Limits of evidence from a peer.
const (
	maxChain     = 10        // certificates
	maxChainSize = 64 << 10  // bytes of all certificates
	maxMessage   = 128 << 10 // bytes
	maxSignature = 1024      // bytes
)

// Evidence is what a chip answered, in bytes that any verifier can check
// again. Nothing in it is to be believed before [Verifier.Verify].
type Evidence struct {
	Scheme    string   `json:"scheme"`              // name of the Scheme that checks it
	Chain     [][]byte `json:"chain,omitempty"`     // DER certificates, leaf first; at most 10 and 64 KiB
	Message   []byte   `json:"message,omitempty"`   // what was signed beyond the challenge's digest; at most 128 KiB
	Signature []byte   `json:"signature,omitempty"` // at most 1024 bytes
}

func (e *Evidence) check() error {
	if e == nil {
		return fmt.Errorf("there is no evidence")
	}
	total := 0
	for _, c := range e.Chain {
		total += len(c)
	}
	switch {
	case len(e.Scheme) > maxName:
		return fmt.Errorf("the scheme's name has %d bytes; the limit is %d", len(e.Scheme), maxName)
	case len(e.Chain) > maxChain || total > maxChainSize:
		return fmt.Errorf("the chain has %d certificates and %d bytes; the limits are %d and %d", len(e.Chain), total, maxChain, maxChainSize)
	case len(e.Message) > maxMessage:
		return fmt.Errorf("the message has %d bytes; the limit is %d", len(e.Message), maxMessage)
	case len(e.Signature) > maxSignature:
		return fmt.Errorf("the signature has %d bytes; the limit is %d", len(e.Signature), maxSignature)
	}
	return nil
}

// Certificates parses the chain of the evidence, for a Scheme. What it returns
// is as unverified as the evidence.
func (e *Evidence) Certificates() ([]*x509.Certificate, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	if len(e.Chain) == 0 {
		return nil, fmt.Errorf("the evidence carries no certificate")
	}
	certs := make([]*x509.Certificate, len(e.Chain))
	for i, der := range e.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", i, err)
		}
		if err := keysize.Check(c); err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", i, err)
		}
		certs[i] = c
	}
	return certs, nil
}

// Scheme checks one kind of evidence. A Verifier accepts only the schemes it
// lists, so each is a decision of its owner.
//
// Check must verify that the key of Proof.Chain[0] signed the challenge's
// digest, freshly; it does not judge the chain, which the Verifier does. Its
// error means ReasonProof, unless it is a RefusedError with findings of its
// own. It is pure and safe for concurrent use.
type Scheme interface {
	Name() string
	Check(c Challenge, e *Evidence) (*Proof, error)
}

// Proof is what a Scheme found in evidence whose signature holds.
type Proof struct {
	// Chain is the module's certificate chain, leaf first. The leaf's key made
	// the signature.
	Chain []*x509.Certificate

	// Device is the index in Chain of the certificate that names the device
	// for its whole life. It is 0 but for chips that certify a new leaf with
	// every firmware (SPDM alias certificates, DICE).
	Device int

	// AnyDigest says that the key signs whatever digest the host loads, so
	// that the proof rests on the digest's label alone. The Verifier then
	// refuses certificates that are also TLS certificates.
	AnyDigest bool

	// Measurements are signed by the chip.
	Measurements []Measurement

	// Handled lists critical certificate extensions that the Scheme read and
	// judged.
	Handled []asn1.ObjectIdentifier
}

// Measurement is one value that a module signed about itself.
type Measurement struct {
	Index int    `json:"index"` // as the module numbers it
	Kind  string `json:"kind"`  // "firmware", "svn", … as the scheme's package says
	Value []byte `json:"value"` // a digest, or the raw value
}
