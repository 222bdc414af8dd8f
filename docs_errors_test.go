package trusttree_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestErrorCatalogue holds docs/errors.md against the code: every exported
// sentinel of the seven packages has a row with its exact text and its name,
// and every row names one.
func TestErrorCatalogue(t *testing.T) {
	page, err := os.ReadFile("docs/errors.md")
	require.NoError(t, err)
	rows := map[string]string{} // name: line
	for line := range strings.Lines(string(page)) {
		for _, m := range regexp.MustCompile("`([a-z]+\\.Err[A-Z][A-Za-z]*)`").FindAllStringSubmatch(line, -1) {
			rows[m[1]] = line
		}
	}
	declared := map[string]bool{}
	for _, dir := range []string{"attest", "moduleid", "secureboot", "fscrypt", "update", "tlsconn", "tenantstore"} {
		for name, text := range sentinels(t, dir) {
			declared[name] = true
			line, ok := rows[name]
			if assert.True(t, ok, "docs/errors.md has no row for %s", name) && text != "" {
				assert.Contains(t, line, "| `"+text+"` |", name)
			}
		}
	}
	for name := range rows {
		assert.True(t, declared[name], "docs/errors.md explains %s, which does not exist", name)
	}
	assert.Greater(t, len(declared), 100)
}

// sentinels returns the exported errors of a package and its public
// sub-packages, with their texts; that of an alias is empty.
func sentinels(t *testing.T, dir string) map[string]string {
	found := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "internal" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				for i, name := range v.Names {
					if strings.HasPrefix(name.Name, "Err") && i < len(v.Values) {
						found[file.Name.Name+"."+name.Name] = literal(v.Values[i])
					}
				}
			}
		}
		return nil
	}))
	return found
}

// literal returns the text of errors.New("text"), or nothing.
func literal(e ast.Expr) string {
	call, ok := e.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return ""
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok {
		return ""
	}
	text, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return text
}
