package trusttree_test

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"

	"github.com/trusttree/trusttree/internal/testenv"
)

// TestDependenciesAreListed holds docs/dependencies.md against go.mod, both ways.
func TestDependenciesAreListed(t *testing.T) {
	data, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	mod, err := modfile.Parse("go.mod", data, nil)
	require.NoError(t, err)
	page, err := os.ReadFile("docs/dependencies.md")
	require.NoError(t, err)
	direct := map[string]bool{}
	for _, r := range mod.Require {
		if !r.Indirect {
			direct[r.Mod.Path] = true
		}
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| [^|]+ \\| [^|]+ \\|$").FindAllStringSubmatch(string(page), -1) {
		listed[m[1]] = true
	}
	assert.Equal(t, direct, listed)
}

// TestSBOM holds docs/sbom.sh against what the linker recorded in this test's
// own binary.
func TestSBOM(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	info, err := buildinfo.ReadFile(self)
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), testenv.Tool(t, "sh", "dash"), "docs/sbom.sh", self).Output()
	require.NoError(t, err)
	var sbom struct {
		BOMFormat, SpecVersion string
		Components             []struct {
			Name, Version, PURL string
			Properties          []struct{ Name, Value string }
		}
	}
	require.NoError(t, json.Unmarshal(out, &sbom))
	assert.Equal(t, "CycloneDX", sbom.BOMFormat)
	require.Len(t, sbom.Components, len(info.Deps)+1)
	assert.Equal(t, "stdlib", sbom.Components[0].Name)
	for i, d := range info.Deps {
		c := sbom.Components[i+1]
		assert.Equal(t, d.Path, c.Name)
		assert.Equal(t, "pkg:golang/"+d.Path+"@"+d.Version, c.PURL)
		require.Len(t, c.Properties, 1)
		assert.Equal(t, d.Sum, c.Properties[0].Value)
	}
}

// TestReproducibleBuilds builds the daemons from two copies of the sources in
// different directories, with nothing cached for the second, and compares.
func TestReproducibleBuilds(t *testing.T) {
	if !testenv.CI() && !testenv.Long() {
		t.Skip("builds everything twice; runs with CI=true or TRUSTTREE_LONG=1")
	}
	programs := []string{"node"}
	if testenv.Long() {
		all, err := filepath.Glob("examples/*/main.go")
		require.NoError(t, err)
		programs = nil
		for _, p := range all {
			programs = append(programs, filepath.Base(filepath.Dir(p)))
		}
	}
	first, second := t.TempDir(), filepath.Join(t.TempDir(), "elsewhere")
	a := buildCopy(t, first, "", programs)
	b := buildCopy(t, second, t.TempDir(), programs)
	for _, p := range programs {
		assert.Equal(t, a[p], b[p], p)
	}
}

// buildCopy copies the sources, builds programs, and returns their hashes.
func buildCopy(t *testing.T, dir, cache string, programs []string) map[string][sha256.Size]byte {
	t.Helper()
	src, out := filepath.Join(dir, "src"), filepath.Join(dir, "out")
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			recordings := d.Name() == "testdata" && path != filepath.Join("internal", "city", "testdata") // that one is embedded
			if recordings || (strings.HasPrefix(d.Name(), ".") && path != ".") {
				return fs.SkipDir
			}
			return os.MkdirAll(filepath.Join(src, path), 0o700)
		}
		if !d.Type().IsRegular() || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(src, path), data, 0o600)
	}))
	require.NoError(t, os.Mkdir(out, 0o700))
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out + "/"}
	for _, p := range programs {
		args = append(args, "./examples/"+p)
	}
	build := exec.CommandContext(t.Context(), testenv.Tool(t, "go", "golang"), args...)
	build.Dir = src
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if cache != "" {
		build.Env = append(build.Env, "GOCACHE="+cache)
	}
	log, err := build.CombinedOutput()
	require.NoError(t, err, "%s", log)
	sums := map[string][sha256.Size]byte{}
	for _, p := range programs {
		data, err := os.ReadFile(filepath.Join(out, p))
		require.NoError(t, err)
		sums[p] = sha256.Sum256(data)
	}
	return sums
}
