package update

import (
	"context"
	"errors"
	"slices"

	"github.com/trusttree/trusttree/update/manifest"
)

// assignment is what the director says to this node.
type assignment struct{ *manifest.Assignment }

func (t *trusted) assignment(ctx context.Context, node string) (*assignment, error) {
	if node == "" {
		return nil, refuse(ErrUnassigned, "director", "the node has no ID")
	}
	tgt, err := t.target(ctx, manifest.AssignmentTarget(node))
	if errors.Is(err, ErrNotInRepository) {
		return nil, refuseErr(ErrUnassigned, "node "+node, err)
	}
	if err != nil {
		return nil, err
	}
	data, err := t.repo.object(ctx, tgt, manifest.MaxAssignment)
	if err != nil {
		return nil, err
	}
	a, err := manifest.ParseAssignment(data)
	if err != nil {
		return nil, refuseErr(ErrMalformed, tgt.name, err)
	}
	if a.Node != node {
		return nil, refuse(ErrMixAndMatch, tgt.name, "the assignment is for node %.60q, this is %.60q", a.Node, node)
	}
	return &assignment{a}, nil
}

// agrees returns nil when the director assigns exactly this release.
func (a *assignment) agrees(r *manifest.Release, sha string) error {
	for _, d := range a.Releases {
		if d.Name != r.Name || d.Channel != r.Channel {
			continue
		}
		if d.SHA256 != sha || d.Security != r.Security {
			return refuse(ErrMixAndMatch, "release "+r.Name,
				"director means %.12s… with security counter %d, images has %.12s… with %d", d.SHA256, d.Security, sha, r.Security)
		}
		return nil
	}
	return errors.New("not assigned to this node")
}

// missing says when a director assigns what the image repository does not have.
func (a *assignment) missing(names []string, channel string) error {
	for _, d := range a.Releases {
		if d.Channel == channel && !slices.Contains(names, manifest.ReleaseTarget(d.Channel, d.Name)) {
			return refuse(ErrMixAndMatch, "release "+d.Name, "the director assigns it, but the image repository has not signed it")
		}
	}
	return nil
}
