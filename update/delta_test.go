package update_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// edited is an image with small edits: two blocks changed, one inserted run.
func edited(old []byte) []byte {
	out := bytes.Clone(old)
	copy(out[5000:], "an edit")
	copy(out[len(out)/2:], "another edit over here")
	return append(out, image("new tail", 10_000)...)
}

func (p *publisher) deltaRelease(version string, img []byte, change func(*repository.Content)) {
	p.t.Helper()
	rel := manifest.Release{Name: "os-" + version, Version: version, Security: 1, Channel: "stable", Hardware: []string{"lamp-2"}}
	c := repository.Content{Name: "rootfs", Reader: bytes.NewReader(img)}
	change(&c)
	p.edit(func(tx *repository.Tx) error {
		if err := tx.AddRelease(rel, c); err != nil {
			return err
		}
		return tx.SetRollout("stable", rel.Name, manifest.Rollout{Nodes: []string{"node-1"}})
	})
}

func TestDeltaUpdates(t *testing.T) {
	old := image("1.0", 9<<20)
	img := edited(old)
	withIndex := func(c *repository.Content) { c.Index = true }
	withPatch := func(c *repository.Content) {
		c.PatchFrom = []*io.SectionReader{io.NewSectionReader(bytes.NewReader(old), 0, int64(len(old)))}
	}
	for name, tc := range map[string]struct {
		aids   func(*repository.Content)
		base   []byte
		most   int64 // bytes on the wire
		damage string
	}{
		"index":               {withIndex, old, 150_000, ""},
		"index, shifted base": {withIndex, append([]byte("x"), old...), 10 << 20, ""},
		"index, no base":      {withIndex, nil, 10 << 20, ""},
		"patch":               {withPatch, old, 80_000, ""},
		"patch, other base":   {withPatch, image("0.9", 9<<20), 10 << 20, ""},
		"index is damaged":    {withIndex, old, 11 << 20, "*.index"},
		"patch is damaged":    {withPatch, old, 11 << 20, "*.patch0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPublisher(t)
			p.deltaRelease("2.0", img, tc.aids)
			if tc.damage != "" {
				files, err := filepath.Glob(filepath.Join(p.dir, "targets/parts/stable/os-2.0", tc.damage))
				require.NoError(t, err)
				require.Len(t, files, 1)
				data, err := os.ReadFile(files[0])
				require.NoError(t, err)
				data[len(data)/2] ^= 1
				require.NoError(t, os.WriteFile(files[0], data, 0o600))
			}
			spy := &spySource{Source: p.source()}
			d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) { c.Images = spy })
			if tc.base != nil {
				require.NoError(t, os.MkdirAll(filepath.Join(d.dir, "slots", "a"), 0o700))
				require.NoError(t, os.WriteFile(filepath.Join(d.dir, "slots", "a", "rootfs"), tc.base, 0o600))
			}
			require.NoError(t, d.install())
			assert.Equal(t, img, d.slot("b", len(img)))
			assert.LessOrEqual(t, spy.bytes, tc.most)
			t.Logf("%d bytes on the wire of %d", spy.bytes, len(img))
		})
	}
}
