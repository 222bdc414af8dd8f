package spdm

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/trusttree/trusttree/moduleid"
)

// SchemeName is the scheme of a transcript with CHALLENGE_AUTH.
const SchemeName = "spdm.v1"

// Scheme checks the transcripts of a [Requester]. Its zero value takes
// versions 1.2 and up, and needs no measurements.
type Scheme struct {
	// MinVersion is the lowest version that is accepted. Zero means 1.2.
	// Versions below 1.2 sign nothing that tells an SPDM signature from
	// another protocol's: choosing one here is a decision to trust that the
	// module's key serves SPDM alone.
	MinVersion Version

	// Measurements asks for signed measurements; without them a proof is
	// refused. Their reference values are in moduleid.Class.
	Measurements bool
}

// Name implements moduleid.Scheme.
func (Scheme) Name() string { return SchemeName }

// Check implements moduleid.Scheme.
func (s Scheme) Check(c moduleid.Challenge, e *moduleid.Evidence) (*moduleid.Proof, error) {
	if len(e.Chain) != 0 || len(e.Signature) != 0 {
		return nil, malformed(errors.New("spdm: the evidence is the transcript alone"))
	}
	messages, err := decodePairs(e.Message)
	if err != nil {
		return nil, malformed(fmt.Errorf("spdm: %w", err))
	}
	var t transcript
	for i := 0; i < len(messages); i += 2 {
		if err := t.add(messages[i], messages[i+1]); err != nil {
			return nil, err
		}
	}
	return s.proof(&t, c)
}

// proof judges a transcript whose signatures hold.
func (s Scheme) proof(t *transcript, c moduleid.Challenge) (*moduleid.Proof, error) {
	nonces := noncesOf(c)
	if len(t.challenges) != 1 {
		return nil, fmt.Errorf("spdm: the transcript has %d challenges, not one", len(t.challenges))
	}
	if got := t.challenges[0]; got.nonce != nonces.challenge || got.context != nil && !bytes.Equal(got.context, nonces.context[:]) {
		return nil, errors.New("spdm: the transcript answers another challenge")
	}
	minimum := s.MinVersion
	if minimum == 0 {
		minimum = Version12
	}
	if t.version < minimum {
		return nil, fmt.Errorf("spdm: the module speaks version %s; at least %s is asked for", t.version, minimum)
	}
	// Before 1.2 no context keeps other protocols' signatures out, but the
	// responder composes what it signs: only a key for TLS alone is refused.
	p := &moduleid.Proof{Chain: t.certs, AnyDigest: t.version < Version12 && onlyTLS(t.certs[0])}
	for _, m := range t.measurements {
		if m.nonce != nonces.measurements || m.context != nil && !bytes.Equal(m.context, nonces.context[:]) {
			return nil, errors.New("spdm: the measurements answer another challenge")
		}
		p.Measurements = append(p.Measurements, m.blocks...)
	}
	if s.Measurements && len(t.measurements) == 0 {
		return nil, errors.New("spdm: the transcript has no signed measurements")
	}
	return p, identify(t, p)
}

// onlyTLS reports a certificate whose every purpose is TLS.
func onlyTLS(c *x509.Certificate) bool {
	for _, u := range c.ExtKeyUsage {
		if u != x509.ExtKeyUsageClientAuth && u != x509.ExtKeyUsageServerAuth {
			return false
		}
	}
	return len(c.ExtKeyUsage) > 0 && len(c.UnknownExtKeyUsage) == 0
}

func malformed(err error) error {
	return &moduleid.RefusedError{Findings: []moduleid.Finding{{Reason: moduleid.ReasonMalformed, Detail: err.Error()}}}
}

// nonces are what a moduleid challenge means in SPDM's fields.
type nonces struct {
	challenge    [32]byte // CHALLENGE's nonce: the challenge's digest
	measurements [32]byte // GET_MEASUREMENTS' nonce
	context      [8]byte  // RequesterContext, since 1.3
}

func noncesOf(c moduleid.Challenge) nonces {
	d := c.Digest()
	n := nonces{challenge: d, measurements: sha256.Sum256(append([]byte("moduleid.v1\x00spdm measurements"), d[:]...))}
	sum := sha256.Sum256(append([]byte("moduleid.v1\x00spdm context"), d[:]...))
	copy(n.context[:], sum[:])
	return n
}
