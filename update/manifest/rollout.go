package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/trusttree/trusttree/update/internal/lint"
)

// Limits of a rollout.
const (
	maxRollout = 256 << 10 // bytes
	maxWaves   = 64
	buckets    = 1 << 32
)

type rolloutFile struct {
	FormatVersion int `json:"format_version"`
	Rollout
}

// Encode checks a rollout and returns its stored form, the custom field of the
// release's target.
func (r *Rollout) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, invalid("rollout", err)
	}
	data, err := json.Marshal(rolloutFile{1, *r})
	if err == nil && len(data) > maxRollout {
		return nil, invalid("rollout", fmt.Errorf("%d bytes, limit %d", len(data), maxRollout))
	}
	return data, err
}

// ParseRollout decodes and checks a rollout.
func ParseRollout(data []byte) (*Rollout, error) {
	r, err := parseRollout(data)
	if err != nil {
		return nil, invalid("rollout", err)
	}
	return r, nil
}

func parseRollout(data []byte) (*Rollout, error) {
	var f rolloutFile
	if err := lint.Strict(data, maxRollout, &f); err != nil {
		return nil, err
	}
	if f.FormatVersion != 1 {
		return nil, fmt.Errorf("rollout of format_version %d: this node reads version 1", f.FormatVersion)
	}
	return &f.Rollout, f.check()
}

func (r *Rollout) check() error {
	if len(r.Waves) > maxWaves {
		return fmt.Errorf("%d waves, limit %d", len(r.Waves), maxWaves)
	}
	for i, w := range r.Waves {
		if w.Permille < 0 || w.Permille > 1000 {
			return fmt.Errorf("wave of %d permille", w.Permille)
		}
		if i > 0 && (w.Permille < r.Waves[i-1].Permille || w.Start.Before(r.Waves[i-1].Start)) {
			return fmt.Errorf("wave %d starts earlier or is smaller than the one before", i+1)
		}
	}
	return nil
}

// Allows reports whether a node may install the release of that name now, and
// if not, why. seed places the node in waves; empty means node.
func (r *Rollout) Allows(release, node, seed string, now time.Time) (bool, string) {
	switch {
	case r.Withdrawn != "":
		return false, "withdrawn: " + r.Withdrawn
	case r.Paused:
		return false, "rollout is paused"
	case slices.Contains(r.Nodes, node):
		return true, ""
	}
	if seed == "" {
		seed = node
	}
	b := bucket(release, seed)
	for _, w := range slices.Backward(r.Waves) {
		if now.Before(w.Start) {
			continue
		}
		if uint64(b) < uint64(w.Permille)*buckets/1000 {
			return true, ""
		}
		return false, fmt.Sprintf("wave of %d permille has not reached this node", w.Permille)
	}
	return false, "no wave has started"
}

// bucket places a node in [0, 2^32), anew for each release so that it is not
// always the same nodes that go first.
func bucket(release, seed string) uint32 {
	h := sha256.New()
	fmt.Fprintf(h, "trusttree wave v1\x00%d:%s%s", len(release), release, seed)
	return binary.BigEndian.Uint32(h.Sum(nil))
}
