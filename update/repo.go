package update

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

// repo is one TUF repository as the client sees it: the embedded root, the
// source, and a cache that can only add to what the root proves.
type repo struct {
	name   string // "images" or "director", for errors and logs
	root   []byte
	dir    string
	src    Source
	limits Limits
	log    *slog.Logger
	grace  time.Duration // ClientConfig.OfflineGrace
}

// trusted is the state after one successful refresh. It is immutable but for
// the delegated roles that lookups add; Client's lock guards it.
type trusted struct {
	*trustedmetadata.TrustedMetadata
	repo     *repo
	verified map[[2]string]*metadata.Metadata[metadata.TargetsType] // by delegator and role
	// grace is how long timestamp and snapshot outlive their expiry. RefTime
	// lies by as much in the past; what has no grace is compared with now.
	grace time.Duration
}

func (t *trusted) now() time.Time { return t.RefTime.Add(t.grace) }

// stale says that the grace was needed.
func (t *trusted) stale(now time.Time) bool {
	return now.After(t.Timestamp.Signed.Expires) || now.After(t.Snapshot.Signed.Expires)
}

// refresh runs the client workflow of the TUF specification, section 5.
func (r *repo) refresh(ctx context.Context, now time.Time, floor RepositoryFloors) (*trusted, error) {
	if err := durable.MkdirAll(filepath.Join(r.dir, "root_history"), 0o755); err != nil {
		return nil, stateError("cache", err)
	}
	t, err := r.openRoot()
	if err != nil {
		return nil, err
	}
	t.RefTime = now
	if err := r.updateRoot(ctx, t, floor); err != nil {
		return nil, err
	}
	floor = floor.forRoot(&t.Root.Signed)
	grace := min(r.grace, tufmeta.OfflineGrace(&t.Root.Signed))
	t.RefTime = now.Add(-grace)
	if err := r.updateTimestamp(ctx, t, floor); err != nil {
		return nil, err
	}
	if err := r.updateSnapshot(ctx, t, floor); err != nil {
		return nil, err
	}
	tr := &trusted{TrustedMetadata: t, repo: r, verified: map[[2]string]*metadata.Metadata[metadata.TargetsType]{}, grace: grace}
	if _, err := tr.role(ctx, metadata.TARGETS, metadata.ROOT); err != nil {
		return nil, err
	}
	return tr, nil
}

// forRoot drops the floors of roles whose keys the root has replaced.
func (f RepositoryFloors) forRoot(root *metadata.RootType) RepositoryFloors {
	same := func(role string) bool {
		return f.Keys[role] == "" || f.Keys[role] == tufmeta.KeySet(root, role)
	}
	online := same(metadata.TIMESTAMP) && same(metadata.SNAPSHOT)
	if !online {
		f.Timestamp, f.Snapshot = 0, 0
	}
	if !online || !same(metadata.TARGETS) {
		f.Targets = 0
	}
	return f
}

func (t *trusted) floors() RepositoryFloors {
	keys := map[string]string{}
	for _, role := range []string{metadata.TIMESTAMP, metadata.SNAPSHOT, metadata.TARGETS} {
		keys[role] = tufmeta.KeySet(&t.Root.Signed, role)
	}
	return RepositoryFloors{
		Root: t.Root.Signed.Version, Timestamp: t.Timestamp.Signed.Version,
		Snapshot: t.Snapshot.Signed.Version, Targets: t.Targets[metadata.TARGETS].Signed.Version, Keys: keys,
	}
}

func (r *repo) openRoot() (t *trustedmetadata.TrustedMetadata, err error) {
	if _, err := tufmeta.Decode[metadata.RootType](r.root); err != nil {
		return nil, classify(r.name+": embedded root", err)
	}
	err = tufmeta.Guard(func() (err error) {
		t, err = trustedmetadata.New(r.root)
		return err
	})
	if err != nil {
		return nil, classify(r.name+": embedded root", err)
	}
	return t, nil
}

func nextRoot(t *trustedmetadata.TrustedMetadata, data []byte) error {
	if _, err := tufmeta.Decode[metadata.RootType](data); err != nil {
		return err
	}
	return tufmeta.Guard(func() error {
		_, err := t.UpdateRoot(data)
		return err
	})
}

func (r *repo) historyFile(version int64) string {
	return filepath.Join(r.dir, "root_history", strconv.FormatInt(version, 10)+".root.json")
}

