package softtpm_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/softtpm"
)

// stream is what one TPM of a suite was told, and what swtpm answered to the
// same.
type stream struct {
	Name    string         `json:"name"`
	Steps   []softtpm.Step `json:"steps"`
	Answers []string       `json:"answers"`
}

// readSteps reads what TRUSTTREE_RECORD wrote.
func readSteps(tb testing.TB, file string) (steps []softtpm.Step) {
	tb.Helper()
	b, err := os.ReadFile(file)
	require.NoError(tb, err)
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var s softtpm.Step
		require.NoError(tb, json.Unmarshal(lines.Bytes(), &s))
		steps = append(steps, s)
	}
	require.NoError(tb, lines.Err())
	return steps
}

func playAll(t chip, steps []softtpm.Step) []string {
	p := newPlayer(t)
	for _, s := range steps {
		p.play(s)
	}
	return p.lines
}

// compareAnswers compares two transcripts, and holds that what could be
// computed again was right.
func compareAnswers(t *testing.T, want, got []string) {
	t.Helper()
	// What was encrypted to another TPM's key does not decrypt: the package doc
	// names how both say so.
	told := strings.ReplaceAll(strings.Join(want, "\n"), "156 rc 101", "156 rc 4c4")
	compareTranscripts(t, told, strings.Join(got, "\n"))
	for _, l := range want {
		if strings.Contains(l, "WRONG") || strings.Contains(l, "MALFORMED") || strings.Contains(l, "no answer") {
			t.Errorf("swtpm: %s", l)
		}
	}
}

// eachStream reads the streams in testdata/streams: one file for each suite.
func eachStream(t *testing.T, f func(t *testing.T, s *stream), after func(file string, all []stream)) {
	files, err := filepath.Glob(filepath.Join("testdata", "streams", "*.json.gz"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json.gz"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			z, err := gzip.NewReader(bytes.NewReader(b))
			require.NoError(t, err)
			b, err = io.ReadAll(z)
			require.NoError(t, err)
			var all []stream
			require.NoError(t, json.Unmarshal(b, &all))
			for i := range all {
				t.Run(all[i].Name, func(t *testing.T) { f(t, &all[i]) })
			}
			if after != nil {
				after(file, all)
			}
		})
	}
}

func writeStreams(t *testing.T, file string, all []stream) {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	require.NoError(t, err)
	require.NoError(t, json.NewEncoder(z).Encode(all))
	require.NoError(t, z.Close())
	require.NoError(t, os.WriteFile(file, out.Bytes(), 0o644))
}

// TestSuitesStreamsAreAnsweredAsBySwtpm plays streams that were recorded from
// this project's suites, and compares with what swtpm answered to them. It
// needs no swtpm.
func TestSuitesStreamsAreAnsweredAsBySwtpm(t *testing.T) {
	commands := 0
	eachStream(t, func(t *testing.T, s *stream) {
		compareAnswers(t, s.Answers, playAll(newSoft(t), s.Steps))
		commands += len(s.Answers)
	}, nil)
	t.Logf("%d commands of the suites compared", commands)
}

// TestSwtpmAnswersSuitesStreamsAsRecorded holds the recorded answers against
// the swtpm that is installed.
func TestSwtpmAnswersSuitesStreamsAsRecorded(t *testing.T) {
	eachStream(t, func(t *testing.T, s *stream) {
		got := playAll(newSwtpm(t), s.Steps)
		if *update {
			s.Answers = got
			return
		}
		compareAnswers(t, s.Answers, got)
	}, func(file string, all []stream) {
		if *update {
			writeStreams(t, file, all)
		}
	})
}

// TestStreamsJustRecordedAreAnsweredAsBySwtpm plays the streams that
// TRUSTTREE_RECORD has just written to the directory that TRUSTTREE_STREAMS
// names to both TPMs. With -update it chooses those for testdata/streams, and
// cuts long ones.
func TestStreamsJustRecordedAreAnsweredAsBySwtpm(t *testing.T) {
	dir := os.Getenv("TRUSTTREE_STREAMS")
	if dir == "" {
		t.Skip("TRUSTTREE_STREAMS names no directory of recorded streams")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	size := func(file string) int64 {
		fi, err := os.Stat(file)
		require.NoError(t, err)
		return fi.Size()
	}
	slices.SortFunc(files, func(a, b string) int { return int(size(a) - size(b)) })
	suites, commands := map[string][]stream{}, 0
	seen := map[string]bool{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".jsonl")
		t.Run(name, func(t *testing.T) {
			steps := readSteps(t, file)
			if *update {
				if steps = steps[:min(len(steps), 800)]; !tellsNew(seen, steps) {
					return
				}
			}
			want := playAll(newSwtpm(t), steps)
			commands += len(want)
			compareAnswers(t, want, playAll(newSoft(t), steps))
			suite := strings.TrimSuffix(name[:strings.LastIndex(name, "-")], ".test")
			suites[suite] = append(suites[suite], stream{fmt.Sprint(len(suites[suite]) + 1), steps, want})
		})
	}
	t.Logf("%d streams, %d commands compared", len(files), commands)
	if !*update || t.Failed() {
		return
	}
	for _, suite := range slices.Sorted(maps.Keys(suites)) {
		writeStreams(t, filepath.Join("testdata", "streams", suite+".json.gz"), suites[suite])
	}
}

// tellsNew says whether a stream has a command, with its response code and
// kinds of session, behind another that no stream before it had.
func tellsNew(seen map[string]bool, steps []softtpm.Step) (told bool) {
	before := ""
	for _, s := range steps {
		now := fmt.Sprintf("%s %x %x", s.Event, s.CC, s.RC)
		for _, a := range s.Sessions {
			now += fmt.Sprintf(" %x%x%v%v", a.Handle>>24, a.Attrs, a.Wrong, a.Included)
		}
		if len(s.Raw) > 9 {
			now += fmt.Sprintf(" raw %x", s.Raw[6:10])
		}
		if pair := before + ">" + now; !seen[pair] {
			seen[pair], told = true, true
		}
		before = now
	}
	return told
}
