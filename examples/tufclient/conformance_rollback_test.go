package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func onOff(t *testing.T, f func(t *testing.T, hashes bool)) {
	t.Run("plain", func(t *testing.T) { f(t, false) })
	t.Run("with hashes", func(t *testing.T) { f(t, true) })
}

func last[T any](s []T) T { return s[len(s)-1] }

func TestConformanceTimestampRollback(t *testing.T) {
	s, c := start(t)
	s.publish("timestamp")
	require.Zero(t, c.refresh())
	require.Equal(t, 2, c.version("timestamp"))
	s.mds["timestamp"]["version"] = 0
	s.publish("timestamp")
	require.Equal(t, 1, c.refresh())
	assert.Equal(t, 2, c.version("timestamp"))
	assert.Equal(t, "timestamp", last(s.asked))
}

func TestConformanceSnapshotRollback(t *testing.T) {
	onOff(t, func(t *testing.T, hashes bool) {
		s, c := start(t)
		s.hashes = hashes
		s.publish("snapshot", "timestamp")
		require.Zero(t, c.refresh())
		s.mds["snapshot"]["version"] = 0
		s.publish("snapshot", "timestamp")
		require.Equal(t, 1, c.refresh())
		assert.Equal(t, 2, c.version("timestamp"))
		assert.Equal(t, 2, c.version("snapshot"))
		assert.Equal(t, "timestamp", last(s.asked))
	})
}

func TestConformanceTargetsRollback(t *testing.T) {
	onOff(t, func(t *testing.T, hashes bool) {
		s, c := start(t)
		s.hashes = hashes
		s.publish("targets", "snapshot", "timestamp")
		require.Zero(t, c.refresh())
		s.mds["targets"]["version"] = 0
		s.publish("targets", "snapshot", "timestamp")
		require.Equal(t, 1, c.refresh())
		assert.Equal(t, 2, c.version("snapshot"))
		assert.Equal(t, 2, c.version("targets"))
	})
}

func TestConformanceTargetsLeaveTheSnapshot(t *testing.T) {
	s, c := start(t)
	s.delegate(delegation{from: "targets", name: "A"})
	s.publish("A", "targets", "snapshot", "timestamp")
	require.Zero(t, c.refresh())
	delete(s.mds["snapshot"]["meta"].(obj), "A.json")
	s.publish("snapshot", "timestamp")
	require.Equal(t, 1, c.refresh())
	assert.Equal(t, 2, c.version("snapshot"))
}

func TestConformanceFastForwardRecovery(t *testing.T) {
	t.Run("timestamp", func(t *testing.T) {
		s, c := start(t)
		s.mds["timestamp"]["version"] = 99998
		s.publish("timestamp")
		require.Zero(t, c.refresh())
		require.Equal(t, 99999, c.version("timestamp"))
		s.rotate("timestamp")
		s.mds["timestamp"]["version"] = 0
		s.publish("root", "timestamp")
		require.Zero(t, c.refresh())
		assert.Equal(t, 1, c.version("timestamp"))
	})
	t.Run("snapshot", func(t *testing.T) {
		s, c := start(t)
		fast := make([][]byte, 99998)
		s.mds["snapshot"]["version"] = 99998
		s.publish("snapshot", "timestamp")
		s.published["snapshot"] = append(fast, last(s.published["snapshot"]))
		require.Zero(t, c.refresh())
		require.Equal(t, 99999, c.version("snapshot"))
		s.rotate("snapshot")
		s.rotate("timestamp")
		delete(s.published, "snapshot")
		s.mds["snapshot"]["version"] = 1
		s.publish("root", "snapshot", "timestamp")
		require.Zero(t, c.refresh())
		assert.Equal(t, 1, c.version("snapshot"))
	})
	t.Run("targets", func(t *testing.T) {
		s, c := start(t)
		for range 99 {
			s.publish("targets")
		}
		s.publish("snapshot", "timestamp")
		require.Zero(t, c.refresh())
		require.Equal(t, 100, c.version("targets"))
		s.rotate("snapshot")
		delete(s.published, "targets")
		s.mds["targets"]["version"] = 1
		s.publish("root", "targets", "snapshot", "timestamp")
		require.Zero(t, c.refresh())
		assert.Equal(t, 1, c.version("targets"))
	})
}

func TestConformanceSnapshotVersionMismatch(t *testing.T) {
	s, c := start(t)
	// 1.snapshot.json holds version 2; the timestamp names version 1.
	s.mds["snapshot"]["version"] = 2
	s.published["snapshot"][0] = s.envelope("snapshot")
	require.Equal(t, 1, c.refresh())
	assert.Equal(t, []string{"root 1", "timestamp 1"}, c.trusted())
	assert.Equal(t, "1.snapshot", last(s.asked))
}

