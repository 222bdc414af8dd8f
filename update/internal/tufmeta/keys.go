// Package tufmeta is what publisher and client share of TUF's formats: keys,
// signatures by any crypto.Signer, file names, and decoding by go-tuf behind a
// check that malformed input can't get past.
package tufmeta

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
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// ErrKey says that a public key is of no type, curve or size that TUF clients
// verify.
var ErrKey = errors.New("unsupported key")

// KeyOf returns the TUF form of a public key: Ed25519, ECDSA on P-256 or P-384
// with its own scheme label, or RSA of at least 2048 bits (PSS).
func KeyOf(pub crypto.PublicKey) (*metadata.Key, string, error) {
	k := &metadata.Key{}
	switch p := pub.(type) {
	case ed25519.PublicKey:
		if len(p) != ed25519.PublicKeySize {
			return nil, "", fmt.Errorf("%w: ed25519 of %d bytes", ErrKey, len(p))
		}
		k.Type, k.Scheme, k.Value.PublicKey = metadata.KeyTypeEd25519, metadata.KeySchemeEd25519, hex.EncodeToString(p)
	case *ecdsa.PublicKey:
		k.Type = metadata.KeyTypeECDSA_SHA2_P256 // "ecdsa": the type of every curve
		switch p.Curve {
		case elliptic.P256():
			k.Scheme = metadata.KeySchemeECDSA_SHA2_P256
		case elliptic.P384():
			k.Scheme = metadata.KeySchemeECDSA_SHA2_P384
		default:
			return nil, "", fmt.Errorf("%w: ECDSA on %s", ErrKey, p.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if p.Size() < 256 {
			return nil, "", fmt.Errorf("%w: RSA of %d bits", ErrKey, 8*p.Size())
		}
		k.Type, k.Scheme = metadata.KeyTypeRSASSA_PSS_SHA256, metadata.KeySchemeRSASSA_PSS_SHA256
	default:
		return nil, "", fmt.Errorf("%w: %T", ErrKey, pub)
	}
	if k.Value.PublicKey == "" {
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrKey, err)
		}
		k.Value.PublicKey = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	id, err := k.ID()
	return k, id, err
}

// Sign signs payload in the scheme of the signer's key.
func Sign(payload []byte, s crypto.Signer) ([]byte, error) {
	var opts crypto.SignerOpts
	switch p := s.Public().(type) {
	case ed25519.PublicKey:
		return s.Sign(rand.Reader, payload, crypto.Hash(0))
	case *ecdsa.PublicKey:
		opts = crypto.SHA256
		if p.Curve == elliptic.P384() {
			opts = crypto.SHA384
		}
	case *rsa.PublicKey:
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	default:
		return nil, fmt.Errorf("%w: %T", ErrKey, p)
	}
	return crypto.SignMessage(s, rand.Reader, payload, opts)
}

// Verify checks a signature over payload in the scheme of the key.
func Verify(payload, sig []byte, pub crypto.PublicKey) bool {
	sum := sha256.Sum256(payload)
	switch p := pub.(type) {
	case ed25519.PublicKey:
		return len(p) == ed25519.PublicKeySize && ed25519.Verify(p, payload, sig)
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P384() {
			h := crypto.SHA384.New()
			h.Write(payload)
			return ecdsa.VerifyASN1(p, h.Sum(nil), sig)
		}
		return p.Curve == elliptic.P256() && ecdsa.VerifyASN1(p, sum[:], sig)
	case *rsa.PublicKey:
		return rsa.VerifyPSS(p, crypto.SHA256, sum[:], sig, nil) == nil
	}
	return false
}

// Payload is the canonical form of a signed part: what signatures are over.
func Payload(signed any) ([]byte, error) { return cjson.EncodeCanonical(signed) }

// KeySet names a role's keys and threshold in a root, so that a change of
// either is seen. It is empty for an unknown role.
func KeySet(root *metadata.RootType, role string) string {
	r := root.Roles[role]
	if r == nil {
		return ""
	}
	data, err := cjson.EncodeCanonical(r)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// OfflineField is where a root says for how many seconds timestamp and snapshot
// outlive their expiry on nodes whose policy allows it.
const OfflineField = "x-trusttree-offline"

// MaxOfflineGrace bounds what a root may say there.
const MaxOfflineGrace = 5 * 365 * 24 * time.Hour

// OfflineGrace reads OfflineField; zero where there is none.
func OfflineGrace(root *metadata.RootType) time.Duration {
	var seconds int64
	switch v := root.UnrecognizedFields[OfflineField].(type) {
	case int64:
		seconds = v
	case float64:
		seconds = int64(v)
	}
	return min(max(time.Duration(min(seconds, int64(MaxOfflineGrace/time.Second)))*time.Second, 0), MaxOfflineGrace)
}
