package registry_test

import (
	"bytes"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/attest/registry/registrytest"
)

func TestMemoryDevicesConform(t *testing.T) { registrytest.Devices(t, registry.NewMemoryDevices()) }

func TestMemoryChallengesConform(t *testing.T) {
	registrytest.Challenges(t, registry.NewMemoryChallenges(0, nil))
}

func TestMemoryChallengesAreBounded(t *testing.T) {
	now := time.Unix(0, 0)
	s := registry.NewMemoryChallenges(2, func() time.Time { return now })
	ctx := t.Context()
	require.NoError(t, s.Put(ctx, "long", nil, now.Add(time.Hour)))
	require.NoError(t, s.Put(ctx, "short", nil, now.Add(time.Second)))
	require.ErrorIs(t, s.Put(ctx, "more", nil, now.Add(time.Hour)), registry.ErrFull)
	now = now.Add(2 * time.Second)
	require.NoError(t, s.Put(ctx, "more", nil, now.Add(time.Hour)))
	_, err := s.Take(ctx, "short")
	assert.ErrorIs(t, err, registry.ErrNotFound)
	_, err = s.Take(ctx, "long")
	assert.NoError(t, err)
	for range 100 {
		require.NoError(t, s.Put(ctx, "x", nil, now.Add(time.Hour)))
		_, err := s.Take(ctx, "x")
		require.NoError(t, err)
	}
}

var updateGolden = flag.Bool("update", false, "write the golden files anew")

// What one version stored, the next one reads.
func TestGoldenDevice(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	d := registry.Device{
		Version: 7, ID: registry.DeviceID{1, 2, 3}, State: registry.Failing, Reason: "deadline missed", EKCertificate: []byte{1}, AKPublic: []byte{2}, KeySPKI: []byte{3},
		Manufacturer: "id:494E5443", Enrolled: at, Expires: at.Add(time.Hour), Appraised: at.Add(time.Minute), Deadline: at.Add(2 * time.Minute),
		Clock: 1 << 60, ResetCount: 5, RestartCount: 6, Firmware: 1<<64 - 1,
	}
	b, err := d.Marshal()
	require.NoError(t, err)
	if *updateGolden {
		require.NoError(t, os.WriteFile("testdata/device.v1.json", append(b, '\n'), 0o644))
	}
	want, err := os.ReadFile("testdata/device.v1.json")
	require.NoError(t, err)
	assert.Equal(t, string(bytes.TrimSpace(want)), string(b), "the stored format changed: that needs a new version")
	back, err := registry.ParseDevice(want)
	require.NoError(t, err)
	d.Format = registry.FormatVersion
	assert.Equal(t, d, back)
}

func FuzzParseDevice(f *testing.F) {
	b, err := os.ReadFile("testdata/device.v1.json")
	require.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := registry.ParseDevice(b)
		if err != nil {
			require.Zero(t, d)
			return
		}
		_, err = d.Marshal()
		require.NoError(t, err)
	})
}

func TestParseDeviceIsStrict(t *testing.T) {
	for name, text := range map[string]string{
		"unknown field":  `{"format":1,"id":"` + registry.DeviceID{1}.String() + `","state":"enrolled","admin":true}`,
		"unknown format": `{"format":2,"id":"` + registry.DeviceID{1}.String() + `","state":"enrolled"}`,
		"unknown state":  `{"format":1,"id":"` + registry.DeviceID{1}.String() + `","state":"trusted"}`,
		"no id":          `{"format":1,"state":"enrolled"}`,
		"short id":       `{"format":1,"id":"00","state":"enrolled"}`,
		"field twice":    `{"format":1,"id":"` + registry.DeviceID{1}.String() + `","state":"revoked","state":"enrolled"}`,
		"other case":     `{"format":1,"id":"` + registry.DeviceID{1}.String() + `","state":"revoked","State":"enrolled"}`,
		"two documents":  `{"format":1,"id":"` + registry.DeviceID{1}.String() + `","state":"enrolled"}{}`,
	} {
		_, err := registry.ParseDevice([]byte(text))
		assert.Error(t, err, name)
	}
}