func TestConformanceExpiry(t *testing.T) {
	for role, want := range map[string][]string{
		"root":      {"root 2", "snapshot 1", "targets 1", "timestamp 1"},
		"timestamp": {"root 2", "snapshot 1", "targets 1", "timestamp 1"},
		"snapshot":  {"root 2", "snapshot 1", "targets 1", "timestamp 2"},
		"targets":   {"root 2", "snapshot 2", "targets 1", "timestamp 2"},
	} {
		t.Run(role, func(t *testing.T) {
			s, c := start(t)
			require.Zero(t, c.refresh())
			s.mds[role]["expires"] = expiry(-5)
			s.publish("root", "targets", "snapshot", "timestamp")
			require.Equal(t, 1, c.refresh())
			assert.Equal(t, want, c.trusted())
		})
		t.Run(role+" from the start", func(t *testing.T) {
			s, c := start(t)
			s.mds[role]["expires"] = expiry(-5)
			s.publish("root", "targets", "snapshot", "timestamp")
			require.Equal(t, 1, c.refresh())
			assert.Zero(t, c.version("targets"))
		})
	}
}

func TestConformanceIntermediateRootMayHaveExpired(t *testing.T) {
	s, c := start(t)
	s.mds["root"]["expires"] = expiry(-5)
	s.publish("root")
	s.mds["root"]["expires"] = expiry(30)
	s.publish("root")
	require.Zero(t, c.refresh())
	assert.Equal(t, 3, c.version("root"))
}

func TestConformanceClockIsTheCommandDate(t *testing.T) {
	s, c := start(t)
	s.mds["root"]["expires"] = expiry(7)
	s.publish("root")
	require.Zero(t, c.refresh())
	require.Zero(t, c.at(6).refresh())
	require.Equal(t, 1, c.at(8).refresh())
}

func TestConformanceExpiredCacheIsUpdated(t *testing.T) {
	s, c := start(t)
	s.mds["timestamp"]["expires"] = expiry(7)
	s.mds["snapshot"]["expires"] = expiry(7)
	s.mds["targets"]["expires"] = expiry(7)
	s.publish("targets", "snapshot", "timestamp")
	require.Zero(t, c.refresh())
	s.mds["timestamp"]["expires"] = expiry(21)
	s.mds["snapshot"]["expires"] = expiry(21)
	s.mds["targets"]["expires"] = expiry(21)
	s.publish("targets", "snapshot", "timestamp")
	require.Zero(t, c.at(18).refresh())
	assert.Equal(t, []string{"root 1", "snapshot 3", "targets 3", "timestamp 3"}, c.trusted())
}

// The version check uses a cached timestamp though it has expired.
func TestConformanceExpiredTimestampStillBinds(t *testing.T) {
	s, c := start(t)
	s.mds["timestamp"]["expires"] = expiry(7)
	for range 3 {
		s.publish("timestamp")
	}
	require.Zero(t, c.refresh())
	require.Equal(t, 4, c.version("timestamp"))
	s.mds["timestamp"]["version"], s.mds["timestamp"]["expires"] = 1, expiry(21)
	s.publish("timestamp") // version 2
	require.Equal(t, 1, c.at(8).refresh())
	assert.Equal(t, 4, c.version("timestamp"))
}

func TestConformanceExpiredDelegation(t *testing.T) {
	delegated := func(t *testing.T, days int) (*sim, *cli) {
		s, c := start(t)
		s.delegate(delegation{from: "targets", name: "delegated", paths: []any{"delegatedpath/*"}})
		s.mds["delegated"]["expires"] = expiry(days)
		s.addTarget("delegated", "delegatedpath/first", []byte("first"))
		s.addTarget("delegated", "delegatedpath/second", []byte("second"))
		s.publish("delegated", "targets", "snapshot", "timestamp")
		return s, c
	}
	t.Run("from the start", func(t *testing.T) {
		_, c := delegated(t, -1)
		require.Zero(t, c.refresh())
		require.Equal(t, 1, c.download("delegatedpath/first"))
		assert.Empty(t, c.artifacts())
		assert.Equal(t, []string{"root 1", "snapshot 2", "targets 2", "timestamp 2"}, c.trusted())
	})
	t.Run("in the cache", func(t *testing.T) {
		_, c := delegated(t, 7)
		require.Zero(t, c.download("delegatedpath/first"))
		require.Equal(t, 1, c.at(18).download("delegatedpath/second"))
		assert.Equal(t, []string{"first"}, c.artifacts())
	})
	t.Run("replaced by a newer one", func(t *testing.T) {
		s, c := delegated(t, 7)
		require.Zero(t, c.download("delegatedpath/first"))
		s.mds["delegated"]["expires"] = expiry(21)
		s.publish("delegated", "snapshot", "timestamp")
		require.Zero(t, c.at(18).download("delegatedpath/second"))
		assert.Equal(t, []string{"first", "second"}, c.artifacts())
		assert.Equal(t, 2, c.version("delegated"))
	})
}
