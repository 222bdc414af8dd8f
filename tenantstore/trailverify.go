package tenantstore

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/trusttree/trusttree/tenantstore/internal/auditlog"
)

// Limits of an export that is verified.
const (
	maxExportLine = 64 << 10
	maxProof      = 63
	maxLogs       = 256
)

// AuditTrail is what VerifyAuditTrail alone returns: events that are in the
// store's logs under signed checkpoints.
type AuditTrail struct {
	Tenant ID         `json:"tenant"`
	UID    UID        `json:"uid"`
	Logs   []AuditLog `json:"logs"`
	// Missing names the logs that the store has and the export has not: with
	// several processes the trail is whole when there are none.
	Missing []string `json:"missing,omitempty"`
	// Events are in the order of each log, and merged by time.
	Events []Event `json:"events"`
}

// AuditLog is one log's part of an AuditTrail.
type AuditLog struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"` // entries of the log, of all tenants, that the checkpoint covers
	Root   []byte `json:"root"`
	Events int    `json:"events"` // the tenant's: all up to the checkpoint
	// EndUnproven is set for exports of version 1: they don't show whether the
	// tenant's last events were left out.
	EndUnproven bool `json:"end_unproven,omitempty"`
	// Witnesses saw the log with Witnessed entries, of which this one is a
	// continuation.
	Witnessed int64         `json:"witnessed,omitempty"`
	Witnesses []Cosignature `json:"witnesses,omitempty"`
}

// Cosignature says which witness saw a log, and when by its clock.
type Cosignature = auditlog.Cosignature

// VerifyAuditTrail reads exports, one or several behind each other, and checks
// them with nothing but keys: the audit key of each log (Store.AuditKey), and
// those of witnesses whose cosignatures are to be reported. For each log it
// checks the checkpoint's signature, that each event is what a leaf committed
// to, that the leaf is in the tree, that no event is missing, the last ones
// included, and that the log continues what a witness saw. It returns
// ErrTampered otherwise, and ErrInvalid for what is malformed or of
// two tenants. Exports of version 1 are read too (AuditLog.EndUnproven).
func VerifyAuditTrail(r io.Reader, keys ...string) (*AuditTrail, error) {
	t, err := verifyTrail(r, keys)
	if err != nil {
		return nil, fmt.Errorf("tenantstore: verify audit trail: %w", err)
	}
	return t, nil
}

// trailReader verifies section after section.
type trailReader struct {
	logs      []note.Verifier
	witnesses []note.Verifier

	trail  *AuditTrail
	head   auditHeader
	tree   tlog.Tree
	last   int64 // sequence number
	known  map[string]bool
	events [][]Event // by log
}

func verifyTrail(r io.Reader, keys []string) (*AuditTrail, error) {
	v := &trailReader{known: map[string]bool{}}
	for _, k := range keys {
		if w, err := auditlog.NewWitness(k); err == nil {
			v.witnesses = append(v.witnesses, w)
			continue
		}
		l, err := note.NewVerifier(k)
		if err != nil {
			return nil, fmt.Errorf("%w: audit key: %w", ErrInvalid, err)
		}
		v.logs = append(v.logs, l)
	}
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxExportLine)
	for in.Scan() {
		var probe struct {
			Version *int `json:"version"`
		}
		if err := json.Unmarshal(in.Bytes(), &probe); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		err := error(nil)
		switch {
		case probe.Version != nil:
			if err = v.end(); err == nil {
				err = v.begin(in.Bytes())
			}
		case v.trail == nil:
			err = fmt.Errorf("%w: the export has no header", ErrInvalid)
		default:
			err = v.event(in.Bytes())
		}
		if err != nil {
			return nil, err
		}
	}
	if err := errors.Join(in.Err(), v.end()); err != nil {
		return nil, err
	}
	if v.trail == nil {
		return nil, fmt.Errorf("%w: empty export: %w", ErrInvalid, io.ErrUnexpectedEOF)
	}
	for name, here := range v.known {
		if !here {
			v.trail.Missing = append(v.trail.Missing, name)
		}
	}
	slices.Sort(v.trail.Missing)
	v.trail.Events = mergeEvents(v.events)
	return v.trail, nil
}

