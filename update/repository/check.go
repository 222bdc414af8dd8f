package repository

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

// Problem is something that a publisher should see to.
type Problem struct {
	// What is a role or a file.
	What string
	// Detail says what is wrong and what to do.
	Detail string
	// Urgent problems stop nodes from updating, now or within a day.
	Urgent bool
}

// Check looks for what will go wrong: roles that expire within their last
// third, thresholds that one lost key makes unreachable, roles that one stolen
// key forges, content that is missing. It reads the sizes of all targets.
func (r *Repository) Check(ctx context.Context) ([]Problem, error) {
	var out []Problem
	now := r.now()
	expiry := func(role string, at time.Time) {
		left, whole := at.Sub(now), r.expires(&r.root.Signed, role).Sub(now)
		switch {
		case left <= 0:
			out = append(out, Problem{role, "expired on " + at.Format(time.DateOnly) + ": sign it again", true})
		case left < 24*time.Hour || left < whole/3:
			out = append(out, Problem{role, fmt.Sprintf("expires on %s, in %v: sign it again", at.Format(time.DateOnly), left.Round(time.Hour)), left < 24*time.Hour})
		}
	}
	expiry(metadata.ROOT, r.root.Signed.Expires)
	expiry(metadata.TIMESTAMP, r.timestamp.Signed.Expires)
	expiry(metadata.SNAPSHOT, r.snapshot.Signed.Expires)
	for _, name := range metadata.TOP_LEVEL_ROLE_NAMES {
		role := r.root.Signed.Roles[name]
		if (name == metadata.ROOT || name == metadata.TARGETS) && role.Threshold == len(role.KeyIDs) {
			out = append(out, Problem{name, fmt.Sprintf("needs all %d of its keys: a lost one ends it; add a key", len(role.KeyIDs)), false})
		}
		if name == metadata.ROOT && role.Threshold < 2 {
			out = append(out, Problem{name, "one stolen key forges it: raise its threshold", false})
		}
	}
	roles, err := r.allRoles(ctx)
	if err != nil {
		return nil, err
	}
	for _, role := range roles {
		m := r.targets[role]
		expiry(role, m.Signed.Expires)
		for name, t := range m.Signed.Targets {
			if err := r.checkContent(ctx, name, t); err != nil {
				out = append(out, Problem{name, err.Error(), true})
			}
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.What, b.What) })
	return out, nil
}

// allRoles loads every targets role and lists them, the top first.
func (r *Repository) allRoles(ctx context.Context) ([]string, error) {
	roles := []string{metadata.TARGETS}
	for i := 0; i < len(roles); i++ {
		m, err := r.delegated(ctx, roles[i])
		if err != nil {
			return nil, err
		}
		d := m.Signed.Delegations
		if d == nil {
			continue
		}
		if d.SuccinctRoles != nil {
			roles = append(roles, d.SuccinctRoles.GetRoles()...)
		}
		for _, dr := range d.Roles {
			if !slices.Contains(roles, dr.Name) {
				roles = append(roles, dr.Name)
			}
		}
	}
	return roles, nil
}

func contentName(name string, t *metadata.TargetFiles) string {
	return "targets/" + tufmeta.TargetName(name, t.Hashes["sha256"].String())
}

func (r *Repository) checkContent(ctx context.Context, name string, t *metadata.TargetFiles) error {
	f, err := r.store.Get(ctx, contentName(name, t))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("its content is missing from the store: put it back or remove the target")
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if s, ok := f.(io.Seeker); ok {
		n, err := s.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		if n != t.Length {
			return fmt.Errorf("its content has %d bytes, signed are %d", n, t.Length)
		}
	}
	return nil
}

// Export writes a tar archive for a USB stick: the chain of roots, the current
// metadata, and the content of the targets whose names begin with one of
// prefixes (none means all). Unpacked, it is a repository that nodes read with
// update.FSSource and verify as any other.
func (r *Repository) Export(ctx context.Context, w io.Writer, prefixes ...string) error {
	tw := tar.NewWriter(w)
	var names []string
	for v := int64(1); v <= r.root.Signed.Version; v++ {
		names = append(names, "metadata/"+tufmeta.MetadataName(metadata.ROOT, v))
	}
	names = append(names, "metadata/timestamp.json", "metadata/"+tufmeta.MetadataName(metadata.SNAPSHOT, r.snapshot.Signed.Version))
	roles, err := r.allRoles(ctx)
	if err != nil {
		return err
	}
	sizes := map[string]int64{}
	for _, role := range roles {
		m := r.targets[role]
		names = append(names, "metadata/"+tufmeta.MetadataName(role, m.Signed.Version))
		for name, t := range m.Signed.Targets {
			if len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
				sizes[contentName(name, t)] = t.Length
			}
		}
	}
	for name := range sizes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := r.exportFile(ctx, tw, name, sizes); err != nil {
			return fmt.Errorf("repository: export %s: %w", name, err)
		}
	}
	return tw.Close()
}

func (r *Repository) exportFile(ctx context.Context, tw *tar.Writer, name string, sizes map[string]int64) error {
	size, content := sizes[name]
	if !content {
		data, err := get(ctx, r.store, name)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err = tw.Write(data)
		return err
	}
	f, err := r.store.Get(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{tw}, &ctxReader{ctx, f}, make([]byte, 256<<10))
	return err
}
