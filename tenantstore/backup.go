package tenantstore

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// A backup is an age file of JSON lines: one backupHeader, one backupRecord
// for each record, one backupTrailer with a signed note of a Manifest, which
// has the hash of all lines before. Version 1.
type backupHeader struct {
	Version int    `json:"version"`
	Tenant  ID     `json:"tenant"`
	UID     UID    `json:"uid"`
	Region  string `json:"region"`
	Lasting []byte `json:"lasting"` // the tenant's naming and audit key
	// Signed is a signed note of this header without Signed, so that nothing is
	// done on the word of a header that the store did not write.
	Signed []byte `json:"signed,omitempty"`
}

type backupRecord struct {
	Key     []byte `json:"k"` // engine key
	Version uint64 `json:"n"`
	Value   []byte `json:"v"`
}

type backupTrailer struct {
	Manifest []byte `json:"manifest"`
}

// Manifest says what a backup holds. Restore verifies it.
type Manifest struct {
	Version    int       `json:"version"` // 1
	Store      string    `json:"store"`
	Tenant     ID        `json:"tenant"`
	UID        UID       `json:"uid"`
	Region     string    `json:"region"`
	Generation uint32    `json:"generation"`
	KeyID      string    `json:"key_id"`
	Time       time.Time `json:"time"`
	Records    int64     `json:"records"`
	SHA256     string    `json:"sha256"` // of the lines before
	Checkpoint []byte    `json:"checkpoint"`
}

// Limits of one line of a backup.
const (
	maxBackupLine   = (engine.MaxValue+engine.MaxKey)*4/3 + 256
	restorePage     = 1000
	restorePageSize = 8 << 20
)

// Backup writes one state of the tenant as an age file that the age tool opens
// with an identity of the recipients: JSON lines with every record, signed by
// the store. It needs RoleAdmin. Writers of the tenant may wait until w has
// taken everything: give it a file rather than a slow peer.
func (t *Tenant) Backup(ctx context.Context, w io.Writer, to ...age.Recipient) (*Manifest, error) {
	m, err := t.backup(ctx, w, to)
	return m, boundary(ctx, "backup", err)
}

