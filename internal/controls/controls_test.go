package controls_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/controls"
	"github.com/trusttree/trusttree/internal/testenv"
)

var update = flag.Bool("update", false, "write docs/compliance.md")

func ExampleTable_Only() {
	t, err := controls.Mapping().Only("hipaa-164.312")
	if err != nil {
		panic(err)
	}
	for _, c := range t.Frameworks[0].Controls[:2] {
		fmt.Printf("%s %s: %v\n", c.ID, c.Title, c.By)
	}
	// Output:
	// 164.312(a)(1) Access control: [tenant-isolation tenant-roles flow-policy]
	// 164.312(a)(2)(i) Unique user identification (R): [device-identity tenant-isolation]
}

func TestMappingNamesWhatExists(t *testing.T) {
	for _, problem := range controls.Check(os.DirFS(testenv.Repo()), controls.Mapping()) {
		t.Error(problem)
	}
}

// source is a package with one of each kind of symbol.
var source = fstest.MapFS{
	"attest/a.go":      {Data: []byte("package attest\n\ntype Node struct{ Field, hidden int }\n\nfunc (n *Node) Do() {}\n\ntype I interface{ Ask() }\n\nconst C = 1\n\nfunc hidden() {}\n")},
	"attest/a_test.go": {Data: []byte("package attest_test\n\nfunc TestA() {}\n\nfunc ExampleB() {}\n")},
}

func small() controls.Table {
	return controls.Table{
		Capabilities: []controls.Capability{{ID: "a", Package: "attest", Statement: "Does a.",
			Symbols: []string{"attest.Node", "attest.Node.Field", "attest.Node.Do", "attest.I.Ask", "attest.C"}, Tests: []string{"attest: TestA", "attest: TestA/sub"}}},
		Frameworks: []controls.Framework{{ID: "f", Title: "F", Edition: "1", Source: "https://example.org/f", Controls: []controls.Control{
			{ID: "F-1", Title: "One", By: []string{"a"}, Covers: "A part."},
			{ID: "F-2", Title: "Two", Gaps: "All of it."},
		}}},
	}
}

func TestCheckFindsWhatIsGone(t *testing.T) {
	require.Empty(t, controls.Check(source, small()))
	for name, change := range map[string]func(*controls.Table){
		"missing symbol":             func(t *controls.Table) { t.Capabilities[0].Symbols[0] = "attest.Gone" },
		"missing member":             func(t *controls.Table) { t.Capabilities[0].Symbols[0] = "attest.Node.Gone" },
		"symbol that is no export":   func(t *controls.Table) { t.Capabilities[0].Symbols[0] = "attest.hidden" },
		"field that is no export":    func(t *controls.Table) { t.Capabilities[0].Symbols[0] = "attest.Node.hidden" },
		"symbol of a test":           func(t *controls.Table) { t.Capabilities[0].Symbols[0] = "attest.TestA" },
		"symbol of no package":       func(t *controls.Table) { t.Capabilities[0].Symbols[0] = "attest/none.Node" },
		"symbol of another package":  func(t *controls.Table) { t.Capabilities[0].Package = "update" },
		"package that is none":       func(t *controls.Table) { t.Capabilities[0].Package = "internal" },
		"missing test":               func(t *controls.Table) { t.Capabilities[0].Tests[0] = "attest: TestGone" },
		"test written another way":   func(t *controls.Table) { t.Capabilities[0].Tests[0] = "attest.TestA" },
		"benchmark":                  func(t *controls.Table) { t.Capabilities[0].Tests[0] = "attest: BenchmarkA" },
		"no symbols":                 func(t *controls.Table) { t.Capabilities[0].Symbols = nil },
		"no tests":                   func(t *controls.Table) { t.Capabilities[0].Tests = nil },
		"capability given twice":     func(t *controls.Table) { t.Capabilities = append(t.Capabilities, t.Capabilities[0]) },
		"capability that is gone":    func(t *controls.Table) { t.Frameworks[0].Controls[0].By[0] = "b" },
		"capability named twice":     func(t *controls.Table) { t.Frameworks[0].Controls[0].By = []string{"a", "a"} },
		"claim without capability":   func(t *controls.Table) { t.Frameworks[0].Controls[1].Covers = "Much." },
		"nothing and no gap":         func(t *controls.Table) { t.Frameworks[0].Controls[1].Gaps = "" },
		"capability without a claim": func(t *controls.Table) { t.Frameworks[0].Controls[0].Covers = "" },
		"control given twice":        func(t *controls.Table) { t.Frameworks[0].Controls[1].ID = "f-1" },
		"control without title":      func(t *controls.Table) { t.Frameworks[0].Controls[1].Title = "" },
	} {
		t.Run(name, func(t *testing.T) {
			table := small()
			change(&table)
			assert.NotEmpty(t, controls.Check(source, table))
		})
	}
}

