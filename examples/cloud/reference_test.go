package main

import (
	"bytes"
	"crypto"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// signer makes appraisal policies of a real boot.
type signer struct {
	t        *testing.T
	evidence secureboot.Evidence
	key      crypto.Signer
}

func newSigner(t *testing.T, state string) *signer {
	boot, err := os.ReadFile(filepath.Join("..", "..", "internal", "city", "testdata", "good.log"))
	require.NoError(t, err)
	log, err := eventlog.Parse(boot, nil)
	require.NoError(t, err)
	values, err := log.Replay(crypto.SHA256)
	require.NoError(t, err)
	key, err := loadKey(filepath.Join(state, "policy.key"))
	require.NoError(t, err)
	return &signer{t, secureboot.Evidence{Bank: crypto.SHA256, PCRs: values, EventLog: boot}, key}
}

func (s *signer) sign(name string, serial uint64, notAfter time.Time, key crypto.Signer) []byte {
	p, err := secureboot.Learn(secureboot.LearnOptions{Name: name, Serial: serial, NotAfter: notAfter}, s.evidence)
	require.NoError(s.t, err)
	signed, err := secureboot.SignPolicy(p, key)
	require.NoError(s.t, err)
	return signed
}

func (s *signer) good(serial uint64) []byte {
	return s.sign("streetlight", serial, time.Now().Add(time.Hour), s.key)
}

func openReferences(t *testing.T, state string, store *tenantstore.Store, log *bytes.Buffer) *references {
	key, err := loadPublic(filepath.Join(state, "policy.pub"))
	require.NoError(t, err)
	return &references{key: key, dir: filepath.Join(state, "reference"), tuf: os.DirFS(filepath.Join(state, "tuf")),
		floors: &floors{store.System().Collection(ownerCollection)}, log: slog.New(slog.NewTextHandler(log, nil)), told: map[string]string{}}
}

// serials looks at the sources now.
func serials(t *testing.T, r *references) (out []uint64) {
	t.Helper()
	r.expire()
	all, err := r.current(t.Context())
	require.NoError(t, err)
	for _, p := range all {
		out = append(out, p.Serial)
	}
	return out
}

func TestBadReferenceFileShutsNobodyElseOut(t *testing.T) {
	state := initialised(t)
	s := newSigner(t, state)
	stranger, err := newAuthority("evil.example")
	require.NoError(t, err)
	put := func(name string, data []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(state, "reference", name), data, 0o600))
	}
	put("good", s.sign("good", 1, time.Now().Add(time.Hour), s.key))
	put("ran-out", s.sign("ran-out", 1, time.Now().Add(-time.Hour), s.key))
	put("forged", s.sign("forged", 1, time.Now().Add(time.Hour), stranger.key))
	put("empty", nil)
	var log bytes.Buffer
	r := openReferences(t, state, testStore(t), &log)
	for range 3 {
		assert.Equal(t, []uint64{1}, serials(t, r))
	}
	assert.Equal(t, 3, bytes.Count(log.Bytes(), []byte("reference.refused")), "each is complained of once, not every second")
	put("empty", s.sign("second", 4, time.Now().Add(time.Hour), s.key))
	assert.Equal(t, []uint64{4, 1}, serials(t, r), "a file that was made good")
}

// TestReleaseBringsItsReferenceValues: publishing is enough, for a repository
// that nobody here has verified; the policy proves itself.
func TestReleaseBringsItsReferenceValues(t *testing.T) {
	state := initialised(t)
	s := newSigner(t, state)
	var log bytes.Buffer
	r := openReferences(t, state, testStore(t), &log)
	assert.Empty(t, serials(t, r))
	stranger, err := newAuthority("evil.example")
	require.NoError(t, err)
	publish := func(version string, reference []byte) {
		t.Helper()
		var keys []crypto.Signer
		for _, name := range []string{"targets", "snapshot", "timestamp"} {
			key, err := loadKey(filepath.Join(state, "keys", name+".key"))
			require.NoError(t, err)
			keys = append(keys, key)
		}
		repo, err := repository.Open(t.Context(), repository.DirStore(filepath.Join(state, "tuf")), nil)
		require.NoError(t, err)
		require.NoError(t, repo.Edit(t.Context(), func(tx *repository.Tx) error {
			return tx.AddRelease(manifest.Release{Name: version, Version: version, Security: 1, Channel: "stable", Hardware: []string{"h"}},
				repository.Content{Name: wire.PartImage, Reader: bytes.NewReader([]byte("image " + version))},
				repository.Content{Name: wire.PartReference, Reader: bytes.NewReader(reference), Opaque: true})
		}, keys...))
	}
	publish("1.0.0", s.good(1))
	assert.Equal(t, []uint64{1}, serials(t, r))
	publish("1.1.0", s.good(2))
	assert.Equal(t, []uint64{2, 1}, serials(t, r), "releases in the field each have their own")
	publish("6.6.6", s.sign("streetlight", 9, time.Now().Add(time.Hour), stranger.key))
	assert.Equal(t, []uint64{2, 1}, serials(t, r))
	assert.Contains(t, log.String(), "6.6.6")
	publish("1.0.1", s.good(1))
	assert.Equal(t, []uint64{2, 1}, serials(t, r), "an older one that was never in force")
	assert.Contains(t, log.String(), "sign it with a higher one")
}

// TestOldReferenceValuesStayOut: what was older when it came, and what an
// operator ended, does not come back: not with a file that is put back, not with
// a restart, and not at another instance.
func TestOldReferenceValuesStayOut(t *testing.T) {
	state := initialised(t)
	s := newSigner(t, state)
	store := testStore(t)
	first, second, third := s.good(1), s.good(2), s.good(3)
	put := func(name string, data []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(state, "reference", name), data, 0o600))
	}
	put("first", first)
	put("second", second)
	var log bytes.Buffer
	r := openReferences(t, state, store, &log)
	assert.Equal(t, []uint64{2, 1}, serials(t, r), "both came with the first start")
	put("third", third)
	assert.Equal(t, []uint64{3, 2, 1}, serials(t, r))
	put("older", s.sign("streetlight", 2, time.Now().Add(2*time.Hour), s.key))
	assert.Equal(t, []uint64{3, 2, 1}, serials(t, r))
	assert.Contains(t, log.String(), "was not in force here before")

	require.ErrorIs(t, r.floors.raise(t.Context(), "streetlight", 4), tenantstore.ErrInvalid, "it would refuse every node")
	require.ErrorIs(t, r.floors.raise(t.Context(), "no such", 1), tenantstore.ErrInvalid)
	require.NoError(t, r.floors.raise(t.Context(), "streetlight", 3))
	require.ErrorIs(t, r.floors.raise(t.Context(), "streetlight", 2), tenantstore.ErrInvalid, "it only rises")
	assert.Equal(t, []uint64{3}, serials(t, r))
	again := openReferences(t, state, store, &log) // a restart, or another instance
	assert.Equal(t, []uint64{3}, serials(t, again))
	for _, name := range []string{"first", "second", "third", "older"} {
		require.NoError(t, os.Remove(filepath.Join(state, "reference", name)))
	}
	assert.Empty(t, serials(t, again))
	put("first", first)
	assert.Empty(t, serials(t, again))
	put("third", third)
	assert.Equal(t, []uint64{3}, serials(t, again), "that one was not ended")
}
