package update_test

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// twoParties are a vendor that signs what exists and a city that says what
// goes where.
func twoParties(t *testing.T) (vendor, city *publisher, d *device) {
	vendor = newPublisher(t)
	vendor.release("2.0", 1, image("2", 1000))
	vendor.release("3.0", 2, image("3", 1000))
	city = newPublisher(t, func(c *repository.Config) { c.Bins = 4 }, withBinKey())
	d = newDevice(t, vendor, func(c *update.ClientConfig, _ *update.InstallerConfig) {
		c.Director, c.DirectorRoot = city.source(), city.firstRoot
	})
	return vendor, city, d
}

// withBinKey lets the targets key sign the bins too.
func withBinKey() func(*repository.Config) {
	return func(c *repository.Config) { c.Bin = repository.Role{Keys: c.Targets.Keys} }
}

func (p *publisher) assigned(version string) manifest.AssignedRelease {
	p.t.Helper()
	sum, err := p.repo.ReleaseHash("stable", "os-"+version)
	require.NoError(p.t, err)
	return manifest.AssignedRelease{Name: "os-" + version, Channel: "stable", Security: map[string]uint64{"2.0": 1, "3.0": 2}[version], SHA256: sum}
}

func TestBothPartiesMustAgree(t *testing.T) {
	vendor, city, d := twoParties(t)
	assign := func(a manifest.Assignment) {
		t.Helper()
		city.edit(func(tx *repository.Tx) error { return tx.Assign(a) })
	}
	_, err := d.choose()
	require.ErrorIs(t, err, update.ErrUnassigned)

	assign(manifest.Assignment{Node: "node-2", Releases: []manifest.AssignedRelease{vendor.assigned("2.0")}})
	_, err = d.choose()
	require.ErrorIs(t, err, update.ErrUnassigned, "another node's assignment is not mine")

	assign(manifest.Assignment{Node: "node-1"})
	_, err = d.choose()
	require.ErrorIs(t, err, update.ErrNoUpdate, "an empty assignment stops updates")

	assign(manifest.Assignment{Node: "node-1", Releases: []manifest.AssignedRelease{vendor.assigned("2.0")}})
	sel, err := d.choose()
	require.NoError(t, err)
	assert.Equal(t, "2.0", sel.Release().Version, "not the vendor's newest")
	require.NoError(t, d.in.Install(t.Context(), sel))
	require.Equal(t, update.Trial, d.reboot().Phase)
	require.NoError(t, d.in.Confirm(t.Context()))
	f, err := d.floors.Load(t.Context())
	require.NoError(t, err)
	assert.NotZero(t, f.Director.Timestamp)
	assert.NotZero(t, f.Images.Timestamp)

	t.Run("compromised director assigns what nobody signed", func(t *testing.T) {
		evil := vendor.assigned("3.0")
		evil.SHA256 = strings.Repeat("00", 32)
		assign(manifest.Assignment{Node: "node-1", Releases: []manifest.AssignedRelease{evil}})
		_, err := d.choose()
		require.ErrorIs(t, err, update.ErrMixAndMatch)
		evil.Name = "os-9.9"
		assign(manifest.Assignment{Node: "node-1", Releases: []manifest.AssignedRelease{evil}})
		_, err = d.choose()
		require.ErrorIs(t, err, update.ErrMixAndMatch)
	})
	t.Run("compromised director lowers the counter", func(t *testing.T) {
		evil := vendor.assigned("3.0")
		evil.Security = 1
		assign(manifest.Assignment{Node: "node-1", Releases: []manifest.AssignedRelease{evil}})
		_, err := d.choose()
		require.ErrorIs(t, err, update.ErrMixAndMatch)
	})
	t.Run("assignment of another node under my name", func(t *testing.T) {
		a := manifest.Assignment{Node: "node-2", Releases: []manifest.AssignedRelease{vendor.assigned("3.0")}}
		data, err := a.Encode()
		require.NoError(t, err)
		city.edit(func(tx *repository.Tx) error {
			return tx.AddTarget(manifest.AssignmentTarget("node-1"), strings.NewReader(string(data)), nil)
		})
		_, err = d.choose()
		require.ErrorIs(t, err, update.ErrMixAndMatch)
	})
	t.Run("compromised image repository reaches no node", func(t *testing.T) {
		assign(manifest.Assignment{Node: "node-1", Releases: []manifest.AssignedRelease{vendor.assigned("2.0")}})
		vendor.release("9.0", 9, image("evil", 10))
		d.version = "2.0"
		_, err := d.choose()
		require.ErrorIs(t, err, update.ErrNoUpdate)
	})
}

