package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestConformanceDownload(t *testing.T) {
	for _, path := range []string{"target_file.txt", "path/to/a/target_file.txt", "a b/c d", "q?x=1", "frag#1", "pct%2fx", "ünïcode/✓", "semi;colon", "plus+sign", ".hidden", "..dots..", "x.json"} {
		t.Run(path, func(t *testing.T) {
			s, c := start(t)
			s.addTarget("targets", path, []byte("target file contents"))
			s.publish("targets", "snapshot", "timestamp")
			require.Zero(t, c.refresh())
			require.Empty(t, c.artifacts())
			require.Zero(t, c.download(path))
			assert.Equal(t, []string{"target file contents"}, c.artifacts())
			assert.Len(t, s.fetched, 1)
			require.Zero(t, c.download(path))
			assert.Len(t, s.fetched, 1, "a cached artifact is not fetched again")
			assert.Equal(t, []string{"root 1", "snapshot 2", "targets 2", "timestamp 2"}, c.trusted())
		})
	}
}

func TestConformanceUncleanTargetNames(t *testing.T) {
	for _, path := range []string{"../up", "/abs", "a/../b", "a//b", "./a", "a/.", `a\b`} {
		t.Run(path, func(t *testing.T) {
			s, c := start(t)
			s.addTarget("targets", path, []byte("x"))
			s.publish("targets", "snapshot", "timestamp")
			require.Equal(t, 1, c.download(path))
			assert.Empty(t, c.artifacts())
			assert.Empty(t, s.fetched)
		})
	}
}

func TestConformanceSubstitutedArtifact(t *testing.T) {
	s, c := start(t)
	s.addTarget("targets", "one", []byte("first contents"))
	s.addTarget("targets", "two", []byte("second contents"))
	s.publish("targets", "snapshot", "timestamp")
	require.Zero(t, c.download("one"))
	s.artifacts["one"].data = []byte("malicious data - should not download")
	s.artifacts["two"].data = []byte("other contents!")
	c.download("one")
	assert.Equal(t, []string{"first contents"}, c.artifacts())
	require.Equal(t, 1, c.download("two"))
	assert.Equal(t, []string{"first contents"}, c.artifacts())
	for name, data := range map[string]string{"longer": "second contents and more", "shorter": "second", "empty": ""} {
		s.artifacts["two"].data = []byte(data)
		require.Equal(t, 1, c.download("two"), name)
		assert.Equal(t, []string{"first contents"}, c.artifacts(), name)
	}
}

func TestConformanceArtifactChangesManyTimes(t *testing.T) {
	s, c := start(t)
	s.addTarget("targets", "file", []byte("contents"))
	s.publish("targets", "snapshot", "timestamp")
	require.Zero(t, c.download("file"))
	want := []string{"contents"}
	for i := range 6 {
		modified, fresh := fmt.Sprintf("modified %d", i), fmt.Sprintf("new %d", i)
		s.addTarget("targets", "file", []byte(modified))
		s.addTarget("targets", fmt.Sprintf("new-%d", i), []byte(fresh))
		s.publish("targets", "snapshot", "timestamp")
		if i%3 != 0 {
			continue
		}
		require.Zero(t, c.download("file", fmt.Sprintf("new-%d", i)))
		want = append(remove(want, "contents", fmt.Sprintf("modified %d", i-3)), modified, fresh)
		assert.Equal(t, want, c.artifacts())
		s.artifacts["file"].data = []byte(fmt.Sprintf("malicous %d", i))
		s.publish("targets", "snapshot", "timestamp")
		c.download("file")
		assert.Equal(t, want, c.artifacts())
	}
}

func remove(list []string, drop ...string) (out []string) {
	for _, s := range list {
		keep := true
		for _, d := range drop {
			keep = keep && s != d
		}
		if keep {
			out = append(out, s)
		}
	}
	return out
}

func TestConformanceHashAlgorithms(t *testing.T) {
	for name, algs := range map[string][]string{"sha256": {"sha256"}, "sha512": {"sha512"}, "both": {"sha256", "sha512"}} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t)
			s.addTarget("targets", "file", []byte("contents"), algs...)
			s.publish("targets", "snapshot", "timestamp")
			require.Zero(t, c.download("file"))
			assert.Len(t, s.fetched, 1)
			assert.Equal(t, []string{"contents"}, c.artifacts())
		})
	}
	t.Run("unknown", func(t *testing.T) {
		s, c := start(t)
		s.addTarget("targets", "file", []byte("contents"), "sha512")
		h := s.artifacts["file"].hashes
		h["unknown-hash"] = h["sha512"]
		delete(h, "sha512")
		s.publish("targets", "snapshot", "timestamp")
		require.Equal(t, 1, c.download("file"))
		assert.Empty(t, c.artifacts())
	})
	t.Run("one of two is wrong", func(t *testing.T) {
		s, c := start(t)
		s.addTarget("targets", "file", []byte("contents"), "sha256", "sha512")
		s.addTarget("targets", "other", []byte("others"), "sha512")
		s.artifacts["file"].hashes["sha512"] = s.artifacts["other"].hashes["sha512"]
		s.publish("targets", "snapshot", "timestamp")
		require.Equal(t, 1, c.download("file"))
		assert.Empty(t, c.artifacts())
	})
}

