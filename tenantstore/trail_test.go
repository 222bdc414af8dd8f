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
		"last event left out":  join(lines[:len(lines)-1]...),
		"no event":             lines[0],
		"older version":        bytes.Replace(x, []byte(`{"version":2`), []byte(`{"version":1`), 1), // without its signature's meaning
		"unknown version":      bytes.Replace(x, []byte(`{"version":2`), []byte(`{"version":3`), 1),
		"unknown field":        bytes.Replace(x, []byte(`{"version":2`), []byte(`{"extra":1,"version":2`), 1),
		"number changed":       bytes.Replace(x, []byte(`"events":`), []byte(`"events":1`), 1),
		"twice":                join(x, x),
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

// TestMergedTrailOfSeveralLogs has two stores stand for two processes of one:
// their exports, one behind the other, are one trail; a log that is left out is
// named, and a tenant's parts can't be mixed with another's.
func TestMergedTrailNamesMissingLogs(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.edit = func(c *tenantstore.Config) { c.Instance = "one" }
	s := w.open()
	a := w.tenant(s, "acme")
	_, err := a.Collection("c").Put(ctx, []byte("k"), nil)
	require.NoError(t, err)
	var first, second, alien bytes.Buffer
	require.NoError(t, s.Close(ctx))
	s = w.open()
	key1 := s.AuditKey()
	require.NoError(t, w.handle(s, "acme").ExportAudit(ctx, &first))
	require.NoError(t, s.Close(ctx))

	// The second process has the same system instance, and an audit directory of
	// its own.
	require.NoError(t, os.Rename(filepath.Join(w.dir, "store", "audit"), filepath.Join(w.dir, "audit-one")))
	w.edit = func(c *tenantstore.Config) { c.Instance = "two" }
	s = w.open()
	require.NoError(t, func() error {
		_, err := w.handle(s, "acme").Collection("c").Get(ctx, []byte("k"))
		return err
	}())
	b := w.tenant(s, "beta")
	require.NoError(t, w.handle(s, "acme").ExportAudit(ctx, &second))
	require.NoError(t, b.ExportAudit(ctx, &alien))
	all, err := s.AuditKeys(ctx)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{key1, s.AuditKey()}, all)

	both := bytes.Join([][]byte{second.Bytes(), first.Bytes()}, nil)
	trail, err := tenantstore.VerifyAuditTrail(bytes.NewReader(both), all...)
	require.NoError(t, err)
	require.Len(t, trail.Logs, 2)
	require.Empty(t, trail.Missing)
	require.Len(t, trail.Events, trail.Logs[0].Events+trail.Logs[1].Events)
	for i, e := range trail.Events[1:] {
		require.False(t, e.Time.Before(trail.Events[i].Time), "merged by time")
	}
	assert.Equal(t, "trusttree/audit/one", trail.Events[0].Log)
	assert.Equal(t, "trusttree/audit/two", trail.Events[len(trail.Events)-1].Log)

	part, err := tenantstore.VerifyAuditTrail(bytes.NewReader(second.Bytes()), all...)
	require.NoError(t, err)
	require.Equal(t, []string{"trusttree/audit/one"}, part.Missing, "a log that is left out is named")
	_, err = tenantstore.VerifyAuditTrail(bytes.NewReader(both), s.AuditKey())
	require.ErrorIs(t, err, tenantstore.ErrTampered, "each log wants its key")
	for name, x := range map[string][]byte{
		"a log twice": append(bytes.Clone(both), first.Bytes()...),
		"two tenants": append(bytes.Clone(first.Bytes()), alien.Bytes()...),
	} {
		_, err := tenantstore.VerifyAuditTrail(bytes.NewReader(x), all...)
		require.ErrorIs(t, err, tenantstore.ErrInvalid, name)
	}
}
