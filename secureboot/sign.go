package secureboot

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// policyMedia is the payload type of a signed policy.
const policyMedia = "application/vnd.trusttree.boot-policy+json"

// Errors of VerifyPolicy.
var (
	ErrPolicySignature = errors.New("secureboot: no trusted key signed this policy")
	ErrPolicyRollback  = errors.New("secureboot: policy is older than one already seen")
	ErrPolicyExpired   = errors.New("secureboot: policy has ended")
)

// envelope is a DSSE envelope (Dead Simple Signing Envelope 1.0.2).
type envelope struct {
	PayloadType string         `json:"payloadType"`
	Payload     []byte         `json:"payload"`
	Signatures  []envelopeSign `json:"signatures"`
}

type envelopeSign struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// maxSigners bounds the signatures of one envelope.
const maxSigners = 16

// pae is DSSE's pre-authentication encoding.
func pae(media string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(media), media, len(payload), payload)
}

// SignPolicy returns the policy in a DSSE envelope signed by each of the
// signers: Ed25519, ECDSA on P-256 or P-384, or RSA (PSS, 2048 bits and up).
func SignPolicy(p *Policy, signers ...crypto.Signer) ([]byte, error) {
	if len(signers) == 0 || len(signers) > maxSigners {
		return nil, fmt.Errorf("secureboot: %d signers, want 1 to %d", len(signers), maxSigners)
	}
	payload, err := p.MarshalJSON()
	if err != nil {
		return nil, err
	}
	if p.NotAfter.IsZero() {
		return nil, errors.New("secureboot: policy has no NotAfter")
	}
	env := envelope{PayloadType: policyMedia, Payload: payload}
	for _, s := range signers {
		id, opts, err := keyScheme(s.Public())
		if err != nil {
			return nil, err
		}
		msg := pae(policyMedia, payload)
		if h := opts.HashFunc(); h != 0 {
			w := h.New()
			w.Write(msg)
			msg = w.Sum(nil)
		}
		sig, err := s.Sign(rand.Reader, msg, opts)
		if err != nil {
			return nil, fmt.Errorf("secureboot: sign policy: %w", err)
		}
		env.Signatures = append(env.Signatures, envelopeSign{id, sig})
	}
	return json.Marshal(env)
}

// VerifyPolicy opens what SignPolicy made. One signature by one of the trusted
// keys suffices. The policy must not have ended at now, and its serial must not
// be below floor: keep the highest serial seen and pass it as floor. Errors:
// ErrPolicySignature, ErrPolicyRollback, ErrPolicyExpired; others for what is
// malformed.
func VerifyPolicy(signed []byte, trusted []crypto.PublicKey, floor uint64, now time.Time) (*Policy, error) {
	if len(signed) > 2*maxPolicySize {
		return nil, fmt.Errorf("secureboot: signed policy of %d bytes, limit %d", len(signed), 2*maxPolicySize)
	}
	var env envelope
	if err := strictUnmarshal(signed, &env); err != nil {
		return nil, fmt.Errorf("secureboot: signed policy: %w", err)
	}
	if env.PayloadType != policyMedia {
		return nil, fmt.Errorf("secureboot: signed policy has payload type %.60q, want %q", env.PayloadType, policyMedia)
	}
	if len(env.Signatures) > maxSigners {
		return nil, fmt.Errorf("secureboot: signed policy has %d signatures, limit %d", len(env.Signatures), maxSigners)
	}
	if !env.signedBy(trusted) {
		return nil, ErrPolicySignature
	}
	p, err := ParsePolicy(env.Payload)
	if err != nil {
		return nil, err
	}
	if p.Serial < floor {
		return nil, fmt.Errorf("%w: serial %d, want at least %d", ErrPolicyRollback, p.Serial, floor)
	}
	if now.IsZero() || now.After(p.NotAfter) {
		return nil, fmt.Errorf("%w on %s", ErrPolicyExpired, p.NotAfter.UTC().Format(time.RFC3339))
	}
	return p, nil
}

func (env *envelope) signedBy(trusted []crypto.PublicKey) bool {
	msg := pae(env.PayloadType, env.Payload)
	for _, key := range trusted {
		id, opts, err := keyScheme(key)
		if err != nil {
			continue
		}
		digest := msg
		if h := opts.HashFunc(); h != 0 {
			w := h.New()
			w.Write(msg)
			digest = w.Sum(nil)
		}
		for _, s := range env.Signatures {
			if s.KeyID == id && verifySignature(key, opts, digest, s.Sig) {
				return true
			}
		}
	}
	return false
}

func verifySignature(key crypto.PublicKey, opts crypto.SignerOpts, digest, sig []byte) bool {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(k, digest, sig)
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, sig)
	case *rsa.PublicKey:
		pss, _ := opts.(*rsa.PSSOptions)
		return pss != nil && rsa.VerifyPSS(k, pss.Hash, digest, sig, pss) == nil
	}
	return false
}

// keyScheme returns a key's ID (SHA-256 of its SPKI) and how it signs.
func keyScheme(key crypto.PublicKey) (id string, opts crypto.SignerOpts, err error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", nil, fmt.Errorf("secureboot: policy key: %w", err)
	}
	sum := sha256.Sum256(der)
	id = hex.EncodeToString(sum[:])
	switch k := key.(type) {
	case ed25519.PublicKey:
		return id, crypto.Hash(0), nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return id, crypto.SHA256, nil
		case elliptic.P384():
			return id, crypto.SHA384, nil
		}
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 {
			return id, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}, nil
		}
	}
	return "", nil, fmt.Errorf("secureboot: policy key %T is not supported", key)
}
