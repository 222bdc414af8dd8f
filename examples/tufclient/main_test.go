package main

import (
	"crypto"
	"crypto/ed25519"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update/repository"
)

func TestSpeaksTheConformanceProtocol(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	role := repository.Role{Keys: []crypto.PublicKey{key.Public()}}
	dir := t.TempDir()
	repo, err := repository.Create(t.Context(), repository.DirStore(dir),
		repository.Config{Root: role, Targets: role, Snapshot: role, Timestamp: role}, key)
	require.NoError(t, err)
	add := func(name, content string) {
		require.NoError(t, repo.Edit(t.Context(), func(tx *repository.Tx) error {
			return tx.AddTarget(name, strings.NewReader(content), nil)
		}, key))
	}
	add("a/b c", "first")
	add("x", "second")
	root, err := repo.Root(t.Context())
	require.NoError(t, err)
	rootFile := filepath.Join(t.TempDir(), "root.json")
	require.NoError(t, os.WriteFile(rootFile, root, 0o600))

	var asked []string
	files := http.FileServerFS(os.DirFS(dir))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		files.ServeHTTP(w, r)
	}))
	defer srv.Close()
	d, x := t.TempDir(), t.TempDir()
	cmd := func(args ...string) error {
		return run(t.Context(), append([]string{"--metadata-url", srv.URL + "/metadata/", "--metadata-dir", d}, args...), io.Discard)
	}
	require.ErrorContains(t, cmd("refresh"), "run init first")
	require.NoError(t, run(t.Context(), []string{"--metadata-dir", d, "init", rootFile}, io.Discard))
	assert.Empty(t, asked)
	assert.FileExists(t, filepath.Join(d, "root.json"))
	require.NoError(t, cmd("refresh"))
	assert.Equal(t, []string{"/metadata/2.root.json", "/metadata/timestamp.json", "/metadata/3.snapshot.json", "/metadata/3.targets.json"}, asked)
	found, err := filepath.Glob(filepath.Join(d, "*.json"))
	require.NoError(t, err)
	assert.Len(t, found, 4)

	download := []string{"--target-name", "a/b c", "--target-name", "x", "--target-base-url", srv.URL + "/targets", "--target-dir", x, "download"}
	require.NoError(t, cmd(download...))
	got, err := os.ReadFile(filepath.Join(x, "a%2Fb c"))
	require.NoError(t, err)
	assert.Equal(t, "first", string(got))
	asked = nil
	require.NoError(t, cmd(download...))
	assert.Len(t, asked, 2, "cached artifacts are not fetched again: %v", asked)
	require.NoError(t, os.WriteFile(filepath.Join(x, "x"), []byte("altered"), 0o600))
	require.NoError(t, cmd(download...))
	got, err = os.ReadFile(filepath.Join(x, "x"))
	require.NoError(t, err)
	assert.Equal(t, "second", string(got))
	require.Error(t, cmd("--target-name", "nope", "--target-base-url", srv.URL, "--target-dir", x, "download"))
	for _, bad := range [][]string{{}, {"frobnicate"}, {"download"}, {"init"}} {
		require.Error(t, cmd(bad...))
	}
	require.Error(t, run(t.Context(), []string{"refresh"}, io.Discard))

	// A clock that is far ahead, as faketime makes it.
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "date"), []byte("#!/bin/sh\necho 4102444800\n"), 0o700))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	require.ErrorContains(t, cmd("refresh"), "expired")
}
