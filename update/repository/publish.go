package repository

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

// prepared is an edit whose versions and expiry dates are fixed, so that it can
// be signed: at once, or by people in different rooms.
type prepared struct {
	root    *metadata.Metadata[metadata.RootType] // nil when it does not change
	targets map[string]*metadata.Metadata[metadata.TargetsType]
}

type file struct {
	name string
	data []byte
}

// prepare gives every changed role its next version. Names that an edit left
// behind when it was cut off are passed over: they are never replaced.
func (r *Repository) prepare(ctx context.Context, tx *Tx) (*prepared, error) {
	p := &prepared{targets: map[string]*metadata.Metadata[metadata.TargetsType]{}}
	if tx.changed[metadata.ROOT] {
		p.root = &metadata.Metadata[metadata.RootType]{Signed: tx.root, Signatures: []metadata.Signature{}}
		p.root.Signed.Version, p.root.Signed.Expires = r.root.Signed.Version+1, r.expires(&tx.root, metadata.ROOT)
	}
	for role, t := range tx.targets {
		m := &metadata.Metadata[metadata.TargetsType]{Signed: *t, Signatures: []metadata.Signature{}}
		m.Signed.Expires = r.expires(&tx.root, role)
		var err error
		if m.Signed.Version, err = r.free(ctx, role, m.Signed.Version+1); err != nil {
			return nil, err
		}
		p.targets[role] = m
	}
	return p, nil
}

// free returns the first version from v on whose name is not taken.
func (r *Repository) free(ctx context.Context, role string, v int64) (int64, error) {
	for ; ; v++ {
		name := "metadata/" + tufmeta.MetadataName(role, v)
		f, err := r.store.Get(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return v, nil
		}
		if err != nil {
			return 0, fmt.Errorf("repository: %s: %w", name, err)
		}
		if err := f.Close(); err != nil {
			return 0, fmt.Errorf("repository: %s: %w", name, err)
		}
	}
}

// newRoot is the root after the edit, newTop the top-level targets role.
func (p *prepared) newRoot(r *Repository) *metadata.Metadata[metadata.RootType] {
	if p.root != nil {
		return p.root
	}
	return r.root
}

func (p *prepared) newTop(r *Repository) *metadata.Metadata[metadata.TargetsType] {
	if t := p.targets[metadata.TARGETS]; t != nil {
		return t
	}
	return r.targets[metadata.TARGETS]
}

// keyIDs lists whose signatures count for a role.
func (p *prepared) keyIDs(r *Repository, role string) []string {
	root := p.newRoot(r)
	if role == metadata.ROOT {
		ids := slices.Clone(root.Signed.Roles[role].KeyIDs)
		if r.root.Signed.Version > 0 {
			ids = append(ids, r.root.Signed.Roles[role].KeyIDs...)
		}
		return ids
	}
	if top := root.Signed.Roles[role]; top != nil {
		return top.KeyIDs
	}
	ids, _ := delegation(p.delegator(r, role), role)
	return ids
}

// delegator is the role that delegates to another after the edit; nil when none
// does. The roles on the way are loaded.
func (p *prepared) delegator(r *Repository, role string) *metadata.Metadata[metadata.TargetsType] {
	look := func(name string) *metadata.Metadata[metadata.TargetsType] {
		if m := p.targets[name]; m != nil {
			return m
		}
		return r.targets[name]
	}
	by, err := delegatorOf(role, func(name string) (*metadata.TargetsType, error) {
		if m := look(name); m != nil {
			return &m.Signed, nil
		}
		return nil, nil
	})
	if err != nil || by == "" {
		return nil
	}
	return look(by)
}

// delegation returns whose signatures count for a delegated role, and how many.
func delegation(by *metadata.Metadata[metadata.TargetsType], role string) (ids []string, threshold int) {
	if by == nil {
		return nil, 0
	}
	d := by.Signed.Delegations
	if d.SuccinctRoles != nil {
		return d.SuccinctRoles.KeyIDs, d.SuccinctRoles.Threshold
	}
	for _, dr := range d.Roles {
		if dr.Name == role {
			return dr.KeyIDs, dr.Threshold
		}
	}
	return nil, 0
}

// load loads the changed roles as they were, and the roles on the way to them.
func (p *prepared) load(ctx context.Context, r *Repository) error {
	for role := range p.targets {
		if r.snapshot.Signed.Meta[role+".json"] == nil || p.delegator(r, role) != nil {
			continue
		}
		if _, err := r.delegated(ctx, role); err != nil {
			return err
		}
	}
	return nil
}

// sign adds those signatures that signers can make.
func (p *prepared) sign(r *Repository, signers []crypto.Signer) error {
	if p.root != nil {
		if err := signWith(p.root, signers, p.keyIDs(r, metadata.ROOT)); err != nil {
			return err
		}
	}
	for role, m := range p.targets {
		if err := signWith(m, signers, p.keyIDs(r, role)); err != nil {
			return err
		}
	}
	return nil
}

// signWith adds the signatures of those signers whose key IDs are listed and
// who have not signed yet.
func signWith[T metadata.Roles](m *metadata.Metadata[T], signers []crypto.Signer, ids []string) error {
	if len(signers) == 0 {
		return nil
	}
	payload, err := tufmeta.Payload(m.Signed)
	if err != nil {
		return fmt.Errorf("repository: %w", err)
	}
	for _, s := range signers {
		_, id, err := tufmeta.KeyOf(s.Public())
		if err != nil {
			return fmt.Errorf("repository: signer: %w", err)
		}
		if !slices.Contains(ids, id) || slices.ContainsFunc(m.Signatures, func(s metadata.Signature) bool { return s.KeyID == id }) {
			continue
		}
		sig, err := tufmeta.Sign(payload, s)
		if err != nil {
			return fmt.Errorf("repository: sign with key %s: %w", id, err)
		}
		m.Signatures = append(m.Signatures, metadata.Signature{KeyID: id, Signature: sig})
	}
	return nil
}

