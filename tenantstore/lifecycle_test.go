package tenantstore_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
)

func TestTenantIDsThatArePathsAreRefused(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	op := w.operator(s)
	for _, id := range []string{"", ".", "..", "../x", "a/b", `a\b`, "a\x00b", "A", "ä", "аcme" /* Cyrillic a */, "-a", "a-", "a.b", "a b",
		strings.Repeat("a", 64), strings.Repeat("a", 151), "a\n", "%2e%2e"} {
		_, err := tenantstore.ParseID(id)
		require.ErrorIs(t, err, tenantstore.ErrInvalid, "%q", id)
		_, err = s.Create(ctx, op, tenantstore.Spec{ID: tenantstore.ID(id)})
		require.ErrorIs(t, err, tenantstore.ErrInvalid, "%q", id)
	}
	for _, id := range []string{"a", "0", "a-b", strings.Repeat("a", 63)} {
		_, err := tenantstore.ParseID(id)
		require.NoError(t, err)
	}
	entries, err := os.ReadDir(filepath.Join(w.dir, "store", "instances"))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "the system instance alone")
}

func TestSuspendedTenantIsClosedAtOnce(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	c := w.tenant(s, "acme").Collection("c")
	_, err := c.Put(ctx, []byte("k"), []byte("v"))
	require.NoError(t, err)
	op := w.operator(s)
	require.NoError(t, s.Suspend(ctx, op, "acme"))
	_, err = c.Get(ctx, []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrTenantClosed)
	_, err = s.Tenant(ctx, w.principal(s, "service-acme", ""))
	require.ErrorIs(t, err, tenantstore.ErrTenantClosed)
	require.NoError(t, s.Close(ctx))
	s = w.open()
	_, err = s.Tenant(ctx, w.principal(s, "service-acme", ""))
	require.ErrorIs(t, err, tenantstore.ErrTenantClosed, "after a restart")
	require.NoError(t, s.Resume(ctx, w.operator(s), "acme"))
	r, err := w.handle(s, "acme").Collection("c").Get(ctx, []byte("k"))
	require.NoError(t, err)
	assert.Equal(t, "v", string(r.Value))
}

func TestDestroyedTenantIsGoneForGood(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	a := w.tenant(s, "acme")
	c := a.Collection("c")
	_, err := c.Put(ctx, []byte("k"), []byte("v"))
	require.NoError(t, err)
	op := w.operator(s)
	r, err := s.Destroy(ctx, op, "acme")
	require.NoError(t, err)
	_, err = c.Get(ctx, []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrTenantClosed)

	got, err := tenantstore.VerifyReceipt(r.Signed, s.AuditKey())
	require.NoError(t, err)
	assert.Equal(t, a.UID(), got.UID)
	assert.Equal(t, "destroy", got.Action)
	forged := []byte(strings.Replace(string(r.Signed), `"acme"`, `"beta"`, 1))
	_, err = tenantstore.VerifyReceipt(forged, s.AuditKey())
	require.ErrorIs(t, err, tenantstore.ErrTampered)
	cp, err := s.Checkpoint(ctx)
	require.NoError(t, err)
	_, err = tenantstore.VerifyReceipt(cp, s.AuditKey())
	require.Error(t, err, "a checkpoint is no receipt")

	_, err = s.Create(ctx, op, tenantstore.Spec{ID: "acme"})
	require.ErrorIs(t, err, tenantstore.ErrExists, "old assignments name the ID")
	_, err = w.keys.Unwrap(ctx, got.KeyIDs[0], nil, tenantstore.KeyContext{})
	require.ErrorIs(t, err, tenantstore.ErrKeyDestroyed)
	require.NoError(t, filepath.WalkDir(filepath.Join(w.dir, "store"), func(p string, _ os.DirEntry, err error) error {
		assert.NotContains(t, p, a.UID().String())
		return err
	}))
	list, err := s.Tenants(ctx, op)
	require.NoError(t, err)
	require.Len(t, list, 1)
	assert.Equal(t, "destroyed", list[0].State)
}

