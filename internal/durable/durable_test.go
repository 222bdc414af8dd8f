package durable_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/durable"
)

func TestWriteFileReplaces(t *testing.T) {
	name := filepath.Join(t.TempDir(), "state")
	require.NoError(t, durable.WriteFile(name, []byte("one"), 0o600))
	require.NoError(t, durable.WriteFile(name, []byte("two"), 0o600))
	got, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, "two", string(got))
	fi, err := os.Stat(name)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
}

func TestFailedWriteKeepsOldContent(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "state")
	require.NoError(t, durable.WriteFile(name, []byte("old"), 0o600))
	boom := errors.New("disk full")
	err := durable.WriteFunc(name, 0o600, func(w io.Writer) error {
		_, _ = w.Write([]byte("half"))
		return boom
	})
	require.ErrorIs(t, err, boom)
	got, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, "old", string(got))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1)
}

func TestCleanRemovesOnlyTemporaries(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.tmp-123"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a"), nil, 0o600))
	require.NoError(t, durable.Clean(dir))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, "a", entries[0].Name())
}

func TestMkdirAllRefusesAFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	require.Error(t, durable.MkdirAll(name, 0o700))
	require.NoError(t, durable.MkdirAll(filepath.Join(filepath.Dir(name), "a", "b"), 0o700))
	require.NoError(t, durable.Remove(filepath.Join(filepath.Dir(name), "absent")))
}
