package trusttree_test

import (
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/controls"
	"github.com/trusttree/trusttree/internal/testenv"
)

// TestNamedTestsExist holds the threat tables against the code: a defence whose
// test is gone is no longer shown. That each ran is for examples/compliance.
func TestNamedTestsExist(t *testing.T) {
	files, err := filepath.Glob("docs/threats/*.md")
	require.NoError(t, err)
	total := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		named := controls.Named(string(text))
		assert.NotEmpty(t, named, name)
		total += len(named)
		for _, test := range named {
			dir, fn, _ := strings.Cut(test, ": ")
			fn, _, _ = strings.Cut(fn, "/")
			assert.True(t, declares(t, dir, fn), "%s names %s, which does not exist", name, test)
		}
	}
	assert.Greater(t, total, 600)
}

// declares reports whether a test of a package is declared.
func declares(t *testing.T, dir, test string) bool {
	sources, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	require.NoError(t, err)
	for _, src := range sources {
		text, err := os.ReadFile(src)
		require.NoError(t, err)
		if strings.Contains(string(text), "func "+test+"(") {
			return true
		}
	}
	return false
}

var markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// TestLinksOfTheDocs follows every link to a file of this repository.
func TestLinksOfTheDocs(t *testing.T) {
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, m := range markdownLink.FindAllStringSubmatch(string(text), -1) {
			u, err := url.Parse(m[1])
			require.NoError(t, err, path)
			if u.Scheme != "" || u.Path == "" {
				continue
			}
			_, err = os.Stat(filepath.Join(filepath.Dir(path), u.Path))
			assert.NoError(t, err, "%s links %s", path, m[1])
		}
		return nil
	}))
}

// TestUnitsAreSandboxed holds the systemd units to their sandbox.
func TestUnitsAreSandboxed(t *testing.T) {
	analyze := testenv.Tool(t, "systemd-analyze", "systemd")
	for _, unit := range []string{"trusttree-node.service", "trusttree-cloud.service"} {
		out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=20", "--no-pager", filepath.Join("deploy", "systemd", unit)).CombinedOutput()
		assert.NoError(t, err, "%s is exposed more than 2.0:\n%s", unit, out)
	}
}

// TestDashboardNamesMetricsThatExist holds the Grafana dashboard, and the table
// of metrics in the docs, against what the cloud exports.
func TestDashboardNamesMetricsThatExist(t *testing.T) {
	source, err := os.ReadFile("examples/cloud/monitor.go")
	require.NoError(t, err)
	var exported []string
	for _, m := range regexp.MustCompile(`"(trusttree_[a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		exported = append(exported, m[1])
	}
	require.NotEmpty(t, exported)
	for _, name := range []string{"deploy/grafana.json", "docs/operations.md"} {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, used := range regexp.MustCompile(`trusttree_[a-z_]+`).FindAllString(string(text), -1) {
			base := strings.TrimSuffix(strings.TrimSuffix(used, "_bucket"), "_count")
			assert.Contains(t, exported, base, name)
		}
		for _, m := range exported {
			assert.Contains(t, string(text), m, "%s leaves it out", name)
		}
	}
}

var loggedEvent = regexp.MustCompile(`"event", "([a-z][a-z._-]*[a-z])"`)

// TestEventsAreExplained demands a line in docs/operations.md for every security
// event that the code logs.
func TestEventsAreExplained(t *testing.T) {
	text, err := os.ReadFile("docs/operations.md")
	require.NoError(t, err)
	for _, dir := range []string{"attest", "moduleid", "secureboot", "fscrypt", "update", "tlsconn", "tenantstore", "examples/node", "examples/cloud"} {
		require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, m := range loggedEvent.FindAllStringSubmatch(string(source), -1) {
				assert.Contains(t, string(text), "`"+m[1]+"`", "%s logs it", path)
			}
			return err
		}))
	}
}
