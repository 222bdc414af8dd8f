package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/trusttree/trusttree/internal/controls"
)

// printThreats lists what the threat tables name and the run does not show, and
// returns how many of it count.
func (o options) printThreats(stdin io.Reader, stdout io.Writer) (int, error) {
	if o.tests == "" || o.json || o.oscal != "" || o.framework != "" || o.modified != "" {
		return 0, fmt.Errorf("%w: -threats goes with -tests and nothing else", errUsage)
	}
	files, err := filepath.Glob(filepath.Join(o.threats, "*.md"))
	if err != nil {
		return 0, err
	}
	run, err := o.run(stdin)
	if err != nil {
		return 0, err
	}
	var b strings.Builder
	count, total := map[controls.Outcome]int{}, 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		for _, name := range controls.Named(string(text)) {
			if controls.Benchmark(name) {
				continue
			}
			outcome, why := run.Outcome(name)
			total++
			count[outcome]++
			if outcome != controls.Passed {
				fmt.Fprintf(&b, "%-10s %s: %s: %s\n", outcome, filepath.Base(file), name, why)
			}
		}
	}
	if total == 0 {
		return 0, fmt.Errorf("%s names no tests", o.threats)
	}
	seen := count[controls.Passed] + count[controls.Partial] + count[controls.LongOnly]
	fmt.Fprintf(&b, "%d tests named: %d passed, %d passed in part, %d run with TRUSTTREE_LONG=1 only, %d not shown\n",
		total, count[controls.Passed], count[controls.Partial], count[controls.LongOnly], total-seen)
	_, err = io.WriteString(stdout, b.String())
	return total - seen, err
}
