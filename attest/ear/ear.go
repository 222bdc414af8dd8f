package ear

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/registry"
)

// Profile is the eat_profile of the claims sets made here.
const Profile = "tag:github.com,2026:trusttree/attest/ear#1"

// MaxSize is the largest encoded claims set or token accepted, in bytes.
const MaxSize = 64 << 10

const maxReasons = 256 // in a token

// submodule names the one attester of a claims set.
const submodule = "node"

// Errors; test with errors.Is.
var (
	ErrMalformed = errors.New("ear: malformed token")
	ErrSignature = errors.New("ear: signature does not verify")
	ErrExpired   = errors.New("ear: token has expired, or is not valid yet")
)

// VerifierID says who appraised (ear.verifier-id).
type VerifierID struct {
	Developer string `json:"developer" cbor:"0,keyasint"`
	Build     string `json:"build" cbor:"1,keyasint"`
}

// claims is the claims set. JSON names and CBOR labels are those of the EAR
// draft, section 4, and of RFC 8392 and RFC 9711.
type claims struct {
	Profile  string               `json:"eat_profile" cbor:"265,keyasint"`
	IssuedAt int64                `json:"iat" cbor:"6,keyasint"`
	Expires  int64                `json:"exp" cbor:"4,keyasint"`
	Nonce    []byte               `json:"eat_nonce" cbor:"10,keyasint"` // binds the token to the node's TLS key
	UEID     []byte               `json:"ueid" cbor:"256,keyasint"`
	Verifier VerifierID           `json:"ear.verifier-id" cbor:"1004,keyasint"`
	Submods  map[string]appraisal `json:"submods" cbor:"266,keyasint"`
}

type appraisal struct {
	Status uint8    `json:"ear.status" cbor:"1000,keyasint"`
	Vector *vector  `json:"ear.trustworthiness-vector,omitempty" cbor:"1001,keyasint,omitempty"`
	Policy string   `json:"ear.appraisal-policy-id" cbor:"1003,keyasint"` // the purpose
	Notes  []reason `json:"trusttree.reasons,omitempty" cbor:"-70001,keyasint,omitempty"`
}

// vector is the trustworthiness vector (EAR draft, section 3.3; AR4SI, section
// 2.3). A claim that nobody made is left out.
type vector struct {
	InstanceIdentity int8 `json:"instance-identity,omitempty" cbor:"0,keyasint,omitempty"`
	Configuration    int8 `json:"configuration,omitempty" cbor:"1,keyasint,omitempty"`
	Executables      int8 `json:"executables,omitempty" cbor:"2,keyasint,omitempty"`
	FileSystem       int8 `json:"file-system,omitempty" cbor:"3,keyasint,omitempty"`
	Hardware         int8 `json:"hardware,omitempty" cbor:"4,keyasint,omitempty"`
	RuntimeOpaque    int8 `json:"runtime-opaque,omitempty" cbor:"5,keyasint,omitempty"`
	StorageOpaque    int8 `json:"storage-opaque,omitempty" cbor:"6,keyasint,omitempty"`
	SourcedData      int8 `json:"sourced-data,omitempty" cbor:"7,keyasint,omitempty"`
}

func (v *vector) fields() map[string]*int8 {
	return map[string]*int8{
		"instance-identity": &v.InstanceIdentity, "configuration": &v.Configuration, "executables": &v.Executables, "file-system": &v.FileSystem,
		"hardware": &v.Hardware, "runtime-opaque": &v.RuntimeOpaque, "storage-opaque": &v.StorageOpaque, "sourced-data": &v.SourcedData,
	}
}

type reason struct {
	Code   string `json:"code" cbor:"0,keyasint"`
	Detail string `json:"detail" cbor:"1,keyasint"`
}

// ueidRandom is the type byte of a UEID made of 256 random or hashed bits
// (RFC 9711, section 4.2.1.1).
const ueidRandom = 0x01

func claimsOf(r *attest.Result, v VerifierID) (claims, error) {
	if r == nil || r.Device() == (registry.DeviceID{}) {
		return claims{}, errors.New("ear: there is no result")
	}
	id, leaf := r.Device(), r.LeafSPKI()
	a := appraisal{Status: uint8(attest.StatusAffirming), Policy: r.Purpose()}
	if len(r.Reasons()) > maxReasons {
		return claims{}, fmt.Errorf("ear: %d reasons, limit %d", len(r.Reasons()), maxReasons)
	}
	a.Vector = &vector{}
	for name, at := range a.Vector.fields() {
		*at = int8(r.Claims()[name])
	}
	for _, n := range r.Reasons() {
		a.Notes = append(a.Notes, reason{n.Code, n.Detail})
	}
	return claims{
		Profile: Profile, IssuedAt: r.IssuedAt().Unix(), Expires: r.Expires().Unix(), Nonce: leaf[:],
		UEID: append([]byte{ueidRandom}, id[:]...), Verifier: v, Submods: map[string]appraisal{submodule: a},
	}, nil
}

