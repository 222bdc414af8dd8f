package registry_test

import (
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

func TestParseDeviceIsStrict(t *testing.T) {
	for name, text := range map[string]string{
		"unknown field":  `{"format":1,"id":"` + registry.DeviceID{1}.String() + `","state":"enrolled","admin":true}`,
		"unknown format": `{"format":2,"id":"` + registry.DeviceID{1}.String() + `","state":"enrolled"}`,
		"unknown state":  `{"format":1,"id":"` + registry.DeviceID{1}.String() + `","state":"trusted"}`,
		"no id":          `{"format":1,"state":"enrolled"}`,
		"short id":       `{"format":1,"id":"00","state":"enrolled"}`,
		"two documents":  `{"format":1,"id":"` + registry.DeviceID{1}.String() + `","state":"enrolled"}{}`,
	} {
		_, err := registry.ParseDevice([]byte(text))
		assert.Error(t, err, name)
	}
}
