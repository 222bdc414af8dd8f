package tenantstore_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore"
)

func backedUp(t *testing.T) (w *world, s *tenantstore.Store, id *age.HybridIdentity, file []byte) {
	w = newWorld(t)
	s = w.open()
	a := w.tenant(s, "acme")
	for i := range 1200 {
		require.NoError(t, a.Collection("c").Append(t.Context(), "s", time.Unix(int64(i), 0), []byte("CANARY")))
		if i > 50 {
			continue
		}
		_, err := a.Collection("c").Put(t.Context(), fmt.Appendf(nil, "k%02d", i), []byte("CANARY"))
		require.NoError(t, err)
	}
	id, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	var out bytes.Buffer
	m, err := a.Backup(t.Context(), &out, id.Recipient())
	require.NoError(t, err)
	assert.EqualValues(t, 1251, m.Records)
	assert.NotContains(t, out.String(), "CANARY")
	return w, s, id, out.Bytes()
}

func points(t *testing.T, a *tenantstore.Tenant) (n int) {
	for p, err := range a.Collection("c").Series(t.Context(), "s", time.Time{}, time.Time{}) {
		require.NoError(t, err)
		require.Equal(t, "CANARY", string(p.Value))
		n++
	}
	return n
}

func TestBackupComesBack(t *testing.T) {
	w, s, id, file := backedUp(t)
	ctx := t.Context()
	a := w.handle(s, "acme")
	_, err := a.Collection("c").Put(ctx, []byte("after"), nil)
	require.NoError(t, err)
	m, err := s.Restore(ctx, w.operator(s), bytes.NewReader(file), "", id)
	require.NoError(t, err)
	assert.Equal(t, a.UID(), m.UID)
	assert.Equal(t, 1200, points(t, a))
	_, err = a.Collection("c").Get(ctx, []byte("after"))
	require.ErrorIs(t, err, tenantstore.ErrNotFound)

	// The store is lost; its successor takes the backup by the old audit key.
	next := newWorld(t)
	s2 := next.open()
	op := next.operator(s2)
	_, err = s2.Restore(ctx, op, bytes.NewReader(file), "", id)
	require.ErrorIs(t, err, tenantstore.ErrTampered, "signed by another store")
	list, err := s2.Tenants(ctx, op)
	require.NoError(t, err)
	require.Empty(t, list, "nothing is left of a refused restore")
	_, err = s2.Restore(ctx, op, bytes.NewReader(file), s.AuditKey(), id)
	require.NoError(t, err)
	next.grant(s2, tenantstore.Grant{Subject: "service-acme", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleRead}})
	assert.Equal(t, 1200, points(t, next.handle(s2, "acme")))
}

func TestAgeToolReadsABackup(t *testing.T) {
	tool := testenv.Tool(t, "age", "age")
	w := newWorld(t)
	s := w.open()
	a := w.tenant(s, "acme")
	_, err := a.Collection("c").Put(t.Context(), []byte("k"), []byte("hello"))
	require.NoError(t, err)
	id, err := age.GenerateX25519Identity() // what Debian's age knows
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "id"), []byte(id.String()+"\n"), 0o600))
	f, err := os.Create(filepath.Join(dir, "backup.age"))
	require.NoError(t, err)
	_, err = a.Backup(t.Context(), f, id.Recipient())
	require.NoError(t, err)
	require.NoError(t, f.Close())
	out, err := exec.Command(tool, "-d", "-i", filepath.Join(dir, "id"), f.Name()).Output()
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Len(t, lines, 3)
	assert.Contains(t, lines[0], `"tenant":"acme"`)
	assert.Contains(t, lines[1], `"v":"aGVsbG8="`)
}

func TestRestoreRefuses(t *testing.T) {
	w, s, id, file := backedUp(t)
	ctx := t.Context()
	op := w.operator(s)
	a := w.handle(s, "acme")
	rewrite := func(edit func(string) string) []byte {
		r, err := age.Decrypt(bytes.NewReader(file), id)
		require.NoError(t, err)
		plain, err := io.ReadAll(r)
		require.NoError(t, err)
		var out bytes.Buffer
		enc, err := age.Encrypt(&out, id.Recipient())
		require.NoError(t, err)
		_, err = io.WriteString(enc, edit(string(plain)))
		require.NoError(t, err)
		require.NoError(t, enc.Close())
		return out.Bytes()
	}
	other, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	_, err = s.Restore(ctx, op, bytes.NewReader(file), "", other)
	require.ErrorIs(t, err, tenantstore.ErrInvalid, "another identity")
	_, err = s.Restore(ctx, w.principal(s, "service-acme", ""), bytes.NewReader(file), "", id)
	require.ErrorIs(t, err, tenantstore.ErrDenied)
	for name, bad := range map[string][]byte{
		"value changed": rewrite(func(p string) string { return strings.Replace(p, "Q0FOQVJZ", "Q0FOQVJa", 1) }),
		"record left out": rewrite(func(p string) string {
			l := strings.SplitAfter(p, "\n")
			return strings.Join(append(l[:1], l[2:]...), "")
		}),
		"record added": rewrite(func(p string) string { l := strings.SplitAfter(p, "\n"); return l[0] + l[1] + strings.Join(l[1:], "") }),
		"manifest left out": rewrite(func(p string) string {
			l := strings.SplitAfter(strings.TrimSpace(p), "\n")
			return strings.Join(l[:len(l)-1], "")
		}),
		"trailing data":  rewrite(func(p string) string { return p + "{}\n" }),
		"region changed": rewrite(func(p string) string { return strings.Replace(p, `"region":"local"`, `"region":"elsewhere"`, 1) }),
		"tenant changed": rewrite(func(p string) string { return strings.Replace(p, `"tenant":"acme"`, `"tenant":"evil"`, 1) }),
		"uid changed":    rewrite(func(p string) string { return strings.Replace(p, a.UID().String(), strings.Repeat("0", 32), 1) }),
		"cut":            file[:len(file)-100],
		"version":        rewrite(func(p string) string { return strings.Replace(p, `"version":1`, `"version":3`, 1) }),
	} {
		_, err := s.Restore(ctx, op, bytes.NewReader(bad), "", id)
		require.Error(t, err, name)
		require.Equal(t, 1200, points(t, a), name)
		list, err := s.Tenants(ctx, op)
		require.NoError(t, err)
		require.Len(t, list, 1, name)
	}
	w.edit = func(c *tenantstore.Config) { c.Region = "elsewhere" }
	require.NoError(t, s.Close(context.Background()))
	s = w.open()
	_, err = s.Restore(ctx, w.operator(s), bytes.NewReader(file), "", id)
	require.ErrorIs(t, err, tenantstore.ErrRegion)
	_, err = w.handle(s, "acme").Collection("c").Get(ctx, []byte("k00"))
	require.ErrorIs(t, err, tenantstore.ErrRegion, "a tenant is pinned to its region")
}

func TestRestoreRespectsTombstones(t *testing.T) {
	w, s, id, file := backedUp(t)
	op := w.operator(s)
	_, err := s.Destroy(t.Context(), op, "acme")
	require.NoError(t, err)
	_, err = s.Restore(t.Context(), op, bytes.NewReader(file), "", id)
	require.ErrorIs(t, err, tenantstore.ErrExists)
}
