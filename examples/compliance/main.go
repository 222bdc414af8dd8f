// Compliance prints what the library does for the controls of security
// frameworks, and what a run of its tests shows of that.
//
//	compliance [-framework NAME] [-json]
//	compliance [-framework NAME] [-json] -tests FILE
//	compliance [-framework NAME] -oscal component [-modified TIME | -tests FILE]
//	compliance [-framework NAME] -oscal results -tests FILE [-modified TIME]
//	compliance -threats DIR -tests FILE
//
// FILE is what "go test -json" printed; "-" is standard input:
//
//	go test -json ./... | compliance -oscal results -tests - >results.json
//
// With -threats it holds the run against the threat model: it lists every test
// that the Markdown files of DIR name and that did not run whole.
//
// A mapping is not a certificate: it names code and tests. Exit status: 0 done;
// 1 failed; 2 wrong flags; 3 the output is complete, and the run does not show
// the library's part of a control that the library serves: a test failed, was
// skipped, did not end or is missing. With -threats, 3 means such a test of the
// threat model; one that needs TRUSTTREE_LONG=1 is listed and does not count.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/trusttree/trusttree/internal/controls"
)

const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

type options struct {
	oscal, tests, framework, modified, threats string
	json                                       bool
}

// errUsage marks flags that do not go together.
var errUsage = errors.New("usage")

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var o options
	fs := flag.NewFlagSet("compliance", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.oscal, "oscal", "", "print OSCAL "+controls.OSCALVersion+": component or results")
	fs.StringVar(&o.tests, "tests", "", "what go test -json printed; - is standard input")
	fs.StringVar(&o.framework, "framework", "", "one framework; all when empty")
	fs.StringVar(&o.modified, "modified", "", "last-modified of OSCAL documents (RFC 3339); the run's end when empty")
	fs.StringVar(&o.threats, "threats", "", "a directory of threat tables: list the tests that they name and that -tests does not show")
	fs.BoolVar(&o.json, "json", false, "print JSON")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitDone
	} else if err != nil {
		return exitUsage
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "compliance: unexpected argument %q\n", fs.Arg(0))
		return exitUsage
	}
	what := "the library's part of %d controls; the output names the tests"
	print := o.print
	if o.threats != "" {
		what, print = "%d tests of the threat model, listed above", o.printThreats
	}
	open, err := print(stdin, stdout)
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "compliance: %v\n", err)
		return exitUsage
	case err != nil:
		fmt.Fprintf(stderr, "compliance: %v\n", err)
		return exitFailed
	case open > 0:
		fmt.Fprintf(stderr, "compliance: the run does not show "+what+"\n", open)
		return exitRefused
	}
	return exitDone
}

// print writes what the flags ask for, and returns how many controls that the
// library serves a given run does not show.
func (o options) print(stdin io.Reader, stdout io.Writer) (int, error) {
	table := controls.Mapping()
	var err error
	if o.framework != "" {
		if table, err = table.Only(o.framework); err != nil {
			return 0, fmt.Errorf("%w: %w", errUsage, err)
		}
	}
	at, err := o.time()
	if err != nil {
		return 0, err
	}
	results, err := o.run(stdin)
	if err != nil {
		return 0, err
	}
	open := 0
	if results != nil {
		for _, f := range table.Frameworks {
			for _, c := range f.Controls {
				if shown, _ := table.Shown(c, results); !shown && len(c.By) > 0 {
					open++
				}
			}
		}
		if at.IsZero() {
			at = results.End
		}
	}
	var out []byte
	switch {
	case o.oscal == "component":
		out, err = controls.ComponentDefinition(table, at)
	case o.oscal == "results":
		out, err = controls.AssessmentResults(table, results, at)
	case o.json:
		out, err = asJSON(table, results)
	default:
		out = asText(table, results)
	}
	if err == nil {
		_, err = stdout.Write(out)
	}
	return open, err
}

