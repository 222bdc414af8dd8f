package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/perf"
)

// chatty is what a benchmark binary prints with -test.v.
const chatty = `goos: linux
pkg: example
BenchmarkRelay
BenchmarkRelay/ours
BenchmarkRelay/ours-2         	       1	         0.2328 bulk-GB/s	       106.0 rr-us
BenchmarkRelay/ghostunnel
    kinds_test.go:73: missing: ghostunnel (apt-get install it)
--- SKIP: BenchmarkRelay/ghostunnel
BenchmarkRelay/loud
    loud_test.go:9: bars: at least 1
BenchmarkRelay/loud-2 	 10	 5 ns/op
--- BENCH: BenchmarkRelay/loud-2
    loud_test.go:9: bars: at least 1
PASS
`

func TestKeepTakesResultsAndReasons(t *testing.T) {
	assert.Equal(t, []string{
		"BenchmarkRelay/ours-2 1 0.2328 bulk-GB/s 106.0 rr-us",
		"missing: Relay/ghostunnel: ghostunnel (apt-get install it)",
		"BenchmarkRelay/loud-2 10 5 ns/op",
	}, keep([]byte(chatty)))
	assert.Empty(t, keep([]byte("PASS\n")))
}

func TestReasonsNameNoDirectory(t *testing.T) {
	for reason, want := range map[string]string{
		" open /tmp/x1/y/f.key: no\n":     "open …/f.key: no",
		"a | b":                           "a / b",
		"open /dev/tpm0: busy":            "open /dev/tpm0: busy",
		"mount /dev/shm/m/image: (needs)": "mount …/image: (needs)",
		strings.Repeat("x", 300):          strings.Repeat("x", 200) + "…",
		"10 MB/s or 3 and/or /x":          "10 MB/s or 3 and/or /x",
	} {
		assert.Equal(t, want, clean(reason))
	}
}

func TestChoose(t *testing.T) {
	all, err := choose(nil)
	require.NoError(t, err)
	assert.Len(t, all, len(perf.Parts()))
	two, err := choose([]string{"volumes", "quotes"})
	require.NoError(t, err)
	assert.Equal(t, []string{"volumes", "quotes"}, []string{two[0].Name, two[1].Name})
	_, err = choose([]string{"no-such"})
	assert.ErrorIs(t, err, errUsage)
}

const benchmarks = `package x

import (
	"os"
	"testing"
)

func BenchmarkAdd(b *testing.B) {
	n := 0
	for b.Loop() {
		n++
	}
	b.ReportMetric(7, "sevens")
}

func BenchmarkPeer(b *testing.B) { b.Skip("missing: the peer") }

func BenchmarkBad(b *testing.B) { b.Fatal("it broke in " + os.Getenv("TRUSTTREE_LONG")) }
`

// TestRounds measures a module of its own: results, what was skipped and what
// failed are in the data, a round that is done is not done again, and a run
// that was stopped goes on.
func TestRounds(t *testing.T) {
	repo := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(repo, name), []byte(text), 0o600))
	}
	write("go.mod", "module example.org/x\n\ngo 1.26\n")
	write("x_test.go", benchmarks)
	parts := []perf.Part{{Name: "x", Title: "X", Runs: []perf.Run{
		{Dir: ".", Bench: []string{"Add", "Peer"}, Time: "1x"},
		{Dir: ".", Bench: []string{"Bad"}, Time: "1x", Rounds: 1},
		{Dir: ".", Bench: []string{"NoSuch"}, Time: "1x", Rounds: 1},
	}}}
	r := &runner{repo: repo, o: options{rounds: 2}, bins: map[string]string{}, state: t.TempDir(), tmp: t.TempDir()}
	require.NoError(t, r.build(t.Context(), parts))
	require.NoError(t, r.round(t.Context(), parts[0], 1))
	before, err := os.ReadFile(r.file(parts[0], 1))
	require.NoError(t, err)
	require.NoError(t, r.round(t.Context(), parts[0], 1))
	after, err := os.ReadFile(r.file(parts[0], 1))
	require.NoError(t, err)
	assert.Equal(t, string(before), string(after))
	for _, line := range []string{"round: 1", "7.000 sevens", "missing: Peer: the peer", "missing: Bad: failed: x_test.go:18: it broke in 1", "missing: NoSuch: failed: it printed no result"} {
		assert.Contains(t, string(after), line)
	}
	require.NoError(t, r.round(t.Context(), parts[0], 2))
	require.NoError(t, r.collect(t.Context(), parts[0]))
	data, err := perf.Load(os.DirFS(repo), parts)
	require.NoError(t, err)
	assert.Equal(t, 2, data["x"].Rounds())
	assert.Equal(t, map[int]float64{1: 7, 2: 7}, data["x"].Figures["Add sevens"])
	assert.Equal(t, "the peer", data["x"].Missing["Peer"])
}

func TestMachineNamesNoPath(t *testing.T) {
	config, _ := machine(t.Context(), t.TempDir())
	text := strings.Join(config, "\n")
	for _, key := range []string{"cpu: ", "cores: ", "memory: ", "kernel: Linux", "disk: ", "go: go", "date: "} {
		assert.Contains(t, text, key)
	}
	assert.NotContains(t, text, os.TempDir())
	_, err := time.Parse("2006-01-02 15:04 UTC", strings.TrimPrefix(config[len(config)-2], "date: "))
	assert.NoError(t, err)
}
