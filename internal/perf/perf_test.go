package perf_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/perf"
	"github.com/trusttree/trusttree/internal/testenv"
)

// recorded is a part with every kind of row, and testdata/recorded.txt what
// was measured of it.
var recorded = []perf.Part{{
	Name: "recorded", Title: "Recorded", About: "A recorded run.",
	Rows: []perf.Row{
		{What: "parse", Ours: "Parse/ours ns/op", Peers: []perf.Peer{{Name: "theirs", Figure: "Parse/theirs ns/op"}, {Name: "others", Figure: "Parse/others ns/op"}}},
		{What: "rate", Ours: "Pair store/s", Peers: []perf.Peer{{Name: "raw", Figure: "Pair raw/s"}}},
		{What: "gone", Ours: "Gone/ours ns/op", Peers: []perf.Peer{{Name: "ghost", Figure: "Gone/ghost ns/op"}, {Name: "nobody", Figure: "Gone/nobody ns/op"}}},
	},
	Bars: []perf.Bar{
		{What: "parse", Figure: "Parse/ours ns/op", Scale: 1e-3, Unit: "µs", AtMost: true, Target: 2},
		{What: "theirs by ours", Figure: "Parse/theirs ns/op", Over: []string{"Parse/ours ns/op"}, Unit: "×", Target: 3},
		{What: "by the best of them", Figure: "Parse/ours ns/op", Over: []string{"Parse/theirs ns/op", "Parse/others ns/op"}, Unit: "×", AtMost: true, Target: 0.3},
		{What: "a second", Figure: "Parse/ours ns/op", Per: 1e9, Target: 500_000},
		{What: "of what is not there", Figure: "Gone/ours ns/op", AtMost: true, Target: 1},
	},
	Absent: map[string]string{"ghost": "it cannot be had"},
}}

func load(t *testing.T) map[string]*perf.Data {
	t.Helper()
	f, err := os.Open("testdata/recorded.txt")
	require.NoError(t, err)
	defer f.Close()
	d, err := perf.Parse(f)
	require.NoError(t, err)
	return map[string]*perf.Data{"recorded": d}
}

func Example() {
	data, err := perf.Parse(strings.NewReader("cpu: a processor\nround: 1\nBenchmarkOpen/ours-2 100 250 ns/op\nBenchmarkOpen/theirs-2 100 1000 ns/op\n"))
	if err != nil {
		panic(err)
	}
	page := perf.Render([]perf.Part{{Name: "open", Title: "Open", About: "Opens.",
		Rows: []perf.Row{{What: "open", Ours: "Open/ours ns/op", Peers: []perf.Peer{{Name: "theirs", Figure: "Open/theirs ns/op"}}}}}},
		map[string]*perf.Data{"open": data})
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "| open | theirs") {
			fmt.Print(line)
		}
	}
	// Output: | open | theirs | **4×** | one round |
}

func TestRecordedRun(t *testing.T) {
	page := perf.Render(recorded, load(t))
	for _, line := range []string{
		"AMD EPYC (virtual machine), 2 cores, 24 GiB of memory, Linux 6.1; disk: ext4 on a virtual disk; linux/amd64, go1.26.8.",
		"| Recorded | 2026-11-23 08:00 UTC | 0123456789ab | 6 | 0.10 | theirs 1.2 |",
		// Ratios are taken within rounds: the machine was half as fast in one.
		"| parse | theirs | **4×** | [3.90–4.10] |",
		"|  | others | **1×** ~ | [0.90–1.10] |",
		"| rate | raw | **0.80×** | [0.75–0.85] |",
		"Beside ghost: not measured; it cannot be had.",
		"| gone | nobody | not measured | nobody (apt-get install nobody) |",
		"| parse | ≤ 2 µs | 1 µs | met |",
		"| theirs by ours | ≥ 3× | 4× | met |",
		"| by the best of them | ≤ 0.30× | 1× | **missed** |",
		"| a second | ≥ 500,000 | 1,000,000 | met |",
		"| of what is not there | ≤ 1 | not measured | failed: panic: no |",
		"3 bars are met, 1 missed, 1 not measured. Missed:",
		"- Recorded: by the best of them: **1×**, bar ≤ 0.30×",
		"| Parse/ours | ns/op | 1 µs | 100 % | 6 |",
		"| Parse/theirs | ns/op | 4 µs | 100 % | 6 |",
		"| Once | ns/op | 5 ns | one round | 1 |",
		"| Parse/ours | B/op | 2 KiB | 0 % | 6 |",
	} {
		assert.Contains(t, page, "\n"+line, "of\n%s", page)
	}
	assert.Less(t, strings.Index(page, "## Ratios"), strings.Index(page, "## Absolute figures"))
	assert.NotContains(t, page, "NaN")
}

func TestWhatIsNoDataIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"result before a round": "BenchmarkA-2 1 5 ns/op\n",
		"round that is none":    "round: x\n",
		"round 0":               "round: 0\n",
		"no number":             "round: 1\nBenchmarkA-2 1 five ns/op\n",
	} {
		_, err := perf.Parse(strings.NewReader(text))
		assert.Error(t, err, name)
	}
	d, err := perf.Parse(strings.NewReader("round: 1\nBenchmarkA\nBenchmarkA-2 is talking about it\nPASS\nok  \tx\t1s\n"))
	require.NoError(t, err)
	assert.Empty(t, d.Figures)
	assert.Contains(t, perf.Render(recorded, map[string]*perf.Data{"recorded": d}), "| Recorded | not yet |")
}

func FuzzParse(f *testing.F) {
	data, err := os.ReadFile("testdata/recorded.txt")
	require.NoError(f, err)
	f.Add(string(data))
	f.Fuzz(func(t *testing.T, text string) {
		d, err := perf.Parse(strings.NewReader(text))
		if err == nil {
			_ = perf.Render(recorded, map[string]*perf.Data{"recorded": d})
		}
	})
}

// TestPageIsItsDatas renders docs/performance.md anew from the data beside it.
func TestPageIsItsDatas(t *testing.T) {
	parts := perf.Parts()
	data, err := perf.Load(os.DirFS(testenv.Repo()), parts)
	require.NoError(t, err)
	page, err := os.ReadFile(filepath.Join(testenv.Repo(), perf.Page))
	require.NoError(t, err)
	assert.Equal(t, perf.Render(parts, data), string(page), "run: ci/generate.sh page")
	for _, local := range []string{testenv.Repo(), os.TempDir() + "/", "/home/", "/root/"} {
		assert.NotContains(t, string(page), local, "a path of one machine")
	}
	known := map[string]bool{"README.md": true}
	for _, p := range parts {
		known[p.Name+".txt"] = true
	}
	files, err := filepath.Glob(filepath.Join(testenv.Repo(), perf.DataDir, "*"))
	require.NoError(t, err)
	for _, f := range files {
		assert.True(t, known[filepath.Base(f)], "%s is no part's", f)
	}
}

