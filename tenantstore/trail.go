package tenantstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/trusttree/trusttree/tenantstore/internal/auditlog"
)

// An audit export is JSON lines: one auditHeader, then one auditEntry for each
// event. Where several processes share a store, each has a log of its own: the
// exports one after the other in one file are the merged export. Version 2;
// version 1 had neither number, list of logs nor signature.
type auditHeader struct {
	Version    int    `json:"version"`
	Tenant     ID     `json:"tenant"`
	UID        UID    `json:"uid"`
	Who        string `json:"who"`
	Checkpoint []byte `json:"checkpoint"`

	Events int64 `json:"events,omitempty"` // how many follow
	// Logs are the audit keys of all logs of the store.
	Logs []string `json:"logs,omitempty"`
	// Cosigned is an earlier checkpoint, or this one, that witnesses cosigned,
	// and Extends the proof (RFC 6962) that the log only grew since.
	Cosigned []byte   `json:"cosigned,omitempty"`
	Extends  [][]byte `json:"extends,omitempty"`
	// Signed is a signed note of this header without Signed.
	Signed []byte `json:"signed,omitempty"`
}

type auditEntry struct {
	Leaf  json.RawMessage `json:"leaf"`
	Salt  []byte          `json:"salt"`
	Event json.RawMessage `json:"event"`
	Proof [][]byte        `json:"proof"`
}

// AuditKey returns the key that verifies the checkpoints and receipts of this
// process, in the form of golang.org/x/mod/sumdb/note: pin it with the tenants.
func (s *Store) AuditKey() string { return s.auditKey }

// AuditKeys returns the audit keys of all processes that ever used the store,
// each with a log of its own (Config.Instance), in the order of their names.
func (s *Store) AuditKeys(ctx context.Context) ([]string, error) {
	keys, err := s.logs(ctx)
	return keys, boundary(ctx, "audit keys", err)
}

// Checkpoint writes pending accesses, signs the audit log as it is and returns
// the checkpoint (C2SP tlog-checkpoint), for monitors: who keeps one detects
// that the log was cut or rewritten.
func (s *Store) Checkpoint(ctx context.Context) ([]byte, error) {
	b, _, err := s.audit.checkpoint()
	return b, boundary(ctx, "checkpoint", err)
}

// WitnessRequest returns what to POST to a witness's add-checkpoint (C2SP
// tlog-witness): the checkpoint, and the proof that the log only grew since it
// had old entries, which is what the witness saw last (0: nothing). Join the
// answer to the checkpoint and give that to Cosign.
func (s *Store) WitnessRequest(ctx context.Context, old int64) ([]byte, error) {
	_, _, err := s.audit.checkpoint()
	var b []byte
	if err == nil {
		if b, err = s.audit.log.AddCheckpoint(old); err != nil {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return b, boundary(ctx, "witness request", err)
}

// Cosign keeps a checkpoint that witnesses of Config.Witnesses cosigned (C2SP
// tlog-cosignature): Open then refuses a log that is not its continuation, and
// exports prove it to the tenants. It returns ErrTampered when the witness saw
// another log than this.
func (s *Store) Cosign(ctx context.Context, checkpoint []byte) error {
	err := s.audit.log.Cosign(checkpoint, s.audit.verifier, s.witnesses)
	switch {
	case errors.Is(err, auditlog.ErrTampered):
		err = fmt.Errorf("%w: %w", ErrTampered, err)
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return boundary(ctx, "cosign", err)
}

// ExportAudit writes the tenant's audit trail in this process's log, with
// inclusion proofs and a signed checkpoint. It needs RoleAdmin. The events of
// others are not in it, not even in number. VerifyAuditTrail reads it offline,
// and several of them, one behind the other, as one.
func (t *Tenant) ExportAudit(ctx context.Context, w io.Writer) error {
	return boundary(ctx, "export audit trail", t.with(ctx, "export audit", "", []Role{RoleAdmin}, func(in *instance) error {
		h, n, err := t.s.exportHeader(ctx, t)
		if err != nil {
			return err
		}
		enc := json.NewEncoder(w)
		if err := enc.Encode(h); err != nil {
			return err
		}
		return t.s.audit.export(ctx, in.trail(), n, func(e auditEntry) error { return enc.Encode(e) })
	}))
}

func (s *Store) exportHeader(ctx context.Context, t *Tenant) (h auditHeader, n int64, err error) {
	h = auditHeader{Version: 2, Tenant: t.id, UID: t.uid, Who: s.audit.who(t.uid)}
	if h.Checkpoint, n, h.Events, err = s.audit.checkpointOf(h.Who); err != nil {
		return h, n, err
	}
	if h.Logs, err = s.logs(ctx); err != nil {
		return h, n, err
	}
	cosigned, proof, err := s.audit.log.Cosigned(n, s.audit.verifier)
	if err != nil {
		return h, n, fmt.Errorf("%w: %w", ErrTampered, err)
	}
	h.Cosigned = cosigned
	for i := range proof {
		h.Extends = append(h.Extends, proof[i][:])
	}
	h.Signed, err = s.signJSON(h)
	return h, n, err
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
