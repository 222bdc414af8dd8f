package trusttree_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestExportedNamesHaveComments: every exported name of the public packages has
// a comment of its own or stands in a group that has one.
func TestExportedNamesHaveComments(t *testing.T) {
	names := 0
	for _, dir := range []string{"attest", "moduleid", "secureboot", "fscrypt", "update", "tlsconn", "tenantstore"} {
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
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
			require.NoError(t, err)
			for _, decl := range file.Decls {
				for _, name := range bare(decl, &names) {
					assert.Fail(t, "no comment", "%s: %s", path, name)
				}
			}
			return nil
		}))
	}
	assert.Greater(t, names, 1000)
}

// bare returns the exported names of a declaration that have no comment, and
// counts those that it has.
func bare(decl ast.Decl, names *int) (out []string) {
	look := func(name string, docs ...*ast.CommentGroup) {
		*names++
		if !slices.ContainsFunc(docs, func(g *ast.CommentGroup) bool { return strings.TrimSpace(g.Text()) != "" }) {
			out = append(out, name)
		}
	}
	switch decl := decl.(type) {
	case *ast.FuncDecl:
		name := decl.Name.Name
		if decl.Recv != nil {
			on := receiverName(decl.Recv.List[0].Type)
			if !token.IsExported(on) {
				return nil
			}
			name = on + "." + name
		}
		// What error and fmt.Stringer demand says enough of itself.
		if decl.Name.IsExported() && !slices.Contains([]string{"Error", "Unwrap", "String"}, decl.Name.Name) {
			look(name, decl.Doc)
		}
	case *ast.GenDecl:
		for _, spec := range decl.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				for _, n := range spec.Names {
					if n.IsExported() {
						look(n.Name, decl.Doc, spec.Doc, spec.Comment)
					}
				}
			case *ast.TypeSpec:
				if !spec.Name.IsExported() {
					continue
				}
				look(spec.Name.Name, decl.Doc, spec.Doc, spec.Comment)
				// An interface says what each method has to do; a struct may say it of
				// several fields in a line, or above.
				if i, ok := spec.Type.(*ast.InterfaceType); ok {
					for _, m := range i.Methods.List {
						for _, n := range m.Names {
							if n.IsExported() {
								look(spec.Name.Name+"."+n.Name, m.Doc, m.Comment, spec.Doc, decl.Doc)
							}
						}
					}
				}
			}
		}
	}
	return out
}

func receiverName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiverName(e.X)
	case *ast.IndexExpr:
		return receiverName(e.X)
	case *ast.IndexListExpr:
		return receiverName(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}
