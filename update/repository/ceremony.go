package repository

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update/internal/lint"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

const draftName = "drafts/draft.json"

// ErrNoDraft says that no edit is waiting for signatures.
var ErrNoDraft = errors.New("no draft")

// draftFile is an edit that waits for signatures: strict JSON, version 1.
type draftFile struct {
	Version int                        `json:"version"`
	Base    int64                      `json:"base"` // version of the timestamp it builds on
	Roles   map[string]json.RawMessage `json:"roles"`
}

// Propose runs f on a transaction and keeps its result as a draft that waits
// for signatures: an offline ceremony. Nodes see nothing of it. It replaces a
// draft that is there. signers, which may be none, sign what they can at once.
func (r *Repository) Propose(ctx context.Context, f func(*Tx) error, signers ...crypto.Signer) error {
	tx := r.begin()
	tx.ctx = ctx
	if err := f(tx); err != nil {
		return err
	}
	p, err := r.prepare(ctx, tx)
	if err != nil {
		return err
	}
	if err := p.sign(r, signers); err != nil {
		return err
	}
	return r.saveDraft(ctx, p)
}

func (r *Repository) saveDraft(ctx context.Context, p *prepared) error {
	d := draftFile{Version: 1, Base: r.timestamp.Signed.Version, Roles: map[string]json.RawMessage{}}
	if p.root != nil {
		data, err := p.root.ToBytes(false)
		if err != nil {
			return fmt.Errorf("repository: draft: %w", err)
		}
		d.Roles[metadata.ROOT] = data
	}
	for role, m := range p.targets {
		data, err := m.ToBytes(false)
		if err != nil {
			return fmt.Errorf("repository: draft: %w", err)
		}
		d.Roles[role] = data
	}
	data, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("repository: draft: %w", err)
	}
	if err := r.store.Put(ctx, draftName, bytes.NewReader(data), true); err != nil {
		return fmt.Errorf("repository: draft: %w", err)
	}
	return nil
}

func (r *Repository) loadDraft(ctx context.Context) (*prepared, error) {
	data, err := get(ctx, r.store, draftName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("repository: %w: propose an edit first", ErrNoDraft)
	}
	if err != nil {
		return nil, fmt.Errorf("repository: draft: %w", err)
	}
	var d draftFile
	if err := lint.Strict(data, maxMetadata, &d); err != nil {
		return nil, invalid("draft", err)
	}
	if d.Version != 1 {
		return nil, invalid("draft", fmt.Errorf("version %d: this program reads version 1", d.Version))
	}
	if len(d.Roles) == 0 {
		return nil, fmt.Errorf("repository: %w: propose an edit first", ErrNoDraft)
	}
	if d.Base != r.timestamp.Signed.Version {
		return nil, fmt.Errorf("repository: the draft builds on timestamp %d, the repository has %d: %w; propose it again", d.Base, r.timestamp.Signed.Version, ErrConflict)
	}
	p := &prepared{targets: map[string]*metadata.Metadata[metadata.TargetsType]{}}
	for role, raw := range d.Roles {
		if role == metadata.ROOT {
			if p.root, err = tufmeta.Decode[metadata.RootType](raw); err == nil && p.root.Signed.Version != r.root.Signed.Version+1 {
				err = fmt.Errorf("root version %d", p.root.Signed.Version)
			}
		} else {
			p.targets[role], err = tufmeta.Decode[metadata.TargetsType](raw)
		}
		if err != nil {
			return nil, invalid("draft of role "+role, err)
		}
	}
	return p, p.load(ctx, r)
}

// Waiting says which roles of the draft wait for whose signatures.
type Waiting struct {
	Role string
	// Signed and Missing are key IDs; of those that count, Need in all must
	// sign. A root needs that of its own keys and of those of the root before.
	Signed, Missing []string
	Need            int
}

