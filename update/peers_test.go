package update_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
)

// module returns where a module that go.mod names lies. It skips the test where
// it does not lie anywhere.
func module(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skipf("module %s is not in the module cache", path)
	}
	return dir
}

// The root of a repository that others keep, with ECDSA keys, members of its
// own, and signatures of which some are empty.
func TestRootOfSigstoreIsRead(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(module(t, "github.com/sigstore/sigstore"), "pkg/tuf/repository/root.json"))
	if os.IsNotExist(err) {
		t.Skip("this version of sigstore embeds no root")
	}
	require.NoError(t, err)
	var root struct {
		Signed struct {
			Expires time.Time
			Version int64
		}
	}
	require.NoError(t, json.Unmarshal(data, &root))
	now := root.Signed.Expires.Add(-time.Hour)
	dir := t.TempDir()
	cfg := update.ClientConfig{Root: data, Dir: dir, Images: update.FSSource(fstest.MapFS{}), Floors: update.FileFloors(filepath.Join(dir, "floors")),
		Now: func() time.Time { return now }}
	c, err := update.NewClient(cfg)
	require.NoError(t, err)
	require.NoError(t, c.Init(t.Context()))
	kept, err := os.ReadFile(filepath.Join(dir, "root.json"))
	require.NoError(t, err)
	assert.Equal(t, data, kept)
	_, err = c.Refresh(t.Context())
	require.ErrorIs(t, err, update.ErrNotInRepository)
	require.ErrorContains(t, err, "timestamp", "the root is fine")

	now = root.Signed.Expires.Add(time.Hour)
	_, err = c.Refresh(t.Context())
	require.ErrorIs(t, err, update.ErrExpired)

	cfg.Root = bytes.Replace(data, []byte(`"threshold": 3`), []byte(`"threshold": 2`), 1)
	require.NotEqual(t, data, cfg.Root)
	_, err = update.NewClient(cfg)
	require.ErrorIs(t, err, update.ErrSignature)
}

// A repository that go-tuf's own example wrote.
func TestRepositoryOfGoTUFIsRead(t *testing.T) {
	dir := filepath.Join(module(t, "github.com/theupdateframework/go-tuf/v2"), "examples/multirepo/repository")
	root, err := os.ReadFile(filepath.Join(dir, "metadata/1.root.json"))
	if os.IsNotExist(err) {
		t.Skip("this version of go-tuf has no such example")
	}
	require.NoError(t, err)
	state := t.TempDir()
	c, err := update.NewClient(update.ClientConfig{Root: root, Dir: state, Images: update.FSSource(os.DirFS(dir)),
		Floors: update.FileFloors(filepath.Join(state, "floors")), Now: func() time.Time { return time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC) }})
	require.NoError(t, err)
	st, err := c.Refresh(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 1, st.Targets)
	tgt, err := c.Target(t.Context(), "map.json")
	require.NoError(t, err)
	var got bytes.Buffer
	require.NoError(t, c.Download(t.Context(), tgt, &got))
	want, err := os.ReadFile(filepath.Join(dir, "targets/map.json"))
	require.NoError(t, err)
	assert.Equal(t, want, got.Bytes())
}
