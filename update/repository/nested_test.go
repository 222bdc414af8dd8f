package repository_test

import (
	"bytes"
	"crypto"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/repository"
)

func TestNestedDelegations(t *testing.T) {
	o := newOffice(t, 0)
	maker, camera := key(t), key(t)
	content := func(s string) repository.Content { return repository.Content{Reader: strings.NewReader(s)} }
	delegate := func(d repository.Delegation) func(*repository.Tx) error {
		return func(tx *repository.Tx) error { return tx.Delegate(d) }
	}
	require.NoError(t, o.repo.Edit(t.Context(), func(tx *repository.Tx) error {
		if err := tx.Delegate(repository.Delegation{Name: "maker", Role: role(1, maker), Paths: []string{"modules/*"}}); err != nil {
			return err
		}
		if err := tx.Delegate(repository.Delegation{From: "maker", Name: "camera", Role: role(1, camera), Paths: []string{"modules/camera*", "elsewhere"}}); err != nil {
			return err
		}
		return tx.AddDelegatedTarget("camera", "modules/camera-1", content("one"))
	}, o.targets, o.online, maker, camera))

	repo := o.open(t)
	assert.ErrorContains(t, repo.Edit(t.Context(), func(tx *repository.Tx) error {
		return tx.AddDelegatedTarget("camera", "elsewhere", content("x"))
	}, o.online, camera), "maker may not list", "a share of a share is no more than the share")
	require.ErrorIs(t, repo.Edit(t.Context(), delegate(repository.Delegation{From: "maker", Name: "radio", Role: role(1, camera), Paths: []string{"*"}}),
		o.targets, o.online, camera), repository.ErrThreshold, "the maker delegates, nobody else")
	assert.ErrorContains(t, repo.Edit(t.Context(), delegate(repository.Delegation{Name: "camera", Role: role(1, camera), Paths: []string{"*"}}),
		o.targets, o.online, camera), "delegated by maker already")
	for _, bad := range []string{"a/b", "..", "?", "ü", "Snapshot"} {
		require.Error(t, repo.Edit(t.Context(), delegate(repository.Delegation{Name: bad, Role: role(1, camera), Paths: []string{"*"}}), o.targets, o.online, camera), bad)
	}

	// The camera's people add a target with their key and the online one.
	repo = o.open(t)
	require.NoError(t, repo.Edit(t.Context(), func(tx *repository.Tx) error {
		return tx.AddDelegatedTarget("camera", "modules/camera-2", content("two"))
	}, o.online, camera))
	// The maker replaces the camera's key in a ceremony: both roles are signed anew.
	newer := key(t)
	repo = o.open(t)
	require.NoError(t, repo.Propose(t.Context(), delegate(repository.Delegation{From: "maker", Name: "camera", Role: role(1, newer), Paths: []string{"modules/camera*"}}), maker))
	repo = o.open(t)
	waiting, err := repo.Draft(t.Context())
	require.NoError(t, err)
	require.Len(t, waiting, 2)
	for _, w := range waiting {
		assert.Equal(t, 1, w.Need, w.Role)
	}
	require.ErrorIs(t, repo.PublishDraft(t.Context(), o.online), repository.ErrThreshold)
	payload, err := repo.Payload(t.Context(), "camera")
	require.NoError(t, err)
	sign := func(k crypto.Signer) error {
		sig, err := k.Sign(nil, payload, crypto.Hash(0))
		require.NoError(t, err)
		return repo.AddSignature(t.Context(), "camera", k.Public(), sig)
	}
	require.Error(t, sign(camera), "the old key signs no more")
	require.NoError(t, sign(newer))
	require.NoError(t, repo.PublishDraft(t.Context(), o.online))
	for name, want := range map[string]string{"modules/camera-1": "one", "modules/camera-2": "two"} {
		got, err := o.look(t, os.DirFS(o.dir), name)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	repo = o.open(t)
	problems, err := repo.Check(t.Context())
	require.NoError(t, err)
	for _, p := range problems {
		assert.False(t, p.Urgent, "%+v", p)
	}
	var stick bytes.Buffer
	require.NoError(t, repo.Export(t.Context(), &stick))
	assert.Contains(t, stick.String(), ".camera.json")

	require.NoError(t, repo.Edit(t.Context(), func(tx *repository.Tx) error { return tx.RevokeDelegation("camera") }, o.online, maker))
	_, err = o.look(t, os.DirFS(o.dir), "modules/camera-1")
	require.ErrorIs(t, err, update.ErrNotInRepository)
}
