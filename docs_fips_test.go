package trusttree_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var forTestsOnly = []string{"testdata", "peerbench", "softnode", "interop", "i2cvm", "tpmtest",
	"attesttest", "registrytest", "moduleidtest", "logtest", "updatetest", "enginetest"}

// TestFIPSPage holds docs/fips.md against the code: the cryptography that each
// package imports, and every place that is exempt from FIPS 140-only mode.
func TestFIPSPage(t *testing.T) {
	page, err := os.ReadFile("docs/fips.md")
	require.NoError(t, err)
	imports, exempt := map[string][]string{}, []string{}
	for _, dir := range []string{"attest", "moduleid", "secureboot", "fscrypt", "update", "tlsconn", "tenantstore", "internal/tpm"} {
		imports[dir] = []string{}
		require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && slices.Contains(forTestsOnly, d.Name()) {
				return fs.SkipDir
			}
			if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			if strings.Contains(string(text), "fips140.WithoutEnforcement(") {
				exempt = append(exempt, path)
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ImportsOnly)
			require.NoError(t, err)
			for _, im := range file.Imports {
				name, err := strconv.Unquote(im.Path.Value)
				require.NoError(t, err)
				if short := cryptography(name); short != "" && !slices.Contains(imports[dir], short) {
					imports[dir] = append(imports[dir], short)
				}
			}
			return nil
		}))
		if slices.Sort(imports[dir]); len(imports[dir]) == 0 {
			delete(imports, dir)
		}
	}
	listed := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z/]+)` imports \\| ([^|]*) \\|").FindAllStringSubmatch(string(page), -1) {
		listed[m[1]] = strings.Fields(strings.NewReplacer("`", "", ",", "").Replace(m[2]))
	}
	assert.Equal(t, imports, listed)
	var rows []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_/]+\\.go)` \\|").FindAllStringSubmatch(string(page), -1) {
		rows = append(rows, m[1])
	}
	slices.Sort(rows)
	slices.Sort(exempt)
	assert.Equal(t, exempt, rows, "what is exempt from FIPS 140-only mode")
}

// cryptography returns the short name of a package that has cryptography of its
// own, or nothing.
func cryptography(path string) string {
	switch path {
	case "crypto/subtle", "crypto/rand", "crypto/fips140", "crypto/x509/pkix":
		return ""
	}
	for _, prefix := range []string{"crypto/", "golang.org/x/crypto/chacha20", "filippo.io/age", "lukechampine.com/"} {
		if strings.HasPrefix(path, prefix) {
			return strings.TrimPrefix(strings.TrimPrefix(path, "golang.org/x/"), "crypto/")
		}
	}
	return ""
}
