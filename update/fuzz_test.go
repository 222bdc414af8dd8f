package update_test

import (
	"crypto/ed25519"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/internal/delta"
	"github.com/trusttree/trusttree/update/internal/lint"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
	"github.com/trusttree/trusttree/update/manifest"
)

// FuzzMetadata feeds metadata of every role to the decoders, as a stranger can
// before any signature is checked.
func FuzzMetadata(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Add([]byte(`{"signed":{"_type":"targets","targets":{"x":null}}}`))
	f.Add([]byte(strings.Repeat("[", 1000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := tufmeta.Decode[metadata.RootType](data); err == nil {
			_ = tufmeta.Guard(func() error { return m.VerifyDelegate("root", m) })
		}
		_, _ = tufmeta.Decode[metadata.TimestampType](data)
		_, _ = tufmeta.Decode[metadata.SnapshotType](data)
		if m, err := tufmeta.Decode[metadata.TargetsType](data); err == nil {
			_ = tufmeta.RolesFor(m.Signed.Delegations, "a/b")
		}
	})
}

// FuzzLint holds that what lint lets through, every decoder reads.
func FuzzLint(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if lint.Check(data) == nil {
			var v any
			require.NoError(t, json.Unmarshal(data, &v))
		}
	})
}

func FuzzManifest(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := manifest.ParseRelease(data); err == nil {
			again, err := r.Encode()
			require.NoError(t, err)
			_, err = manifest.ParseRelease(again)
			require.NoError(t, err)
		}
		if r, err := manifest.ParseRollout(data); err == nil {
			_, err = r.Encode()
			require.NoError(t, err)
		}
		if a, err := manifest.ParseAssignment(data); err == nil {
			_, err = a.Encode()
			require.NoError(t, err)
		}
	})
}

func FuzzDelta(f *testing.F) {
	base := image("base", 20_000)
	var x, p strings.Builder
	require.NoError(f, delta.WriteIndex(&x, strings.NewReader(string(base)), 20_000))
	require.NoError(f, delta.WritePatch(&p, strings.NewReader(string(base)), 20_000, strings.NewReader(string(edited(base))), 30_000))
	f.Add([]byte(x.String()))
	f.Add([]byte(p.String()))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = delta.ParseIndex(data, 20_000)
		_ = delta.ApplyPatch(strings.NewReader(string(data)), strings.NewReader(string(base)), 20_000, 30_000, func(b []byte, off int64) error {
			require.LessOrEqual(t, off+int64(len(b)), int64(30_000))
			return nil
		})
	})
}

func FuzzReport(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	nonce := []byte("0123456789abcdef")
	good, err := update.SignReport(update.Report{Node: "n", Nonce: nonce}, key)
	require.NoError(f, err)
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := update.VerifyReport(data, key.Public(), "n", nonce); err == nil {
			require.Equal(t, "n", v.Report().Node)
		}
	})
}

func seeds(tb testing.TB) [][]byte {
	var out [][]byte
	for name, file := range golden(tb) {
		if strings.HasSuffix(name, ".json") {
			out = append(out, file.Data)
		}
	}
	require.NotEmpty(tb, out)
	return out
}
