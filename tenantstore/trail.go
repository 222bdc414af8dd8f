package tenantstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/trusttree/trusttree/tenantstore/internal/auditlog"
)

// An audit export is JSON lines: one auditHeader, then one auditEntry for each
// event. Version 1.
type auditHeader struct {
	Version    int    `json:"version"`
	Tenant     ID     `json:"tenant"`
	UID        UID    `json:"uid"`
	Who        string `json:"who"`
	Checkpoint []byte `json:"checkpoint"`
}

type auditEntry struct {
	Leaf  json.RawMessage `json:"leaf"`
	Salt  []byte          `json:"salt"`
	Event json.RawMessage `json:"event"`
	Proof [][]byte        `json:"proof"`
}

// Limits of an export that is verified.
const (
	maxExportLine = 64 << 10
	maxProof      = 63
)

// AuditTrail is what VerifyAuditTrail alone returns: events that are in the
// store's log under a signed checkpoint.
type AuditTrail struct {
	Tenant ID
	UID    UID
	Origin string // the log
	Size   int64  // entries of the log, of all tenants, that the checkpoint covers
	Root   []byte
	Events []Event // complete from the tenant's first to its last one in the export
}

// AuditKey returns the key that verifies the store's checkpoints and receipts,
// in the form of golang.org/x/mod/sumdb/note: pin it with the tenants.
func (s *Store) AuditKey() string { return s.auditKey }

// Checkpoint writes pending accesses, signs the audit log as it is and returns
// the checkpoint (C2SP tlog-checkpoint), for witnesses and monitors: who keeps
// one detects that the log was cut or rewritten.
func (s *Store) Checkpoint(ctx context.Context) ([]byte, error) {
	b, _, err := s.audit.checkpoint()
	return b, boundary(ctx, "checkpoint", err)
}

// ExportAudit writes the tenant's audit trail with inclusion proofs and a
// signed checkpoint. It needs RoleAdmin. The events of others are not in it,
// not even in number. VerifyAuditTrail reads it offline.
func (t *Tenant) ExportAudit(ctx context.Context, w io.Writer) error {
	return boundary(ctx, "export audit trail", t.with(ctx, "export audit", "", []Role{RoleAdmin}, func(in *instance) error {
		cp, n, err := t.s.audit.checkpoint()
		if err != nil {
			return err
		}
		enc := json.NewEncoder(w)
		tr := in.trail()
		if err := enc.Encode(auditHeader{Version: 1, Tenant: t.id, UID: t.uid, Who: t.s.audit.who(t.uid), Checkpoint: cp}); err != nil {
			return err
		}
		return t.s.audit.export(ctx, tr, n, func(e auditEntry) error { return enc.Encode(e) })
	}))
}

// VerifyAuditTrail reads an export and checks it with nothing but the store's
// audit key (Store.AuditKey): the checkpoint's signature, that each event is
// what a leaf committed to, that the leaf is in the tree, and that no event is
// missing between the first and the last. It returns ErrTampered otherwise.
func VerifyAuditTrail(r io.Reader, auditKey string) (*AuditTrail, error) {
	t, err := verifyTrail(r, auditKey)
	if err != nil {
		return nil, fmt.Errorf("tenantstore: verify audit trail: %w", err)
	}
	return t, nil
}

