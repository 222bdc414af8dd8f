package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func start(t *testing.T) (*sim, *cli) {
	t.Parallel()
	s := newSim(t)
	c := newClient(t, s)
	require.Zero(t, c.init())
	return s, c
}

func TestConformanceRefresh(t *testing.T) {
	s, c := start(t)
	require.Empty(t, s.asked, "init asks no network")
	require.Equal(t, []string{"root 1"}, c.trusted())
	require.Zero(t, c.refresh())
	assert.Equal(t, []string{"2.root", "timestamp", "1.snapshot", "1.targets"}, s.asked)
	assert.Equal(t, []string{"root 1", "snapshot 1", "targets 1", "timestamp 1"}, c.trusted())
	for _, role := range topRoles {
		data, err := os.ReadFile(filepath.Join(c.dir, role+".json"))
		require.NoError(t, err)
		assert.Equal(t, string(s.published[role][0]), string(data), role)
	}
	s.reset()
	require.Zero(t, c.refresh())
	assert.Equal(t, []string{"2.root", "timestamp"}, s.asked)
}

func TestConformanceImplicitRefresh(t *testing.T) {
	s, c := start(t)
	require.Equal(t, 1, c.download("nonexistent artifact"))
	assert.Equal(t, []string{"2.root", "timestamp", "1.snapshot", "1.targets"}, s.asked)
	assert.Equal(t, []string{"root 1", "snapshot 1", "targets 1", "timestamp 1"}, c.trusted())
}

func TestConformanceInitialRoot(t *testing.T) {
	for name, damage := range map[string]func(file obj){
		"without version": func(f obj) { delete(f["signed"].(obj), "version") },
		"not signed": func(f obj) {
			f["signatures"].([]any)[0].(obj)["sig"] = "3045022100ee448afe2d25dd1f05afedac83a24e7df90f203615221434979153dc7cea6d4702207710015851e571885a77db8a6e42c4b2983a59b9e1ebec91178dfa2fb0d42ab8"
		},
		"signatures of no one": func(f obj) { f["signatures"] = []any{} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSim(t)
			c := newClient(t, s)
			var file obj
			require.NoError(t, json.Unmarshal(c.root, &file))
			damage(file)
			var err error
			c.root, err = json.Marshal(file)
			require.NoError(t, err)
			c.init()
			require.Equal(t, 1, c.refresh())
			assert.Empty(t, s.asked)
		})
	}
}

func TestConformanceUnsignedMetadata(t *testing.T) {
	for role, want := range map[string][]string{
		"root":      {"root 1"},
		"timestamp": {"root 2"},
		"snapshot":  {"root 2", "timestamp 2"},
		"targets":   {"root 2", "snapshot 2", "timestamp 2"},
	} {
		t.Run(role, func(t *testing.T) {
			s, c := start(t)
			s.signers[role] = nil
			s.publish("root", "targets", "snapshot", "timestamp")
			require.Equal(t, 1, c.refresh())
			assert.Equal(t, want, c.trusted())
		})
	}
}

func TestConformanceVersionInNameAndFile(t *testing.T) {
	for role, want := range map[string][]string{
		"root":     {"root 1"},
		"snapshot": {"root 2", "timestamp 2"},
		"targets":  {"root 2", "snapshot 2", "timestamp 2"},
	} {
		t.Run(role, func(t *testing.T) {
			s, c := start(t)
			s.mds[role]["version"] = 2 // published as 2, says 3
			s.publish("root", "targets", "snapshot", "timestamp")
			require.Equal(t, 1, c.refresh())
			assert.Equal(t, want, c.trusted())
		})
	}
}

func TestConformanceTimestampOfSameVersion(t *testing.T) {
	s, c := start(t)
	require.Zero(t, c.refresh())
	s.mds["timestamp"]["meta"].(obj)["snapshot.json"].(obj)["version"] = 100
	delete(s.published, "timestamp")
	s.publish("timestamp")
	require.Zero(t, c.refresh())
	assert.Equal(t, "timestamp", s.asked[len(s.asked)-1])
	kept, err := os.ReadFile(filepath.Join(c.dir, "timestamp.json"))
	require.NoError(t, err)
	assert.NotContains(t, string(kept), `"version": 100`)
}

func TestConformanceMetadataHashes(t *testing.T) {
	s, c := start(t)
	s.hashes = true
	s.publish("targets", "snapshot", "timestamp")
	require.Zero(t, c.refresh())
	s.publish("targets")
	s.mds["snapshot"]["meta"].(obj)["targets.json"].(obj)["hashes"] = obj{"sha256": "46419349341cfb2d95f6ae3d4cd5c3d3dd7f4673985dad42a45130be5e0531a0"}
	s.publish("snapshot", "timestamp")
	require.Equal(t, 1, c.refresh())
	assert.Equal(t, 3, c.version("snapshot"))
	assert.Equal(t, 2, c.version("targets"))
}

func TestConformanceMetadataLengths(t *testing.T) {
	for name, change := range map[string]int{"shorter": -1, "longer": 1} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t)
			s.hashes = true
			s.publish("targets")
			m := s.mds["snapshot"]["meta"].(obj)["targets.json"].(obj)
			m["length"] = m["length"].(int) + change
			s.publish("snapshot", "timestamp")
			require.Equal(t, 1, c.refresh())
			assert.Equal(t, []string{"root 1", "snapshot 2", "timestamp 2"}, c.trusted())
		})
	}
}