// updateRoot replays the history of roots from the cache, then asks the
// network. Every step is verified from the embedded root on, so that the cache
// can't take trust away from it or add to it.
func (r *repo) updateRoot(ctx context.Context, t *trustedmetadata.TrustedMetadata, floor RepositoryFloors) error {
	for {
		data, err := readFileLimit(r.historyFile(t.Root.Signed.Version+1), r.limits.Root)
		if err != nil {
			break
		}
		if err := nextRoot(t, data); err != nil {
			r.log.WarnContext(ctx, "cached root ignored", "event", "update.cache.ignored", "repository", r.name,
				"version", t.Root.Signed.Version+1, "error", err.Error())
			break
		}
	}
	for range r.limits.RootRotations {
		next := t.Root.Signed.Version + 1
		what := fmt.Sprintf("%s: root %d", r.name, next)
		data, err := readAll(ctx, r.src, "metadata/"+tufmeta.MetadataName(metadata.ROOT, next), r.limits.Root, func(data []byte) error {
			if err := nextRoot(t, data); err != nil {
				return classify(what, err)
			}
			return nil
		})
		if errors.Is(err, fs.ErrNotExist) { // one mirror that says so is enough: no other has it
			break
		}
		if err != nil {
			return r.fetchError(what, err)
		}
		if err := durable.WriteFile(r.historyFile(next), data, 0o644); err != nil {
			return stateError("cache", err)
		}
		r.log.InfoContext(ctx, "root rotated", "event", "update.root.rotated", "repository", r.name, "version", next)
	}
	root := &t.Root.Signed
	if err := r.keepRoot(t); err != nil {
		return err
	}
	if root.Version < floor.Root {
		return refuse(ErrRollback, r.name+": root", "version %d is below the floor %d", root.Version, floor.Root)
	}
	if root.IsExpired(t.RefTime) {
		return r.expired(metadata.ROOT, root.Expires, t.RefTime)
	}
	return nil
}

// keepRoot writes the current root to root.json, unless it is there.
func (r *repo) keepRoot(t *trustedmetadata.TrustedMetadata) error {
	data := r.root
	if v := t.Root.Signed.Version; v > 0 {
		if h, err := readFileLimit(r.historyFile(v), r.limits.Root); err == nil {
			if m, err := tufmeta.Decode[metadata.RootType](h); err == nil && m.Signed.Version == v {
				data = h
			}
		}
	}
	return r.keep(metadata.ROOT, data)
}

func (r *repo) cacheFile(role string) string {
	return filepath.Join(r.dir, tufmeta.CacheFile(role))
}

func (r *repo) cached(role string) []byte {
	data, err := readFileLimit(r.cacheFile(role), r.limits.Signed)
	if err != nil {
		return nil
	}
	return data
}

func (r *repo) keep(role string, data []byte) error {
	if string(r.cached(role)) == string(data) {
		return nil
	}
	if err := durable.WriteFile(r.cacheFile(role), data, 0o644); err != nil {
		return stateError("cache", err)
	}
	return nil
}

func (r *repo) expired(role string, expires, now time.Time) error {
	hint := ""
	if now.Sub(expires) > 365*24*time.Hour {
		hint = "; is this node's clock ahead?"
	}
	return refuse(ErrExpired, r.name+": "+role, "on %s, and it is %s%s", expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), hint)
}

func (r *repo) ignoreCache(ctx context.Context, role string, err error) {
	r.log.WarnContext(ctx, "cached metadata ignored", "event", "update.cache.ignored",
		"repository", r.name, "role", role, "error", err.Error())
}

func (r *repo) updateTimestamp(ctx context.Context, t *trustedmetadata.TrustedMetadata, floor RepositoryFloors) error {
	what := r.name + ": timestamp"
	load := func(data []byte) error {
		if _, err := tufmeta.Decode[metadata.TimestampType](data); err != nil {
			return err
		}
		return tufmeta.Guard(func() error {
			_, err := t.UpdateTimestamp(data)
			return err
		})
	}
	if data := r.cached(metadata.TIMESTAMP); data != nil {
		if err := load(data); err != nil && t.Timestamp == nil {
			r.ignoreCache(ctx, metadata.TIMESTAMP, err)
		}
	}
	known := false
	data, err := readAll(ctx, r.src, "metadata/timestamp.json", r.limits.Timestamp, func(data []byte) error {
		err := load(data)
		equal := new(metadata.ErrEqualVersionNumber)
		known = errors.As(err, &equal)
		if err != nil && !known {
			return classify(what, err)
		}
		ts := &t.Timestamp.Signed
		if ts.Version < floor.Timestamp {
			return refuse(ErrRollback, what, "version %d is below the floor %d", ts.Version, floor.Timestamp)
		}
		if ts.IsExpired(t.RefTime) {
			return r.expired(metadata.TIMESTAMP, ts.Expires, t.RefTime)
		}
		return nil
	})
	if err != nil {
		return r.fetchError(what, err)
	}
	if known {
		return nil
	}
	return r.keep(metadata.TIMESTAMP, data)
}

