// Package testenv tells tests what they run on: which tools are there, where
// the corpus is, and whether full figures are asked for. Under CI=true a
// missing tool or corpus fails the test; elsewhere it skips with its name.
package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// CI reports whether the run must not skip what it can install (CI=true).
func CI() bool { return os.Getenv("CI") == "true" }

// Long reports whether the bars' full figures are asked for (TRUSTTREE_LONG=1).
func Long() bool { return os.Getenv("TRUSTTREE_LONG") == "1" }

// N returns full when full figures are asked for, and short otherwise.
func N(short, full int) int {
	if Long() {
		return full
	}
	return short
}

// Missing skips the test, or fails it under CI, because of what is missing.
func Missing(tb testing.TB, what string) {
	tb.Helper()
	if CI() {
		tb.Fatalf("missing under CI: %s", what)
	}
	tb.Skipf("missing: %s", what)
}

// Tool returns the path of a program, or skips (fails under CI) without it.
// debian names the package that brings it.
func Tool(tb testing.TB, name, debian string) string {
	tb.Helper()
	for _, dir := range []string{"", "/usr/sbin", "/sbin", "/usr/lib/postgresql/15/bin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	Missing(tb, name+" (apt-get install "+debian+")")
	return ""
}

// Root skips (fails under CI) a test that needs root.
func Root(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		Missing(tb, "root privileges")
	}
}

// Repo returns the root directory of the module's checkout.
func Repo() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Corpus returns a path below the external corpus (TRUSTTREE_CORPUS, or
// ../shared/corpus beside the checkout). The corpus is data of others that is
// not part of this module, so a test without it skips, in CI too.
func Corpus(tb testing.TB, elem ...string) string {
	tb.Helper()
	dir := os.Getenv("TRUSTTREE_CORPUS")
	if dir == "" {
		dir = filepath.Join(Repo(), "..", "shared", "corpus")
	} else if !filepath.IsAbs(dir) {
		dir = filepath.Join(Repo(), dir)
	}
	p := filepath.Join(append([]string{dir}, elem...)...)
	if _, err := os.Stat(p); err != nil {
		tb.Skipf("missing: corpus %s (set TRUSTTREE_CORPUS)", filepath.Join(elem...))
	}
	return p
}
