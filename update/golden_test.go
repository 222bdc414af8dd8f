package update_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

var writeGolden = flag.Bool("write-golden", false, "write testdata/v1 anew: only for a new format version")

const goldenDir = "testdata/v1"

func goldenTime() time.Time { return time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC) }

func goldenKey() crypto.Signer { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)) }

// golden is the repository and the node of format version 1.
func golden(tb testing.TB) fstest.MapFS {
	tb.Helper()
	out := fstest.MapFS{}
	root := os.DirFS(goldenDir)
	require.NoError(tb, fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(root, p)
		out[strings.TrimPrefix(p, "repo/")] = &fstest.MapFile{Data: data}
		return err
	}))
	return out
}

// TestGoldenFiles reads what version 1 wrote: repository, release, rollout,
// assignment, floors, installer state and report.
func TestGoldenFiles(t *testing.T) {
	if *writeGolden {
		makeGolden(t)
	}
	files := golden(t)
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(goldenDir, "node"))))
	floors := update.FileFloors(filepath.Join(dir, "floors"))
	c, err := update.NewClient(update.ClientConfig{Root: files["metadata/1.root.json"].Data, Dir: filepath.Join(dir, "tuf"),
		Images: update.FSSource(os.DirFS(filepath.Join(goldenDir, "repo"))), Director: update.FSSource(os.DirFS(filepath.Join(goldenDir, "repo"))),
		DirectorRoot: files["metadata/1.root.json"].Data, Floors: floors, Now: goldenTime})
	require.NoError(t, err)
	_, err = c.Refresh(t.Context())
	require.NoError(t, err)
	sel, err := c.Select(t.Context(), update.Node{ID: "node-1", Hardware: "lamp-2", Channel: "stable", Version: "1.0"})
	require.NoError(t, err)
	assert.Equal(t, "2.0", sel.Release().Version)
	f, err := floors.Load(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 5, f.Security)
	report, err := update.VerifyReport(files["report.json"].Data, goldenKey().Public(), "node-1", []byte("0123456789abcdef"))
	require.NoError(t, err)
	assert.Equal(t, update.Committed, report.Report().State.Phase)

	d := newDevice(t, &publisher{t: t, firstRoot: files["metadata/1.root.json"].Data, dir: filepath.Join(goldenDir, "repo"), now: goldenTime()},
		func(_ *update.ClientConfig, ic *update.InstallerConfig) { ic.Dir = filepath.Join(dir, "installer") })
	st, err := d.in.State(t.Context())
	require.NoError(t, err)
	assert.Equal(t, update.Committed, st.Phase)
	assert.Equal(t, "os-2.0", st.Slots["b"].Name)

	for name, data := range files {
		if !strings.HasPrefix(name, "targets/") {
			continue
		}
		next := bytes.Replace(data.Data, []byte(`"format_version":1`), []byte(`"format_version":3`), 1)
		if bytes.Equal(next, data.Data) {
			continue
		}
		_, err := manifest.ParseRelease(next)
		require.ErrorIs(t, err, manifest.ErrInvalid, "a version that is not known is refused")
		_, err = manifest.ParseAssignment(next)
		require.ErrorIs(t, err, manifest.ErrInvalid)
	}
}

// TestUnknownMembersAreRefused adds a member to each stored object.
func TestUnknownMembersAreRefused(t *testing.T) {
	rel := manifest.Release{Name: "a", Version: "1", Channel: "c", Hardware: []string{"x"}, Published: goldenTime(),
		Parts: []manifest.Part{{Name: "p", Target: "t", SHA256: strings.Repeat("0", 64)}}}
	data, err := rel.Encode()
	require.NoError(t, err)
	_, err = manifest.ParseRelease(data)
	require.NoError(t, err)
	for _, bad := range []string{`{"extra":1,`, `{"name":"twice",`, `{"version":null,`} {
		_, err = manifest.ParseRelease([]byte(strings.Replace(string(data), "{", bad, 1)))
		require.ErrorIs(t, err, manifest.ErrInvalid, bad)
	}
	for _, name := range []string{"name", "format_version", "target", "sha256"} { // of a part too
		other := strings.Replace(string(data), `"`+name+`":`, `"`+strings.ToUpper(name[:1])+name[1:]+`":`, 1)
		require.NotEqual(t, string(data), other)
		_, err = manifest.ParseRelease([]byte(other))
		require.ErrorIs(t, err, manifest.ErrInvalid, "encoding/json takes %s for %s", strings.ToUpper(name[:1])+name[1:], name)
	}
	_, err = manifest.ParseRelease(append(data, make([]byte, 70_000)...))
	require.ErrorIs(t, err, manifest.ErrInvalid)
}

func makeGolden(t *testing.T) {
	require.NoError(t, os.RemoveAll(goldenDir))
	k := goldenKey()
	p := &publisher{t: t, dir: filepath.Join(goldenDir, "repo"), root: k, targets: k, snapshot: k, tstamp: k, now: goldenTime().Add(-24 * time.Hour)}
	long := role(k)
	long.Expires = 50 * 365 * 24 * time.Hour
	var err error
	p.repo, err = repository.Create(t.Context(), repository.DirStore(p.dir), repository.Config{Root: long, Targets: long, Snapshot: long, Timestamp: long, Now: p.repoNow}, k)
	require.NoError(t, err)
	p.firstRoot, err = p.repo.Root(t.Context())
	require.NoError(t, err)
	p.release("2.0", 5, image("2.0", 100))
	a, err := p.repo.Assigned(t.Context(), "stable", "os-2.0")
	require.NoError(t, err)
	p.edit(func(tx *repository.Tx) error {
		return tx.Assign(manifest.Assignment{Node: "node-1", Releases: []manifest.AssignedRelease{a}})
	})
	d := newDevice(t, p, func(c *update.ClientConfig, ic *update.InstallerConfig) {
		c.Floors, ic.Dir = update.FileFloors(filepath.Join(goldenDir, "node", "floors")), filepath.Join(goldenDir, "node", "installer")
	})
	d.now = goldenTime()
	require.NoError(t, d.install())
	require.Equal(t, update.Trial, d.reboot().Phase)
	require.NoError(t, d.in.Confirm(t.Context()))
	st, err := d.in.State(t.Context())
	require.NoError(t, err)
	report, err := update.SignReport(update.Report{Node: "node-1", Nonce: []byte("0123456789abcdef"), Time: goldenTime(), State: st, Guard: "software"}, k)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(goldenDir, "report.json"), report, 0o600))
	require.NoError(t, os.Remove(filepath.Join(goldenDir, "node", "installer", "lock")))
	require.NoError(t, os.Remove(filepath.Join(p.dir, ".lock")))
}

// recrc makes the checksum of an altered state file right, as an attacker does.
func recrc(t *testing.T, data []byte) []byte {
	t.Helper()
	var f struct {
		Version int             `json:"version"`
		Counter uint64          `json:"counter"`
		Floors  json.RawMessage `json:"floors"`
		MAC     []byte          `json:"mac,omitempty"`
		CRC     uint32          `json:"crc32"`
	}
	require.NoError(t, json.Unmarshal(data, &f))
	mac := f.MAC
	f.MAC, f.CRC = nil, 0
	body, err := json.Marshal(f)
	require.NoError(t, err)
	f.MAC, f.CRC = mac, crc32.ChecksumIEEE(body)
	out, err := json.Marshal(f)
	require.NoError(t, err)
	return out
}
