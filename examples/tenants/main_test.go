package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func call(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out, errOut bytes.Buffer
	code := run(t.Context(), args, &out, &errOut)
	require.Equal(t, want, code, "%v: %s%s", args, &out, &errOut)
	if want != 0 {
		assert.NotEmpty(t, errOut.String())
		return errOut.String()
	}
	return out.String()
}

func TestTenantsLife(t *testing.T) {
	tmp := t.TempDir()
	d := "-dir=" + filepath.Join(tmp, "d")
	var made struct {
		Key string `json:"audit_key"`
	}
	require.NoError(t, json.Unmarshal([]byte(call(t, 0, "init", d, "-json")), &made))
	call(t, 1, "init", d)
	assert.Contains(t, call(t, 0, "create", d, "acme"), "active")
	call(t, 0, "create", d, "beta")
	call(t, 3, "create", d, "acme")
	call(t, 1, "create", d, "../acme")
	call(t, 0, "put", d, "acme", "c", "k1", "v1")
	call(t, 0, "put", d, "acme", "c", "k2", "v2")
	assert.Equal(t, "v1\n", call(t, 0, "get", d, "acme", "c", "k1"))
	call(t, 1, "get", d, "beta", "c", "k1")
	call(t, 3, "get", d, "gamma", "c", "k1")
	assert.Contains(t, call(t, 0, "rotate", d, "acme"), "  2  ")
	call(t, 0, "rewrap", d, "acme")
	assert.Contains(t, call(t, 0, "scan", d, "acme", "c"), `"k2"`)
	assert.Contains(t, call(t, 0, "verify", d, "-json", "acme"), `"records": 2`)

	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	idFile, backup := filepath.Join(tmp, "id"), filepath.Join(tmp, "backup.age")
	require.NoError(t, os.WriteFile(idFile, []byte(id.String()+"\n"), 0o600))
	call(t, 0, "backup", d, "-to", id.Recipient().String(), "acme", backup)
	call(t, 2, "backup", d, "-to", "nonsense", "acme", filepath.Join(tmp, "other"))
	call(t, 0, "put", d, "acme", "c", "k1", "changed")
	call(t, 0, "restore", d, "-identity", idFile, backup)
	assert.Equal(t, "v1\n", call(t, 0, "get", d, "acme", "c", "k1"))

	trail := filepath.Join(tmp, "trail")
	call(t, 0, "audit", d, "acme", trail)
	assert.Contains(t, call(t, 0, "check-audit", "-key", made.Key, trail), "rotate")
	b, err := os.ReadFile(trail)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(trail, []byte(strings.Replace(string(b), "service-acme", "service-evil", 1)), 0o600))
	call(t, 3, "check-audit", "-key", made.Key, trail)
	call(t, 0, "rewrap-store", d)
	call(t, 0, "rotate-store", d)
	second := filepath.Join(tmp, "second")
	call(t, 0, "audit", "export", d, "acme", second)
	call(t, 1, "audit", "export", d, "acme", second) // which exists
	var offline struct {
		Tenant string           `json:"tenant"`
		Logs   []map[string]any `json:"logs"`
		Events []map[string]any `json:"events"`
	}
	require.NoError(t, json.Unmarshal([]byte(call(t, 0, "audit", "verify", "-json", "-key", made.Key, second)), &offline))
	assert.Equal(t, "acme", offline.Tenant)
	assert.Len(t, offline.Logs, 1)
	assert.NotEmpty(t, offline.Events)
	call(t, 1, "audit", "verify", "-key", made.Key, second, second) // one log twice
	call(t, 1, "audit", "verify", "-key", "nonsense", second)
	call(t, 2, "audit", "verify", second)

	call(t, 0, "hold", d, "acme")
	call(t, 3, "destroy", d, "acme")
	call(t, 0, "release", d, "acme")
	receipt := call(t, 0, "destroy", d, "acme")
	require.NoError(t, os.WriteFile(filepath.Join(tmp, "receipt"), []byte(receipt), 0o600))
	assert.Contains(t, call(t, 0, "check-receipt", "-key", made.Key, filepath.Join(tmp, "receipt")), "acme")
	call(t, 3, "get", d, "acme", "c", "k1")
	call(t, 3, "restore", d, "-identity", idFile, backup)
	assert.Contains(t, call(t, 0, "list", d), "destroyed")
	call(t, 3, "rotate", d, "acme")
	call(t, 1, "rotate", d, "nobody")
	call(t, 1, "put", d, "beta", "no/name", "k", "v")
	call(t, 1, "put", d, "beta", "c", strings.Repeat("k", 513), "v")
	call(t, 4, "put", d, "beta", "c", "k", strings.Repeat("v", 1<<20+1))

	// A file of the store that somebody changed: refused, and said where.
	entries := filepath.Join(tmp, "d", "store", "audit", "entries")
	b, err = os.ReadFile(entries)
	require.NoError(t, err)
	b[100] ^= 1
	require.NoError(t, os.WriteFile(entries, b, 0o600))
	assert.Contains(t, call(t, 3, "list", d), "audit")
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"nonsense"}, {"get"}, {"get", "-dir=x"}, {"get", "-nonsense"}, {"check-audit", "f"}, {"list"}} {
		call(t, 2, args...)
	}
	call(t, 0, "-h")
	call(t, 1, "list", "-dir="+t.TempDir())
}
