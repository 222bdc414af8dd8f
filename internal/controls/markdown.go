package controls

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// WriteMarkdown writes docs/compliance.md: capabilities by package with their
// symbols and tests, and each framework's controls with what is covered, what
// remains, and what is not covered.
func WriteMarkdown(w io.Writer, t Table) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Controls, and what the library does for them

%s

This page is generated from `+"`internal/controls`"+`; a test compares them, and
fails when a symbol or a test that is named here is gone. Identifiers and titles
are the frameworks', everything else is in this project's words: read the
frameworks' own texts. The same in other forms:

    go run ./examples/compliance -framework hipaa-164.312
    go run ./examples/compliance -oscal component -modified 2026-01-31T00:00:00Z
    go test -json ./... | go run ./examples/compliance -oscal results -tests -

OSCAL is written in version %s. In assessment results a finding is about the
library's part of a control, as the document defines it, and never about the
whole control. It is satisfied only if every test named for it passed in the
given run; one that failed, was skipped, even in part, did not end or did not
run speaks against it. What remains with the operator is not assessed.

`, Notice, OSCALVersion)
	b.WriteString("## Frameworks\n| name | framework | controls listed | of these the library serves |\n|---|---|---|---|\n")
	for _, f := range t.Frameworks {
		served := 0
		for _, c := range f.Controls {
			if len(c.By) > 0 {
				served++
			}
		}
		row(&b, "["+f.ID+"](#"+f.ID+")", f.Title+", "+f.Edition, fmt.Sprint(len(f.Controls)), fmt.Sprintf("%d, each in part", served))
	}
	b.WriteString("\n## Capabilities\n")
	for _, pkg := range Packages {
		fmt.Fprintf(&b, "\n### %s\n| capability | what the package does | symbols | tests |\n|---|---|---|---|\n", pkg)
		for _, k := range t.Capabilities {
			if k.Package == pkg {
				row(&b, "`"+k.ID+"`", k.Statement, code(k.Symbols), code(k.Tests))
			}
		}
	}
	for _, f := range t.Frameworks {
		fmt.Fprintf(&b, "\n## %s\n%s, %s. Source: <%s>\n\n%s\n\n", f.ID, f.Title, f.Edition, f.Source, f.Note)
		b.WriteString("| control | by | covered | remains with the operator | not covered |\n|---|---|---|---|---|\n")
		for _, c := range f.Controls {
			row(&b, c.ID+" "+strings.ReplaceAll(c.Title, "|", "–"), code(c.By), c.Covers, c.Operator, c.Gaps)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// row writes one row of a table; an empty cell becomes a dash.
func row(b *bytes.Buffer, cells ...string) {
	for _, c := range cells {
		if c == "" {
			c = "–"
		}
		b.WriteString("| " + c + " ")
	}
	b.WriteString("|\n")
}

func code(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "`" + strings.Join(names, "`, `") + "`"
}
