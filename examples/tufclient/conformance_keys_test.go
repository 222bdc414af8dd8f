package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestConformanceThreshold(t *testing.T) {
	t.Run("not met", func(t *testing.T) {
		s, c := start(t)
		s.role("snapshot")["threshold"] = 3
		s.addKey("snapshot", newKey(t, "", nil))
		s.addKey("snapshot", newKey(t, "", nil))
		s.publish("root", "targets", "snapshot", "timestamp")
		require.Zero(t, c.refresh())
		s.signers["snapshot"] = s.signers["snapshot"][:2]
		s.publish("targets", "snapshot", "timestamp")
		require.Equal(t, 1, c.refresh())
		assert.Equal(t, 2, c.version("snapshot"))
	})
	t.Run("too few keys", func(t *testing.T) {
		s, c := start(t)
		for range 4 {
			s.addKey("snapshot", newKey(t, "", nil))
		}
		s.role("snapshot")["threshold"] = 6
		s.publish("root", "snapshot", "timestamp")
		require.Equal(t, 1, c.refresh())
		assert.Equal(t, 2, c.version("root"))
		assert.Zero(t, c.version("snapshot"))
	})
}

func TestConformanceDuplicates(t *testing.T) {
	t.Run("key IDs and signatures", func(t *testing.T) {
		s, c := start(t)
		k := newKey(t, "", nil)
		s.addKey("snapshot", k)
		for range 8 {
			s.role("snapshot")["keyids"] = append(s.role("snapshot")["keyids"].([]any), k.id)
		}
		s.role("snapshot")["threshold"] = 6
		s.publish("root", "snapshot", "timestamp")
		s.change("snapshot", func(f obj) {
			sigs := f["signatures"].([]any)
			for range 8 {
				sigs = append(sigs, sigs[1])
			}
			f["signatures"] = sigs
		})
		require.Equal(t, 1, c.refresh())
		assert.Zero(t, c.version("snapshot"))
	})
	t.Run("signatures", func(t *testing.T) {
		s, c := start(t)
		s.change("snapshot", func(f obj) {
			sigs := f["signatures"].([]any)
			f["signatures"] = append(sigs, sigs[0])
		})
		require.Equal(t, 1, c.refresh())
		assert.Zero(t, c.version("snapshot"))
	})
	t.Run("one key under two IDs", func(t *testing.T) {
		s, c := start(t)
		k := s.signers["snapshot"][0]
		s.addKey("snapshot", newKeyOf(t, k.Signer, "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256", nil))
		s.role("snapshot")["threshold"] = 2
		s.publish("root", "snapshot", "timestamp")
		require.Equal(t, 1, c.refresh())
		assert.Zero(t, c.version("snapshot"))
	})
}

func TestConformanceKeyTypes(t *testing.T) {
	for scheme, bad := range map[string]string{
		"rsassa-pss-sha256":   "b1",
		"ecdsa-sha2-nistp256": "3046022100fa1f62d38e0f5c565fa23e5d230086258427d87f024c146071966deefde55468022100b3347b4bd9ba6701ca6cef949d04b5742394b9f8c4417933e5d4fa76c3ca3a98",
		"ecdsa-sha2-nistp384": "30",
		"ed25519":             "b61589620c287e23a00abf0e653421010a0ad33869e5a096d604e08d7b4f8eb9c58ebb8a02124576be776f86ab5a3b05dbb6f27cc47f4b144f32ba4012d4b302",
	} {
		t.Run(scheme, func(t *testing.T) {
			s, c := start(t)
			k := newKey(t, scheme, nil)
			s.addKey("root", k)
			s.role("root")["threshold"] = 2
			s.publish("root")
			require.Zero(t, c.refresh())
			assert.Equal(t, 2, c.version("root"))
			s.publish("root")
			s.change("root", func(f obj) {
				for _, sig := range f["signatures"].([]any) {
					if sig.(obj)["keyid"] == k.id {
						sig.(obj)["sig"] = bad
					}
				}
			})
			require.Equal(t, 1, c.refresh())
			assert.Equal(t, 2, c.version("root"))
		})
	}
}

