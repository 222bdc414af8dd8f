package tenantstore_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/internal/powercut"
	"github.com/trusttree/trusttree/tenantstore/keys"
)

var update = flag.Bool("update", false, "write the golden files")

// formats are the versions that readers accept: each directory of testdata was
// written when that version was the current one, which is the last.
var formats = []string{"v1", "v2", "v3"}

// golden is what testdata/v1 and so on hold: a whole store, an export, a
// backup, a receipt and assignments, made by that version, with the keys to
// open them. The names never change; later readers must still read them.
type golden struct {
	AuditKey string `json:"audit_key"`
	Identity string `json:"identity"`
	Owner    []byte `json:"owner"`
	CA       []byte `json:"ca"`
	CAKey    []byte `json:"ca_key"`
	UID      string `json:"uid"`
}

func TestGoldenFilesStillOpen(t *testing.T) {
	if *update {
		writeGolden(t, filepath.Join("testdata", formats[len(formats)-1]))
	}
	for _, v := range formats {
		t.Run(v, func(t *testing.T) { openGolden(t, v, filepath.Join("testdata", v)) })
	}
}

func openGolden(t *testing.T, format, dir string) {
	var g golden
	b, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &g))

	w := newWorld(t)
	copyTree(t, filepath.Join(dir, "world"), w.dir)
	w.owner = ed25519.PrivateKey(g.Owner)
	w.keys = reopenKeys(t, w)
	power(t, w, "embedded")
	s := w.open()
	require.Equal(t, g.AuditKey, s.AuditKey())
	w.serial = 100
	w.grants = nil
	op := w.operator(s)
	w.grant(s, tenantstore.Grant{Subject: "service-acme", Tenant: "acme", Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleAdmin}})
	a := w.handle(s, "acme")
	assert.Equal(t, g.UID, a.UID().String())
	r, err := a.Collection("c").Get(t.Context(), []byte("k"))
	require.NoError(t, err)
	assert.Equal(t, "v", string(r.Value))
	n := 0
	for _, err := range a.Collection("c").Series(t.Context(), "s", time.Time{}, time.Time{}) {
		require.NoError(t, err)
		n++
	}
	assert.Equal(t, 2, n)

	f, err := os.Open(filepath.Join(dir, "trail.jsonl"))
	require.NoError(t, err)
	defer f.Close()
	trail, err := tenantstore.VerifyAuditTrail(f, g.AuditKey)
	require.NoError(t, err)
	assert.NotEmpty(t, trail.Events)
	receipt, err := os.ReadFile(filepath.Join(dir, "receipt"))
	require.NoError(t, err)
	_, err = tenantstore.VerifyReceipt(receipt, g.AuditKey)
	require.NoError(t, err)
	id, err := age.ParseHybridIdentity(g.Identity)
	require.NoError(t, err)
	backup, err := os.ReadFile(filepath.Join(dir, "backup.age"))
	require.NoError(t, err)
	m, err := s.Restore(t.Context(), op, bytes.NewReader(backup), "", id)
	require.NoError(t, err)
	assert.EqualValues(t, 3, m.Records)
	if format == "v1" {
		return
	}
	list, err := s.Tenants(t.Context(), op)
	require.NoError(t, err)
	if format != "v2" { // a rotation that was cut goes on
		w.grant(s, tenantstore.Grant{Subject: "service-moving", Tenant: "moving", Roles: []tenantstore.Role{tenantstore.RoleRead}})
		require.NoError(t, s.Recover(t.Context(), op))
		assert.EqualValues(t, 2, w.info(s, "moving").Generation)
		for k, v := range map[string]string{"a": "old", "b": "new", "c": "old"} {
			r, err := w.handle(s, "moving").Collection("c").Get(t.Context(), []byte(k))
			require.NoError(t, err)
			assert.Equal(t, v, string(r.Value))
		}
	}
	due := slices.IndexFunc(list, func(i tenantstore.Info) bool { return i.ID == "later" })
	assert.Equal(t, "suspended", list[due].State)
	assert.Equal(t, time.Date(2126, 1, 2, 0, 0, 0, 0, time.UTC), list[due].Due.Truncate(24*time.Hour))
}