// JSON encodes a result as a claims set in JSON, unsigned: for a log or for a
// channel that authenticates the verifier by itself.
func JSON(r *attest.Result, v VerifierID) ([]byte, error) {
	c, err := claimsOf(r, v)
	if err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

// Sign encodes a result in CBOR as a COSE_Sign1 token. The key is P-256, P-384
// or Ed25519, in memory, a TPM or elsewhere.
func Sign(r *attest.Result, v VerifierID, key crypto.Signer) ([]byte, error) {
	c, err := claimsOf(r, v)
	if err != nil {
		return nil, err
	}
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, fmt.Errorf("ear: %w", err)
	}
	payload, err := mode.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("ear: %w", err)
	}
	alg, err := algorithmOf(key.Public())
	if err != nil {
		return nil, err
	}
	signer, err := cose.NewSigner(alg, key)
	if err != nil {
		return nil, fmt.Errorf("ear: %w", err)
	}
	m := cose.NewSign1Message()
	m.Headers.Protected.SetAlgorithm(alg)
	m.Headers.Protected[cose.HeaderLabelContentType] = "application/eat+cwt"
	m.Payload = payload
	if err := m.Sign(rand.Reader, nil, signer); err != nil {
		return nil, fmt.Errorf("ear: %w", err)
	}
	token, err := m.MarshalCBOR()
	if err == nil && len(token) > MaxSize {
		return nil, fmt.Errorf("ear: token of %d bytes, limit %d: the appraisers say too much", len(token), MaxSize)
	}
	return token, err
}

func algorithmOf(key crypto.PublicKey) (cose.Algorithm, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return cose.AlgorithmES256, nil
		case elliptic.P384():
			return cose.AlgorithmES384, nil
		}
	case ed25519.PublicKey:
		return cose.AlgorithmEdDSA, nil
	}
	return 0, fmt.Errorf("ear: keys are P-256, P-384 or Ed25519, not %T", key)
}

// Claims is what a verifier said of a node, verified. Only Verify makes one; the
// zero value is of nobody and expired.
type Claims struct{ c claims }

// Verify verifies a token with the verifier's public key at the time now. The
// algorithm follows from the key, never from the token.
func Verify(token []byte, key crypto.PublicKey, now time.Time) (*Claims, error) {
	if len(token) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrMalformed, len(token), MaxSize)
	}
	alg, err := algorithmOf(key)
	if err != nil {
		return nil, err
	}
	var m cose.Sign1Message
	if err := m.UnmarshalCBOR(token); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	verifier, err := cose.NewVerifier(alg, key)
	if err != nil {
		return nil, fmt.Errorf("ear: %w", err)
	}
	if err := m.Verify(nil, verifier); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	mode, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels: 8, MaxArrayElements: 256, MaxMapPairs: 64, TagsMd: cbor.TagsForbidden,
	}.DecMode()
	if err != nil {
		return nil, fmt.Errorf("ear: %w", err)
	}
	var c claims
	if err := mode.Unmarshal(m.Payload, &c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	a, ok := c.Submods[submodule]
	switch {
	case c.Profile != Profile:
		return nil, fmt.Errorf("%w: profile %q, this program reads %q", ErrMalformed, c.Profile, Profile)
	case !ok || len(c.Submods) != 1 || len(c.Nonce) != 32 || len(c.UEID) != 33 || c.UEID[0] != ueidRandom || bytes.Equal(c.UEID[1:], make([]byte, 32)):
		return nil, fmt.Errorf("%w: claims are missing", ErrMalformed)
	case a.Status != uint8(attest.StatusAffirming):
		return nil, fmt.Errorf("%w: status %v is not one that this package signs", ErrMalformed, attest.Status(a.Status))
	case a.Vector != nil && !a.Vector.affirming():
		return nil, fmt.Errorf("%w: a claim of the trustworthiness vector is not affirming", ErrMalformed)
	case now.Unix() >= c.Expires || now.Unix() < c.IssuedAt-60:
		return nil, ErrExpired
	}
	return &Claims{c}, nil
}

// Device returns the node.
func (c *Claims) Device() (id registry.DeviceID) {
	if len(c.c.UEID) == 1+len(id) {
		copy(id[:], c.c.UEID[1:])
	}
	return id
}

// Purpose returns what the evidence was given for.
func (c *Claims) Purpose() string { return c.c.Submods[submodule].Policy }

// LeafSPKI returns the hash of the TLS key whose holder may present the token.
func (c *Claims) LeafSPKI() (hash [32]byte) {
	copy(hash[:], c.c.Nonce)
	return hash
}

// IssuedAt returns when the evidence was appraised.
func (c *Claims) IssuedAt() time.Time { return time.Unix(c.c.IssuedAt, 0) }

// Expires returns until when the token counts.
func (c *Claims) Expires() time.Time { return time.Unix(c.c.Expires, 0) }

// Verifier returns who appraised.
func (c *Claims) Verifier() VerifierID { return c.c.Verifier }

// Reasons returns what the appraisers noted.
func (c *Claims) Reasons() []attest.Reason {
	var list []attest.Reason
	for _, n := range c.c.Submods[submodule].Notes {
		list = append(list, attest.Reason{Code: n.Code, Detail: n.Detail})
	}
	return list
}

// Vector returns the claims of the AR4SI trustworthiness vector that were
// affirmed, by name.
func (c *Claims) Vector() map[string]attest.Status {
	list := map[string]attest.Status{}
	if v := c.c.Submods[submodule].Vector; v != nil {
		for name, at := range v.fields() {
			if *at != 0 {
				list[name] = attest.Status(*at)
			}
		}
	}
	return list
}

func (v *vector) affirming() bool {
	for _, at := range v.fields() {
		if *at != 0 && attest.Status(*at) != attest.StatusAffirming {
			return false
		}
	}
	return true
}