func TestHoldAndRetentionForbidToDestroy(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	op := w.operator(s)
	_, err := s.Create(ctx, op, tenantstore.Spec{ID: "acme", Retain: time.Now().Add(time.Hour)})
	require.NoError(t, err)
	_, err = s.Destroy(ctx, op, "acme")
	require.ErrorIs(t, err, tenantstore.ErrHeld)
	require.NoError(t, s.Hold(ctx, op, "acme"))
	w.clock = func() time.Time { return time.Now().Add(2 * time.Hour) }
	_, err = s.Destroy(ctx, op, "acme")
	require.ErrorIs(t, err, tenantstore.ErrHeld)
	require.NoError(t, s.Release(ctx, op, "acme"))
	_, err = s.Destroy(ctx, op, "acme")
	require.NoError(t, err)
}

func TestRotateAndRewrapKeepTheData(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	a := w.tenant(s, "acme")
	c := a.Collection("c")
	v1, err := c.Put(ctx, []byte("k"), []byte("v"))
	require.NoError(t, err)
	op := w.operator(s)
	before, err := s.Tenants(ctx, op)
	require.NoError(t, err)
	for _, change := range []func(context.Context, tenantstore.Principal, tenantstore.ID) error{s.RewrapKey, s.RotateKey, s.RotateKey, s.RewrapKey} {
		require.NoError(t, change(ctx, op, "acme"))
		r, err := c.Get(ctx, []byte("k"))
		require.NoError(t, err)
		assert.Equal(t, "v", string(r.Value))
		assert.Equal(t, v1, r.Version)
	}
	after, err := s.Tenants(ctx, op)
	require.NoError(t, err)
	assert.EqualValues(t, 3, after[0].Generation)
	_, err = w.keys.Wrap(ctx, before[0].KeyID, nil, tenantstore.KeyContext{})
	require.ErrorIs(t, err, tenantstore.ErrKeyDestroyed)
	require.NoError(t, s.Close(ctx))
	s = w.open()
	_, err = w.handle(s, "acme").Collection("c").Get(ctx, []byte("k"))
	require.NoError(t, err)
}

func TestKeyRevokedAtTheProviderStopsWithinTheTTL(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	now := time.Now()
	w.clock = func() time.Time { return now }
	s := w.open()
	c := w.tenant(s, "acme").Collection("c")
	_, err := c.Put(ctx, []byte("k"), nil)
	require.NoError(t, err)
	list, err := s.Tenants(ctx, w.operator(s))
	require.NoError(t, err)
	require.NoError(t, w.keys.Destroy(ctx, list[0].KeyID))
	now = now.Add(61 * time.Second)
	_, err = c.Get(ctx, []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrKeyDestroyed)
	require.NotErrorIs(t, err, tenantstore.ErrKeyUnavailable)
}

func TestSecondProcessIsRefused(t *testing.T) {
	w := newWorld(t)
	w.open()
	_, err := tenantstore.Open(t.Context(), w.config())
	require.ErrorIs(t, err, tenantstore.ErrBusy)
}

func TestGraceBeforeDestroy(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	now := time.Now()
	w.clock = func() time.Time { return now }
	s := w.open()
	op := w.operator(s)
	_, err := s.Create(ctx, op, tenantstore.Spec{ID: "acme", Grace: time.Hour})
	require.NoError(t, err)
	w.grant(s, tenantstore.Grant{Subject: "service-acme", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite}})
	c := w.handle(s, "acme").Collection("c")
	_, err = c.Put(ctx, []byte("k"), []byte("v"))
	require.NoError(t, err)
	schedule := func() {
		_, err := s.Destroy(ctx, op, "acme")
		require.ErrorIs(t, err, tenantstore.ErrHeld)
		_, err = c.Get(ctx, []byte("k"))
		require.ErrorIs(t, err, tenantstore.ErrTenantClosed, "closed from the first moment")
	}
	schedule()
	require.NoError(t, s.Resume(ctx, op, "acme"))
	_, err = c.Get(ctx, []byte("k"))
	require.NoError(t, err, "taken back")
	now = now.Add(2 * time.Hour)
	schedule() // the time runs anew
	require.NoError(t, s.Close(ctx))
	s = w.open()
	op = w.operator(s)
	list, err := s.Tenants(ctx, op)
	require.NoError(t, err)
	require.Equal(t, "suspended", list[0].State)
	require.WithinDuration(t, now.Add(time.Hour), list[0].Due, time.Second)
	_, err = s.Destroy(ctx, op, "acme")
	require.ErrorIs(t, err, tenantstore.ErrHeld)
	now = now.Add(61 * time.Minute)
	_, err = s.Destroy(ctx, op, "acme")
	require.NoError(t, err)
}
