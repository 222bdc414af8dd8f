package update

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

// role returns a targets role, verified against the role that delegates to it
// now: a role that two others delegate to is verified for each of them.
func (t *trusted) role(ctx context.Context, role, delegator string) (*metadata.Metadata[metadata.TargetsType], error) {
	pair := [2]string{delegator, role}
	if m := t.verified[pair]; m != nil && !m.Signed.IsExpired(t.now()) { // it may have expired since
		t.Targets[role] = m
		return m, nil
	}
	what := fmt.Sprintf("%s: %s", t.repo.name, role)
	meta := t.Snapshot.Signed.Meta[role+".json"]
	if meta == nil {
		return nil, refuse(ErrMixAndMatch, what, "the snapshot does not list it")
	}
	load := func(data []byte) error {
		if _, err := tufmeta.Decode[metadata.TargetsType](data); err != nil {
			return err
		}
		return tufmeta.Guard(func() error {
			m, err := t.UpdateDelegatedTargets(data, role, delegator)
			if err != nil {
				return err
			}
			if m.Signed.IsExpired(t.now()) { // these have no grace
				return &metadata.ErrExpiredMetadata{Msg: "expired on " + m.Signed.Expires.UTC().Format(time.RFC3339)}
			}
			t.verified[pair] = m
			return nil
		})
	}
	if data := t.repo.cached(role); data != nil {
		err := load(data)
		if err == nil {
			return t.verified[pair], nil
		}
	}
	data, err := t.repo.fetchSigned(ctx, t.TrustedMetadata, role, meta, t.repo.limits.Targets, func(data []byte) error {
		err := load(data)
		if version := new(metadata.ErrBadVersionNumber); errors.As(err, &version) {
			return refuseErr(ErrMixAndMatch, what, version)
		}
		if err != nil {
			return classify(what, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t.verified[pair], t.repo.keep(role, data)
}

// lookup finds a target: pre-order, depth first, each role once, a bounded
// number of roles (TUF specification, section 5.6.7).
func (t *trusted) lookup(ctx context.Context, name string) (*metadata.TargetFiles, error) {
	type visit struct{ role, delegator string }
	todo := []visit{{metadata.TARGETS, metadata.ROOT}}
	visited := map[string]bool{}
	for len(todo) > 0 {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if visited[v.role] {
			continue
		}
		if len(visited) >= t.repo.limits.Roles {
			return nil, refuse(ErrNotInRepository, t.repo.name+": target "+name, "not in the first %d roles that may hold it", len(visited))
		}
		m, err := t.role(ctx, v.role, v.delegator)
		if err != nil {
			return nil, err
		}
		visited[v.role] = true
		if f := m.Signed.Targets[name]; f != nil {
			return f, nil
		}
		var children []visit
		for _, r := range tufmeta.RolesFor(m.Signed.Delegations, name) {
			children = append(children, visit{r.Name, v.role})
			if r.Terminating {
				todo = nil
				break
			}
		}
		slices.Reverse(children)
		todo = append(todo, children...)
	}
	return nil, refuse(ErrNotInRepository, t.repo.name+": target "+name, "no trusted role lists it")
}