func TestConformanceSeveralTargetsInOrder(t *testing.T) {
	s, c := start(t)
	for _, n := range []string{"b", "a", "c"} {
		s.addTarget("targets", n, []byte(n))
	}
	s.publish("targets", "snapshot", "timestamp")
	require.Zero(t, c.download("b", "a", "c"))
	assert.ElementsMatch(t, []string{"b", "a", "c"}, c.artifacts())
	order := []string{}
	for _, f := range s.fetched {
		order = append(order, f[65:]) // after the hash and its dot
	}
	assert.Equal(t, []string{"b", "a", "c"}, order)
	assert.Equal(t, []string{"2.root", "timestamp", "2.snapshot", "2.targets"}, s.asked, "one refresh for all")
	require.Equal(t, 1, c.download("b", "missing", "c"))
}

func TestConformanceForbiddenIsAbsent(t *testing.T) {
	s, c := start(t)
	s.addTarget("targets", "x", []byte("x"))
	s.publish("targets", "snapshot", "timestamp")
	s.serve = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }
	require.Equal(t, 1, c.download("x"))
	assert.Len(t, s.fetched, 1)
	assert.Empty(t, c.artifacts())
}

// Ctrl-C, a kill or a lost connection in the middle of a download: the next
// call continues it, and the file shows up when it is whole.
func TestInterruptedDownloadResumes(t *testing.T) {
	const size, cut = 4 << 20, 3 << 20
	for name, stop := range map[string]func(*exec.Cmd) error{
		"Ctrl-C":          func(c *exec.Cmd) error { return c.Process.Signal(os.Interrupt) },
		"kill":            func(c *exec.Cmd) error { return c.Process.Kill() },
		"connection lost": func(*exec.Cmd) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t)
			data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
			s.addTarget("targets", "big", data)
			s.publish("targets", "snapshot", "timestamp")
			var offsets []string
			half, go_ := make(chan bool), make(chan bool)
			s.serve = func(w http.ResponseWriter, r *http.Request) {
				offsets = append(offsets, r.Header.Get("Range"))
				if len(offsets) > 1 {
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
					return
				}
				w.Header().Set("Content-Length", fmt.Sprint(size))
				_, _ = w.Write(data[:cut])
				w.(http.Flusher).Flush()
				close(half)
				if name == "connection lost" {
					panic(http.ErrAbortHandler)
				}
				<-go_
			}
			cmd := c.command(c.downloadArgs("big")...)
			require.NoError(t, cmd.Start())
			<-half
			if name != "connection lost" {
				require.Eventually(t, func() bool { // what was sent has been written
					a := c.artifacts()
					return len(a) == 1 && len(a[0]) == cut
				}, 10*time.Second, 10*time.Millisecond)
			}
			require.NoError(t, stop(cmd))
			err := cmd.Wait()
			close(go_)
			s.settle()
			if name == "connection lost" {
				require.NoError(t, err, "one command resumes by itself")
			} else {
				require.Error(t, err)
				assert.Len(t, s.fetched, 1)
				require.Zero(t, c.download("big"))
			}
			require.Len(t, offsets, 2)
			assert.Equal(t, fmt.Sprintf("bytes=%d-", cut), offsets[1])
			require.Len(t, c.artifacts(), 1)
			assert.True(t, c.artifacts()[0] == string(data))
		})
	}
}

func TestProgressIsPlainLinesWithoutATerminal(t *testing.T) {
	s, c := start(t)
	s.addTarget("targets", "x", []byte("12345"))
	s.publish("targets", "snapshot", "timestamp")
	out, err := c.command(c.downloadArgs("x")...).CombinedOutput()
	require.NoError(t, err)
	assert.Equal(t, "x: fetching, 5 bytes\nx: complete\n", string(out))
	out, err = c.command(c.downloadArgs("x")...).CombinedOutput()
	require.NoError(t, err)
	assert.Empty(t, string(out))
}