func TestConformanceInvalidSignatureBesideEnough(t *testing.T) {
	s, c := start(t)
	old := s.signers["timestamp"][0].id
	s.addKey("timestamp", newKey(t, "", nil))
	wrong := func(sig string) {
		s.change("timestamp", func(f obj) {
			for _, e := range f["signatures"].([]any) {
				if e.(obj)["keyid"] == old {
					e.(obj)["sig"] = sig
				}
			}
		})
	}
	s.publish("root", "timestamp")
	wrong(s.signers["timestamp"][0].sign(t, []byte("something else")))
	require.Zero(t, c.refresh())
	s.publish("timestamp")
	wrong("")
	require.Zero(t, c.refresh())
	assert.Equal(t, 3, c.version("timestamp"))
}

// version describes keys, threshold and signers of a role's version by number.
type version struct {
	keys      []int
	threshold int
	sigs      []int
}

func (v version) apply(s *sim, role string, keys []*key) {
	r := s.role(role)
	r["threshold"], r["keyids"], s.signers[role] = v.threshold, []any{}, nil
	for _, i := range v.keys {
		s.mds["root"]["keys"].(obj)[keys[i].id] = keys[i].pub
		r["keyids"] = append(r["keyids"].([]any), keys[i].id)
	}
	for _, i := range v.sigs {
		s.signers[role] = append(s.signers[role], keys[i])
	}
}

func numbered(t *testing.T) (keys []*key) {
	for range 10 {
		keys = append(keys, newKey(t, "ed25519", nil))
	}
	return keys
}

func TestConformanceRootRotation(t *testing.T) {
	five, rotated := []int{0, 1, 2, 3, 4}, []int{0, 1, 3, 4, 5}
	for name, tc := range map[string]struct {
		versions []version
		fails    bool
	}{
		"1 of 1": {versions: []version{{[]int{1}, 1, []int{1}}, {[]int{2}, 1, []int{2, 1}}, {[]int{2}, 1, []int{2}}}},
		"1 of 1, unused signatures": {versions: []version{
			{[]int{1}, 1, []int{3, 1, 4}}, {[]int{2}, 1, []int{3, 2, 1, 4}}, {[]int{2}, 1, []int{3, 2, 4}}}},
		"3 of 5, different signers": {versions: []version{
			{five, 3, []int{0, 2, 4}}, {five, 3, []int{0, 4, 1}}, {five, 3, []int{0, 1, 3}}, {five, 3, []int{0, 1, 3}}}},
		"3 of 5, one key": {versions: []version{{five, 3, []int{0, 2, 4}}, {rotated, 3, []int{0, 4, 1}}}},
		"3 of 5, one key with a step between": {versions: []version{
			{five, 3, []int{0, 2, 4}}, {rotated, 3, []int{0, 2, 4, 5}}, {rotated, 3, []int{0, 4, 5}}}},
		"3 of 5, all keys with a step between": {versions: []version{
			{five, 3, []int{0, 2, 4}}, {[]int{5, 6, 7, 8, 9}, 3, []int{0, 2, 4, 5, 6, 7}}, {[]int{5, 6, 7, 8, 9}, 3, []int{5, 6, 7}}}},
		"1 of 3 to 2 of 3":                          {versions: []version{{[]int{1, 2, 3}, 1, []int{1}}, {[]int{1, 2, 3}, 2, []int{1, 2}}}},
		"2 of 3 to 1 of 3":                          {versions: []version{{[]int{1, 2, 3}, 2, []int{1, 2}}, {[]int{1, 2, 3}, 1, []int{1, 2}}, {[]int{1, 2, 3}, 1, []int{1}}}},
		"1 of 2 to 2 of 2":                          {versions: []version{{[]int{1}, 1, []int{1}}, {[]int{1, 2}, 2, []int{1, 2}}}},
		"not signed by the old key":                 {[]version{{[]int{1}, 1, []int{1}}, {[]int{2}, 1, []int{2, 3, 4}}}, true},
		"not signed by the new key":                 {[]version{{[]int{1}, 1, []int{1}}, {[]int{2}, 1, []int{1, 3, 4}}}, true},
		"not signed by 3 new keys":                  {[]version{{five, 3, []int{0, 2, 4}}, {rotated, 3, []int{0, 2, 4}}}, true},
		"not signed by 3 old keys":                  {[]version{{five, 3, []int{0, 2, 4}}, {rotated, 3, []int{0, 4, 5}}}, true},
		"new threshold of 2 not reached":            {[]version{{[]int{1, 2, 3}, 1, []int{1}}, {[]int{1, 2, 3}, 2, []int{2}}}, true},
		"old threshold of 2 not reached for 1 of 3": {[]version{{[]int{1, 2, 3}, 2, []int{1, 2}}, {[]int{1, 2, 3}, 1, []int{1}}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, keys := newSim(t), numbered(t)
			delete(s.published, "root")
			for _, v := range tc.versions {
				v.apply(s, "root", keys)
				s.publish("root")
			}
			c := newClient(t, s)
			require.Zero(t, c.init())
			want := len(s.published["root"]) - 1
			if tc.fails {
				want--
				require.Equal(t, 1, c.refresh())
			} else {
				require.Zero(t, c.refresh())
			}
			got, err := os.ReadFile(filepath.Join(c.dir, "root.json"))
			require.NoError(t, err)
			assert.Equal(t, string(s.published["root"][want]), string(got))
		})
	}
}