// begin checks a header.
func (v *trailReader) begin(line []byte) error {
	var h auditHeader
	if err := strictJSON(line, &h); err != nil {
		return err
	}
	if h.Version != 1 && h.Version != 2 {
		return fmt.Errorf("%w: export version %d, this reader knows 1 and 2", ErrInvalid, h.Version)
	}
	var log note.Verifier
	err := errors.New("no audit key is given")
	for _, log = range v.logs {
		var origin string
		if origin, v.tree, err = auditlog.OpenCheckpoint(h.Checkpoint, log); err == nil {
			if origin != log.Name() {
				return fmt.Errorf("%w: checkpoint of log %q under the key of %q", ErrTampered, clip(origin), log.Name())
			}
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%w: checkpoint: %w", ErrTampered, err)
	}
	if v.known[log.Name()] {
		return fmt.Errorf("%w: log %q comes twice", ErrInvalid, log.Name())
	}
	if v.trail == nil {
		v.trail = &AuditTrail{Tenant: h.Tenant, UID: h.UID}
	} else if h.Tenant != v.trail.Tenant || h.UID != v.trail.UID || h.Who != v.head.Who {
		return fmt.Errorf("%w: exports of two tenants", ErrInvalid)
	}
	part := AuditLog{Origin: log.Name(), Size: v.tree.N, Root: v.tree.Hash[:]}
	if h.Version == 1 {
		if part.EndUnproven = true; h.Signed != nil || h.Events != 0 || h.Logs != nil || h.Cosigned != nil || h.Extends != nil {
			return fmt.Errorf("%w: header of version 1 with fields of version 2", ErrInvalid)
		}
	} else {
		if err := v.signedHeader(h, log, &part); err != nil {
			return err
		}
	}
	v.known[log.Name()] = true
	v.head, v.last = h, -1
	v.trail.Logs = append(v.trail.Logs, part)
	v.events = append(v.events, nil)
	return nil
}

// signedHeader checks what version 1 did not have.
func (v *trailReader) signedHeader(h auditHeader, log note.Verifier, part *AuditLog) error {
	n, err := note.Open(h.Signed, note.VerifierList(log))
	if err != nil {
		return fmt.Errorf("%w: the export's header: %w", ErrTampered, err)
	}
	plain := h
	plain.Signed = nil
	text, err := json.Marshal(plain)
	if err != nil {
		return err
	}
	if n.Text != string(text)+"\n" {
		return fmt.Errorf("%w: the export's header is not what was signed", ErrTampered)
	}
	if len(h.Logs) > maxLogs || len(h.Extends) > maxProof {
		return fmt.Errorf("%w: header with %d logs", ErrInvalid, len(h.Logs))
	}
	for _, k := range h.Logs {
		l, err := note.NewVerifier(k)
		if err != nil {
			return fmt.Errorf("%w: header names a log by no key: %w", ErrInvalid, err)
		}
		v.known[l.Name()] = v.known[l.Name()] // missing until it comes
	}
	if h.Cosigned == nil {
		return nil
	}
	seen, by, err := auditlog.Cosignatures(h.Cosigned, log, v.witnesses)
	if err != nil {
		return fmt.Errorf("%w: cosigned checkpoint: %w", ErrTampered, err)
	}
	proof, err := parseProof(h.Extends)
	if err == nil && seen.N < v.tree.N {
		err = tlog.CheckTree(tlog.TreeProof(proof), v.tree.N, v.tree.Hash, seen.N, seen.Hash)
	} else if err == nil && seen != v.tree {
		err = errors.New("it is not of this log")
	}
	if err != nil {
		return fmt.Errorf("%w: the log is no continuation of what witnesses saw: %w", ErrTampered, err)
	}
	if len(by) > 0 {
		part.Witnessed, part.Witnesses = seen.N, by
	}
	return nil
}

// event checks an entry.
func (v *trailReader) event(line []byte) error {
	l, e, err := verifyEntry(line, v.tree)
	if err != nil {
		return err
	}
	part := &v.trail.Logs[len(v.trail.Logs)-1]
	n := int64(part.Events + 1)
	if l.Who != v.head.Who || e.UID != v.head.UID || l.N != n || l.Seq <= v.last {
		return fmt.Errorf("%w: entry %d: event number %d is missing or of another tenant", ErrTampered, l.Seq, n)
	}
	v.last = l.Seq
	part.Events++
	e.Log = part.Origin
	v.events[len(v.events)-1] = append(v.events[len(v.events)-1], e)
	return nil
}

// end checks that a section was whole.
func (v *trailReader) end() error {
	if v.trail == nil || v.head.Version == 1 {
		return nil
	}
	if part := v.trail.Logs[len(v.trail.Logs)-1]; int64(part.Events) != v.head.Events {
		return fmt.Errorf("%w: %d events of log %q are there, %d were exported", ErrTampered, part.Events, part.Origin, v.head.Events)
	}
	return nil
}

// mergeEvents merges by time; each log keeps its order.
func mergeEvents(logs [][]Event) (all []Event) {
	for {
		next := -1
		var at time.Time
		for i, l := range logs {
			if len(l) > 0 && (next < 0 || l[0].Time.Before(at)) {
				next, at = i, l[0].Time
			}
		}
		if next < 0 {
			return all
		}
		all = append(all, logs[next][0])
		logs[next] = logs[next][1:]
	}
}

func parseProof(b [][]byte) (tlog.RecordProof, error) {
	proof := make(tlog.RecordProof, len(b))
	for i, p := range b {
		if copy(proof[i][:], p) != tlog.HashSize || len(p) != tlog.HashSize {
			return nil, errors.New("proof is malformed")
		}
	}
	return proof, nil
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
	proof, err := parseProof(x.Proof)
	if err != nil {
		return l, e, fmt.Errorf("%w: entry %d: %w", ErrTampered, l.Seq, err)
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