// time checks which flags go together, and reads -modified.
func (o options) time() (time.Time, error) {
	var at time.Time
	var err error
	if o.modified != "" {
		if at, err = time.Parse(time.RFC3339, o.modified); err != nil {
			return at, fmt.Errorf("%w: -modified: %w", errUsage, err)
		}
	}
	switch {
	case o.oscal != "" && o.oscal != "component" && o.oscal != "results":
		err = fmt.Errorf("%w: -oscal is component or results", errUsage)
	case o.oscal != "" && o.json:
		err = fmt.Errorf("%w: -oscal prints JSON already; leave -json out", errUsage)
	case o.oscal == "results" && o.tests == "":
		err = fmt.Errorf("%w: -oscal results needs -tests", errUsage)
	case o.oscal == "component" && o.tests == "" && o.modified == "":
		err = fmt.Errorf("%w: -oscal component needs -modified or -tests for its date", errUsage)
	case o.oscal == "" && o.modified != "":
		err = fmt.Errorf("%w: -modified goes with -oscal", errUsage)
	}
	return at, err
}

// run reads the file of -tests, if there is one.
func (o options) run(stdin io.Reader) (*controls.Run, error) {
	switch o.tests {
	case "":
		return nil, nil
	case "-":
		return controls.ReadRun(stdin)
	}
	f, err := os.Open(o.tests)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return controls.ReadRun(f)
}

// document is version 1 of the command's JSON.
type document struct {
	Version    int             `json:"version"`
	Notice     string          `json:"notice"`
	Frameworks []frameworkJSON `json:"frameworks"`
}

type frameworkJSON struct {
	Name     string        `json:"name"`
	Title    string        `json:"title"`
	Edition  string        `json:"edition"`
	Source   string        `json:"source"`
	Note     string        `json:"note"`
	Controls []controlJSON `json:"controls"`
}

type controlJSON struct {
	ID           string   `json:"id"`
	Title        string   `json:"title"`
	Capabilities []string `json:"capabilities"`
	Symbols      []string `json:"symbols"`
	Tests        []string `json:"tests"`
	Covers       string   `json:"covers"`
	Operator     string   `json:"operator"`
	NotCovered   string   `json:"not_covered"`
	Shown        *bool    `json:"shown,omitempty"` // with -tests
	Reasons      []string `json:"reasons,omitempty"`
}

func asJSON(t controls.Table, r *controls.Run) ([]byte, error) {
	doc := document{Version: 1, Notice: controls.Notice}
	for _, f := range t.Frameworks {
		fj := frameworkJSON{Name: f.ID, Title: f.Title, Edition: f.Edition, Source: f.Source, Note: f.Note}
		for _, c := range f.Controls {
			cj := controlJSON{
				ID: c.ID, Title: c.Title, Capabilities: append([]string{}, c.By...),
				Symbols: append([]string{}, t.Symbols(c)...), Tests: append([]string{}, t.Tests(c)...),
				Covers: c.Covers, Operator: c.Operator, NotCovered: c.Gaps,
			}
			if r != nil {
				shown, why := t.Shown(c, r)
				cj.Shown, cj.Reasons = &shown, why
			}
			fj.Controls = append(fj.Controls, cj)
		}
		doc.Frameworks = append(doc.Frameworks, fj)
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	return append(out, '\n'), err
}

func asText(t controls.Table, r *controls.Run) []byte {
	var b strings.Builder
	b.WriteString(controls.Notice + "\n")
	line := func(what, text string) {
		if text != "" {
			fmt.Fprintf(&b, "    %-11s %s\n", what, text)
		}
	}
	for _, f := range t.Frameworks {
		fmt.Fprintf(&b, "\n%s: %s, %s\n%s\n", f.ID, f.Title, f.Edition, f.Note)
		for _, c := range f.Controls {
			fmt.Fprintf(&b, "\n  %s %s\n", c.ID, c.Title)
			line("covered", c.Covers)
			line("operator", c.Operator)
			line("not covered", c.Gaps)
			line("symbols", strings.Join(t.Symbols(c), ", "))
			line("tests", strings.Join(t.Tests(c), ", "))
			if r == nil || len(c.By) == 0 {
				continue
			}
			if shown, why := t.Shown(c, r); shown {
				line("this run", "every test named passed")
			} else {
				line("this run", "does not show it: "+strings.Join(why, "; "))
			}
		}
	}
	return []byte(b.String())
}
