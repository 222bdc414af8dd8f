package moduleid

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"
)

// RevocationList is what the owner's revocation authority says. It is data to
// sign with [SignRevocations]; only [Revocations] that verified a list acts on
// it.
type RevocationList struct {
	Version  int       `json:"version"`           // of the format: 1
	Sequence uint64    `json:"sequence"`          // of the list: higher replaces lower; starts at 1
	Issued   time.Time `json:"issued"`            // when it was signed
	IDs      []string  `json:"ids,omitempty"`     // revoked keys, of modules or of CAs; see [ID]
	Serials  []Serial  `json:"serials,omitempty"` // revoked certificates
}

// Serial names one certificate.
type Serial struct {
	IssuerID string `json:"issuer_id"` // [ID] of the issuer's certificate
	Serial   string `json:"serial"`    // serial number in hexadecimal
}

type signedList struct {
	Version    int      `json:"version"`
	Payload    []byte   `json:"payload"`
	Signatures [][]byte `json:"signatures"`
}

const (
	maxListSize       = 16 << 20
	maxListSignatures = 8
)

// SignRevocations signs a list with an Ed25519 or ECDSA P-256 key, in the
// format that [Revocations.Update] reads.
func SignRevocations(list RevocationList, key crypto.Signer) ([]byte, error) {
	list.Version = 1
	if list.Sequence == 0 || list.Issued.IsZero() {
		return nil, errors.New("moduleid: a revocation list needs a sequence from 1 and the time of issue")
	}
	payload, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("moduleid: revocation list: %w", err)
	}
	sum := hashFields(crypto.SHA256, labelRevocations, payload)
	opts := crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		opts = crypto.Hash(0)
	}
	sig, err := key.Sign(rand.Reader, sum, opts)
	if err != nil {
		return nil, fmt.Errorf("moduleid: sign the revocation list: %w", err)
	}
	return json.Marshal(signedList{Version: 1, Payload: payload, Signatures: [][]byte{sig}})
}

// RevocationsConfig says whose lists are believed, and for how long.
type RevocationsConfig struct {
	// Keys are the revocation authority's Ed25519 or ECDSA keys. A list needs
	// a signature of one of them.
	Keys []crypto.PublicKey

	// MaxAge is how old a list may be before it refuses every module. Zero
	// means 30 days.
	MaxAge time.Duration

	// Save keeps the signed bytes of an accepted list before it takes effect,
	// so that the next start can Update with them and no older list is
	// accepted. Nil keeps nothing.
	Save func(signed []byte) error
}

// Revocations holds the newest list that was verified. It is safe for
// concurrent use.
type Revocations struct {
	cfg RevocationsConfig

	mu      sync.RWMutex
	list    *RevocationList // nil before the first list
	payload []byte
	ids     map[string]bool
	serials map[Serial]bool
}

// NewRevocations returns a holder without a list: it refuses every module
// until Update verified one.
func NewRevocations(cfg RevocationsConfig) (*Revocations, error) {
	if len(cfg.Keys) == 0 {
		return nil, errors.New("moduleid: revocations need at least one key of their authority")
	}
	for _, k := range cfg.Keys {
		switch k.(type) {
		case ed25519.PublicKey, *ecdsa.PublicKey:
		default:
			return nil, fmt.Errorf("moduleid: revocations: a key of type %T is not supported; use Ed25519 or ECDSA", k)
		}
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = 30 * 24 * time.Hour
	}
	return &Revocations{cfg: cfg}, nil
}

// ErrRollback is returned for a revocation list that is older than, or differs
// from, the one in force with the same sequence.
var ErrRollback = errors.New("moduleid: revocation list rolled back")

