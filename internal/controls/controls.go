package controls

import (
	"fmt"
	"slices"
	"strings"
)

// Module is the path that packages' directories are relative to.
const Module = "github.com/trusttree/trusttree"

// Notice stands at the head of everything that is printed from the tables.
const Notice = "A mapping is not a certificate. It names code and tests of this library that serve a control; " +
	"whether a product or an organisation meets the control is for its assessor to judge, by the framework's own text."

// Packages are the seven that capabilities belong to, in the order of the tree
// of trust.
var Packages = [...]string{"attest", "moduleid", "secureboot", "fscrypt", "update", "tlsconn", "tenantstore"}

// A Capability is something that one package does, and how it is shown.
type Capability struct {
	// ID is lower case with hyphens, unique, and stable: OSCAL identifiers
	// derive from it.
	ID string
	// Package is one of Packages.
	Package string
	// Statement is one sentence about what the package does.
	Statement string
	// Symbols are exported names as "DIR.Name" or "DIR.Name.Member", where a
	// member is a method, a field or a method of an interface.
	Symbols []string
	// Tests are "DIR: TestName" or "DIR: TestName/sub", as in docs/threats.
	Tests []string
}

// A Control is a requirement of a framework, and what the library has to do
// with it.
type Control struct {
	// ID is the framework's, as it is printed there. Title is its short title,
	// or a short name where the framework has none.
	ID, Title string
	// By are the IDs of capabilities. None means that the library covers
	// nothing of the control: then Covers is empty.
	By []string
	// Covers, Operator and Gaps say what the library covers, what remains with
	// who builds and runs the product, and what is not covered.
	Covers, Operator, Gaps string
}

// A Framework is a list of controls.
type Framework struct {
	// ID is the name on the command line. Prefix goes before controls' IDs in
	// OSCAL where they would not be unique or not be tokens.
	ID, Prefix string
	// Title and Edition name the document, Source is where it is published.
	Title, Edition, Source string
	// Note says what a reader must know about how it was mapped.
	Note     string
	Controls []Control
}

// Table is the whole mapping.
type Table struct {
	Capabilities []Capability
	Frameworks   []Framework
}

// Mapping returns the project's table. The caller may change it: every call
// makes a new one.
func Mapping() Table {
	return Table{
		Capabilities: slices.Concat(edge(), connectivityAndCloud()),
		Frameworks: []Framework{
			nist80053(), nistIR8259A(), nistIR8425(), hipaa(), iec62443(), etsi303645(), cra(), iso27001(), ear(),
		},
	}
}

// Only returns the table with one framework, or an error that lists those that
// there are.
func (t Table) Only(id string) (Table, error) {
	var ids []string
	for _, f := range t.Frameworks {
		if f.ID == id {
			return Table{Capabilities: t.Capabilities, Frameworks: []Framework{f}}, nil
		}
		ids = append(ids, f.ID)
	}
	return Table{}, fmt.Errorf("controls: no framework %q: there are %s", id, strings.Join(ids, ", "))
}

// capabilities returns those that serve a control, in its order. IDs that do
// not exist are left out; Check reports them.
func (t Table) capabilities(c Control) []Capability {
	var out []Capability
	for _, id := range c.By {
		if i := slices.IndexFunc(t.Capabilities, func(k Capability) bool { return k.ID == id }); i >= 0 {
			out = append(out, t.Capabilities[i])
		}
	}
	return out
}

// Symbols returns the names that serve a control, each once, sorted.
func (t Table) Symbols(c Control) []string {
	return t.gather(c, func(k Capability) []string { return k.Symbols })
}

// Tests returns the tests that show a control, each once, sorted.
func (t Table) Tests(c Control) []string {
	return t.gather(c, func(k Capability) []string { return k.Tests })
}

func (t Table) gather(c Control, of func(Capability) []string) []string {
	var out []string
	for _, k := range t.capabilities(c) {
		out = append(out, of(k)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