func TestEveryFrameworkIsThere(t *testing.T) {
	served := map[string]int{}
	for _, f := range controls.Mapping().Frameworks {
		assert.NotEmpty(t, f.Title)
		assert.NotEmpty(t, f.Edition)
		assert.NotEmpty(t, f.Note)
		assert.Regexp(t, `^https://`, f.Source)
		for _, c := range f.Controls {
			if len(c.By) > 0 {
				served[f.ID]++
			}
		}
	}
	for _, id := range []string{"nist-800-53", "nist-ir-8259a", "nist-ir-8425", "hipaa-164.312", "iec-62443-4-2", "etsi-en-303645", "eu-cra-annex-i", "iso-27001", "ear"} {
		assert.Positive(t, served[id], id)
	}
	_, err := controls.Mapping().Only("soc-2")
	assert.ErrorContains(t, err, "hipaa-164.312")
}

// verdicts are words of an assessor.
var verdicts = regexp.MustCompile(`(?i)\b(compl(iant|ies|y|ied)|certified|certifies|guarantee[sd]?|fulfil(l|s|ls|led)|accredited)\b`)

// TestMappingIsNoVerdict holds everything that is printed to its wording: a
// mapping is not a certificate, and says so.
func TestMappingIsNoVerdict(t *testing.T) {
	table := controls.Mapping()
	var doc bytes.Buffer
	require.NoError(t, controls.WriteMarkdown(&doc, table))
	component, err := controls.ComponentDefinition(table, time.Unix(1, 0))
	require.NoError(t, err)
	results, err := controls.AssessmentResults(table, passing(t, table), time.Time{})
	require.NoError(t, err)
	table.Capabilities[0].Statement = "Makes nodes compliant."
	bad, err := controls.ComponentDefinition(table, time.Unix(1, 0))
	require.NoError(t, err)
	for name, text := range map[string][]byte{"docs": doc.Bytes(), "component": component, "results": results} {
		assert.Empty(t, verdicts.FindAllString(string(text), -1), name)
		assert.Contains(t, string(text), "A mapping is not a certificate", name)
	}
	assert.NotEmpty(t, verdicts.FindAll(bad, -1), "the wording is looked at")
}

// TestDocIsGenerated compares docs/compliance.md with the tables. With -update
// it writes the page.
func TestDocIsGenerated(t *testing.T) {
	name := filepath.Join(testenv.Repo(), "docs", "compliance.md")
	var doc bytes.Buffer
	require.NoError(t, controls.WriteMarkdown(&doc, controls.Mapping()))
	if *update {
		require.NoError(t, os.WriteFile(name, doc.Bytes(), 0o644))
	}
	have, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(have, doc.Bytes()), "docs/compliance.md is not what the tables say: go test ./internal/controls -run TestDocIsGenerated -update")
}

// passing returns a run in which every test of a table passed.
func passing(t *testing.T, table controls.Table) *controls.Run {
	t.Helper()
	return readRun(t, lines(table, func(string) string { return "pass" }))
}

// lines writes the events of a run in which each test ended with an action.
func lines(table controls.Table, action func(test string) string) []byte {
	var b bytes.Buffer
	at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	emit := func(action, pkg, test string) {
		at = at.Add(time.Millisecond)
		line, _ := json.Marshal(map[string]any{"Time": at, "Action": action, "Package": pkg, "Test": test})
		b.Write(append(line, '\n'))
	}
	packages := map[string]bool{}
	for _, k := range table.Capabilities {
		for _, name := range k.Tests {
			m := regexp.MustCompile(`^([^:]+): (.+)$`).FindStringSubmatch(name)
			if a := action(name); a != "" {
				emit("run", controls.Module+"/"+m[1], m[2])
				emit(a, controls.Module+"/"+m[1], m[2])
			}
			packages[controls.Module+"/"+m[1]] = true
		}
	}
	for p := range packages {
		emit("pass", p, "")
	}
	return b.Bytes()
}

func readRun(t *testing.T, data []byte) *controls.Run {
	t.Helper()
	r, err := controls.ReadRun(bytes.NewReader(data))
	require.NoError(t, err)
	return r
}