// Update verifies a signed list and puts it in force, if it is newer. The list
// in force again is no error.
func (r *Revocations) Update(signed []byte) error {
	var s signedList
	if err := decodeStrict(signed, maxListSize, 1, &s); err != nil {
		return fmt.Errorf("moduleid: revocation list: %w", err)
	}
	if len(s.Signatures) == 0 || len(s.Signatures) > maxListSignatures {
		return fmt.Errorf("moduleid: revocation list: %d signatures; 1 to %d are allowed", len(s.Signatures), maxListSignatures)
	}
	sum := hashFields(crypto.SHA256, labelRevocations, s.Payload)
	if !slices.ContainsFunc(s.Signatures, func(sig []byte) bool { return r.signed(sum, sig) }) {
		return errors.New("moduleid: revocation list: no signature of a known key")
	}
	var list RevocationList
	if err := decodeStrict(s.Payload, maxListSize, 1, &list); err != nil {
		return fmt.Errorf("moduleid: revocation list: %w", err)
	}
	if list.Sequence == 0 || list.Issued.IsZero() {
		return errors.New("moduleid: revocation list: it has no sequence or no time of issue")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.list != nil {
		if list.Sequence == r.list.Sequence && string(s.Payload) == string(r.payload) {
			return nil
		}
		if list.Sequence <= r.list.Sequence {
			return fmt.Errorf("%w: sequence %d is offered, %d is in force", ErrRollback, list.Sequence, r.list.Sequence)
		}
	}
	if r.cfg.Save != nil {
		if err := r.cfg.Save(signed); err != nil {
			return fmt.Errorf("moduleid: keep the revocation list: %w", err)
		}
	}
	r.list, r.payload = &list, s.Payload
	r.ids, r.serials = make(map[string]bool, len(list.IDs)), make(map[Serial]bool, len(list.Serials))
	for _, id := range list.IDs {
		r.ids[strings.ToLower(id)] = true
	}
	for _, sn := range list.Serials {
		r.serials[Serial{strings.ToLower(sn.IssuerID), normalSerial(sn.Serial)}] = true
	}
	return nil
}

func (r *Revocations) signed(sum, sig []byte) bool {
	for _, k := range r.cfg.Keys {
		switch k := k.(type) {
		case ed25519.PublicKey:
			if ed25519.Verify(k, sum, sig) {
				return true
			}
		case *ecdsa.PublicKey:
			if ecdsa.VerifyASN1(k, sum, sig) {
				return true
			}
		}
	}
	return false
}

// Sequence returns the sequence of the list in force, 0 before the first.
func (r *Revocations) Sequence() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.list == nil {
		return 0
	}
	return r.list.Sequence
}

// issued returns the time of issue of the list in force, zero before the first.
func (r *Revocations) issued() time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.list == nil {
		return time.Time{}
	}
	return r.list.Issued
}

// normalSerial writes a serial number in one way: lower-case hexadecimal
// without leading zeros.
func normalSerial(s string) string {
	n, ok := new(big.Int).SetString(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(s), "0x"), ":", ""), 16)
	if !ok {
		return s
	}
	return n.Text(16)
}

// revoked returns the findings of the revocation list about every certificate
// of the proof and of the chains that were verified for it.
func (v *Verifier) revoked(p *Proof, chains [][]*x509.Certificate, now time.Time) []Finding {
	if v.Revocations == nil {
		if v.UnsafeNoRevocations {
			return nil
		}
		return []Finding{{ReasonStaleList, "no revocation list is configured"}}
	}
	return v.Revocations.check(append([][]*x509.Certificate{p.Chain}, chains...), now)
}

func (r *Revocations) check(chains [][]*x509.Certificate, now time.Time) (f []Finding) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.list == nil {
		return []Finding{{ReasonStaleList, "no revocation list was received yet"}}
	}
	if age := now.Sub(r.list.Issued); age > r.cfg.MaxAge {
		f = append(f, Finding{ReasonStaleList, fmt.Sprintf("revocation list %d is %s old; at most %s are allowed", r.list.Sequence, age.Round(time.Second), r.cfg.MaxAge)})
	}
	for _, chain := range chains {
		for i, c := range chain {
			if id := ID(c); r.ids[id] {
				f = append(f, Finding{ReasonRevoked, fmt.Sprintf("list %d names the key %s of certificate %d", r.list.Sequence, id, i)})
				return f
			}
			if i+1 < len(chain) && r.serials[Serial{ID(chain[i+1]), c.SerialNumber.Text(16)}] {
				f = append(f, Finding{ReasonRevoked, fmt.Sprintf("list %d names the serial number %s of certificate %d", r.list.Sequence, c.SerialNumber.Text(16), i)})
				return f
			}
		}
	}
	return f
}