func writeGolden(t *testing.T, dir string) {
	ctx := t.Context()
	require.NoError(t, os.RemoveAll(dir))
	w := newWorld(t)
	p := power(t, w, "embedded")
	s := w.open()
	a := w.tenant(s, "acme")
	w.tenant(s, "gone")
	cutRotation(t, w, s, p)
	_, err := a.Collection("c").Put(ctx, []byte("k"), []byte("v"))
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, a.Collection("c").Append(ctx, "s", time.Unix(1, 0), nil))
	}
	r, err := s.Destroy(ctx, w.operator(s), "gone")
	require.NoError(t, err)
	_, err = s.Create(ctx, w.operator(s), tenantstore.Spec{ID: "later", Grace: time.Until(time.Date(2126, 1, 2, 12, 0, 0, 0, time.UTC))})
	require.NoError(t, err)
	_, err = s.Destroy(ctx, w.operator(s), "later")
	require.ErrorIs(t, err, tenantstore.ErrHeld)
	id, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	var trail, backup bytes.Buffer
	_, err = a.Backup(ctx, &backup, id.Recipient())
	require.NoError(t, err)
	require.NoError(t, a.ExportAudit(ctx, &trail))
	g, err := json.MarshalIndent(golden{AuditKey: s.AuditKey(), Identity: id.String(), Owner: w.owner, UID: a.UID().String()}, "", " ")
	require.NoError(t, err)
	require.NoError(t, s.Close(ctx))
	copyTree(t, w.dir, filepath.Join(dir, "world"))
	require.NoError(t, os.Remove(filepath.Join(dir, "world", "store", "lock")))
	for name, b := range map[string][]byte{"golden.json": g, "trail.jsonl": trail.Bytes(), "backup.age": backup.Bytes(), "receipt": r.Signed} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
}

// cutRotation leaves the tenant moving in the middle of a rotation: copied once,
// and one record written since.
func cutRotation(t *testing.T, w *world, s *tenantstore.Store, p *powercut.Power) {
	_, err := s.Create(t.Context(), w.operator(s), tenantstore.Spec{ID: "moving", Region: "eu"})
	require.NoError(t, err)
	w.grant(s, tenantstore.Grant{Subject: "service-moving", Tenant: "moving", Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite}})
	c := w.handle(s, "moving").Collection("c")
	for _, k := range []string{"a", "b", "c"} {
		_, err := c.Put(t.Context(), []byte(k), []byte("old"))
		require.NoError(t, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	gate := p.Hold(2)
	go func() { done <- s.RotateKey(ctx, w.operator(s), "moving") }()
	<-p.Held()
	cancel()
	gate <- nil
	require.ErrorIs(t, <-done, context.Canceled)
	_, err = c.Put(t.Context(), []byte("b"), []byte("new"))
	require.NoError(t, err)
}

func TestUnknownVersionsAreRefused(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.open().Close(t.Context()))
	name := filepath.Join(w.dir, "store", "store.json")
	whole, err := os.ReadFile(name)
	require.NoError(t, err)
	for what, edit := range map[string][2]string{
		"a newer version":  {`"version": 2`, `"version": 3`},
		"an unknown field": {`"version": 2`, `"version": 2, "extra": 0`},
		"another name":     {`"name": "trusttree"`, `"name": "other"`},
	} {
		require.NoError(t, os.WriteFile(name, bytes.Replace(whole, []byte(edit[0]), []byte(edit[1]), 1), 0o600))
		_, err := tenantstore.Open(t.Context(), w.config())
		require.ErrorIs(t, err, tenantstore.ErrInvalid, what)
	}
	require.NoError(t, os.Remove(name))
	_, err = tenantstore.Open(t.Context(), w.config())
	require.ErrorIs(t, err, tenantstore.ErrTampered, "no new store on the remains of an old one")
}

func TestConfigThatWouldLetEverybodyInIsRefused(t *testing.T) {
	w := newWorld(t)
	for name, edit := range map[string]func(*tenantstore.Config){
		"no directory": func(c *tenantstore.Config) { c.Dir = "" },
		"no keys":      func(c *tenantstore.Config) { c.Keys = nil },
		"no owners":    func(c *tenantstore.Config) { c.Owners = nil },
		"no roots":     func(c *tenantstore.Config) { c.Roots = nil },
		"bad name":     func(c *tenantstore.Config) { c.Name = "a b" },
		"nil engine":   func(c *tenantstore.Config) { c.Placement = []tenantstore.Placement{{Region: "eu"}} },
		"no engine":    func(c *tenantstore.Config) { c.System = "nowhere" },
	} {
		w.edit = edit
		_, err := tenantstore.Open(t.Context(), w.config())
		require.ErrorIs(t, err, tenantstore.ErrInvalid, name)
	}
}

