// Package revocation keeps signed, monotonic revocation lists of modules for
// moduleid.Verifier.
//
// Start with [Sign], on the owner's side, and with [New] and [Revocations.Update]
// where modules are verified. A list names keys and certificates, of modules
// or of the CAs above them. It replaces only lists of a lower sequence, so that
// an old one played back changes nothing, and refuses every module when it is
// older than its maximum age, so that one held back does not either.
package revocation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/internal/strict"
)

// List is what the owner's revocation authority says. It is data to
// sign with [Sign]; only [Revocations] that verified a list acts on
// it.
type List struct {
	Version  int       `json:"version"`           // of the format: 1
	Sequence uint64    `json:"sequence"`          // of the list: higher replaces lower; starts at 1
	Issued   time.Time `json:"issued"`            // when it was signed
	IDs      []string  `json:"ids,omitempty"`     // revoked keys, of modules or of CAs; see [moduleid.ID]
	Serials  []Serial  `json:"serials,omitempty"` // revoked certificates
}

// Serial names one certificate.
type Serial struct {
	IssuerID string `json:"issuer_id"` // [moduleid.ID] of the issuer's certificate
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

// Sign signs a list with an Ed25519 or ECDSA P-256 key, in the
// format that [Revocations.Update] reads. Entries that are no IDs and serial
// numbers are an error: they would revoke nothing.
func Sign(list List, key crypto.Signer) ([]byte, error) {
	list.Version = 1
	if list.Sequence == 0 || list.Issued.IsZero() {
		return nil, errors.New("revocation: a list needs a sequence from 1 and the time of issue")
	}
	if err := list.check(idDigits); err != nil {
		return nil, fmt.Errorf("revocation: list: %w", err)
	}
	payload, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("revocation: list: %w", err)
	}
	sum := digest(payload)
	opts := crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		opts = crypto.Hash(0)
	}
	sig, err := key.Sign(rand.Reader, sum, opts)
	if err != nil {
		return nil, fmt.Errorf("revocation: sign the list: %w", err)
	}
	return json.Marshal(signedList{Version: 1, Payload: payload, Signatures: [][]byte{sig}})
}

// Config says whose lists are believed, and for how long.
type Config struct {
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
	cfg Config

	update sync.Mutex // one update at a time; checks go on while its list is saved

	mu      sync.RWMutex
	list    *List // nil before the first list
	payload []byte
	ids     map[string]bool
	serials map[Serial]bool
}

// New returns a holder without a list: it refuses every module
// until Update verified one.
func New(cfg Config) (*Revocations, error) {
	if len(cfg.Keys) == 0 {
		return nil, errors.New("revocation need at least one key of their authority")
	}
	for _, k := range cfg.Keys {
		switch k.(type) {
		case ed25519.PublicKey, *ecdsa.PublicKey:
		default:
			return nil, fmt.Errorf("revocation: a key of type %T is not supported; use Ed25519 or ECDSA", k)
		}
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = 30 * 24 * time.Hour
	}
	return &Revocations{cfg: cfg}, nil
}

// ErrRollback is returned for a revocation list that is older than, or differs
// from, the one in force with the same sequence.
var ErrRollback = errors.New("revocation: list rolled back")