func TestConformanceMetadataIsKeptByteForByte(t *testing.T) {
	s, c := start(t)
	s.published["timestamp"][0] = append(s.published["timestamp"][0], ' ')
	require.Zero(t, c.refresh())
	kept, err := os.ReadFile(filepath.Join(c.dir, "timestamp.json"))
	require.NoError(t, err)
	assert.Equal(t, string(s.published["timestamp"][0]), string(kept))
}

func TestConformanceTargetsThatTheSnapshotDoesNotList(t *testing.T) {
	s, c := start(t)
	require.Zero(t, c.refresh())
	s.publish("targets")
	require.Zero(t, c.refresh())
	assert.Equal(t, 1, c.version("targets"))
	assert.Equal(t, "timestamp", s.asked[len(s.asked)-1])
}

func TestConformanceCustomFields(t *testing.T) {
	s, c := start(t)
	require.Zero(t, c.refresh())
	s.mds["root"]["custom-field"] = "value"
	s.role("root")["another-field"] = "value"
	s.role("snapshot")["x-signing-period"] = 60
	s.addKey("root", newKey(t, "", obj{"extra-field": obj{"a": 1, "b": 2}}))
	s.publish("root")
	require.Zero(t, c.refresh())
	assert.Equal(t, 2, c.version("root"))
	s.mds["snapshot"]["x"] = []any{"y", 1, true, obj{"z": "é\n\t\"\\"}}
	s.mds["targets"]["x"] = "y"
	s.mds["timestamp"]["x"] = "y"
	s.publish("targets", "snapshot", "timestamp")
	require.Zero(t, c.refresh())
	assert.Equal(t, []string{"root 2", "snapshot 2", "targets 2", "timestamp 2"}, c.trusted())
}

func TestConformanceDeprecatedKeyIDHashAlgorithms(t *testing.T) {
	s, c := start(t)
	s.role("snapshot")["keyids"], s.signers["snapshot"] = []any{}, nil
	s.addKey("snapshot", newKey(t, "", obj{"keyid_hash_algorithms": "md5"}))
	s.publish("root", "snapshot", "timestamp")
	require.Zero(t, c.refresh())
	assert.Equal(t, 2, c.version("root"))
	assert.Equal(t, 2, c.version("snapshot"))
}

func TestConformanceAbsentFiles(t *testing.T) {
	t.Run("timestamp", func(t *testing.T) {
		s, c := start(t)
		require.Zero(t, c.refresh())
		delete(s.published, "timestamp")
		require.Equal(t, 1, c.refresh())
		assert.Equal(t, "timestamp", s.asked[len(s.asked)-1])
	})
	t.Run("snapshot", func(t *testing.T) {
		s, c := start(t)
		require.Zero(t, c.refresh())
		s.mds["timestamp"]["meta"].(obj)["snapshot.json"].(obj)["version"] = 2
		s.publish("timestamp")
		require.Equal(t, 1, c.refresh())
		assert.Equal(t, "2.snapshot", s.asked[len(s.asked)-1])
		assert.Equal(t, []string{"root 1", "snapshot 1", "targets 1", "timestamp 2"}, c.trusted())
	})
	t.Run("targets", func(t *testing.T) {
		s, c := start(t)
		require.Zero(t, c.refresh())
		s.mds["snapshot"]["meta"].(obj)["targets.json"].(obj)["version"] = 2
		s.publish("snapshot", "timestamp")
		require.Equal(t, 1, c.refresh())
		assert.Equal(t, "2.targets", s.asked[len(s.asked)-1])
		assert.Equal(t, []string{"root 1", "snapshot 2", "targets 1", "timestamp 2"}, c.trusted())
	})
}

func TestConformanceIncorrectType(t *testing.T) {
	s, c := start(t)
	s.addKey("snapshot", s.signers["timestamp"][0])
	s.mds["snapshot"]["meta"] = obj{"snapshot.json": obj{"version": 1}}
	s.publish("root", "snapshot")
	n := len(s.published["snapshot"]) - 1
	s.published["timestamp"] = append(s.published["timestamp"], s.published["snapshot"][n])
	s.published["snapshot"] = s.published["snapshot"][:n]
	require.Equal(t, 1, c.refresh())
	assert.Equal(t, []string{"root 2"}, c.trusted())
}

func TestConformanceWithoutConsistentSnapshots(t *testing.T) {
	s, c := start(t)
	s.mds["root"]["consistent_snapshot"] = false
	s.addTarget("targets", "dir/x", []byte("x"))
	s.publish("root", "targets", "snapshot", "timestamp")
	require.Zero(t, c.download("dir/x"))
	assert.Equal(t, []string{"2.root", "3.root", "timestamp", "snapshot", "targets"}, s.asked)
	assert.Equal(t, []string{"dir/x"}, s.fetched)
	assert.Equal(t, []string{"x"}, c.artifacts())
}

func TestConformanceNothingElseIsNamedJSON(t *testing.T) {
	s, c := start(t)
	s.delegate(delegation{from: "targets", name: "A"})
	s.addTarget("A", "x.json", []byte("{}"))
	s.publish("A", "targets", "snapshot", "timestamp", "root")
	require.Zero(t, c.download("x.json"))
	assert.Equal(t, []string{"A 1", "root 2", "snapshot 2", "targets 2", "timestamp 2"}, c.trusted())
	entries, err := os.ReadDir(c.dir)
	require.NoError(t, err)
	for _, e := range entries {
		assert.False(t, e.IsDir() && strings.HasSuffix(e.Name(), ".json"), e.Name())
	}
}
