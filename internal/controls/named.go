package controls

import (
	"regexp"
	"slices"
	"strings"
)

// named matches what the docs write a test with: a package's directory and a
// colon, or a test of the package named last.
var named = regexp.MustCompile(`\b((?:` + strings.Join(Packages[:], "|") + `|internal|examples)(?:/[a-z0-9_]+)*): |` +
	`\b((?:Test|Fuzz|Example|Benchmark)(?:[A-Z0-9_][A-Za-z0-9_]*)?)(/[^,;|]*[^,;|\s])?`)

// Named returns the tests that a Markdown text names, each once, sorted:
// "DIR: TestName, TestOther/sub; DIR: FuzzThird" names three. What is named
// before any directory in its line counts for nothing.
func Named(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		dir := ""
		for _, m := range named.FindAllStringSubmatch(line, -1) {
			switch {
			case m[1] != "":
				dir = m[1]
			case dir != "":
				out = append(out, dir+": "+m[2]+m[3])
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Benchmark reports whether a name is that of a benchmark, which a run of the
// tests does not run.
func Benchmark(name string) bool { return strings.Contains(name, ": Benchmark") }
