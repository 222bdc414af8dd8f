package repository_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update/repository"
)

// meanwhile does something else once it is read.
type meanwhile struct {
	r  io.Reader
	do func()
}

func (m *meanwhile) Read(p []byte) (int, error) {
	if do := m.do; do != nil {
		m.do = nil
		do()
	}
	return m.r.Read(p)
}

// Of two that put a file of the same name at the same time, one does.
func TestStoreReplacesNoNameThatAppearsMeanwhile(t *testing.T) {
	dir := t.TempDir()
	s := repository.DirStore(dir)
	slow := &meanwhile{strings.NewReader("second"), func() {
		require.NoError(t, s.Put(t.Context(), "metadata/2.targets.json", strings.NewReader("first"), false))
	}}
	require.ErrorIs(t, s.Put(t.Context(), "metadata/2.targets.json", slow, false), os.ErrExist)
	got, err := os.ReadFile(filepath.Join(dir, "metadata", "2.targets.json"))
	require.NoError(t, err)
	assert.Equal(t, "first", string(got))
	left, err := os.ReadDir(filepath.Join(dir, "metadata"))
	require.NoError(t, err)
	assert.Len(t, left, 1)
}

// hookStore lets another edit happen while one is being written.
type hookStore struct {
	repository.Store
	at string
	do func() error
}

func (s *hookStore) Put(ctx context.Context, name string, r io.Reader, replace bool) error {
	err := s.Store.Put(ctx, name, r, replace)
	if do := s.do; err == nil && do != nil && strings.HasSuffix(name, s.at) {
		s.do = nil
		return do()
	}
	return err
}

// An edit that another one overtakes while it is being written does not undo
// it, whatever the store is.
func TestEditThatIsOvertakenConflicts(t *testing.T) {
	for _, at := range []string{"targets.json", "snapshot.json"} {
		o := newOffice(t, 0)
		other := o.open(t)
		s := &hookStore{Store: o.store, at: at, do: func() error { return other.Edit(t.Context(), add("b", "1"), o.targets, o.online) }}
		r, err := repository.Open(t.Context(), s, nil)
		require.NoError(t, err)
		require.ErrorIs(t, r.Edit(t.Context(), add("a", "1"), o.targets, o.online), repository.ErrConflict, at)
		after := o.open(t)
		require.NoError(t, after.Edit(t.Context(), func(tx *repository.Tx) error { return tx.RemoveTarget("b") }, o.targets, o.online), "the faster edit stands")
	}
}

// Two processes that edit one directory at the same time are kept apart.
func TestEditsOfOneDirectoryAtOnce(t *testing.T) {
	o := newOffice(t, 0)
	var repos []*repository.Repository
	for range 8 {
		repos = append(repos, o.open(t))
	}
	done := make(chan error)
	for i, r := range repos {
		go func() {
			done <- r.Edit(t.Context(), add(string(rune('a'+i)), "1"), o.targets, o.online)
		}()
	}
	won := 0
	for range repos {
		err := <-done
		if err == nil {
			won++
		} else {
			assert.True(t, errors.Is(err, repository.ErrConflict), err)
		}
	}
	assert.Equal(t, 1, won)
	o.open(t)
}
