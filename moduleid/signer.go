package moduleid

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// schemeSigner is the name of the proofs of [FromSigner].
const schemeSigner = "signer.v1"

// SignerScheme returns the Scheme "signer.v1" that checks proofs of [FromSigner]: a
// signature over the challenge's digest by the leaf's key, ECDSA in ASN.1 DER
// with SHA-256, RSA-PSS with SHA-256, or Ed25519 over the 32 bytes.
func SignerScheme() Scheme { return signerScheme{} }

type signerScheme struct{}

func (signerScheme) Name() string { return schemeSigner }

func (signerScheme) Check(c Challenge, e *Evidence) (*Proof, error) {
	certs, err := e.Certificates()
	if err != nil {
		return nil, malformed(err)
	}
	if len(e.Message) != 0 {
		return nil, malformed(errors.New("a signer's proof has no message"))
	}
	digest, ok := c.Digest(), false
	switch k := certs[0].PublicKey.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, digest[:], e.Signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPSS(k, crypto.SHA256, digest[:], e.Signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, digest[:], e.Signature)
	default:
		return nil, malformed(fmt.Errorf("a key of algorithm %s is not supported", certs[0].PublicKeyAlgorithm))
	}
	if !ok {
		return nil, errors.New("the signature does not answer this challenge")
	}
	return &Proof{Chain: certs, AnyDigest: true}, nil
}

// FromSigner turns a crypto.Signer with its chain, leaf first, into a Chip: a
// PIV card, a PKCS#11 token, a key in a TPM. The chain's leaf must certify the
// signer's key. If the signer is an io.Closer, Close closes it.
func FromSigner(s crypto.Signer, chain []*x509.Certificate) (Chip, error) {
	if s == nil || len(chain) == 0 || slices.Contains(chain, nil) {
		return nil, errors.New("moduleid: FromSigner needs a signer and its certificate chain")
	}
	pub, ok := s.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, errors.New("moduleid: the first certificate of the chain does not certify the signer's key")
	}
	c := &signerChip{signer: s, busy: make(chan struct{}, 1)}
	for _, cert := range chain {
		c.chain = append(c.chain, cert.Raw)
	}
	return c, nil
}

type signerChip struct {
	chain  [][]byte
	signer crypto.Signer
	busy   chan struct{} // holds a token during a signature: one at a time

	mu     sync.Mutex
	closed bool
}

func (s *signerChip) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *signerChip) Prove(ctx context.Context, c Challenge) (*Evidence, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	digest := c.Digest()
	var opts crypto.SignerOpts = crypto.SHA256
	switch s.signer.Public().(type) {
	case *rsa.PublicKey:
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	case ed25519.PublicKey:
		opts = crypto.Hash(0)
	}
	type result struct {
		sig []byte
		err error
	}
	// A Signer takes no context: its answer is awaited, not its return.
	done := make(chan result, 1)
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("moduleid: the signer is busy: %w", ctx.Err())
	}
	go func() {
		defer func() { <-s.busy }()
		if s.isClosed() || ctx.Err() != nil {
			done <- result{err: ErrAbsent}
			return
		}
		sig, err := s.signer.Sign(rand.Reader, digest[:], opts)
		done <- result{sig, err}
	}()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("moduleid: the signer did not answer: %w", ctx.Err())
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("moduleid: the signer failed: %w", r.err)
		}
		return &Evidence{Scheme: schemeSigner, Chain: s.chain, Signature: r.sig}, nil
	}
}

// Close waits a second for a signature that is under way. A signer that hangs is
// closed when it returns.
func (s *signerChip) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	c, ok := s.signer.(io.Closer)
	if was || !ok {
		return nil
	}
	late := time.NewTimer(closing)
	defer late.Stop()
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
		return c.Close()
	case <-late.C:
		go func() {
			s.busy <- struct{}{}
			defer func() { <-s.busy }()
			_ = c.Close()
		}()
		return nil
	}
}
