// Package manifest has the signed objects that publisher and node share: the
// release, its rollout, and a director's assignment. All are strict JSON with a
// format_version, size caps, and unknown members refused.
package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trusttree/trusttree/update/internal/lint"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

// Limits of one release.
const (
	MaxRelease = 64 << 10 // bytes of a release object
	MaxParts   = 32
	MaxOpaque  = 4 << 20 // bytes of an opaque part
)

// Release describes one release: a signed object of several parts that are
// installed together or not at all. It is stored as strict JSON, version 1, as
// the target releases/CHANNEL/NAME.json.
type Release struct {
	// Name is unique within the channel: letters, digits, '.', '_', '-'.
	Name string `json:"name"`
	// Version is one to four numbers with dots between them.
	Version string `json:"version"`
	// Security is the security counter. It says which floor a node keeps after
	// the commit; releases with a lower one are refused for ever. It is
	// independent of Version, so that a version can be taken back.
	Security uint64 `json:"security"`
	// Channel is the stream of releases that this one belongs to.
	Channel string `json:"channel"`
	// Hardware lists the kinds of node that may install the release. An empty
	// list means none.
	Hardware []string `json:"hardware"`
	// Tenants lists whose nodes may install the release; empty means all.
	Tenants []string `json:"tenants,omitempty"`
	// MinFrom is the lowest version from which a node may come; empty means any.
	MinFrom string `json:"min_from,omitempty"`
	// DowngradeFrom lists higher versions whose nodes may go down to this one.
	DowngradeFrom []string `json:"downgrade_from,omitempty"`
	// DataFloor numbers the format of the data that this release writes. After
	// its commit no release with a lower DataFloor is installed: it could not
	// read the data. Migrate data only after Confirm.
	DataFloor uint64 `json:"data_floor,omitempty"`
	// Published is when the publisher made the release. It is the signed time
	// floor of nodes that have committed it.
	Published time.Time `json:"published"`
	// Parts lists what belongs to the release, at most 32.
	Parts []Part `json:"parts"`
	// Notes is text for people, at most 4096 bytes.
	Notes string `json:"notes,omitempty"`
}

// Part is one file of a release. The publisher fills in Target, Length, SHA256
// and Index.
type Part struct {
	// Name is unique within the release: "rootfs", "uki", "pcr-policy".
	Name string `json:"name"`
	// Opaque parts are not written to a slot: they are handed to Preflight
	// and kept beside the installer's state. Reference values, the signed PCR
	// policy of the next boot and provenance statements travel so. At most
	// 4 MiB each.
	Opaque bool `json:"opaque,omitempty"`
	// Target is the part's TUF target name.
	Target string `json:"target"`
	// Length is the length in bytes.
	Length int64 `json:"length"`
	// SHA256 is the lower-case hex hash of the whole part.
	SHA256 string `json:"sha256"`
	// Index, if there is one, is the block index that lets a node reuse the
	// blocks of any older version; Patches are patches from known versions.
	Index   *Aid  `json:"index,omitempty"`
	Patches []Aid `json:"patches,omitempty"`
}

// Aid is a file that makes fetching a part cheaper. The part is verified whole
// whether or not an aid was used.
type Aid struct {
	Target string `json:"target"`
	Length int64  `json:"length"`
	SHA256 string `json:"sha256"`
	// From is the SHA-256 of the content that a patch starts from.
	From string `json:"from,omitempty"`
}

// Rollout says who may install a release now. It is signed metadata beside the
// release (the target's custom field), so that it can change while the release
// can't. The zero value lets nobody install.
type Rollout struct {
	// Waves are ascending in start and share. A node whose bucket lies
	// within the share of a wave that has started may install.
	Waves []Wave `json:"waves,omitempty"`
	// Paused stops the rollout, whatever a director assigns; nodes that have
	// the release keep it.
	Paused bool `json:"paused,omitempty"`
	// Nodes lists node IDs that may install at once, whatever the waves.
	Nodes []string `json:"nodes,omitempty"`
	// Withdrawn, when not empty, is why nobody may install the release.
	Withdrawn string `json:"withdrawn,omitempty"`
}

// Wave opens a release to a share of the nodes at a time.
type Wave struct {
	Start time.Time `json:"start"`
	// Permille is the share of all nodes, 0 to 1000.
	Permille int `json:"permille"`
}

type releaseFile struct {
	FormatVersion int `json:"format_version"`
	Release
}

// ReleaseTarget is the TUF target name of a release.
func ReleaseTarget(channel, name string) string {
	return "releases/" + channel + "/" + name + ".json"
}

// Encode checks a release and returns its stored form.
func (r *Release) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, invalid("release "+strconv.Quote(r.Name), err)
	}
	data, err := json.Marshal(releaseFile{1, *r})
	if err != nil {
		return nil, err
	}
	if len(data) > MaxRelease {
		return nil, invalid("release "+r.Name, fmt.Errorf("%d bytes, limit %d", len(data), MaxRelease))
	}
	return data, nil
}

