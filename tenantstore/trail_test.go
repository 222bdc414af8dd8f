package tenantstore_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
)

func exported(t *testing.T, w *world, s *tenantstore.Store) []byte {
	t.Helper()
	ctx := t.Context()
	a, b := w.tenant(s, "acme"), w.tenant(s, "beta")
	for range 5 {
		_, err := a.Collection("readings").Put(ctx, []byte("k"), []byte("v"))
		require.NoError(t, err)
		_, err = b.Collection("beta-only").Put(ctx, []byte("k"), []byte("v"))
		require.NoError(t, err)
	}
	require.NoError(t, s.RotateKey(ctx, w.operator(s), "acme"))
	var out bytes.Buffer
	require.NoError(t, a.ExportAudit(ctx, &out))
	return out.Bytes()
}

func TestAuditTrailVerifiesOffline(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	x := exported(t, w, s)
	trail, err := tenantstore.VerifyAuditTrail(bytes.NewReader(x), s.AuditKey())
	require.NoError(t, err)
	require.EqualValues(t, "acme", trail.Tenant)
	var puts int64
	var actions []string
	for _, e := range trail.Events {
		actions = append(actions, e.Action)
		if e.Action == "put" && e.Collection == "readings" {
			puts += e.Count
			assert.Equal(t, "service-acme", e.Subject)
		}
	}
	assert.EqualValues(t, 5, puts)
	assert.Equal(t, "create", actions[0])
	assert.Contains(t, actions, "rotate")
	assert.NotContains(t, string(x), "beta")
	require.NoError(t, s.Close(t.Context()))
	_ = w.open() // the log verifies itself when it is opened again
}

func TestForgedAuditTrailIsRefused(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	x := exported(t, w, s)
	other := newWorld(t).open()
	lines := bytes.SplitAfter(bytes.TrimSpace(x), []byte("\n"))
	require.Greater(t, len(lines), 3)
	join := func(l ...[]byte) []byte { return bytes.Join(l, nil) }
	for name, forged := range map[string][]byte{
		"empty":                nil,
		"event changed":        bytes.Replace(x, []byte("service-acme"), []byte("service-evil"), 1),
		"leaf changed":         bytes.Replace(x, []byte(`"n":2`), []byte(`"n":3`), 1),
		"first event left out": join(append([][]byte{lines[0]}, lines[2:]...)...),
		"event left out":       join(append([][]byte{lines[0], lines[1]}, lines[3:]...)...),
		"event twice":          join(append([][]byte{lines[0], lines[1], lines[1]}, lines[2:]...)...),
		"unknown version":      bytes.Replace(x, []byte(`{"version":1`), []byte(`{"version":2`), 1),
		"unknown field":        bytes.Replace(x, []byte(`{"version":1`), []byte(`{"extra":1,"version":1`), 1),
	} {
		_, err := tenantstore.VerifyAuditTrail(bytes.NewReader(forged), s.AuditKey())
		require.Error(t, err, name)
	}
	_, err := tenantstore.VerifyAuditTrail(bytes.NewReader(x), other.AuditKey())
	require.ErrorIs(t, err, tenantstore.ErrTampered, "another store's key")
}

func TestAuditLogThatWasCutOrChangedIsDetected(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"tail cut":      func(b []byte) []byte { return b[:len(b)/2] },
		"emptied":       func([]byte) []byte { return nil },
		"entry changed": func(b []byte) []byte { b[40] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.open()
			w.tenant(s, "acme")
			require.NoError(t, s.Close(t.Context()))
			file := filepath.Join(w.dir, "store", "audit", "entries")
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(file, damage(b), 0o600))
			_, err = tenantstore.Open(t.Context(), w.config())
			require.ErrorIs(t, err, tenantstore.ErrTampered)
		})
	}
}

func TestNothingIsDoneWhenTheAuditLogCantBeWritten(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	c := w.tenant(s, "acme").Collection("c")
	op := w.operator(s)
	breakAudit(t, filepath.Join(w.dir, "store", "audit"))
	_, err := s.Create(ctx, op, tenantstore.Spec{ID: "beta"})
	require.ErrorIs(t, err, tenantstore.ErrAudit)
	require.ErrorIs(t, s.Suspend(ctx, op, "acme"), tenantstore.ErrAudit)
	_, err = s.Authenticate(ctx, w.cert("nobody"), "")
	require.ErrorIs(t, err, tenantstore.ErrDenied)
	require.ErrorIs(t, err, tenantstore.ErrAudit)
	list, err := s.Tenants(ctx, op)
	require.NoError(t, err)
	require.Len(t, list, 1)
	assert.Equal(t, "active", list[0].State)
	_, err = c.Put(ctx, []byte("k"), nil)
	require.ErrorIs(t, err, tenantstore.ErrAudit, "accesses could not be written: the data plane is closed too")
	assert.True(t, strings.Contains(w.log.String(), "tenantstore.audit_failed"))
}