// TestDeclaredIsThere holds what is declared against the sources and against
// the data, both ways: a benchmark that is gone, a figure that no run brings,
// and a figure that nobody declared are told.
func TestDeclaredIsThere(t *testing.T) {
	parts := perf.Parts()
	data, err := perf.Load(os.DirFS(testenv.Repo()), parts)
	require.NoError(t, err)
	for _, p := range parts {
		runs := map[string]bool{}
		for _, r := range p.Runs {
			source := sources(t, r.Dir)
			for _, b := range r.Bench {
				assert.Contains(t, source, "\nfunc Benchmark"+b+"(b *testing.B)", "%s: %s", p.Name, r.Dir)
				runs[b] = true
			}
			assert.NotEmpty(t, r.Time, "%s: %s", p.Name, r.Dir)
		}
		function := func(figure string) string {
			name, unit, ok := strings.Cut(figure, " ")
			assert.True(t, ok && unit != "", "%s: %q has no unit", p.Name, figure)
			name, _, _ = strings.Cut(name, "/")
			return name
		}
		var figures []string
		for _, r := range p.Rows {
			assert.NotEmpty(t, r.Peers, "%s: %s", p.Name, r.What)
			figures = append(figures, r.Ours)
			for _, peer := range r.Peers {
				figures = append(figures, peer.Figure)
				assert.Equal(t, perf.MoreIsBetter(r.Ours), perf.MoreIsBetter(peer.Figure), "%s: %s beside %s", p.Name, r.What, peer.Name)
			}
		}
		for _, b := range p.Bars {
			figures = append(append(figures, b.Figure), b.Over...)
		}
		for _, f := range figures {
			assert.True(t, runs[function(f)], "%s: no run brings %q", p.Name, f)
		}
		for f := range data[p.Name].Figures {
			assert.True(t, runs[function(f)], "%s: the data have %q, which no run brings", p.Name, f)
		}
		for peer, why := range p.Absent {
			assert.NotEmpty(t, why, peer)
		}
	}
}

func sources(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(testenv.Repo(), dir, "*_test.go"))
	require.NoError(t, err)
	require.NotEmpty(t, files, dir)
	var all strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(f)
		require.NoError(t, err)
		all.WriteString("\n" + string(data))
	}
	return all.String()
}

// TestEveryBenchmarkIsDeclared finds benchmarks in the packages' sources that
// no part runs, so that a new one gets onto the page or is named here with the
// reason why not.
func TestEveryBenchmarkIsDeclared(t *testing.T) {
	not := map[string]string{
		"attest/quote BenchmarkVerifyQuote":      "BenchmarkQuote does it beside peers",
		"update BenchmarkWarmRefresh100kTargets": "BenchmarkRefreshBesideGoTUF does it beside a peer",
		"update BenchmarkInstall500MiB":          "BenchmarkInstallBesideRAUC does it beside a peer",
		"update BenchmarkStream5GiB":             "takes a process of its own with a memory limit (.ci/long update)",
		"tenantstore BenchmarkBatch1000":         "BenchmarkShareBatch does it in turn with its peer",
		"tenantstore BenchmarkGet":               "BenchmarkShareGet does it in turn with its peer",
		"tenantstore BenchmarkNoisyNeighbour":    "latencies of minutes (.ci/long tenantstore)",
	}
	declared := map[string]bool{}
	for _, p := range perf.Parts() {
		for _, r := range p.Runs {
			for _, b := range r.Bench {
				declared[r.Dir+" Benchmark"+b] = true
			}
		}
	}
	found := regexp.MustCompile(`(?m)^func (Benchmark\w+)\(b \*testing\.B\)`)
	require.NoError(t, filepath.WalkDir(testenv.Repo(), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") || d.Name() == "testdata" || d.Name() == "dist") && path != testenv.Repo() {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") || filepath.Base(filepath.Dir(path)) == "measure" { // its tests hold benchmarks as text
			return nil
		}
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		dir, err := filepath.Rel(testenv.Repo(), filepath.Dir(path))
		require.NoError(t, err)
		if dir = filepath.ToSlash(dir); strings.Contains(dir, "/internal/") && !strings.HasSuffix(dir, "/peerbench") && !strings.HasSuffix(dir, "/interop") {
			return nil // a part of what the packages' own show
		}
		for _, m := range found.FindAllStringSubmatch(string(text), -1) {
			name := dir + " " + m[1]
			assert.True(t, declared[name] || not[name] != "", "%s is in no part of internal/perf", name)
			delete(not, name)
		}
		return nil
	}))
	assert.Empty(t, not, "no such benchmarks")
}