// Update verifies a signed list and puts it in force, if it is newer. The list
// in force again is no error.
func (r *Revocations) Update(signed []byte) error {
	var s signedList
	if err := strict.Decode(signed, strict.Limits{Bytes: maxListSize, Members: maxListSignatures + 8}, 1, &s); err != nil {
		return fmt.Errorf("revocation: list: %w", err)
	}
	if len(s.Signatures) == 0 || len(s.Signatures) > maxListSignatures {
		return fmt.Errorf("revocation: list: %d signatures; 1 to %d are allowed", len(s.Signatures), maxListSignatures)
	}
	sum := digest(s.Payload)
	if !slices.ContainsFunc(s.Signatures, func(sig []byte) bool { return r.signed(sum, sig) }) {
		return errors.New("revocation: list: no signature of a known key")
	}
	var list List
	if err := strict.Decode(s.Payload, strict.Limits{Bytes: maxListSize}, 1, &list); err != nil {
		return fmt.Errorf("revocation: list: %w", err)
	}
	if list.Sequence == 0 || list.Issued.IsZero() {
		return errors.New("revocation: list: it has no sequence or no time of issue")
	}
	if err := list.check(0); err != nil {
		return fmt.Errorf("revocation: list: %w", err)
	}
	r.update.Lock()
	defer r.update.Unlock()
	if r.list != nil { // which only an update changes
		if list.Sequence == r.list.Sequence && string(s.Payload) == string(r.payload) {
			return nil
		}
		if list.Sequence <= r.list.Sequence {
			return fmt.Errorf("%w: sequence %d is offered, %d is in force", ErrRollback, list.Sequence, r.list.Sequence)
		}
	}
	if r.cfg.Save != nil {
		if err := r.cfg.Save(signed); err != nil {
			return fmt.Errorf("revocation: keep the list: %w", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list, r.payload = &list, s.Payload
	r.ids, r.serials = make(map[string]bool, len(list.IDs)), make(map[Serial]bool, len(list.Serials))
	for _, id := range list.IDs {
		r.ids[strings.ToLower(id)] = true
	}
	for _, sn := range list.Serials {
		serial, _ := normalSerial(sn.Serial) // checked above
		r.serials[Serial{strings.ToLower(sn.IssuerID), serial}] = true
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

// Issued returns the time of issue of the list in force, zero before the first.
func (r *Revocations) Issued() time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.list == nil {
		return time.Time{}
	}
	return r.list.Issued
}

// digest is what is signed: SHA-256 over the label "moduleid.v1", a zero byte,
// "revocations", and the payload after its length as a 32-bit big-endian
// integer.
func digest(payload []byte) []byte {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint32([]byte("moduleid.v1\x00revocations"), uint32(len(payload))))
	h.Write(payload)
	return h.Sum(nil)
}

// idDigits are the hexadecimal digits of a moduleid.ID.
const idDigits = 64

// check refuses entries that could never match: a list that revokes less than
// it says is worse than none. IDs have so many digits; 0: any number, as lists
// of earlier writers.
func (l *List) check(digits int) error {
	id := func(what, s string) error {
		if _, err := hex.DecodeString(s); err != nil || s == "" || digits > 0 && len(s) != digits {
			return fmt.Errorf("%s %.80q is no module ID: it has %d hexadecimal digits", what, s, idDigits)
		}
		return nil
	}
	for _, s := range l.IDs {
		if err := id("entry", s); err != nil {
			return err
		}
	}
	for _, sn := range l.Serials {
		if err := id("issuer", sn.IssuerID); err != nil {
			return err
		}
		if _, ok := normalSerial(sn.Serial); !ok {
			return fmt.Errorf("serial number %.80q is not hexadecimal", sn.Serial)
		}
	}
	return nil
}

// normalSerial writes a serial number in one way: lower-case hexadecimal
// without leading zeros.
func normalSerial(s string) (string, bool) {
	n, ok := new(big.Int).SetString(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(s), "0x"), ":", ""), 16)
	if !ok {
		return "", false
	}
	return n.Text(16), true
}

// Check implements moduleid.Revocations: the findings about every certificate
// of the chains, each leaf first.
func (r *Revocations) Check(chains [][]*x509.Certificate, now time.Time) (f []moduleid.Finding) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.list == nil {
		return []moduleid.Finding{{Reason: moduleid.ReasonStaleList, Detail: "no revocation list was received yet"}}
	}
	if age := now.Sub(r.list.Issued); age > r.cfg.MaxAge {
		f = append(f, moduleid.Finding{Reason: moduleid.ReasonStaleList, Detail: fmt.Sprintf("revocation list %d is %s old; at most %s are allowed", r.list.Sequence, age.Round(time.Second), r.cfg.MaxAge)})
	}
	for _, chain := range chains {
		for i, c := range chain {
			if id := moduleid.ID(c); r.ids[id] {
				f = append(f, moduleid.Finding{Reason: moduleid.ReasonRevoked, Detail: fmt.Sprintf("list %d names the key %s of certificate %d", r.list.Sequence, id, i)})
				return f
			}
			if i+1 < len(chain) && r.serials[Serial{moduleid.ID(chain[i+1]), c.SerialNumber.Text(16)}] {
				f = append(f, moduleid.Finding{Reason: moduleid.ReasonRevoked, Detail: fmt.Sprintf("list %d names the serial number %s of certificate %d", r.list.Sequence, c.SerialNumber.Text(16), i)})
				return f
			}
		}
	}
	return f
}