func thresholdError(role string, err error) error {
	return fmt.Errorf("repository: role %s: %w: %w", role, ErrThreshold, err)
}

// verify checks that every changed role has reached its threshold.
func (p *prepared) verify(r *Repository) error {
	root, top := p.newRoot(r), p.newTop(r)
	if p.root != nil {
		if err := verify(root, metadata.ROOT, root); err != nil {
			return thresholdError("root", err)
		}
		if r.root.Signed.Version > 0 {
			if err := verify(r.root, metadata.ROOT, root); err != nil {
				return thresholdError("root (keys of the root before)", err)
			}
		}
	}
	if err := verify(root, metadata.TARGETS, top); err != nil {
		return thresholdError(metadata.TARGETS, err)
	}
	for role, m := range p.targets {
		if role == metadata.TARGETS {
			continue
		}
		by := p.delegator(r, role)
		if by == nil {
			return fmt.Errorf("repository: no role delegates to %q", role)
		}
		if err := verify(by, role, m); err != nil {
			return thresholdError(role, err)
		}
	}
	return nil
}

func (r *Repository) publish(ctx context.Context, tx *Tx, signers []crypto.Signer) error {
	if r.root.Signed.Version > 0 && verify(r.root, metadata.TARGETS, r.targets[metadata.TARGETS]) != nil {
		tx.touch(metadata.TARGETS) // an edit that changed its keys was cut off after the root
	}
	p, err := r.prepare(ctx, tx)
	if err != nil {
		return err
	}
	if err := p.sign(r, signers); err != nil {
		return err
	}
	return r.commit(ctx, p, signers)
}

// commit writes an edit that has its signatures: delegated roles, targets,
// snapshot, root, and last the timestamp, which makes it visible. Nothing is
// written before all of it is signed.
func (r *Repository) commit(ctx context.Context, p *prepared, signers []crypto.Signer) error {
	if err := p.verify(r); err != nil {
		return err
	}
	root := p.newRoot(r)
	snap := metadata.Snapshot(r.expires(&root.Signed, metadata.SNAPSHOT))
	snap.Signed.Meta = maps.Clone(r.snapshot.Signed.Meta)
	var files []file
	for _, role := range order(p.targets) {
		m := p.targets[role]
		data, err := m.ToBytes(false)
		if err != nil {
			return fmt.Errorf("repository: role %s: %w", role, err)
		}
		files = append(files, file{"metadata/" + tufmeta.MetadataName(role, m.Signed.Version), data})
		snap.Signed.Meta[role+".json"] = pin(m.Signed.Version, data)
	}
	var err error
	if snap.Signed.Version, err = r.free(ctx, metadata.SNAPSHOT, r.snapshot.Signed.Version+1); err != nil {
		return err
	}
	data, err := finish(root, metadata.SNAPSHOT, snap, signers)
	if err != nil {
		return err
	}
	files = append(files, file{"metadata/" + tufmeta.MetadataName(metadata.SNAPSHOT, snap.Signed.Version), data})
	ts := metadata.Timestamp(r.expires(&root.Signed, metadata.TIMESTAMP))
	ts.Signed.Version = r.timestamp.Signed.Version + 1
	ts.Signed.Meta["snapshot.json"] = pin(snap.Signed.Version, data)
	tsData, err := finish(root, metadata.TIMESTAMP, ts, signers)
	if err != nil {
		return err
	}
	if p.root != nil {
		if data, err = p.root.ToBytes(false); err != nil {
			return fmt.Errorf("repository: root: %w", err)
		}
		files = append(files, file{"metadata/" + tufmeta.MetadataName(metadata.ROOT, p.root.Signed.Version), data})
	}
	if l, ok := r.store.(locker); ok {
		unlock, err := l.lock()
		if err != nil {
			return err
		}
		defer unlock()
	}
	if err := r.unchanged(ctx); err != nil {
		return err
	}
	for _, f := range files {
		if err := r.store.Put(ctx, f.name, bytes.NewReader(f.data), false); err != nil {
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("repository: %s: %w; open it again", f.name, ErrConflict)
			}
			return fmt.Errorf("repository: %s: %w", f.name, err)
		}
	}
	if err := r.unchanged(ctx); err != nil { // a store without a lock: who was last is last
		return err
	}
	if err := r.store.Put(ctx, "metadata/timestamp.json", bytes.NewReader(tsData), true); err != nil {
		return fmt.Errorf("repository: timestamp: %w", err)
	}
	r.root, r.snapshot, r.timestamp = root, snap, ts
	maps.Copy(r.targets, p.targets)
	return nil
}

// finish signs a role of the root's and returns its file.
func finish[T metadata.Roles](root *metadata.Metadata[metadata.RootType], role string, m *metadata.Metadata[T], signers []crypto.Signer) ([]byte, error) {
	if err := signWith(m, signers, root.Signed.Roles[role].KeyIDs); err != nil {
		return nil, err
	}
	if err := verify(root, role, m); err != nil {
		return nil, thresholdError(role, err)
	}
	return m.ToBytes(false)
}

// order lists targets roles: delegated ones, then the top.
func order(roles map[string]*metadata.Metadata[metadata.TargetsType]) []string {
	names := slices.Sorted(maps.Keys(roles))
	if i := slices.Index(names, metadata.TARGETS); i >= 0 {
		names = append(slices.Delete(names, i, i+1), metadata.TARGETS)
	}
	return names
}