func TestConformanceRotationOfOtherRoles(t *testing.T) {
	five, rotated := []int{0, 1, 2, 3, 4}, []int{0, 1, 3, 4, 5}
	for name, tc := range map[string]struct {
		v     version
		fails bool
	}{
		"1 of 1":                    {v: version{[]int{2}, 1, []int{2}}},
		"1 of 1, unused signatures": {v: version{[]int{1}, 1, []int{3, 1, 4}}},
		"not signed by the new key": {version{[]int{2}, 1, []int{1, 3, 4}}, true},
		"3 of 5, one wrong key":     {version{rotated, 3, []int{0, 2, 4}}, true},
		"3 of 5, two signatures":    {version{rotated, 3, []int{0, 4}}, true},
		"3 of 5, first signers":     {v: version{five, 3, []int{0, 2, 4}}},
		"3 of 5, second signers":    {v: version{five, 3, []int{0, 4, 1}}},
		"3 of 5, third signers":     {v: version{five, 3, []int{0, 1, 3}}},
		"3 of 5, fourth signers":    {v: version{five, 3, []int{1, 2, 3}}},
		"3 of 5, fifth signers":     {v: version{five, 3, []int{2, 3, 4}}},
	} {
		for _, role := range topRoles[1:] {
			t.Run(name+"/"+role, func(t *testing.T) {
				s, c := start(t)
				tc.v.apply(s, role, numbered(t))
				s.publish("root", "targets", "snapshot", "timestamp")
				if tc.fails {
					require.Equal(t, 1, c.refresh())
					return
				}
				require.Zero(t, c.refresh())
				got, err := os.ReadFile(filepath.Join(c.dir, role+".json"))
				require.NoError(t, err)
				assert.Equal(t, string(s.published[role][1]), string(got))
			})
		}
	}
}

func TestConformanceLongRootChain(t *testing.T) {
	s, c := start(t)
	for range 40 {
		s.rotate("timestamp")
		s.publish("root")
	}
	s.publish("timestamp")
	require.Zero(t, c.refresh())
	assert.Equal(t, 41, c.version("root"))
	assert.Equal(t, "42.root", s.asked[40])
	s.reset()
	require.Zero(t, c.refresh())
	assert.Equal(t, []string{"42.root", "timestamp"}, s.asked, "the chain is replayed from the cache")
	// A root in the middle that is not the next one.
	s.published["root"] = slices.Insert(s.published["root"], 41, s.published["root"][5])
	require.Equal(t, 1, c.refresh())
	assert.Equal(t, 41, c.version("root"))
}