// Draft lists what the draft waits for, by role. It returns ErrNoDraft when
// there is none.
func (r *Repository) Draft(ctx context.Context) ([]Waiting, error) {
	p, err := r.loadDraft(ctx)
	if err != nil {
		return nil, err
	}
	roles := order(p.targets)
	if p.root != nil {
		roles = append([]string{metadata.ROOT}, roles...)
	}
	var out []Waiting
	for _, role := range roles {
		w := Waiting{Role: role, Need: p.threshold(r, role)}
		sigs := p.signatures(role)
		for _, id := range slices.Compact(slices.Sorted(slices.Values(p.keyIDs(r, role)))) {
			if slices.ContainsFunc(*sigs, func(s metadata.Signature) bool { return s.KeyID == id }) {
				w.Signed = append(w.Signed, id)
			} else {
				w.Missing = append(w.Missing, id)
			}
		}
		out = append(out, w)
	}
	return out, nil
}

func (p *prepared) threshold(r *Repository, role string) int {
	if t := p.newRoot(r).Signed.Roles[role]; t != nil {
		return t.Threshold
	}
	_, threshold := delegation(p.delegator(r, role), role)
	return threshold
}

func (p *prepared) signatures(role string) *[]metadata.Signature {
	if role == metadata.ROOT && p.root != nil {
		return &p.root.Signatures
	}
	if m := p.targets[role]; m != nil {
		return &m.Signatures
	}
	return nil
}

// Payload returns the bytes of a role in the draft that an air-gapped key
// signs: TUF's canonical JSON.
func (r *Repository) Payload(ctx context.Context, role string) ([]byte, error) {
	p, err := r.loadDraft(ctx)
	if err != nil {
		return nil, err
	}
	return p.payload(role)
}

func (p *prepared) payload(role string) ([]byte, error) {
	if role == metadata.ROOT && p.root != nil {
		return tufmeta.Payload(p.root.Signed)
	}
	if m := p.targets[role]; m != nil {
		return tufmeta.Payload(m.Signed)
	}
	return nil, fmt.Errorf("repository: the draft does not change role %q", role)
}

// AddSignature adds a signature over a role's payload to the draft, made by
// the key with that public part. It is verified first.
func (r *Repository) AddSignature(ctx context.Context, role string, by crypto.PublicKey, sig []byte) error {
	p, err := r.loadDraft(ctx)
	if err != nil {
		return err
	}
	payload, err := p.payload(role)
	if err != nil {
		return err
	}
	_, id, err := tufmeta.KeyOf(by)
	if err != nil {
		return fmt.Errorf("repository: %w", err)
	}
	if !slices.Contains(p.keyIDs(r, role), id) {
		return fmt.Errorf("repository: key %s does not sign role %s", id, role)
	}
	if !tufmeta.Verify(payload, sig, by) {
		return fmt.Errorf("repository: the signature by key %s is not over this draft's role %s: sign the payload again", id, role)
	}
	sigs := p.signatures(role)
	*sigs = slices.DeleteFunc(*sigs, func(s metadata.Signature) bool { return s.KeyID == id })
	*sigs = append(*sigs, metadata.Signature{KeyID: id, Signature: sig})
	return r.saveDraft(ctx, p)
}

// PublishDraft publishes the draft once it has its signatures. signers sign
// snapshot and timestamp and nothing that is in the draft: whoever can write to
// the store can alter a draft, but not get it signed so.
func (r *Repository) PublishDraft(ctx context.Context, signers ...crypto.Signer) error {
	p, err := r.loadDraft(ctx)
	if err != nil {
		return err
	}
	for role := range maps.Keys(p.targets) {
		if old := r.targets[role]; old != nil && p.targets[role].Signed.Version <= old.Signed.Version {
			return fmt.Errorf("repository: draft of role %s has version %d, published is %d: %w", role, p.targets[role].Signed.Version, old.Signed.Version, ErrConflict)
		}
	}
	if err := r.commit(ctx, p, signers); err != nil {
		return err
	}
	return r.DiscardDraft(ctx)
}

// DiscardDraft forgets the draft.
func (r *Repository) DiscardDraft(ctx context.Context) error {
	empty, err := json.Marshal(draftFile{Version: 1, Base: r.timestamp.Signed.Version, Roles: map[string]json.RawMessage{}})
	if err != nil {
		return fmt.Errorf("repository: draft: %w", err)
	}
	if err := r.store.Put(ctx, draftName, bytes.NewReader(empty), true); err != nil {
		return fmt.Errorf("repository: draft: %w", err)
	}
	return nil
}
