package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tlsconn"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/manifest"
)

// releaseView is one published release, for the page.
type releaseView struct {
	Channel, Name, Version string
	Security               uint64
	Waves                  string
	Withdrawn              bool
	Nodes                  int // that report to run it
}

// maxMetadata bounds what is read of a targets file, in bytes.
const maxMetadata = 32 << 20

// newestTargets returns the newest targets file of a repository, and a stamp that
// changes with its content. There is none in a new repository.
func newestTargets(dir fs.FS) (name, stamp string, err error) {
	names, err := fs.Glob(dir, "metadata/*.targets.json")
	if err != nil || len(names) == 0 {
		return "", "", err
	}
	version := func(name string) int {
		n, _ := strconv.Atoi(strings.TrimSuffix(path.Base(name), ".targets.json"))
		return n
	}
	name = slices.MaxFunc(names, func(a, b string) int { return version(a) - version(b) })
	fi, err := fs.Stat(dir, name)
	if err != nil {
		return "", "", err
	}
	return name, fmt.Sprint(name, fi.Size(), fi.ModTime().UnixNano()), nil
}

// targetFile is where a repository keeps a target.
func targetFile(target, sha256 string) string {
	folder, file := path.Split(target)
	return "targets/" + folder + sha256 + "." + file
}

// readReleases reads the releases that a targets file names.
func readReleases(dir fs.FS, targetsFile string) ([]published, error) {
	data, err := readFS(dir, targetsFile, maxMetadata)
	if err != nil {
		return nil, err
	}
	var targets struct {
		Signed struct {
			Targets map[string]struct {
				Hashes map[string]string `json:"hashes"`
				Custom json.RawMessage   `json:"custom"`
			} `json:"targets"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(data, &targets); err != nil {
		return nil, fmt.Errorf("%s: %w", targetsFile, err)
	}
	var out []published
	for name, t := range targets.Signed.Targets {
		if !strings.HasPrefix(name, "releases/") {
			continue
		}
		data, err := readFS(dir, targetFile(name, t.Hashes["sha256"]), manifest.MaxRelease)
		if err != nil {
			return nil, err
		}
		rel, err := manifest.ParseRelease(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, published{name, rel, t.Custom})
	}
	return out, nil
}

// publishedReleases reads what the repository in dir offers. It is for people
// to look at: nodes verify the metadata themselves.
func publishedReleases(dir fs.FS) ([]releaseView, error) {
	newest, _, err := newestTargets(dir)
	if err != nil || newest == "" {
		return nil, err
	}
	all, err := readReleases(dir, newest)
	if err != nil {
		return nil, err
	}
	var out []releaseView
	for _, r := range all {
		rel, channel := r.release, strings.TrimPrefix(path.Dir(r.name), "releases/")
		v := releaseView{Channel: channel, Name: rel.Name, Version: rel.Version, Security: rel.Security, Waves: "nobody may install it yet"}
		if len(r.custom) > 0 {
			rollout, err := manifest.ParseRollout(r.custom)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", r.name, err)
			}
			v.Waves, v.Withdrawn = describe(rollout), rollout.Withdrawn != ""
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b releaseView) int {
		if c := strings.Compare(a.Channel, b.Channel); c != 0 {
			return c
		}
		return manifest.CompareVersions(b.Version, a.Version)
	})
	return out, nil
}

func describe(r *manifest.Rollout) string {
	if r.Withdrawn != "" {
		return r.Withdrawn
	}
	var parts []string
	for _, w := range r.Waves {
		parts = append(parts, fmt.Sprintf("%.1f %% from %s", float64(w.Permille)/10, w.Start.UTC().Format("2006-01-02 15:04Z")))
	}
	if len(r.Nodes) > 0 {
		parts = append(parts, fmt.Sprintf("%d nodes at once", len(r.Nodes)))
	}
	text := strings.Join(parts, ", ")
	if text == "" {
		text = "nobody may install it yet"
	}
	if r.Paused {
		text += "; paused"
	}
	return text
}

func readFS(dir fs.FS, name string, limit int64) ([]byte, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return wire.ReadAll(f, limit, name)
}

// reports takes what nodes say about their software: a nonce is asked for, and
// the report that is signed over it by the node's attested key is taken once.
type reports struct {
	fleet    *fleet
	reattest func(tlsconn.ID) int
	log      *slog.Logger

	mu     sync.Mutex
	nonces map[string]nonce // by node
}

type nonce struct {
	value   []byte
	expires time.Time
}

// Limits of reports.
const (
	maxReport   = 256 << 10 // bytes
	reportLife  = time.Minute
	maxReporter = 10000 // nodes that were given a nonce and have not answered
)

func newReports(f *fleet, reattest func(tlsconn.ID) int, log *slog.Logger) *reports {
	return &reports{fleet: f, reattest: reattest, log: log, nonces: map[string]nonce{}}
}

func (s *reports) handler(modules http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/report/begin", s.begin)
	mux.HandleFunc("POST /v1/report", s.take)
	mux.HandleFunc("POST /v1/changed", s.changed)
	mux.Handle("GET "+wire.PathModuleList, modules)
	return http.MaxBytesHandler(mux, maxReport)
}

// changed takes a node's word that something about it changed, and asks it for
// evidence: the node itself decides nothing.
func (s *reports) changed(w http.ResponseWriter, r *http.Request) {
	peer, ok := tlsconn.PeerFromContext(r.Context())
	if !ok {
		http.Error(w, "no tunnel", http.StatusForbidden)
		return
	}
	s.reattest(peer.ID)
	w.WriteHeader(http.StatusNoContent)
}

func (s *reports) begin(w http.ResponseWriter, r *http.Request) {
	peer, ok := tlsconn.PeerFromContext(r.Context())
	if !ok {
		http.Error(w, "no tunnel", http.StatusForbidden)
		return
	}
	value := make([]byte, 32)
	_, _ = rand.Read(value)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.nonces) >= maxReporter {
		for id, n := range s.nonces {
			if time.Now().After(n.expires) {
				delete(s.nonces, id)
			}
		}
		if len(s.nonces) >= maxReporter {
			http.Error(w, "busy, try again", http.StatusServiceUnavailable)
			return
		}
	}
	s.nonces[nodeKey(peer)] = nonce{value, time.Now().Add(reportLife)}
	_, _ = w.Write(value)
}

func (s *reports) take(w http.ResponseWriter, r *http.Request) {
	peer, ok := tlsconn.PeerFromContext(r.Context())
	if !ok {
		http.Error(w, "no tunnel", http.StatusForbidden)
		return
	}
	id := nodeKey(peer)
	s.mu.Lock()
	n := s.nonces[id]
	delete(s.nonces, id)
	s.mu.Unlock()
	data, err := wire.ReadAll(r.Body, maxReport, "report")
	var msg wire.SoftwareReport
	var report *update.VerifiedReport
	if err == nil {
		err = wire.Decode(data, maxReport, &msg)
	}
	if err == nil && (msg.Version != 1 || (msg.Running != "" && !manifest.IsName(msg.Running))) {
		err = fmt.Errorf("report of version %d, running %.40q", msg.Version, msg.Running)
	}
	if err == nil && time.Now().After(n.expires) {
		err = fmt.Errorf("no nonce was asked for in the last %v", reportLife)
	}
	if err == nil {
		report, err = update.VerifyReport(msg.Signed, peer.Chain()[0].PublicKey, id, n.value)
	}
	if err != nil {
		s.log.Warn("install report refused", "event", "report.refused", "node", id, "reason", err.Error())
		http.Error(w, "refused; the cloud's log says why", http.StatusForbidden)
		return
	}
	s.show(id, msg.Running, report.Report())
	w.WriteHeader(http.StatusNoContent)
}

// show puts a verified report into the picture of the fleet.
func (s *reports) show(id, running string, r update.Report) {
	detail := "runs " + running
	ok := true
	switch r.State.Phase {
	case update.RolledBack:
		detail += fmt.Sprintf("; release %s failed and was taken back: %s", r.State.Release.Version, r.State.Reason)
		ok = false
		s.log.Warn("a release failed on a node and was taken back", "event", "report.rolled-back", "node", id, "version", r.State.Release.Version, "reason", r.State.Reason)
	case update.Armed, update.Trial:
		detail += fmt.Sprintf("; release %s is %s", r.State.Release.Version, r.State.Phase)
	}
	s.fleet.update(id, func(n *nodeView) { n.Software, n.Update = running, string(r.State.Phase) })
	s.fleet.setLink(id, "software", ok, detail+"; rollback floors guarded by "+r.Guard)
}

func (c *cloud) releases(context.Context) ([]releaseView, error) {
	return publishedReleases(c.tuf())
}
