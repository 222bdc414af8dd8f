package softtpm_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// generate plays the commands of a seed.
func generate(t chip, seed uint64, steps int) []string {
	g := newGenerator(t, seed)
	for range steps {
		g.step()
		g.sessions = slices.DeleteFunc(g.sessions, func(s *genSession) bool { return g.player.sessions[s.h] == nil })
	}
	return g.lines
}

const generatedSteps = 150

func generatedFile() string { return filepath.Join("testdata", "generated.json.gz") }

func readGenerated(t *testing.T) (all map[uint64][]string) {
	t.Helper()
	b, err := os.ReadFile(generatedFile())
	require.NoError(t, err)
	z, err := gzip.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	b, err = io.ReadAll(z)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &all))
	return all
}

// TestGeneratedStreamsAreAnsweredAsBySwtpm sends random commands that make
// sense and compares with what swtpm answered to the same. It needs no swtpm.
func TestGeneratedStreamsAreAnsweredAsBySwtpm(t *testing.T) {
	commands := 0
	for seed, want := range readGenerated(t) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			compareAnswers(t, want, generate(newSoft(t), seed, generatedSteps))
		})
		commands += len(want)
	}
	t.Logf("%d generated commands compared", commands)
}

// TestSwtpmAnswersGeneratedStreamsAsRecorded holds the recorded answers against
// the swtpm that is installed.
func TestSwtpmAnswersGeneratedStreamsAsRecorded(t *testing.T) {
	testenv.Tool(t, "swtpm", "swtpm")
	all := map[uint64][]string{}
	if *update {
		for seed := range uint64(60) {
			all[seed] = nil
		}
	} else {
		all = readGenerated(t)
	}
	for seed, want := range all {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			got := generate(newSwtpm(t), seed, generatedSteps)
			if *update {
				all[seed] = got
				return
			}
			compareAnswers(t, want, got)
		})
	}
	if *update {
		var out bytes.Buffer
		z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
		require.NoError(t, err)
		require.NoError(t, json.NewEncoder(z).Encode(all))
		require.NoError(t, z.Close())
		require.NoError(t, os.WriteFile(generatedFile(), out.Bytes(), 0o644))
	}
}

// TestFreshlyGeneratedStreams compares both TPMs as they are here: in the full
// run on 1,000 seeds that nobody has tried, else on a few that are always the
// same, so that a gate does not turn red by chance.
func TestFreshlyGeneratedStreams(t *testing.T) {
	testenv.Tool(t, "swtpm", "swtpm")
	first := uint64(1 << 32)
	if testenv.Long() {
		first = uint64(time.Now().UnixNano())
	}
	if s := os.Getenv("TRUSTTREE_SEED"); s != "" {
		_, err := fmt.Sscan(s, &first)
		require.NoError(t, err)
	}
	commands := 0
	for i := range testenv.N(5, 1000) {
		seed := first + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			want := generate(newSwtpm(t), seed, generatedSteps)
			compareAnswers(t, want, generate(newSoft(t), seed, generatedSteps))
			commands += len(want)
		})
	}
	t.Logf("%d generated commands compared", commands)
}
