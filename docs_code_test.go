package trusttree_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

var goBlock = regexp.MustCompile("(?ms)^(?:<!-- (fragment) -->\n)?```go\n(.*?)^```$")

// TestCodeOfTheDocs builds every block of Go in the Markdown files as a package
// of this module. A block that is no whole file needs <!-- fragment --> in the
// line above it.
func TestCodeOfTheDocs(t *testing.T) {
	root, err := os.Getwd()
	require.NoError(t, err)
	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	args := []string{"build", "-o", filepath.Join(dir, "out") + "/", "-overlay", filepath.Join(dir, "overlay.json")}
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || (strings.HasPrefix(d.Name(), ".") && path != ".")) {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, m := range goBlock.FindAllSubmatch(text, -1) {
			if string(m[1]) == "fragment" {
				continue
			}
			// The package exists in the overlay alone: nothing is written here.
			pkg := fmt.Sprintf("docs/code-%s-%d", strings.NewReplacer("/", "-", ".", "-").Replace(path), i)
			file := filepath.Join(dir, strings.ReplaceAll(pkg, "/", "-")+".go")
			if err := os.WriteFile(file, m[2], 0o600); err != nil {
				return err
			}
			overlay.Replace[filepath.Join(root, pkg, "main.go")] = file
			args = append(args, "./"+pkg)
		}
		return nil
	}))
	if len(overlay.Replace) == 0 {
		return
	}
	data, err := json.Marshal(overlay)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), data, 0o600))
	out, err := exec.CommandContext(t.Context(), testenv.Tool(t, "go", "golang"), args...).CombinedOutput()
	assert.NoError(t, err, "%s", out)
}