func TestWithdrawnReleaseStaysWithdrawnThoughAssigned(t *testing.T) {
	vendor, city, d := twoParties(t)
	city.edit(func(tx *repository.Tx) error {
		return tx.Assign(manifest.Assignment{Node: "node-1", Releases: []manifest.AssignedRelease{vendor.assigned("2.0")}})
	})
	vendor.edit(func(tx *repository.Tx) error {
		return tx.SetRollout("stable", "os-2.0", manifest.Rollout{Withdrawn: "bad"})
	})
	_, err := d.choose()
	require.ErrorIs(t, err, update.ErrNoUpdate)
}

func TestWavesAreFairAndMonotone(t *testing.T) {
	const nodes = 100_000
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	was := make([]bool, nodes)
	for _, permille := range []int{0, 10, 100, 500, 900, 1000} {
		r := manifest.Rollout{Waves: []manifest.Wave{{Start: now, Permille: permille}, {Start: now.Add(time.Hour), Permille: 1000}}}
		n := 0
		for i := range nodes {
			ok, _ := r.Allows("os-2.0", fmt.Sprint("node-", i), "", now)
			if ok {
				n++
			}
			require.False(t, was[i] && !ok, "a node that was in leaves the wave")
			was[i] = ok
		}
		assert.InDelta(t, permille*nodes/1000, n, nodes*0.005, "%d permille", permille)
	}
	late := manifest.Rollout{Waves: []manifest.Wave{{Start: now, Permille: 1}, {Start: now.Add(time.Hour), Permille: 1000}}}
	ok, _ := late.Allows("os-2.0", "node-7", "", now.Add(48*time.Hour))
	assert.True(t, ok, "who missed its wave still updates")
	for _, bad := range []manifest.Rollout{
		{Waves: []manifest.Wave{{Permille: 1001}}}, {Waves: []manifest.Wave{{Permille: -1}}},
		{Waves: []manifest.Wave{{Start: now, Permille: 500}, {Start: now.Add(1), Permille: 400}}},
		{Waves: []manifest.Wave{{Start: now.Add(1), Permille: 500}, {Start: now, Permille: 600}}},
	} {
		_, err := bad.Encode()
		require.ErrorIs(t, err, manifest.ErrInvalid)
	}
}

