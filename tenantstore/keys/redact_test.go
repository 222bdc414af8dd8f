package keys_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
)

// TestProvidersPrintNoKey prints a directory's provider, and a store's
// configuration that has it, in every way there is.
func TestProvidersPrintNoKey(t *testing.T) {
	dir := t.TempDir()
	d, err := keys.OpenDir(t.Context(), dir, nil)
	require.NoError(t, err)
	b, err := os.ReadFile(filepath.Join(dir, "master.json"))
	require.NoError(t, err)
	var m struct{ Key []byte }
	require.NoError(t, json.Unmarshal(b, &m))
	require.Len(t, m.Key, 32)
	cfg := tenantstore.Config{Keys: d, MoreKeys: map[string]tenantstore.KeyProvider{"x": d}}
	var log strings.Builder
	for _, h := range []slog.Handler{slog.NewJSONHandler(&log, nil), slog.NewTextHandler(&log, nil)} {
		slog.New(h).Info("x", "dir", d, "cfg", cfg.Keys)
	}
	out := log.String() + fmt.Sprintf("%v %+v %#v %s %x %d %q", d, d, d, d, d, d, d) + fmt.Sprintf("%v %+v %#v", cfg, cfg, cfg)
	for _, form := range []string{string(m.Key[:8]), fmt.Sprintf("%x", m.Key[:8]), base64.StdEncoding.EncodeToString(m.Key[:9]),
		strings.Trim(fmt.Sprint(m.Key[:6]), "[]"), strings.TrimSuffix(fmt.Sprintf("%#v", m.Key[:6])[7:], "}")} {
		assert.NotContains(t, out, form)
	}
}
