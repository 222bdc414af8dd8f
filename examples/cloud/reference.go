package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/update/manifest"
)

// references are the appraisal policies in force, each signed by the owner's
// policy key: every file of the directory reference/, and the reference values
// of every release in the repository that nodes are served. Publishing a release
// is enough to have its boot affirmed. It is safe for concurrent use.
type references struct {
	key    crypto.PublicKey
	dir    string
	tuf    fs.FS
	floors *floors
	log    *slog.Logger

	mu       sync.Mutex
	at       time.Time // when the sources were looked at
	inForce  []reference
	policies []*secureboot.Policy // of inForce
	err      error
	read     map[string]reference // what was read, by source
	told     map[string]string    // why a source is not used, as it was logged
	releases releaseList
}

// reference is one signed policy, and where it came from.
type reference struct {
	source string // reference/FILE, or the release's target
	stamp  string // changes when the content may have
	digest string // of the signed bytes
	policy *secureboot.Policy
	err    error
}

// Limits of reference values.
const (
	maxReference  = 12 << 20    // bytes of one signed policy
	maxReferences = 1024        // sources
	referenceAge  = time.Second // how long what was found is used before the sources are looked at again
)

// current returns the policies in force, the newest first.
func (r *references) current(ctx context.Context) ([]*secureboot.Policy, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh(ctx)
	return r.policies, r.err
}

// list returns them with their sources.
func (r *references) list(ctx context.Context) ([]reference, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh(ctx)
	return slices.Clone(r.inForce), r.err
}

// expire makes the next call look at the sources.
func (r *references) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = time.Time{}
}

func (r *references) refresh(ctx context.Context) {
	if !r.at.IsZero() && time.Since(r.at) < referenceAge {
		return
	}
	found, err := r.gather()
	if err == nil {
		// Of policies that come together, the older may be as new as the newer.
		slices.SortStableFunc(found, func(a, b reference) int { return cmp.Compare(a.policy.Serial, b.policy.Serial) })
		found, err = r.floors.admit(ctx, found, r.refuse)
	}
	if err != nil && ctx.Err() != nil {
		return // who asked has left; the next one looks again
	}
	r.at, r.err = time.Now(), err
	slices.Reverse(found)
	r.inForce, r.policies = found, nil
	for _, ref := range found {
		r.policies = append(r.policies, ref.policy)
	}
}

// refuse says, once, why a source is not used. An old release's policy that ran
// out must not shut the others' nodes out.
func (r *references) refuse(source string, err error) {
	if r.told[source] != err.Error() {
		r.told[source] = err.Error()
		r.log.Warn("reference values not used", "event", "reference.refused", "file", source, "reason", err.Error())
	}
}

// gather returns the policies that are signed and have not ended.
func (r *references) gather() ([]reference, error) {
	sources, err := r.sources()
	if err != nil {
		return nil, err
	}
	seen, digests := map[string]reference{}, map[string]bool{}
	var out []reference
	for _, s := range sources {
		have, ok := r.read[s.source]
		if !ok || have.stamp != s.stamp {
			have = s.load(r.key)
		}
		seen[s.source] = have
		err := have.err
		if err == nil && !time.Now().Before(have.policy.NotAfter) {
			err = fmt.Errorf("%w: at %s", secureboot.ErrPolicyExpired, have.policy.NotAfter.UTC().Format(time.RFC3339))
		}
		switch {
		case err != nil:
			r.refuse(s.source, err)
		case !digests[have.digest]: // a release's policy may lie in reference/, too
			digests[have.digest] = true
			out = append(out, have)
		}
	}
	r.read = seen
	for source := range r.told {
		if _, ok := seen[source]; !ok && source != repositorySource {
			delete(r.told, source)
		}
	}
	return out, nil
}

// source is where a policy may be read.
type source struct {
	source, stamp string
	dir           fs.FS
	name          string
}

func (s source) load(key crypto.PublicKey) reference {
	ref := reference{source: s.source, stamp: s.stamp}
	signed, err := readFS(s.dir, s.name, maxReference)
	if err == nil {
		ref.policy, err = secureboot.VerifyPolicy(signed, []crypto.PublicKey{key}, 0, time.Now())
	}
	sum := sha256.Sum256(signed)
	ref.digest, ref.err = hex.EncodeToString(sum[:]), err
	return ref
}

const repositorySource = "the repository"

// sources lists the files of reference/, and the targets that releases name.
// Nobody has verified the repository's metadata here: each policy proves itself.
func (r *references) sources() ([]source, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var out []source
	dir := os.DirFS(r.dir)
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || strings.HasPrefix(e.Name(), ".") { // it is just going, or just coming
			continue
		}
		out = append(out, source{"reference/" + e.Name(), fmt.Sprint(fi.Size(), fi.ModTime().UnixNano()), dir, e.Name()})
	}
	released, err := r.releases.read(r.tuf)
	if err != nil { // it may just be written; what was read of it before counts
		r.refuse(repositorySource, err)
	} else {
		delete(r.told, repositorySource)
	}
	for _, rel := range released {
		for _, p := range rel.release.Parts {
			if p.Name == wire.PartReference {
				name := targetFile(p.Target, p.SHA256)
				out = append(out, source{name, p.SHA256, r.tuf, name})
			}
		}
	}
	if len(out) > maxReferences {
		return nil, fmt.Errorf("%d reference values, at most %d are read: remove those of releases that nobody runs", len(out), maxReferences)
	}
	return out, nil
}

// published is a release in the repository's newest targets file.
type published struct {
	name    string // target
	release *manifest.Release
	custom  []byte // its rollout
}

// releaseList reads the releases of a repository, anew when it has changed.
type releaseList struct {
	stamp string
	all   []published
}

func (l *releaseList) read(tuf fs.FS) ([]published, error) {
	newest, stamp, err := newestTargets(tuf)
	if err != nil || newest == "" {
		return nil, err
	}
	if stamp != l.stamp {
		all, err := readReleases(tuf, newest)
		if err != nil {
			return l.all, err
		}
		l.stamp, l.all = stamp, all
	}
	return l.all, nil
}
