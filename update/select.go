package update

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/update/manifest"
)

const maxReleases = 512 // releases that a client looks at in one channel

// Node says who asks for a release. A release names whom it is for; what the
// node leaves empty matches nothing that is named.
type Node struct {
	// ID is the node's name in assignments and rollouts.
	ID string
	// Hardware is the kind of node, matched against Release.Hardware.
	Hardware string
	// Tenant is whose node it is, matched against Release.Tenants.
	Tenant string
	// Channel is the stream of releases that the node follows.
	Channel string
	// Version is the version that runs; empty on a node that has none yet.
	Version string
	// Seed places the node in waves. It stays the same for the node's life;
	// empty means ID.
	Seed string
}

// Selection is a release that is signed, newer, allowed by its rollout, meant
// for this node and, with a director, assigned to it. Only Client.Select makes
// one.
type Selection struct {
	release manifest.Release
	sha256  string
	commit  Floors // to which the floors rise when this release is committed
	client  *Client
}

// Release returns what was selected.
func (s *Selection) Release() manifest.Release {
	r := s.release
	r.Parts = slices.Clone(r.Parts)
	return r
}

// SHA256 returns the lower-case hex hash of the signed release object.
func (s *Selection) SHA256() string { return s.sha256 }

// Select returns the highest release that node may install now. The error
// wraps ErrNoUpdate when there is none (its text says why each candidate was
// passed over) or ErrUnassigned, ErrMixAndMatch, ErrHash, ErrMalformed when the
// repositories do not add up.
func (c *Client) Select(ctx context.Context, node Node) (*Selection, error) {
	done, err := c.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	trust, now, err := c.current()
	if err != nil {
		return nil, err
	}
	if !manifest.IsName(node.Channel) {
		return nil, refuse(ErrIncompatible, "node", "channel %.60q: want letters, digits, '.', '_', '-'", node.Channel)
	}
	floors, err := c.cfg.Floors.Load(ctx)
	if err != nil {
		return nil, err
	}
	var assigned *assignment
	if c.directed != nil {
		if assigned, err = c.directed.assignment(ctx, node.ID); err != nil {
			return nil, err
		}
	}
	names, err := trust.releases(node.Channel)
	if err != nil {
		return nil, err
	}
	commit := Floors{Images: trust.floors()}
	if c.directed != nil {
		commit.Director = c.directed.floors()
	}
	var best *Selection
	var passed []string
	for _, name := range names {
		s, rollout, err := c.release(ctx, trust, name)
		if err != nil {
			return nil, err
		}
		why := fits(&s.release, node, floors)
		if why == nil && assigned == nil {
			if ok, reason := rollout.Allows(s.release.Name, node.ID, node.Seed, now); !ok {
				why = errors.New(reason)
			}
		} else if why == nil {
			if rollout.Withdrawn != "" {
				why = errors.New("withdrawn: " + rollout.Withdrawn)
			} else if rollout.Paused {
				why = errors.New("rollout is paused")
			} else if err := assigned.agrees(&s.release, s.sha256); errors.Is(err, ErrMixAndMatch) {
				return nil, err
			} else {
				why = err
			}
		}
		if why != nil {
			passed = append(passed, s.release.Name+": "+why.Error())
			continue
		}
		if best == nil || manifest.CompareVersions(s.release.Version, best.release.Version) > 0 {
			s.commit = commit
			s.commit.Security, s.commit.Data, s.commit.Time = s.release.Security, s.release.DataFloor, s.release.Published
			best = s
		}
	}
	if best == nil {
		if assigned != nil {
			if err := assigned.missing(names, node.Channel); err != nil {
				return nil, err
			}
		}
		return nil, refuse(ErrNoUpdate, "channel "+node.Channel, "%d releases looked at; %s", len(names), strings.Join(last(passed, 5), "; "))
	}
	return best, nil
}

func last(s []string, n int) []string { return s[max(0, len(s)-n):] }

// fits returns why a release is not for a node, or nil.
func fits(r *manifest.Release, n Node, f Floors) error {
	switch {
	case !slices.Contains(r.Hardware, n.Hardware):
		return fmt.Errorf("%w: for hardware %v, not %q", ErrIncompatible, r.Hardware, n.Hardware)
	case len(r.Tenants) > 0 && !slices.Contains(r.Tenants, n.Tenant):
		return fmt.Errorf("%w: not for tenant %q", ErrIncompatible, n.Tenant)
	case r.Security < f.Security:
		return fmt.Errorf("%w: security counter %d, floor %d", ErrBelowFloor, r.Security, f.Security)
	case r.DataFloor < f.Data:
		return fmt.Errorf("%w: reads data format %d, the data has %d", ErrBelowFloor, r.DataFloor, f.Data)
	case n.Version == "":
		if r.MinFrom != "" {
			return fmt.Errorf("%w: needs version %s to come from", ErrIncompatible, r.MinFrom)
		}
		return nil
	case r.MinFrom != "" && manifest.CompareVersions(n.Version, r.MinFrom) < 0:
		return fmt.Errorf("%w: needs version %s to come from, %s runs", ErrIncompatible, r.MinFrom, n.Version)
	}
	switch order := manifest.CompareVersions(r.Version, n.Version); {
	case order == 0:
		return fmt.Errorf("version %s runs already", n.Version)
	case order < 0 && !slices.Contains(r.DowngradeFrom, n.Version):
		return fmt.Errorf("version %s is lower than %s", r.Version, n.Version)
	}
	return nil
}

