package main

import (
	"bytes"
	"crypto"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid/revocation"
)

// signedLists returns lists of one owner, by `cloud modules`, and his key.
func signedLists(t *testing.T, sequences ...string) (out [][]byte, owner crypto.PublicKey) {
	t.Helper()
	dir := t.TempDir()
	s := &newState{dir: dir}
	key := s.key("owner")
	require.NoError(t, s.err)
	for _, n := range sequences {
		var b bytes.Buffer
		require.NoError(t, command(t.Context(), []string{"modules", "-state", dir, "-sequence", n, "-revoke", strings.Repeat("ab", 32)}, &b))
		out = append(out, b.Bytes())
	}
	return out, key.Public()
}

func TestModuleListNeverGoesBack(t *testing.T) {
	lists, owner := signedLists(t, "1", "2", "3")
	foreign, other := signedLists(t, "9")
	store := testStore(t)
	log := slog.New(slog.DiscardHandler)
	file := filepath.Join(t.TempDir(), "module-revocations")
	require.NoError(t, os.WriteFile(file, lists[0], 0o600))
	open := func() *moduleList {
		l, err := openModuleList(t.Context(), store.System(), owner, file, log)
		require.NoError(t, err)
		return l
	}
	a, b := open(), open() // two instances
	require.NoError(t, a.update(t.Context(), lists[1]))
	require.NoError(t, a.update(t.Context(), lists[1]), "the same again")
	require.ErrorIs(t, b.update(t.Context(), lists[0]), revocation.ErrRollback, "the other instance looks first")
	assert.EqualValues(t, 2, b.inForce.Sequence())
	require.NoError(t, b.update(t.Context(), lists[2]))
	require.ErrorIs(t, a.update(t.Context(), lists[1]), revocation.ErrRollback)
	require.NoError(t, a.load(t.Context()))
	assert.EqualValues(t, 3, a.inForce.Sequence())
	require.ErrorContains(t, a.update(t.Context(), foreign[0]), "no signature of a known key")
	require.Error(t, a.update(t.Context(), []byte("{")))

	// A restart beside an old file, or without one, keeps the newest.
	assert.EqualValues(t, 3, open().inForce.Sequence())
	require.NoError(t, os.Remove(file))
	assert.EqualValues(t, 3, open().inForce.Sequence())
	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	_, err := openModuleList(t.Context(), store.System(), owner, file, log)
	require.ErrorContains(t, err, file, "a damaged file is named")
	// Another owner's key: his list replaces what the old one signed.
	require.NoError(t, os.WriteFile(file, foreign[0], 0o600))
	l, err := openModuleList(t.Context(), store.System(), other, file, log)
	require.NoError(t, err)
	assert.EqualValues(t, 9, l.inForce.Sequence())
	// No list at all refuses to start.
	_, err = openModuleList(t.Context(), testStore(t).System(), owner, filepath.Join(t.TempDir(), "absent"), log)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestModuleListIsServedOnce(t *testing.T) {
	lists, owner := signedLists(t, "7")
	file := filepath.Join(t.TempDir(), "module-revocations")
	require.NoError(t, os.WriteFile(file, lists[0], 0o600))
	l, err := openModuleList(t.Context(), testStore(t).System(), owner, file, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	for tag, want := range map[string]int{"": http.StatusOK, `"6"`: http.StatusOK, `"7"`: http.StatusNotModified} {
		r := httptest.NewRequest(http.MethodGet, wire.PathModuleList, nil)
		r.Header.Set("If-None-Match", tag)
		w := httptest.NewRecorder()
		l.ServeHTTP(w, r)
		assert.Equal(t, want, w.Code, tag)
		if want == http.StatusOK {
			assert.Equal(t, lists[0], w.Body.Bytes())
		}
	}
}

func TestModulesCommandRefusesWhatIsNoID(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{"-sequence", "0"}, {"-sequence", "1", "-revoke", "abc"}, {"-sequence", "x"}} {
		err := command(t.Context(), append([]string{"modules", "-state", dir}, args...), &bytes.Buffer{})
		assert.Equal(t, wire.ExitUsage, wire.Report(&bytes.Buffer{}, "cloud", err), args)
	}
	err := command(t.Context(), []string{"modules", "-state", dir, "-sequence", "1"}, &bytes.Buffer{})
	require.ErrorContains(t, err, "-key says where it is")
}

func TestAssignRefusesWhatWouldShutAllOut(t *testing.T) {
	state := initialised(t)
	file := filepath.Join(t.TempDir(), "assignments.json")
	sign := func(text string) (string, error) {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		var out bytes.Buffer
		err := command(t.Context(), []string{"assign", "-state", state, "-in", file}, &out)
		return out.String(), err
	}
	_, err := sign(`{"version":1,"store":"s","serial":2,"expires":"2001-01-01T00:00:00Z","grants":[]}`)
	require.ErrorContains(t, err, "all would be denied")
	_, err = sign(`{"version":1,"store":"s","serial":2,"expires":"2101-01-01T00:00:00Z","grant":[]}`)
	require.ErrorContains(t, err, "unknown field")
	signed, err := sign(`{"version":1,"store":"s","serial":2,"expires":"2101-01-01T00:00:00Z","grants":[{"subject":"spiffe://city.example/operator","roles":["control"]}]}`)
	require.NoError(t, err)
	assert.NotEmpty(t, signed)
	require.NoError(t, os.Remove(filepath.Join(state, "owner.key")))
	_, err = sign(`{"version":1,"store":"s","serial":2,"expires":"2101-01-01T00:00:00Z","grants":[]}`)
	require.ErrorContains(t, err, "-key says where it is")
}
