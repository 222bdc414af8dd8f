package controls

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	idPattern   = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	testPattern = regexp.MustCompile(`^([a-z0-9_]+(?:/[a-z0-9_]+)*): ((?:Test|Fuzz|Example)[A-Za-z0-9_]*)(/[^/ ].*)?$`)
)

// Check holds a table against the source tree of the module: every capability
// that a control names must be in the table, every symbol must be exported by
// its package, every test must be declared, and a control without capabilities
// must claim nothing. It returns each problem in words, none when all is well.
func Check(src fs.FS, t Table) []string {
	c := &checker{src: src, dirs: map[string]*declared{}}
	known := map[string]bool{}
	for _, k := range t.Capabilities {
		if !idPattern.MatchString(k.ID) || known[k.ID] {
			c.problem("capability %q: the ID is malformed or given twice", k.ID)
		}
		known[k.ID] = true
		c.capability(k)
	}
	used := map[string]bool{}
	for _, f := range t.Frameworks {
		seen := map[string]bool{}
		for _, k := range f.Controls {
			where := f.ID + " " + k.ID
			if k.ID == "" || k.Title == "" || seen[controlID(f, k)] {
				c.problem("%s: the ID or title is missing, or given twice", where)
			}
			seen[controlID(f, k)] = true
			if len(k.By) == 0 && (k.Covers != "" || k.Gaps == "") {
				c.problem("%s: covered by nothing, it must claim nothing and say what is not covered", where)
			}
			if len(k.By) > 0 && k.Covers == "" {
				c.problem("%s: it does not say what is covered", where)
			}
			for i, id := range k.By {
				used[id] = true
				if !known[id] || slices.Contains(k.By[:i], id) {
					c.problem("%s: capability %q does not exist, or is named twice", where, id)
				}
			}
		}
	}
	for _, k := range t.Capabilities {
		if len(t.Frameworks) > 1 && !used[k.ID] {
			c.problem("capability %s: no control names it", k.ID)
		}
	}
	return c.problems
}

// declared is what one directory's Go files declare.
type declared struct {
	symbols map[string]bool // "Name", "Name.Member"
	tests   map[string]bool
}

type checker struct {
	src      fs.FS
	dirs     map[string]*declared
	problems []string
}

func (c *checker) problem(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

func (c *checker) capability(k Capability) {
	if !slices.Contains(Packages[:], k.Package) || k.Statement == "" || len(k.Symbols) == 0 || len(k.Tests) == 0 {
		c.problem("capability %s: it needs a package, a statement, symbols and tests", k.ID)
	}
	for _, s := range k.Symbols {
		dir, name := splitSymbol(s)
		if top, _, _ := strings.Cut(dir, "/"); top != k.Package {
			c.problem("capability %s: symbol %s is not of package %s", k.ID, s, k.Package)
		} else if !c.dir(dir).symbols[name] {
			c.problem("capability %s: symbol %s does not exist or is not exported", k.ID, s)
		}
	}
	for _, name := range k.Tests {
		dir, test, err := splitTest(name)
		if err != nil {
			c.problem("capability %s: %v", k.ID, err)
			continue
		}
		test, _, _ = strings.Cut(test, "/")
		if !c.dir(dir).tests[test] {
			c.problem("capability %s: test %s does not exist", k.ID, name)
		}
	}
}

// splitSymbol splits "dir/sub.Name.Member" after the directory.
func splitSymbol(s string) (dir, name string) {
	slash := strings.LastIndexByte(s, '/') + 1
	last, name, _ := strings.Cut(s[slash:], ".")
	return s[:slash] + last, name
}

// splitTest splits "dir: TestName/sub".
func splitTest(s string) (dir, test string, err error) {
	m := testPattern.FindStringSubmatch(s)
	if m == nil {
		return "", "", fmt.Errorf("%q is no test as in \"attest: TestName\"", s)
	}
	return m[1], m[2] + m[3], nil
}

func (c *checker) dir(dir string) *declared {
	if d := c.dirs[dir]; d != nil {
		return d
	}
	d := &declared{map[string]bool{}, map[string]bool{}}
	c.dirs[dir] = d
	names, err := fs.Glob(c.src, path.Join(dir, "*.go"))
	if err != nil {
		return d
	}
	for _, name := range names {
		text, err := fs.ReadFile(c.src, name)
		if err != nil {
			c.problem("%s: %v", name, err)
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
		if err != nil {
			c.problem("%s: %v", name, err)
			continue
		}
		if strings.HasSuffix(name, "_test.go") {
			d.addTests(file)
		} else {
			d.addSymbols(file)
		}
	}
	return d
}

func (d *declared) addTests(file *ast.File) {
	for _, decl := range file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
			d.tests[f.Name.Name] = true
		}
	}
}

func (d *declared) addSymbols(file *ast.File) {
	for _, decl := range file.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			name := decl.Name.Name
			if decl.Recv != nil {
				name = receiver(decl.Recv.List[0].Type) + "." + name
			}
			d.add(name)
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				d.addSpec(spec)
			}
		}
	}
}

func (d *declared) addSpec(spec ast.Spec) {
	switch spec := spec.(type) {
	case *ast.ValueSpec:
		for _, n := range spec.Names {
			d.add(n.Name)
		}
	case *ast.TypeSpec:
		d.add(spec.Name.Name)
		var fields *ast.FieldList
		switch t := spec.Type.(type) {
		case *ast.StructType:
			fields = t.Fields
		case *ast.InterfaceType:
			fields = t.Methods
		default:
			return
		}
		for _, f := range fields.List {
			for _, n := range f.Names {
				d.add(spec.Name.Name + "." + n.Name)
			}
		}
	}
}

// add remembers a name all parts of which are exported.
func (d *declared) add(name string) {
	for part := range strings.SplitSeq(name, ".") {
		if !token.IsExported(part) {
			return
		}
	}
	d.symbols[name] = true
}

func receiver(t ast.Expr) string {
	switch t := t.(type) {
	case *ast.StarExpr:
		return receiver(t.X)
	case *ast.IndexExpr:
		return receiver(t.X)
	case *ast.IndexListExpr:
		return receiver(t.X)
	case *ast.Ident:
		return t.Name
	}
	return ""
}
