package tenantstore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/trusttree/trusttree/tenantstore/internal/strict"
)

// Role says what a principal may do. Roles don't include each other.
type Role string

// The roles.
const (
	RoleIngest  Role = "ingest"  // add records and points that are new; read and change nothing
	RoleRead    Role = "read"    // read the tenant's records
	RoleWrite   Role = "write"   // put and delete the tenant's records
	RoleAdmin   Role = "admin"   // the tenant's own backup, audit trail, keys, verification
	RoleControl Role = "control" // operator: create, suspend, hold, destroy, move; no tenant's records
)

// Grant gives roles in one tenant to one subject and stream.
type Grant struct {
	// Subject is the identity in the client certificate: its only URI name, or
	// else its subject's common name.
	Subject string `json:"subject"`
	// Stream is the name of the node's stream; empty for services and people.
	Stream string `json:"stream,omitempty"`
	// Tenant is the tenant; empty with RoleControl alone, which spans all.
	Tenant ID     `json:"tenant,omitempty"`
	Roles  []Role `json:"roles"`
}

// Assignments is the document by which the owner assigns nodes, services and
// operators to tenants. Whatever it does not name is denied.
type Assignments struct {
	Version int       `json:"version"` // 1
	Store   string    `json:"store"`   // Config.Name of the store it is for
	Serial  uint64    `json:"serial"`  // grows; a lower one is refused
	Expires time.Time `json:"expires"` // after it, all is denied
	Grants  []Grant   `json:"grants"`
}

// Limits of a signed document.
const (
	maxAssignments = 16 << 20
	maxSignatures  = 8
	assignmentType = "application/vnd.trusttree.tenantstore.assignments.v1+json"
)

// envelope is DSSE v1 (secure-systems-lab/dsse), signatures by any owner key.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid,omitempty"`
	Sig   []byte `json:"sig"`
}

func pae(payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(assignmentType), assignmentType, len(payload), payload)
}

// SignAssignments checks a and signs it with the owner's key (Ed25519 or ECDSA
// on P-256; it may live in an HSM). The result is a DSSE envelope.
func SignAssignments(a Assignments, owner crypto.Signer) ([]byte, error) {
	a.Version = 1
	if err := a.check(); err != nil {
		return nil, fmt.Errorf("tenantstore: sign assignments: %w", err)
	}
	payload, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("tenantstore: sign assignments: %w", err)
	}
	msg, opts := pae(payload), crypto.SignerOpts(crypto.Hash(0))
	switch owner.Public().(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		d := sha256.Sum256(msg)
		msg, opts = d[:], crypto.SHA256
	default:
		return nil, fmt.Errorf("tenantstore: sign assignments: %w: key type %T", ErrInvalid, owner.Public())
	}
	sig, err := owner.Sign(rand.Reader, msg, opts)
	if err != nil {
		return nil, fmt.Errorf("tenantstore: sign assignments: %w", err)
	}
	return json.Marshal(envelope{PayloadType: assignmentType, Payload: payload, Signatures: []signature{{Sig: sig}}})
}

func (a Assignments) check() error {
	if a.Version != 1 {
		return fmt.Errorf("%w: assignments version %d, this reader knows 1", ErrInvalid, a.Version)
	}
	if a.Store == "" || a.Serial == 0 || a.Expires.IsZero() {
		return fmt.Errorf("%w: assignments need store, serial and expires", ErrInvalid)
	}
	seen := map[[2]string]bool{}
	for i, g := range a.Grants {
		key := [2]string{g.Subject, g.Stream}
		switch {
		case g.Subject == "" || len(g.Subject) > 512 || len(g.Stream) > 128:
			return fmt.Errorf("%w: grant %d: subject of 1 to 512 bytes and stream of at most 128", ErrInvalid, i)
		case seen[key]:
			return fmt.Errorf("%w: grant %d: subject %q stream %q is granted twice", ErrInvalid, i, clip(g.Subject), clip(g.Stream))
		case len(g.Roles) == 0:
			return fmt.Errorf("%w: grant %d: no roles", ErrInvalid, i)
		}
		seen[key] = true
		for _, r := range g.Roles {
			if !slices.Contains([]Role{RoleIngest, RoleRead, RoleWrite, RoleAdmin, RoleControl}, r) {
				return fmt.Errorf("%w: grant %d: unknown role %q", ErrInvalid, i, clip(string(r)))
			}
		}
		if g.Tenant == "" {
			if !slices.Equal(g.Roles, []Role{RoleControl}) {
				return fmt.Errorf("%w: grant %d: only the role control goes without a tenant", ErrInvalid, i)
			}
			continue
		}
		if slices.Contains(g.Roles, RoleControl) {
			return fmt.Errorf("%w: grant %d: the role control goes with no tenant", ErrInvalid, i)
		}
		if _, err := ParseID(string(g.Tenant)); err != nil {
			return fmt.Errorf("grant %d: %w", i, err)
		}
	}
	return nil
}

// verifiedAssignments is what verifyAssignments alone returns.
type verifiedAssignments struct {
	signed  []byte // the document
	serial  uint64
	expires time.Time
	grants  map[[2]string]Grant // by subject and stream
}

// verifyAssignments checks the signature and form of a document for a store.
func verifyAssignments(signed []byte, owners []crypto.PublicKey, store string) (*verifiedAssignments, error) {
	if len(signed) > maxAssignments {
		return nil, fmt.Errorf("%w: assignments of %d bytes, limit %d", ErrInvalid, len(signed), maxAssignments)
	}
	var e envelope
	if err := strictJSON(signed, &e); err != nil {
		return nil, fmt.Errorf("assignments: %w", err)
	}
	if e.PayloadType != assignmentType || len(e.Signatures) > maxSignatures {
		return nil, fmt.Errorf("%w: assignments of type %q with %d signatures", ErrInvalid, clip(e.PayloadType), len(e.Signatures))
	}
	if !signedByOne(e, owners) {
		return nil, fmt.Errorf("%w: assignments carry no signature of an owner", ErrDenied)
	}
	var a Assignments
	if err := strictJSON(e.Payload, &a); err != nil {
		return nil, fmt.Errorf("assignments: %w", err)
	}
	if err := a.check(); err != nil {
		return nil, err
	}
	if a.Store != store {
		return nil, fmt.Errorf("%w: assignments are for store %q, this is %q", ErrDenied, clip(a.Store), store)
	}
	v := &verifiedAssignments{signed: signed, serial: a.Serial, expires: a.Expires, grants: make(map[[2]string]Grant, len(a.Grants))}
	for _, g := range a.Grants {
		v.grants[[2]string{g.Subject, g.Stream}] = g
	}
	return v, nil
}

func signedByOne(e envelope, owners []crypto.PublicKey) bool {
	msg := pae(e.Payload)
	digest := sha256.Sum256(msg)
	for _, s := range e.Signatures {
		for _, o := range owners {
			switch k := o.(type) {
			case ed25519.PublicKey:
				if len(k) == ed25519.PublicKeySize && ed25519.Verify(k, msg, s.Sig) {
					return true
				}
			case *ecdsa.PublicKey:
				if ecdsa.VerifyASN1(k, digest[:], s.Sig) {
					return true
				}
			}
		}
	}
	return false
}

func strictJSON(b []byte, v any) error {
	if err := strict.Decode(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}
