package repository

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update/internal/tufmeta"
	"github.com/trusttree/trusttree/update/manifest"
)

// Tx is an edit in progress. It is good until the function given to Edit
// returns.
type Tx struct {
	repo    *Repository
	ctx     context.Context
	root    metadata.RootType
	targets map[string]*metadata.TargetsType // copies of the roles that change
	changed map[string]bool
}

// Content is a part of a release to be added.
type Content struct {
	// Name is the part's name within the release.
	Name string
	// Reader is read once; when it is an io.Seeker, without a spool file.
	Reader io.Reader
	// Opaque parts are handed to the node's Preflight, not written to a slot.
	Opaque bool
	// Index adds a block index, with which nodes fetch only the 4 KiB blocks
	// that they do not have: for images that are not compressed. Reader must
	// be an io.ReadSeeker.
	Index bool
	// PatchFrom adds patches from older versions of the part. Reader must be
	// an io.ReadSeeker. At most 16.
	PatchFrom []*io.SectionReader
}

// touch makes a copy of a targets role that this transaction may change.
func (tx *Tx) touch(role string) *metadata.TargetsType {
	if t := tx.targets[role]; t != nil {
		return t
	}
	c := tx.repo.targets[role].Signed
	c.Targets = maps.Clone(c.Targets)
	if c.Targets == nil {
		c.Targets = map[string]*metadata.TargetFiles{}
	}
	if d := c.Delegations; d != nil {
		dc := *d
		dc.Keys, dc.Roles = maps.Clone(d.Keys), slices.Clone(d.Roles)
		if d.SuccinctRoles != nil {
			sc := *d.SuccinctRoles
			sc.KeyIDs = slices.Clone(sc.KeyIDs)
			dc.SuccinctRoles = &sc
		}
		c.Delegations = &dc
	}
	tx.targets[role] = &c
	tx.changed[role] = true
	return &c
}

// home returns the role that lists a target: its bin, where there are bins.
func (tx *Tx) home(name string) (*metadata.TargetsType, error) {
	d := tx.top().Delegations
	if d == nil || d.SuccinctRoles == nil {
		return tx.touch(metadata.TARGETS), nil
	}
	role := d.SuccinctRoles.GetRolesForTarget(name)[0].Name
	if tx.targets[role] == nil {
		if _, err := tx.repo.delegated(tx.ctx, role); err != nil {
			return nil, err
		}
	}
	return tx.touch(role), nil
}

// top is the top-level targets role as it stands, for reading.
func (tx *Tx) top() *metadata.TargetsType {
	if t := tx.targets[metadata.TARGETS]; t != nil {
		return t
	}
	return &tx.repo.targets[metadata.TARGETS].Signed
}

// AddTarget adds or replaces a target. custom may be nil.
func (tx *Tx) AddTarget(name string, content io.Reader, custom []byte) error {
	_, err := tx.add(name, content, custom, tx.home)
	return err
}

// RemoveTarget takes a target out of the metadata; its content stays in the
// store for nodes that have older metadata.
func (tx *Tx) RemoveTarget(name string) error {
	for _, in := range []func(string) (*metadata.TargetsType, error){tx.inTop, tx.home} {
		t, err := in(name)
		if err != nil {
			return err
		}
		if t.Targets[name] != nil {
			delete(t.Targets, name)
			return nil
		}
	}
	return fmt.Errorf("repository: no target %q", name)
}

func (tx *Tx) inTop(string) (*metadata.TargetsType, error) { return tx.touch(metadata.TARGETS), nil }

func (tx *Tx) add(name string, content io.Reader, custom []byte, in func(string) (*metadata.TargetsType, error)) (*metadata.TargetFiles, error) {
	if err := tufmeta.CheckTargetName(name); err != nil {
		return nil, fmt.Errorf("repository: %w", err)
	}
	f, err := tx.repo.storeContent(tx.ctx, name, content)
	if err != nil {
		return nil, fmt.Errorf("repository: target %s: %w", name, err)
	}
	if custom != nil {
		raw := json.RawMessage(custom)
		f.Custom = &raw
	}
	t, err := in(name)
	if err != nil {
		return nil, err
	}
	t.Targets[name] = f
	return f, nil
}

