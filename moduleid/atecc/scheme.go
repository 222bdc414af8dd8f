package atecc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"math/big"

	"github.com/trusttree/trusttree/moduleid"
)

// SchemeExternal is the scheme of a signature over the challenge's digest.
const SchemeExternal = "atecc.external.v1"

// Scheme returns the scheme that checks signatures over the challenge's
// digest by a P-256 key: 64 bytes r‖s, each big-endian.
func Scheme() moduleid.Scheme { return external{} }

type external struct{}

func (external) Name() string { return SchemeExternal }

func (external) Check(c moduleid.Challenge, e *moduleid.Evidence) (*moduleid.Proof, error) {
	certs, err := e.Certificates()
	if err != nil {
		return nil, malformed(err)
	}
	if len(e.Message) != 0 || len(e.Signature) != 64 {
		return nil, malformed(errors.New("the proof is not a signature of 64 bytes"))
	}
	digest := c.Digest()
	if err := verify(certs[0].PublicKey, digest[:], e.Signature); err != nil {
		return nil, err
	}
	return &moduleid.Proof{Chain: certs, AnyDigest: true}, nil
}

// verify checks a raw signature by a P-256 key.
func verify(key any, digest, sig []byte) error {
	k, ok := key.(*ecdsa.PublicKey)
	if !ok || k.Curve != elliptic.P256() {
		return malformed(errors.New("the certificate is not for a P-256 key"))
	}
	if !ecdsa.Verify(k, digest, new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return errors.New("the signature does not answer this challenge")
	}
	return nil
}

func malformed(err error) error {
	return &moduleid.RefusedError{Findings: []moduleid.Finding{{Reason: moduleid.ReasonMalformed, Detail: err.Error()}}}
}