func verifyTrail(r io.Reader, auditKey string) (*AuditTrail, error) {
	verifier, err := note.NewVerifier(auditKey)
	if err != nil {
		return nil, fmt.Errorf("%w: audit key: %w", ErrInvalid, err)
	}
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxExportLine)
	if !in.Scan() {
		return nil, fmt.Errorf("%w: empty export: %w", ErrInvalid, errors.Join(in.Err(), io.ErrUnexpectedEOF))
	}
	var h auditHeader
	if err := strictJSON(in.Bytes(), &h); err != nil {
		return nil, err
	}
	if h.Version != 1 {
		return nil, fmt.Errorf("%w: export version %d, this reader knows 1", ErrInvalid, h.Version)
	}
	origin, tree, err := auditlog.OpenCheckpoint(h.Checkpoint, verifier)
	if err != nil {
		return nil, fmt.Errorf("%w: checkpoint: %w", ErrTampered, err)
	}
	if origin != verifier.Name() {
		return nil, fmt.Errorf("%w: checkpoint of log %q under the key of %q", ErrTampered, clip(origin), verifier.Name())
	}
	t := &AuditTrail{Tenant: h.Tenant, UID: h.UID, Origin: origin, Size: tree.N, Root: tree.Hash[:]}
	last := int64(-1)
	for in.Scan() {
		l, e, err := verifyEntry(in.Bytes(), tree)
		if err != nil {
			return nil, err
		}
		n := int64(len(t.Events) + 1)
		if l.Who != h.Who || e.UID != h.UID || l.N != n || l.Seq <= last {
			return nil, fmt.Errorf("%w: entry %d: event number %d is missing or of another tenant", ErrTampered, l.Seq, n)
		}
		last = l.Seq
		t.Events = append(t.Events, e)
	}
	return t, in.Err()
}

func verifyEntry(b []byte, tree tlog.Tree) (l auditLeaf, e Event, err error) {
	var x auditEntry
	if err := strictJSON(b, &x); err != nil {
		return l, e, err
	}
	if err := strictJSON(x.Leaf, &l); err != nil {
		return l, e, err
	}
	if l.Version != 1 || l.Seq < 0 || l.Seq >= tree.N || len(x.Proof) > maxProof || len(x.Salt) != saltSize {
		return l, e, fmt.Errorf("%w: entry %d is malformed", ErrTampered, l.Seq)
	}
	var leaf bytes.Buffer // what was written is compact
	if err := json.Compact(&leaf, x.Leaf); err != nil {
		return l, e, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	proof := make(tlog.RecordProof, len(x.Proof))
	for i, p := range x.Proof {
		if copy(proof[i][:], p) != tlog.HashSize || len(p) != tlog.HashSize {
			return l, e, fmt.Errorf("%w: entry %d: proof is malformed", ErrTampered, l.Seq)
		}
	}
	if err := tlog.CheckRecord(proof, tree.N, tree.Hash, l.Seq, tlog.RecordHash(leaf.Bytes())); err != nil {
		return l, e, fmt.Errorf("%w: entry %d is not in the log: %w", ErrTampered, l.Seq, err)
	}
	sum := sha256.Sum256(append(x.Salt, x.Event...))
	want, err := hex.DecodeString(l.Hash)
	if err != nil || subtle.ConstantTimeCompare(sum[:], want) != 1 {
		return l, e, fmt.Errorf("%w: event %d is not the one that was logged", ErrTampered, l.Seq)
	}
	return l, e, strictJSON(x.Event, &e)
}

// Receipt says that the store did something to a tenant for good. Only
// VerifyReceipt and the Store's own methods return one.
type Receipt struct {
	Version int       `json:"version"` // 1
	Store   string    `json:"store"`
	Action  string    `json:"action"` // "destroy"
	Tenant  ID        `json:"tenant"`
	UID     UID       `json:"uid"`
	Time    time.Time `json:"time"`
	KeyIDs  []string  `json:"keys"`     // key-encryption keys that were destroyed
	LogSize int64     `json:"log_size"` // entries of the audit log with the event in it

	// Signed is the receipt as a signed note, to be kept.
	Signed []byte `json:"-"`
}

// VerifyReceipt checks a signed receipt with the store's audit key.
func VerifyReceipt(signed []byte, auditKey string) (*Receipt, error) {
	verifier, err := note.NewVerifier(auditKey)
	if err != nil {
		return nil, fmt.Errorf("tenantstore: verify receipt: %w: audit key: %w", ErrInvalid, err)
	}
	n, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return nil, fmt.Errorf("tenantstore: verify receipt: %w: %w", ErrTampered, err)
	}
	r := &Receipt{Signed: signed}
	if err := strictJSON([]byte(n.Text), r); err != nil {
		return nil, fmt.Errorf("tenantstore: verify receipt: %w", err)
	}
	if r.Version != 1 || r.Action == "" {
		return nil, fmt.Errorf("tenantstore: verify receipt: %w: version %d", ErrInvalid, r.Version)
	}
	return r, nil
}