// provenance makes a SLSA statement over a file's hash in a DSSE envelope.
func provenance(t *testing.T, key crypto.Signer, builder, source, sum string) []byte {
	t.Helper()
	payload := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"rootfs","digest":{"sha256":%q}}],
		"predicateType":"https://slsa.dev/provenance/v1","predicate":{"buildDefinition":{"buildType":"x","resolvedDependencies":[{"uri":%q}]},
		"runDetails":{"builder":{"id":%q}}}}`, sum, source, builder)
	const typ = "application/vnd.in-toto+json"
	sig, err := tufmeta.Sign(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(typ), typ, len(payload), payload), key)
	require.NoError(t, err)
	out, err := json.Marshal(map[string]any{"payloadType": typ, "payload": base64.StdEncoding.EncodeToString(payload),
		"signatures": []any{map[string]any{"sig": base64.StdEncoding.EncodeToString(sig)}}})
	require.NoError(t, err)
	return out
}

func TestProvenanceIsCheckedBeforeAByteIsWritten(t *testing.T) {
	builder := newKey(t)
	img := "the image"
	const sum = "d7eaf12ee56ac0a8ba2ef8c9f9fff3a7d4f4a7ef7bf0f9b9d33c1b9e0d7f0000"
	right := sha256Hex([]byte(img))
	for name, tc := range map[string]struct {
		envelope []byte
		want     error
	}{
		"good":          {provenance(t, builder, "https://build/1", "git+https://src", right), nil},
		"missing":       {nil, update.ErrProvenance},
		"other key":     {provenance(t, newKey(t), "https://build/1", "git+https://src", right), update.ErrProvenance},
		"other builder": {provenance(t, builder, "https://evil", "git+https://src", right), update.ErrProvenance},
		"other source":  {provenance(t, builder, "https://build/1", "git+https://fork", right), update.ErrProvenance},
		"other subject": {provenance(t, builder, "https://build/1", "git+https://src", sum), update.ErrProvenance},
		"garbage":       {[]byte("{}"), update.ErrProvenance},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPublisher(t)
			rel := manifest.Release{Name: "os-2.0", Version: "2.0", Security: 1, Channel: "stable", Hardware: []string{"lamp-2"}}
			p.edit(func(tx *repository.Tx) error {
				parts := []repository.Content{{Name: "rootfs", Reader: strings.NewReader(img)}}
				if tc.envelope != nil {
					parts = append(parts, repository.Content{Name: "provenance", Opaque: true, Reader: strings.NewReader(string(tc.envelope))})
				}
				if err := tx.AddRelease(rel, parts...); err != nil {
					return err
				}
				return tx.SetRollout("stable", rel.Name, manifest.Rollout{Nodes: []string{"node-1"}})
			})
			d := newDevice(t, p, func(_ *update.ClientConfig, ic *update.InstallerConfig) {
				ic.Provenance = &update.Provenance{Keys: []crypto.PublicKey{builder.Public()}, Builders: []string{"https://build/1"}, Sources: []string{"git+https://src"}}
			})
			err := d.install()
			if tc.want == nil {
				require.NoError(t, err)
				d.icfg.Provenance = &update.Provenance{} // the zero value accepts none
				return
			}
			require.ErrorIs(t, err, tc.want)
			_, err = os.Stat(filepath.Join(d.dir, "slots"))
			require.ErrorIs(t, err, os.ErrNotExist)
		})
	}
}

func TestReportIsSignedFreshAndOfThisNode(t *testing.T) {
	key, nonce := newKey(t), []byte("0123456789abcdef")
	r := update.Report{Node: "node-1", Nonce: nonce, Time: time.Unix(1_800_000_000, 0).UTC(), Guard: "tpm",
		State: update.State{Phase: update.Committed, Slot: "b", Release: update.Installed{Name: "os-2.0", Version: "2.0"}}}
	data, err := update.SignReport(r, key)
	require.NoError(t, err)
	v, err := update.VerifyReport(data, key.Public(), "node-1", nonce)
	require.NoError(t, err)
	assert.Equal(t, r, v.Report())
	_, err = update.VerifyReport(data, newKey(t).Public(), "node-1", nonce)
	require.ErrorIs(t, err, update.ErrSignature)
	_, err = update.VerifyReport(data, key.Public(), "node-2", nonce)
	require.ErrorIs(t, err, update.ErrSignature)
	_, err = update.VerifyReport(data, key.Public(), "node-1", []byte("another nonce 16"))
	require.ErrorIs(t, err, update.ErrRollback)
	_, err = update.VerifyReport(data, key.Public(), "", nil)
	require.Error(t, err)
	for i := range data {
		bad := append([]byte{}, data...)
		bad[i] ^= 0x20
		if v, err := update.VerifyReport(bad, key.Public(), "node-1", nonce); err == nil {
			require.Equal(t, r, v.Report(), "byte %d", i)
		}
	}
	_, err = update.SignReport(update.Report{Node: "node-1"}, key)
	require.Error(t, err)
}
