package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestThreatsHaveToRun: a linked test that did not run is found, whatever the
// reason; one of the long run is named.
func TestThreatsHaveToRun(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "update.md"), []byte(
		"| Tests |\n|---|\n| a | update: TestA, TestB/some part; update/boot: FuzzC, BenchmarkD |\n"), 0o600))
	event := func(action, pkg, test, output string) string {
		return `{"Time":"2026-01-31T12:00:00Z","Action":"` + action + `","Package":"github.com/trusttree/trusttree/` + pkg + `","Test":"` + test + `","Output":"` + output + `"}` + "\n"
	}
	good := event("run", "update", "TestA", "") + event("pass", "update", "TestA", "") +
		event("run", "update", "TestB/some_part", "") + event("pass", "update", "TestB/some_part", "") + event("pass", "update", "", "")
	fuzz := event("run", "update/boot", "FuzzC", "") + event("pass", "update/boot", "FuzzC", "") + event("pass", "update/boot", "", "")
	for name, c := range map[string]struct {
		run  string
		code int
		says string
	}{
		"all ran":        {good + fuzz, exitDone, "3 tests named: 3 passed"},
		"one is missing": {good, exitRefused, "missing    update.md: update/boot: FuzzC"},
		"one failed":     {good + strings.ReplaceAll(fuzz, "pass", "fail"), exitRefused, "fail "},
		"one skipped":    {good + strings.Replace(fuzz, "pass", "skip", 1), exitRefused, "skip "},
		"long run only": {good + event("output", "update/boot", "FuzzC", "big: TRUSTTREE_LONG=1") + strings.Replace(fuzz, "pass", "skip", 1),
			exitDone, "1 run with TRUSTTREE_LONG=1 only, 0 not shown"},
	} {
		code, stdout, stderr := compliance(c.run, "-threats", dir, "-tests", "-")
		assert.Equal(t, c.code, code, "%s: %s", name, stderr)
		assert.Contains(t, stdout, c.says, name)
	}
	for _, args := range [][]string{{"-threats", dir}, {"-threats", dir, "-tests", "-", "-json"}} {
		code, _, _ := compliance(good, args...)
		assert.Equal(t, exitUsage, code)
	}
	code, _, stderr := compliance(good, "-threats", t.TempDir(), "-tests", "-")
	assert.Equal(t, exitFailed, code)
	assert.Contains(t, stderr, "names no tests")
}