// TestKeyProviderDown tells a provider that can't be reached from a key that is
// gone, and has nothing behind either.
func TestKeyProviderDown(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := w.open()
	c := w.tenant(s, "acme").Collection("c")
	_, err := c.Put(ctx, []byte("k"), nil)
	require.NoError(t, err)
	w.keys.(*keys.Dir).Close()
	w.clock = func() time.Time { return time.Now().Add(2 * time.Minute) }
	_, err = c.Get(ctx, []byte("k"))
	require.ErrorIs(t, err, tenantstore.ErrKeyUnavailable)
	require.NotErrorIs(t, err, tenantstore.ErrKeyDestroyed)
	w.keys = reopenKeys(t, w)
	require.NoError(t, s.Close(ctx))
	w.clock = time.Now
	s = w.open()
	_, err = w.handle(s, "acme").Collection("c").Get(ctx, []byte("k"))
	require.NoError(t, err)
}

// TestCoreLinksNoServerDriver holds that who takes tenantstore alone links
// neither pgx nor anything else that only a sub-package needs.
func TestCoreLinksNoServerDriver(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/trusttree/trusttree/tenantstore").Output()
	require.NoError(t, err)
	for _, banned := range []string{"pgx", "go-tpm", "go-tuf", "tessera", "prometheus", "database/sql", "go-sqlite3/driver", "trusttree/attest", "trusttree/tlsconn"} {
		assert.NotContains(t, string(out), banned)
	}
	assert.Contains(t, string(out), "ncruces/go-sqlite3")
}

func FuzzVerifyAuditTrail(f *testing.F) {
	b, err := os.ReadFile(filepath.Join("testdata", "v1", "trail.jsonl"))
	require.NoError(f, err)
	var g golden
	j, err := os.ReadFile(filepath.Join("testdata", "v1", "golden.json"))
	require.NoError(f, err)
	require.NoError(f, json.Unmarshal(j, &g))
	f.Add(b)
	lines := strings.SplitAfter(string(b), "\n")
	f.Add([]byte(lines[0]))
	f.Add([]byte(lines[0] + lines[2]))
	f.Fuzz(func(t *testing.T, x []byte) {
		trail, err := tenantstore.VerifyAuditTrail(bytes.NewReader(x), g.AuditKey)
		if err == nil && trail.Logs[0].Size == 0 && len(trail.Events) > 0 {
			t.Fatal("events out of an empty log")
		}
	})
}

func FuzzAssign(f *testing.F) {
	w := newWorld(f)
	s := w.open()
	w.grants = []tenantstore.Grant{{Subject: "operator", Roles: []tenantstore.Role{tenantstore.RoleControl}}}
	f.Add(w.signed())
	f.Add([]byte(`{"payloadType":"","payload":"","signatures":[]}`))
	known := map[string]bool{string(w.signed()): true}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := s.Assign(context.Background(), b); err == nil && !known[string(b)] && !bytes.Contains(b, []byte("payload")) {
			t.Fatal("assignments without a payload")
		}
	})
}

func FuzzRestore(f *testing.F) {
	w := newWorld(f)
	s := w.open()
	op := w.operator(s)
	id, err := age.GenerateX25519Identity()
	require.NoError(f, err)
	a := w.tenant(s, "acme")
	_, err = a.Collection("c").Put(context.Background(), []byte("k"), []byte("v"))
	require.NoError(f, err)
	var out bytes.Buffer
	_, err = a.Backup(context.Background(), &out, id.Recipient())
	require.NoError(f, err)
	r, err := age.Decrypt(&out, id)
	require.NoError(f, err)
	plain, err := io.ReadAll(r)
	require.NoError(f, err)
	f.Add(plain)
	f.Add(plain[:len(plain)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		var enc bytes.Buffer
		wc, err := age.Encrypt(&enc, id.Recipient())
		require.NoError(t, err)
		_, _ = wc.Write(b)
		_ = wc.Close()
		_, err = s.Restore(context.Background(), op, &enc, "", id)
		if err == nil && !bytes.Equal(b, plain) {
			t.Fatal("restored what was not backed up")
		}
	})
}

func TestPrincipalsAndRecordsDontLeakIntoLogs(t *testing.T) {
	w := newWorld(t)
	s := w.open()
	a := w.tenant(s, "acme")
	_, err := a.Collection("c").Put(t.Context(), []byte("k"), make([]byte, 2<<20))
	require.Error(t, err)
	var out strings.Builder
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "principal", w.principal(s, "service-acme", ""), "tenant", a, "error", err)
	assert.NotContains(t, out.String(), "PRIVATE")
}