func (t *Tenant) backup(ctx context.Context, w io.Writer, to []age.Recipient) (m *Manifest, err error) {
	if t.p.local || len(to) == 0 {
		return nil, fmt.Errorf("%w: a backup needs a tenant and a recipient", ErrInvalid)
	}
	err = t.with(ctx, "backup", "", []Role{RoleAdmin}, func(in *instance) error {
		if err := t.s.audit.record(ctx, in.trail(), Event{Action: "backup", Subject: t.p.subject, Stream: t.p.stream, Tenant: t.id}); err != nil {
			return err
		}
		checkpoint, _, err := t.s.audit.checkpoint()
		if err != nil {
			return err
		}
		sec, err := t.s.unwrap(ctx, in.entry)
		if err != nil {
			return err
		}
		defer sec.zero()
		enc, err := age.Encrypt(w, to...)
		if err != nil {
			return err
		}
		h := sha256.New()
		out := bufio.NewWriterSize(io.MultiWriter(enc, h), 1<<16)
		m = &Manifest{Version: 1, Store: t.s.cfg.Name, Tenant: t.id, UID: t.uid, Region: in.entry.Region, Generation: in.entry.Generation,
			KeyID: in.entry.KeyID, Time: t.s.cfg.Clock().UTC(), Checkpoint: checkpoint}
		head := backupHeader{Version: 1, Tenant: t.id, UID: t.uid, Region: in.entry.Region, Lasting: sec.lasting()}
		if head.Signed, err = t.s.signJSON(head); err != nil {
			return err
		}
		if err := errors.Join(writeLine(out, head), in.dump(ctx, out, m), out.Flush()); err != nil {
			return err
		}
		m.SHA256 = hex.EncodeToString(h.Sum(nil))
		signed, err := t.s.signJSON(m)
		if err != nil {
			return err
		}
		return errors.Join(writeLine(out, backupTrailer{signed}), out.Flush(), enc.Close())
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// signJSON returns a signed note with v as its text.
func (s *Store) signJSON(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return note.Sign(&note.Note{Text: string(text) + "\n"}, s.signer)
}

func writeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	return err
}

// dump writes the records of one state.
func (in *instance) dump(ctx context.Context, w io.Writer, m *Manifest) error {
	return in.db.View(ctx, func(tx engine.Tx) error {
		m.Records = 0
		for kv, err := range tx.Scan(nil, nil, false, 1<<31-1) {
			if err != nil {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if own(kv.Key) {
				continue
			}
			version, value, err := in.seal.open(new(scratch), kv.Key, kv.Value)
			if err != nil {
				return err
			}
			if err := writeLine(w, backupRecord{kv.Key, version, value}); err != nil {
				return err
			}
			m.Records++
		}
		return nil
	})
}

// Restore puts a backup back: into the tenant that it was made of, whose
// present records it replaces, or, where the catalogue does not know that
// tenant, as that tenant again, with its old UID. It is all or nothing. It
// needs RoleControl and an age identity. It refuses what this store did not
// sign (auditKey names the key of a lost store whose successor this one is;
// empty means this store's own), what is pinned to a region without an engine
// here (ErrRegion), and tenants that were destroyed (ErrExists).
func (s *Store) Restore(ctx context.Context, p Principal, r io.Reader, auditKey string, ids ...age.Identity) (*Manifest, error) {
	m, err := s.restore(ctx, p, r, auditKey, ids)
	return m, boundary(ctx, "restore", err)
}

func (s *Store) restore(ctx context.Context, p Principal, r io.Reader, auditKey string, ids []age.Identity) (*Manifest, error) {
	if err := s.may(p, "", RoleControl); err != nil {
		return nil, s.deny(ctx, p, "restore", err)
	}
	if auditKey == "" {
		auditKey = s.auditKey
	}
	verifier, err := note.NewVerifier(auditKey)
	if err != nil {
		return nil, fmt.Errorf("%w: audit key: %w", ErrInvalid, err)
	}
	dec, err := age.Decrypt(r, ids...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	b := &backupReader{r: bufio.NewReaderSize(dec, 1<<16), hash: sha256.New(), verifier: verifier, store: s.cfg.Name}
	if err := b.header(); err != nil {
		return nil, err
	}
	defer clear(b.head.Lasting)
	unlock, err := s.control.lock(ctx, b.head.Tenant)
	if err != nil {
		return nil, err
	}
	defer unlock()
	e, _, ok, err := s.lookup(ctx, b.head.Tenant)
	switch {
	case err != nil:
		return nil, err
	case ok && (e.State == stateDestroyed || e.State == stateDestroying):
		err = fmt.Errorf("%w: tenant %q was destroyed", ErrExists, e.ID)
	case ok && e.UID != b.head.UID:
		err = fmt.Errorf("%w: tenant %q here is another one", ErrExists, e.ID)
	case ok && e.Region != b.head.Region:
		err = fmt.Errorf("%w: tenant %q is in %q, the backup in %q", ErrRegion, e.ID, e.Region, clip(b.head.Region))
	}
	if err != nil {
		return nil, errors.Join(err, s.audit.record(ctx, s.systemTrail(), Event{Action: "restore", Outcome: "denied", Subject: p.subject,
			Tenant: e.ID, Detail: err.Error()}))
	}
	if ok {
		err = s.moveTo(ctx, p, "restore", e.ID, "",
			func(ctx context.Context, m *move) error { return errors.Join(m.shut(ctx), b.fill(ctx, m.dst)) }, false)
	} else {
		err = s.restoreNew(ctx, p, b)
	}
	if err != nil {
		return nil, err
	}
	return &b.manifest, nil
}

func (s *Store) restoreNew(ctx context.Context, p Principal, b *backupReader) error {
	if err := s.operate(ctx, p, "restore", b.head.Tenant, "uid "+b.head.UID.String()); err != nil {
		return err
	}
	place, err := s.place(b.head.Region, "")
	if err != nil {
		return err
	}
	// The key number goes on from a time, not from 1: a key that the lost store
	// destroyed stays destroyed.
	n := s.cfg.Clock().UnixMicro()
	e := entry{ID: b.head.Tenant, UID: b.head.UID, State: stateCreating, Region: place.Region, Engine: place.Engine.Name(), Generation: 1,
		KeyNumber: n, KeyID: keyName(b.head.UID, n), Created: s.cfg.Clock().UTC()}
	version, err := s.save(ctx, e, 0)
	if err != nil {
		return err
	}
	sec := newSecret(b.head.Lasting)
	defer sec.zero()
	_, err = s.finishCreate(ctx, p, "restore", e, version, s.cfg.Keys, sec, func(dst *instance) error { return b.fill(ctx, dst) })
	return err
}

// backupReader reads a decrypted backup. Nothing of it may be used for good
// before fill returned nil: the signature comes last.
type backupReader struct {
	r        *bufio.Reader
	hash     hash.Hash
	verifier note.Verifier
	store    string
	head     backupHeader
	manifest Manifest
}

// line reads one line of at most maxBackupLine bytes.
func (b *backupReader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := b.r.ReadSlice('\n')
		if len(line)+len(part) > maxBackupLine {
			return nil, fmt.Errorf("%w: line of more than %d bytes", ErrInvalid, maxBackupLine)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: the backup ends early: %w", ErrTampered, err)
		}
		return line, nil
	}
}

func (b *backupReader) header() error {
	line, err := b.line()
	if err != nil {
		return err
	}
	_, _ = b.hash.Write(line)
	if err := strictJSON(line, &b.head); err != nil {
		return err
	}
	if b.head.Version != 1 {
		return fmt.Errorf("%w: backup of version %d, this reader knows 1", ErrInvalid, b.head.Version)
	}
	n, err := note.Open(b.head.Signed, note.VerifierList(b.verifier))
	if err != nil {
		return fmt.Errorf("%w: the backup's header: %w", ErrTampered, err)
	}
	plain := b.head
	plain.Signed = nil
	text, err := json.Marshal(plain)
	if err != nil {
		return err
	}
	if n.Text != string(text)+"\n" {
		return fmt.Errorf("%w: the backup's header is not what was signed", ErrTampered)
	}
	if len(b.head.Lasting) != secretSize/2 {
		return fmt.Errorf("%w: backup without the tenant's lasting key", ErrInvalid)
	}
	if _, err := ParseID(string(b.head.Tenant)); err != nil {
		return err
	}
	return nil
}

// fill writes every record into dst and then verifies the manifest.
func (b *backupReader) fill(ctx context.Context, dst *instance) error {
	var page []engine.KV
	size, n := 0, int64(0)
	flush := func() error {
		err := dst.db.Update(ctx, func(tx engine.Tx) error {
			for _, kv := range page {
				if err := tx.Put(kv.Key, kv.Value); err != nil {
					return err
				}
			}
			return nil
		})
		page, size = page[:0], 0
		return err
	}
	for {
		line, err := b.line()
		if err != nil {
			return err
		}
		var rec struct {
			backupRecord
			backupTrailer
		}
		if err := strictJSON(line, &rec); err != nil {
			return err
		}
		if rec.Manifest != nil {
			if err := flush(); err != nil {
				return err
			}
			return b.verify(rec.Manifest, n)
		}
		_, _ = b.hash.Write(line)
		if len(rec.Key) < spaceSize || len(rec.Key) > engine.MaxKey || own(rec.Key) || len(rec.Value) > maxValue {
			return fmt.Errorf("%w: record %d of the backup is malformed", ErrInvalid, n)
		}
		page = append(page, engine.KV{Key: rec.Key, Value: dst.seal.seal(new(scratch), rec.Key, rec.Version, rec.Value)})
		size += len(rec.Value)
		if n++; len(page) >= restorePage || size >= restorePageSize {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

func (b *backupReader) verify(signed []byte, records int64) error {
	n, err := note.Open(signed, note.VerifierList(b.verifier))
	if err != nil {
		return fmt.Errorf("%w: the backup's manifest: %w", ErrTampered, err)
	}
	m := Manifest{}
	if err := strictJSON([]byte(n.Text), &m); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	sum := hex.EncodeToString(b.hash.Sum(nil))
	if m.Version != 1 || m.Store != b.store || m.Tenant != b.head.Tenant || m.UID != b.head.UID || m.Region != b.head.Region ||
		m.Records != records || m.SHA256 != sum {
		return fmt.Errorf("%w: the backup is not what its manifest signed", ErrTampered)
	}
	if b.r.Buffered() > 0 {
		return fmt.Errorf("%w: data after the manifest", ErrTampered)
	}
	if _, err := b.r.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: data after the manifest", ErrTampered)
	}
	b.manifest = m
	return nil
}