func (r *repo) updateSnapshot(ctx context.Context, t *trustedmetadata.TrustedMetadata, floor RepositoryFloors) error {
	what := r.name + ": snapshot"
	load := func(data []byte, cached bool) error {
		if _, err := tufmeta.Decode[metadata.SnapshotType](data); err != nil {
			return err
		}
		return tufmeta.Guard(func() error {
			_, err := t.UpdateSnapshot(data, cached)
			return err
		})
	}
	meta := t.Timestamp.Signed.Meta["snapshot.json"]
	if meta.Version < floor.Snapshot {
		return refuse(ErrRollback, what, "version %d is below the floor %d", meta.Version, floor.Snapshot)
	}
	fresh := false
	if data := r.cached(metadata.SNAPSHOT); data != nil {
		err := load(data, true)
		fresh = err == nil
		if err != nil && t.Snapshot == nil {
			r.ignoreCache(ctx, metadata.SNAPSHOT, err)
		}
	}
	if !fresh {
		data, err := r.fetchSigned(ctx, t, metadata.SNAPSHOT, meta, r.limits.Snapshot, func(data []byte) error {
			if err := load(data, false); err != nil {
				return classify(what, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := r.keep(metadata.SNAPSHOT, data); err != nil {
			return err
		}
	}
	if v := t.Snapshot.Signed.Meta["targets.json"].Version; v < floor.Targets {
		return refuse(ErrRollback, r.name+": targets", "version %d is below the floor %d", v, floor.Targets)
	}
	return nil
}

// fetchSigned fetches a file of which a trusted file states the version and,
// if it cares to, the length, and that check accepts.
func (r *repo) fetchSigned(ctx context.Context, t *trustedmetadata.TrustedMetadata, role string, meta *metadata.MetaFiles, limit int64, check func([]byte) error) ([]byte, error) {
	what := fmt.Sprintf("%s: %s %d", r.name, role, meta.Version)
	if meta.Length > 0 {
		if limit = meta.Length; limit > r.limits.Signed {
			return nil, refuse(ErrTooLarge, what, "%d bytes, limit %d", limit, r.limits.Signed)
		}
	}
	name := "metadata/" + tufmeta.RoleFile(role)
	if t.Root.Signed.ConsistentSnapshot {
		name = "metadata/" + tufmeta.MetadataName(role, meta.Version)
	}
	data, err := readAll(ctx, r.src, name, limit, check)
	if err != nil {
		return nil, r.fetchError(what, err)
	}
	return data, nil
}

// fetchError leaves an error of the context or one that names its reason as it
// is, and names the others.
func (r *repo) fetchError(what string, err error) error {
	refused := new(RefusedError)
	switch {
	case errors.As(err, &refused):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return refuse(ErrNotInRepository, what, "the repository is incomplete or not there")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("update: %s: %w", what, err)
	}
	return refuseErr(ErrUnavailable, what, err)
}

// classify names the reason of an error from go-tuf.
func classify(what string, err error) error {
	var (
		unsigned *metadata.ErrUnsignedMetadata
		value    *metadata.ErrValue
		typ      *metadata.ErrType
		expired  *metadata.ErrExpiredMetadata
		version  *metadata.ErrBadVersionNumber
		hash     *metadata.ErrLengthOrHashMismatch
		other    *metadata.ErrRepository
	)
	reason := ErrMalformed
	switch {
	case errors.Is(err, tufmeta.ErrMalformed):
	case errors.As(err, &unsigned), errors.As(err, &value), errors.As(err, &typ):
		reason = ErrSignature
	case errors.As(err, &expired):
		reason = ErrExpired
	case errors.As(err, &version):
		reason = ErrRollback
	case errors.As(err, &hash):
		reason = ErrMixAndMatch
	case errors.As(err, &other):
		reason = ErrMixAndMatch
	}
	return refuseErr(reason, what, err)
}