// storeContent hashes content and writes it under the name that has its hash.
func (r *Repository) storeContent(ctx context.Context, name string, content io.Reader) (*metadata.TargetFiles, error) {
	src, ok := content.(io.ReadSeeker)
	if !ok {
		spool, err := os.CreateTemp("", "repository-*")
		if err != nil {
			return nil, err
		}
		defer func() { _ = spool.Close(); _ = os.Remove(spool.Name()) }()
		if _, err := io.CopyBuffer(spool, &ctxReader{ctx, content}, make([]byte, 256<<10)); err != nil {
			return nil, err
		}
		src = spool
	}
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, &ctxReader{ctx, src}, make([]byte, 256<<10))
	if err != nil {
		return nil, err
	}
	sum := h.Sum(nil)
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	again := &hashed{r: src, h: sha256.New(), want: sum}
	err = r.store.Put(ctx, "targets/"+tufmeta.TargetName(name, hex.EncodeToString(sum)), again, false)
	if err != nil && !errors.Is(err, fs.ErrExist) { // named by its hash: what is there is this
		return nil, err
	}
	return &metadata.TargetFiles{Length: n, Hashes: metadata.Hashes{"sha256": sum}}, nil
}

// hashed fails at the end when the content changed between two readings.
type hashed struct {
	r    io.Reader
	h    hash.Hash
	want []byte
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	if err == io.EOF && !bytes.Equal(h.h.Sum(nil), h.want) {
		return n, errors.New("content changed while it was being read")
	}
	return n, err
}

// AddRelease adds a release and its parts. Published, and in Parts the target
// names, lengths and hashes, are filled in. Nobody may install the release
// before SetRollout says who may. A release of the same name is refused:
// releases do not change.
func (tx *Tx) AddRelease(rel manifest.Release, parts ...Content) error {
	target := manifest.ReleaseTarget(rel.Channel, rel.Name)
	if tx.top().Targets[target] != nil {
		return fmt.Errorf("repository: release %s exists in channel %s: releases do not change", rel.Name, rel.Channel)
	}
	rel.Published = tx.repo.now().UTC().Truncate(1e9)
	rel.Parts = nil
	for _, p := range parts {
		name := "parts/" + rel.Channel + "/" + rel.Name + "/" + p.Name
		f, err := tx.add(name, p.Reader, nil, tx.home)
		if err != nil {
			return err
		}
		part := manifest.Part{Name: p.Name, Opaque: p.Opaque, Target: name, Length: f.Length, SHA256: f.Hashes["sha256"].String()}
		if err := tx.addAids(&part, p); err != nil {
			return err
		}
		rel.Parts = append(rel.Parts, part)
	}
	data, err := rel.Encode()
	if err != nil {
		return err
	}
	none, err := (&manifest.Rollout{}).Encode()
	if err != nil {
		return err
	}
	_, err = tx.add(target, bytes.NewReader(data), none, tx.inTop)
	return err
}

// SetRollout says who may install a release from now on.
func (tx *Tx) SetRollout(channel, release string, rollout manifest.Rollout) error {
	data, err := rollout.Encode()
	if err != nil {
		return err
	}
	t := tx.touch(metadata.TARGETS)
	old := t.Targets[manifest.ReleaseTarget(channel, release)]
	if old == nil {
		return fmt.Errorf("repository: no release %s in channel %s", release, channel)
	}
	f, raw := *old, json.RawMessage(data)
	f.Custom = &raw
	t.Targets[manifest.ReleaseTarget(channel, release)] = &f
	return nil
}

// Assign sets what a director says to one node.
func (tx *Tx) Assign(a manifest.Assignment) error {
	data, err := a.Encode()
	if err != nil {
		return err
	}
	return tx.AddTarget(manifest.AssignmentTarget(a.Node), bytes.NewReader(data), nil)
}

// ReleaseHash returns the hash and release of a release target, for
// assignments.
func (r *Repository) ReleaseHash(channel, release string) (string, error) {
	f := r.targets[metadata.TARGETS].Signed.Targets[manifest.ReleaseTarget(channel, release)]
	if f == nil {
		return "", fmt.Errorf("repository: no release %s in channel %s", release, channel)
	}
	return f.Hashes["sha256"].String(), nil
}

// Assigned returns what a director's assignment says of a release of this
// repository.
func (r *Repository) Assigned(ctx context.Context, channel, release string) (manifest.AssignedRelease, error) {
	sum, err := r.ReleaseHash(channel, release)
	if err != nil {
		return manifest.AssignedRelease{}, err
	}
	f := r.targets[metadata.TARGETS].Signed.Targets[manifest.ReleaseTarget(channel, release)]
	data, err := get(ctx, r.store, contentName(manifest.ReleaseTarget(channel, release), f))
	if err != nil {
		return manifest.AssignedRelease{}, fmt.Errorf("repository: release %s: %w", release, err)
	}
	if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != sum {
		return manifest.AssignedRelease{}, invalid("release "+release, errors.New("its content does not have the signed hash"))
	}
	rel, err := manifest.ParseRelease(data)
	if err != nil {
		return manifest.AssignedRelease{}, fmt.Errorf("repository: release %s: %w", release, err)
	}
	return manifest.AssignedRelease{Name: rel.Name, Channel: rel.Channel, Security: rel.Security, SHA256: sum}, nil
}