// ErrInvalid is the class of all errors of this package.
var ErrInvalid = errors.New("invalid")

func invalid(what string, err error) error {
	return fmt.Errorf("manifest: %s: %w: %w", what, ErrInvalid, err)
}

// ParseRelease decodes and checks a release object. It verifies no signature:
// package update does that before.
func ParseRelease(data []byte) (*Release, error) {
	r, err := parseRelease(data)
	if err != nil {
		return nil, invalid("release", err)
	}
	return r, nil
}

func parseRelease(data []byte) (*Release, error) {
	var f releaseFile
	if err := lint.Strict(data, MaxRelease, &f); err != nil {
		return nil, err
	}
	if f.FormatVersion != 1 {
		return nil, fmt.Errorf("format_version %d: this node reads version 1", f.FormatVersion)
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	return &f.Release, nil
}

func (r *Release) check() error {
	if !IsName(r.Name) || !IsName(r.Channel) {
		return fmt.Errorf("name %.60q or channel %.60q: want letters, digits, '.', '_', '-'", r.Name, r.Channel)
	}
	for _, v := range append([]string{r.Version}, r.DowngradeFrom...) {
		if _, err := parseVersion(v); err != nil {
			return err
		}
	}
	if r.MinFrom != "" {
		if _, err := parseVersion(r.MinFrom); err != nil {
			return err
		}
	}
	if r.Security >= lint.MaxInteger || r.DataFloor >= lint.MaxInteger {
		return fmt.Errorf("security counter %d or data floor %d too large", r.Security, r.DataFloor)
	}
	if len(r.Hardware) == 0 {
		return fmt.Errorf("no hardware listed: name the kinds of node that may install it")
	}
	if r.Published.IsZero() {
		return fmt.Errorf("no time of publication")
	}
	if len(r.Parts) == 0 || len(r.Parts) > MaxParts {
		return fmt.Errorf("%d parts, want 1 to %d", len(r.Parts), MaxParts)
	}
	if len(r.Notes) > 4096 {
		return fmt.Errorf("notes of %d bytes, limit 4096", len(r.Notes))
	}
	for i, p := range r.Parts {
		if !IsName(p.Name) || slices.ContainsFunc(r.Parts[:i], func(o Part) bool { return o.Name == p.Name }) {
			return fmt.Errorf("part name %.60q is not unique or has other characters than letters, digits, '.', '_', '-'", p.Name)
		}
		if err := checkFile(p.Target, p.Length, p.SHA256); err != nil {
			return fmt.Errorf("part %s: %w", p.Name, err)
		}
		if p.Opaque && p.Length > MaxOpaque {
			return fmt.Errorf("part %s: %d bytes, an opaque part has at most %d", p.Name, p.Length, MaxOpaque)
		}
		aids := p.Patches
		if p.Index != nil {
			aids = append(aids[:len(aids):len(aids)], *p.Index)
		}
		if len(aids) > 17 {
			return fmt.Errorf("part %s: %d patches, limit 16", p.Name, len(p.Patches))
		}
		for _, a := range aids {
			if err := checkFile(a.Target, a.Length, a.SHA256); err != nil {
				return fmt.Errorf("part %s: %w", p.Name, err)
			}
		}
	}
	return nil
}

func checkFile(target string, length int64, sha string) error {
	if err := tufmeta.CheckTargetName(target); err != nil {
		return err
	}
	if length < 0 || length >= lint.MaxInteger {
		return fmt.Errorf("length %d", length)
	}
	if len(sha) != 64 || strings.Trim(sha, "0123456789abcdef") != "" {
		return fmt.Errorf("sha256 %.80q: want 64 lower-case hex digits", sha)
	}
	return nil
}

// IsName reports whether s can name a release, a channel or a part: letters,
// digits, '.', '_', '-', at most 100 of them, no dot first.
func IsName(s string) bool {
	if s == "" || len(s) > 100 || s[0] == '.' {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-'
	})
}

func parseVersion(s string) (v [4]uint64, err error) {
	parts := strings.Split(s, ".")
	if len(parts) > len(v) {
		return v, fmt.Errorf("version %.40q has more than four numbers", s)
	}
	for i, p := range parts {
		if len(p) > 1 && p[0] == '0' || strings.Trim(p, "0123456789") != "" {
			return v, fmt.Errorf("version %.40q: want numbers with dots between them", s)
		}
		if v[i], err = strconv.ParseUint(p, 10, 32); err != nil {
			return v, fmt.Errorf("version %.40q: want numbers with dots between them", s)
		}
	}
	return v, nil
}

// CompareVersions compares dotted versions; missing numbers count as zero.
func CompareVersions(a, b string) int {
	va, erra := parseVersion(a)
	vb, errb := parseVersion(b)
	if erra != nil || errb != nil {
		return strings.Compare(a, b)
	}
	return slices.Compare(va[:], vb[:])
}
