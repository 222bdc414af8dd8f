package repository

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

// Role says who signs a role and for how long what they sign is good.
type Role struct {
	// Keys of which Threshold must sign.
	Keys []crypto.PublicKey
	// Threshold of zero means 1 for one key, and is refused for more.
	Threshold int
	// Expires is how long a new version is good. Zero means the default:
	// root and targets 365 days, snapshot 30 days, timestamp 7 days.
	Expires time.Duration
}

// Config configures Create. The keys of all four roles are required.
type Config struct {
	Root, Targets, Snapshot, Timestamp Role
	// Bins, when not zero, spreads targets over 2^Bins delegated roles (TAP
	// 15), so that a node fetches a few kilobytes of a large repository. A
	// bin should hold 100 to 400 targets. At most 14. Releases stay in the
	// top-level targets role, which clients list.
	Bins int
	// Bin says who signs the bins; required with Bins.
	Bin Role
	// OfflineGrace is for how long after their expiry timestamp and snapshot
	// may be accepted by nodes that are updated from a stick and whose policy
	// says so too (update.ClientConfig.OfflineGrace). The root keys sign it.
	// Zero means not at all; at most five years.
	OfflineGrace time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Errors of this package.
var (
	ErrThreshold = errors.New("signatures do not reach the threshold")
	ErrKey       = tufmeta.ErrKey
	ErrExists    = errors.New("the repository exists")
	ErrInvalid   = errors.New("the repository in the store does not verify")
	ErrConflict  = errors.New("somebody else edited the repository")
)

// Repository is an open repository. It is not safe for concurrent use; edits of
// two processes at once are detected by the store and fail with ErrConflict.
type Repository struct {
	store Store
	now   func() time.Time

	root      *metadata.Metadata[metadata.RootType]
	timestamp *metadata.Metadata[metadata.TimestampType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	targets   map[string]*metadata.Metadata[metadata.TargetsType] // loaded roles by name
}

const binPrefix = "bin"

// Create makes a new repository and publishes its first version. signers must
// reach the threshold of every role.
func Create(ctx context.Context, store Store, cfg Config, signers ...crypto.Signer) (*Repository, error) {
	if r, err := store.Get(ctx, "metadata/1.root.json"); err == nil {
		_ = r.Close()
		return nil, fmt.Errorf("repository: %w", ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("repository: %w", err)
	}
	r := &Repository{store: store, now: cfg.Now, targets: map[string]*metadata.Metadata[metadata.TargetsType]{}}
	if r.now == nil {
		r.now = time.Now
	}
	r.root, r.timestamp, r.snapshot = metadata.Root(), metadata.Timestamp(), metadata.Snapshot()
	r.targets[metadata.TARGETS] = metadata.Targets()
	r.root.Signed.Version, r.timestamp.Signed.Version, r.snapshot.Signed.Version = 0, 0, 0
	r.targets[metadata.TARGETS].Signed.Version = 0
	r.snapshot.Signed.Meta = map[string]*metadata.MetaFiles{}
	tx := r.begin()
	tx.ctx = ctx
	expiry := map[string]any{}
	for name, role := range map[string]Role{
		metadata.ROOT: cfg.Root, metadata.TARGETS: cfg.Targets, metadata.SNAPSHOT: cfg.Snapshot, metadata.TIMESTAMP: cfg.Timestamp,
	} {
		if err := tx.setRole(name, role); err != nil {
			return nil, err
		}
		expiry[name] = int64(or(role.Expires, defaultExpiry(name)) / time.Second)
	}
	expiry[binPrefix] = int64(or(cfg.Bin.Expires, defaultExpiry(metadata.TARGETS)) / time.Second)
	tx.root.UnrecognizedFields = map[string]any{expiryField: expiry}
	if cfg.OfflineGrace != 0 {
		if err := tx.SetOfflineGrace(cfg.OfflineGrace); err != nil {
			return nil, err
		}
	}
	tx.touch(metadata.TARGETS)
	if cfg.Bins != 0 {
		if err := tx.makeBins(cfg.Bins, cfg.Bin); err != nil {
			return nil, err
		}
	}
	if err := r.publish(ctx, tx, signers); err != nil {
		return nil, err
	}
	return r, nil
}

// expiryField is where the root keeps each role's period in seconds.
const expiryField = "x-trusttree-expiry"

func defaultExpiry(role string) time.Duration {
	const day = 24 * time.Hour
	switch role {
	case metadata.TIMESTAMP:
		return 7 * day
	case metadata.SNAPSHOT:
		return 30 * day
	}
	return 365 * day
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Open reads a repository and verifies all of it that the next edit will build
// on, from its first root on. now may be nil.
func Open(ctx context.Context, store Store, now func() time.Time) (*Repository, error) {
	r := &Repository{store: store, now: now, targets: map[string]*metadata.Metadata[metadata.TargetsType]{}}
	if r.now == nil {
		r.now = time.Now
	}
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

func invalid(what string, err error) error {
	return fmt.Errorf("repository: %s: %w: %w", what, ErrInvalid, err)
}

func (r *Repository) load(ctx context.Context) error {
	var roots []*metadata.Metadata[metadata.RootType]
	for v := int64(1); ; v++ {
		name := "metadata/" + tufmeta.MetadataName(metadata.ROOT, v)
		data, err := get(ctx, r.store, name)
		if errors.Is(err, fs.ErrNotExist) && v > 1 {
			break
		}
		if err != nil {
			return fmt.Errorf("repository: %s: %w", name, err)
		}
		m, err := tufmeta.Decode[metadata.RootType](data)
		if err != nil {
			return invalid(name, err)
		}
		if m.Signed.Version != v {
			return invalid(name, fmt.Errorf("holds version %d", m.Signed.Version))
		}
		if v > 1 {
			if err := verify(roots[len(roots)-1], metadata.ROOT, m); err != nil {
				return invalid(name, err)
			}
		}
		if err := verify(m, metadata.ROOT, m); err != nil {
			return invalid(name, err)
		}
		roots = append(roots, m)
	}
	r.root = roots[len(roots)-1]
	err := r.loadUnder(ctx, r.root)
	if err != nil && len(roots) > 1 {
		// The process that published the newest root may have died before
		// the timestamp that follows it.
		if older := r.loadUnder(ctx, roots[len(roots)-2]); older == nil {
			return nil
		}
	}
	return err
}

func verify[D, M metadata.Roles](by *metadata.Metadata[D], role string, m *metadata.Metadata[M]) error {
	return tufmeta.Guard(func() error { return by.VerifyDelegate(role, m) })
}

func (r *Repository) loadUnder(ctx context.Context, root *metadata.Metadata[metadata.RootType]) (err error) {
	name := "metadata/timestamp.json"
	data, err := get(ctx, r.store, name)
	if err != nil {
		return fmt.Errorf("repository: %s: %w", name, err)
	}
	if r.timestamp, err = tufmeta.Decode[metadata.TimestampType](data); err == nil {
		err = verify(root, metadata.TIMESTAMP, r.timestamp)
	}
	if err != nil {
		return invalid(name, err)
	}
	pin := r.timestamp.Signed.Meta["snapshot.json"]
	if data, err = r.pinned(ctx, metadata.SNAPSHOT, pin); err != nil {
		return err
	}
	if r.snapshot, err = tufmeta.Decode[metadata.SnapshotType](data); err == nil {
		err = verify(root, metadata.SNAPSHOT, r.snapshot)
	}
	if err != nil {
		return invalid("snapshot", err)
	}
	clear(r.targets)
	if data, err = r.pinned(ctx, metadata.TARGETS, r.snapshot.Signed.Meta["targets.json"]); err != nil {
		return err
	}
	m, err := tufmeta.Decode[metadata.TargetsType](data)
	if err == nil {
		err = verify(root, metadata.TARGETS, m)
	}
	if err != nil {
		return invalid("targets", err)
	}
	r.targets[metadata.TARGETS] = m
	return nil
}

// pinned reads a metadata file that has the version and hash that a trusted
// file states.
func (r *Repository) pinned(ctx context.Context, role string, pin *metadata.MetaFiles) ([]byte, error) {
	name := "metadata/" + tufmeta.MetadataName(role, pin.Version)
	data, err := get(ctx, r.store, name)
	if err != nil {
		return nil, fmt.Errorf("repository: %s: %w", name, err)
	}
	if err := pin.VerifyLengthHashes(data); err != nil {
		return nil, invalid(name, err)
	}
	return data, nil
}

// delegatorOf walks the delegations from the top-level targets role and returns
// which role delegates to another, empty when none does. look returns a role as
// it stands, nil for one to pass over.
func delegatorOf(role string, look func(name string) (*metadata.TargetsType, error)) (string, error) {
	todo, seen := []string{metadata.TARGETS}, map[string]bool{}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		t, err := look(name)
		if err != nil {
			return "", err
		}
		if t == nil || t.Delegations == nil {
			continue
		}
		if s := t.Delegations.SuccinctRoles; s != nil && s.IsDelegatedRole(role) {
			return name, nil
		}
		for _, r := range t.Delegations.Roles {
			if r.Name == role {
				return name, nil
			}
			todo = append(todo, r.Name)
		}
	}
	return "", nil
}

// delegated loads a role that is delegated to, with the roles on the way to it.
func (r *Repository) delegated(ctx context.Context, role string) (*metadata.Metadata[metadata.TargetsType], error) {
	if m := r.targets[role]; m != nil {
		return m, nil
	}
	pin := r.snapshot.Signed.Meta[role+".json"]
	if pin == nil {
		return nil, fmt.Errorf("repository: no role %q", role)
	}
	by, err := delegatorOf(role, func(name string) (*metadata.TargetsType, error) {
		if name == role {
			return nil, nil // it does not delegate to itself
		}
		m, err := r.delegated(ctx, name)
		if err != nil {
			return nil, err
		}
		return &m.Signed, nil
	})
	if err != nil {
		return nil, err
	}
	if by == "" {
		return nil, fmt.Errorf("repository: no role delegates to %q", role)
	}
	data, err := r.pinned(ctx, role, pin)
	if err != nil {
		return nil, err
	}
	m, err := tufmeta.Decode[metadata.TargetsType](data)
	if err == nil {
		err = verify(r.targets[by], role, m)
	}
	if err != nil {
		return nil, invalid(role, err)
	}
	r.targets[role] = m
	return m, nil
}

// Root returns the newest root: what a node embeds.
func (r *Repository) Root(ctx context.Context) ([]byte, error) {
	return get(ctx, r.store, "metadata/"+tufmeta.MetadataName(metadata.ROOT, r.root.Signed.Version))
}

// begin makes a transaction on a copy of the repository's state.
func (r *Repository) begin() *Tx {
	tx := &Tx{repo: r, root: r.root.Signed, targets: map[string]*metadata.TargetsType{}, changed: map[string]bool{}}
	tx.root.Keys, tx.root.Roles = maps.Clone(r.root.Signed.Keys), map[string]*metadata.Role{}
	for name, role := range r.root.Signed.Roles {
		c := *role
		c.KeyIDs = append([]string{}, role.KeyIDs...)
		tx.root.Roles[name] = &c
	}
	return tx
}

// Edit runs f on a transaction and publishes what it did, all or nothing. When
// f or any check fails, or signers do not reach a changed role's threshold,
// the repository is as it was.
func (r *Repository) Edit(ctx context.Context, f func(*Tx) error, signers ...crypto.Signer) error {
	tx := r.begin()
	tx.ctx = ctx
	if err := f(tx); err != nil {
		return err
	}
	return r.publish(ctx, tx, signers)
}

// Refresh signs snapshot and timestamp anew: run it before they expire. It
// also completes an edit that was cut off after its root was published.
func (r *Repository) Refresh(ctx context.Context, signers ...crypto.Signer) error {
	return r.publish(ctx, r.begin(), signers)
}

func pin(version int64, data []byte) *metadata.MetaFiles {
	sum := sha256.Sum256(data)
	return &metadata.MetaFiles{Version: version, Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}}
}

// unchanged returns ErrConflict when the timestamp in the store is not the one
// that this edit builds on.
func (r *Repository) unchanged(ctx context.Context) error {
	if r.timestamp.Signed.Version == 0 {
		return nil
	}
	data, err := get(ctx, r.store, "metadata/timestamp.json")
	if err != nil {
		return fmt.Errorf("repository: timestamp: %w", err)
	}
	m, err := tufmeta.Decode[metadata.TimestampType](data)
	if err != nil {
		return invalid("timestamp", err)
	}
	if m.Signed.Version != r.timestamp.Signed.Version {
		return fmt.Errorf("repository: timestamp is version %d, this edit builds on %d: %w; open it again", m.Signed.Version, r.timestamp.Signed.Version, ErrConflict)
	}
	return nil
}

// expires is when a version signed now expires, to the second as TUF wants it.
func (r *Repository) expires(root *metadata.RootType, role string) time.Time {
	d := defaultExpiry(role)
	if m, ok := root.UnrecognizedFields[expiryField].(map[string]any); ok {
		key := role
		if m[key] == nil {
			key = binPrefix
		}
		switch v := m[key].(type) {
		case int64:
			d = time.Duration(v) * time.Second
		case float64:
			d = time.Duration(v) * time.Second
		}
	}
	return r.now().UTC().Add(d).Truncate(time.Second)
}