// releases lists the release targets of a channel, ascending by name.
func (t *trusted) releases(channel string) ([]string, error) {
	prefix := "releases/" + channel + "/"
	var names []string
	for name := range t.Targets[metadata.TARGETS].Signed.Targets {
		if strings.HasPrefix(name, prefix) && strings.HasSuffix(name, ".json") {
			names = append(names, name)
		}
	}
	if len(names) > maxReleases {
		return nil, refuse(ErrTooLarge, "channel "+channel, "%d releases, limit %d", len(names), maxReleases)
	}
	slices.SortFunc(names, cmp.Compare)
	return names, nil
}

// release returns a release with its rollout; both are signed by the targets role.
func (c *Client) release(ctx context.Context, t *trusted, name string) (*Selection, *manifest.Rollout, error) {
	f := t.Targets[metadata.TARGETS].Signed.Targets[name]
	tgt, err := newTarget(name, f, t.Root.Signed.ConsistentSnapshot)
	if err != nil {
		return nil, nil, err
	}
	data, err := c.images.object(ctx, tgt, manifest.MaxRelease)
	if err != nil {
		return nil, nil, err
	}
	rel, err := manifest.ParseRelease(data)
	if err != nil {
		return nil, nil, refuseErr(ErrMalformed, name, err)
	}
	if manifest.ReleaseTarget(rel.Channel, rel.Name) != name {
		return nil, nil, refuse(ErrMixAndMatch, name, "holds release %s of channel %s", rel.Name, rel.Channel)
	}
	rollout := &manifest.Rollout{}
	if len(tgt.custom) > 0 {
		if rollout, err = manifest.ParseRollout(tgt.custom); err != nil {
			return nil, nil, refuseErr(ErrMalformed, name, err)
		}
	}
	return &Selection{release: *rel, sha256: fmt.Sprintf("%x", tgt.hashes["sha256"]), client: c}, rollout, nil
}

// stands returns ErrWithdrawn when the metadata that is trusted now does not
// offer a selection any more.
func (c *Client) stands(ctx context.Context, s *Selection) error {
	select {
	case c.lock <- struct{}{}:
		defer func() { <-c.lock }()
	case <-ctx.Done():
		return fmt.Errorf("update: wait for the client: %w", context.Cause(ctx))
	}
	if c.trust == nil { // nothing newer is known
		return nil
	}
	name := manifest.ReleaseTarget(s.release.Channel, s.release.Name)
	f := c.trust.Targets[metadata.TARGETS].Signed.Targets[name]
	if f == nil || fmt.Sprintf("%x", []byte(f.Hashes["sha256"])) != s.sha256 {
		return refuse(ErrWithdrawn, "release "+s.release.Name, "the repository does not list it any more: select again")
	}
	if f.Custom == nil {
		return nil
	}
	r, err := manifest.ParseRollout(*f.Custom)
	if err != nil {
		return refuseErr(ErrMalformed, name, err)
	}
	if r.Withdrawn != "" {
		return refuse(ErrWithdrawn, "release "+s.release.Name, "%s", r.Withdrawn)
	}
	return nil
}

// object returns a small target, from the cache where it is there and right.
func (r *repo) object(ctx context.Context, t *Target, limit int64) ([]byte, error) {
	if t.length > limit {
		return nil, refuse(ErrTooLarge, t.name, "%d bytes, limit %d", t.length, limit)
	}
	sum := t.hashes["sha256"]
	if sum == nil {
		return nil, refuse(ErrMalformed, t.name, "no sha256")
	}
	dir := filepath.Join(r.dir, "objects")
	file := filepath.Join(dir, fmt.Sprintf("%x", sum))
	if f, err := openRegular(file); err == nil {
		err = t.Verify(f)
		_ = f.Close()
		if err == nil {
			return readFileLimit(file, limit)
		}
	}
	buf, err := fetchSmall(ctx, r.src, t.files, t.length, r.limits, func(data []byte) error { return t.Verify(bytes.NewReader(data)) })
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(dir, 0o755); err != nil {
		return nil, stateError("cache", err)
	}
	if err := pruneObjects(dir); err != nil {
		return nil, stateError("cache", err)
	}
	if err := durable.WriteFile(file, buf, 0o644); err != nil {
		return nil, stateError("cache", err)
	}
	return buf, nil
}

// pruneObjects forgets all objects when there are more than any channel can
// need: those of releases and assignments that are gone.
func pruneObjects(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 2*maxReleases {
		return err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
