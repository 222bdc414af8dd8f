package release_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"crypto/hpke"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt/internal/wire"
	"github.com/trusttree/trusttree/fscrypt/release"
)

type rig struct {
	*release.Service
	lease time.Duration
	err   error
	key   hpke.PrivateKey
}

func newRig(t testing.TB) *rig {
	store, err := release.NewDirStore(t.TempDir())
	require.NoError(t, err)
	r := &rig{lease: time.Hour}
	r.Service = &release.Service{Store: store, Authorize: func(context.Context, string, string) (time.Duration, error) { return r.lease, r.err }}
	r.key, err = wire.KEM().GenerateKey()
	require.NoError(t, err)
	return r
}

func (r *rig) ask(t testing.TB, device string, req wire.Request) (*wire.Response, []byte) {
	req.Version, req.Key = 1, r.key.PublicKey().Bytes()
	if req.Label == "" {
		req.Label = "data"
	}
	b, err := json.Marshal(req)
	require.NoError(t, err)
	out, err := r.Handle(t.Context(), device, b)
	require.NoError(t, err)
	rsp, err := wire.ParseResponse(out)
	require.NoError(t, err)
	if rsp.Share == nil {
		return rsp, nil
	}
	share, err := hpke.Open(r.key, wire.KDF(), wire.AEAD(), req.Info(), rsp.Share)
	require.NoError(t, err)
	return rsp, share
}

func TestMintReleaseRenew(t *testing.T) {
	r := newRig(t)
	_, minted := r.ask(t, "node-1", wire.Request{Op: "mint", Volume: "v", Slot: "s"})
	require.Len(t, minted, 32)
	rsp, released := r.ask(t, "node-1", wire.Request{Op: "release", Volume: "v", Slot: "s"})
	assert.Equal(t, minted, released)
	assert.EqualValues(t, 3600, rsp.LeaseSeconds)
	rsp, share := r.ask(t, "node-1", wire.Request{Op: "renew", Volume: "v", Slot: "s"})
	assert.Equal(t, wire.StatusOK, rsp.Status)
	assert.Nil(t, share, "renewing releases no share again")
	g, err := r.Grants(t.Context(), "node-1")
	require.NoError(t, err)
	require.Len(t, g, 1)
	assert.WithinDuration(t, time.Now().Add(time.Hour), g[0].Until, time.Minute)
}

func TestWhatIsNeverReleased(t *testing.T) {
	for name, c := range map[string]struct {
		device string
		req    wire.Request
		do     func(*rig)
		status string
	}{
		"another device's share":   {"node-2", wire.Request{Op: "release", Volume: "v", Slot: "s"}, nil, wire.StatusRefused},
		"share under other label":  {"node-1", wire.Request{Op: "release", Volume: "v", Slot: "s", Label: "system"}, nil, wire.StatusRefused},
		"share never minted":       {"node-1", wire.Request{Op: "release", Volume: "v", Slot: "t"}, nil, wire.StatusRefused},
		"share minted over":        {"node-1", wire.Request{Op: "mint", Volume: "v", Slot: "s"}, nil, wire.StatusRefused},
		"revoked":                  {"node-1", wire.Request{Op: "release", Volume: "v", Slot: "s"}, func(r *rig) { _ = r.Revoke(context.Background(), "node-1", "lost") }, wire.StatusRevoked},
		"renewal of revoked":       {"node-1", wire.Request{Op: "renew", Volume: "v", Slot: "s"}, func(r *rig) { _ = r.Revoke(context.Background(), "node-1", "lost") }, wire.StatusRevoked},
		"revoked by the policy":    {"node-1", wire.Request{Op: "release", Volume: "v", Slot: "s"}, func(r *rig) { r.err = release.ErrRevoked }, wire.StatusRevoked},
		"not attested":             {"node-1", wire.Request{Op: "release", Volume: "v", Slot: "s"}, func(r *rig) { r.err = errors.New("attestation is contraindicated") }, wire.StatusRefused},
		"decision not available":   {"node-1", wire.Request{Op: "release", Volume: "v", Slot: "s"}, func(r *rig) { r.err = release.ErrUnavailable }, wire.StatusLater},
		"no lease":                 {"node-1", wire.Request{Op: "release", Volume: "v", Slot: "s"}, func(r *rig) { r.lease = 0 }, wire.StatusRefused},
		"no policy configured":     {"node-1", wire.Request{Op: "release", Volume: "v", Slot: "s"}, func(r *rig) { r.Authorize = nil }, wire.StatusRefused},
		"forgotten":                {"node-1", wire.Request{Op: "release", Volume: "v", Slot: "s"}, func(r *rig) { _ = r.Forget(context.Background(), "node-1") }, wire.StatusRefused},
		"minting without a policy": {"node-1", wire.Request{Op: "mint", Volume: "v", Slot: "t"}, func(r *rig) { r.Authorize = nil }, wire.StatusRefused},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			_, minted := r.ask(t, "node-1", wire.Request{Op: "mint", Volume: "v", Slot: "s"})
			require.Len(t, minted, 32)
			if c.do != nil {
				c.do(r)
			}
			rsp, share := r.ask(t, c.device, c.req)
			assert.Equal(t, c.status, rsp.Status)
			assert.Nil(t, share)
			assert.Zero(t, rsp.LeaseSeconds)
		})
	}
}

func TestLeaseIsCappedAndSharesAreBounded(t *testing.T) {
	r := newRig(t)
	r.lease = 1000 * 24 * time.Hour
	for i := range release.MaxShares {
		rsp, _ := r.ask(t, "node-1", wire.Request{Op: "mint", Volume: "v", Slot: strings.Repeat("s", i+1)})
		require.Equal(t, wire.StatusOK, rsp.Status)
		require.EqualValues(t, release.MaxLease/time.Second, rsp.LeaseSeconds)
	}
	rsp, _ := r.ask(t, "node-1", wire.Request{Op: "mint", Volume: "v", Slot: "one more"})
	assert.Equal(t, wire.StatusRefused, rsp.Status)
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	r := newRig(t)
	for name, req := range map[string]string{
		"empty":         "",
		"unknown field": `{"version":1,"op":"release","volume":"v","label":"l","slot":"s","admin":true}`,
		"unknown op":    `{"version":1,"op":"dump","volume":"v","label":"l","slot":"s"}`,
		"version":       `{"version":2,"op":"release","volume":"v","label":"l","slot":"s"}`,
		"no slot":       `{"version":1,"op":"release","volume":"v","label":"l"}`,
		"long":          `{"version":1,"op":"release","volume":"` + strings.Repeat("v", 20000) + `"}`,
		"two values":    `{"version":1,"op":"release","volume":"v","label":"l","slot":"s"}{}`,
	} {
		_, err := r.Handle(t.Context(), "node-1", []byte(req))
		var re *release.RequestError
		assert.ErrorAs(t, err, &re, name)
	}
	_, err := r.Handle(t.Context(), "", []byte(`{}`))
	assert.Error(t, err, "no device")
}

func TestDirStoreKeepsKeysInItsDirectory(t *testing.T) {
	s, err := release.NewDirStore(t.TempDir())
	require.NoError(t, err)
	for _, k := range []string{"../x", "a/b", "", ".", "A"} {
		assert.Error(t, s.Put(t.Context(), k, nil, false), k)
	}
	require.NoError(t, s.Put(t.Context(), "a", []byte("1"), true))
	require.ErrorIs(t, s.Put(t.Context(), "a", []byte("2"), true), fs.ErrExist)
	_, err = s.Get(t.Context(), "b")
	require.ErrorIs(t, err, fs.ErrNotExist)
}
