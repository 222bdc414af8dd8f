package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/controls"
)

func compliance(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// testRun is a run in which every test that the mapping names ended with an
// action, but for one.
func testRun(action, victim, end string) string {
	var b strings.Builder
	event := func(action, pkg, test string) {
		line, _ := json.Marshal(map[string]string{"Time": "2026-01-31T12:00:00Z", "Action": action, "Package": controls.Module + "/" + pkg, "Test": test})
		b.Write(append(line, '\n'))
	}
	for _, k := range controls.Mapping().Capabilities {
		for _, name := range k.Tests {
			pkg, test, _ := strings.Cut(name, ": ")
			event("run", pkg, test)
			if name == victim {
				event(end, pkg, test)
			} else {
				event(action, pkg, test)
			}
			event("pass", pkg, "")
		}
	}
	return b.String()
}

const aTest = "update: TestUnderThreshold"

func TestExitStatus(t *testing.T) {
	file := filepath.Join(t.TempDir(), "run.json")
	require.NoError(t, os.WriteFile(file, []byte(testRun("pass", "", "")), 0o600))
	for name, c := range map[string]struct {
		stdin string
		args  string
		code  int
		says  string // in the output, or in the message when the code is not 0
	}{
		"the table":                        {"", "", exitDone, "A mapping is not a certificate"},
		"one framework":                    {"", "-framework ear", exitDone, "742.15(b)"},
		"JSON":                             {"", "-json -framework iso-27001", exitDone, `"version": 1`},
		"component":                        {"", "-oscal component -modified 2026-01-31T00:00:00Z", exitDone, `"last-modified": "2026-01-31T00:00:00Z"`},
		"component dated by a run":         {testRun("pass", "", ""), "-oscal component -tests -", exitDone, `"last-modified": "2026-01-31T12:00:00Z"`},
		"results from standard input":      {testRun("pass", "", ""), "-oscal results -tests -", exitDone, `"state": "satisfied"`},
		"results from a file":              {"", "-oscal results -tests " + file, exitDone, `"last-modified": "2026-01-31T12:00:00Z"`},
		"results of another date":          {"", "-oscal results -modified 2026-02-01T00:00:00Z -tests " + file, exitDone, `"last-modified": "2026-02-01T00:00:00Z"`},
		"table with a run":                 {"", "-tests " + file, exitDone, "every test named passed"},
		"help":                             {"", "-h", exitDone, ""},
		"one test failed":                  {testRun("pass", aTest, "fail"), "-oscal results -tests -", exitRefused, "does not show"},
		"one test was skipped":             {testRun("pass", aTest, "skip"), "-tests -", exitRefused, "does not show"},
		"all tests were skipped":           {testRun("skip", "", ""), "-json -tests -", exitRefused, "does not show"},
		"one test did not end":             {testRun("pass", aTest, "output"), "-json -tests -", exitRefused, "does not show"},
		"failed test of another control":   {testRun("pass", aTest, "fail"), "-framework hipaa-164.312 -tests -", exitDone, ""},
		"unknown framework":                {"", "-framework soc-2", exitUsage, "hipaa-164.312"},
		"unknown flag":                     {"", "-all", exitUsage, "-all"},
		"argument":                         {"", "hipaa", exitUsage, "hipaa"},
		"unknown OSCAL":                    {"", "-oscal ssp", exitUsage, "component or results"},
		"results without a run":            {"", "-oscal results -modified 2026-02-01T00:00:00Z", exitUsage, "-tests"},
		"component without a date":         {"", "-oscal component", exitUsage, "-modified"},
		"a date that is none":              {"", "-oscal component -modified yesterday", exitUsage, "-modified"},
		"a date that OSCAL can't write":    {"", "-oscal component -modified 0001-01-01T00:00:00Z", exitFailed, "1970"},
		"OSCAL and JSON":                   {"", "-oscal component -json -modified 2026-02-01T00:00:00Z", exitUsage, "-json"},
		"a date for the table":             {"", "-modified 2026-02-01T00:00:00Z", exitUsage, "-oscal"},
		"a file that is not there":         {"", "-tests " + file + ".none", exitFailed, "run.json.none"},
		"a run that is none":               {"ok\n", "-tests -", exitFailed, "line 1"},
		"a run of nothing":                 {"", "-oscal results -tests -", exitFailed, "no events"},
		"a run that was cut off in a line": {testRun("pass", "", "") + `{"Time":`, "-tests -", exitFailed, "no event"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := compliance(c.stdin, strings.Fields(c.args)...)
			assert.Equal(t, c.code, code, stderr)
			if code == exitDone {
				assert.Contains(t, stdout, c.says)
			} else {
				assert.Contains(t, stderr, c.says)
			}
			assert.Equal(t, code == exitFailed || code == exitUsage || name == "help", stdout == "", "no output in part")
		})
	}
}

// TestRefusedOutputIsWhole: what is not shown is in the output, which names the
// test.
func TestRefusedOutputIsWhole(t *testing.T) {
	code, stdout, _ := compliance(testRun("pass", aTest, "skip"), "-oscal", "results", "-tests", "-")
	assert.Equal(t, exitRefused, code)
	require.True(t, json.Valid([]byte(stdout)))
	assert.Contains(t, stdout, `"state": "not-satisfied"`)
	assert.Contains(t, stdout, aTest+": skip")
	code, stdout, _ = compliance(testRun("pass", aTest, "fail"), "-tests", "-")
	assert.Equal(t, exitRefused, code)
	assert.Contains(t, stdout, "does not show it: "+aTest+": fail")
}

// TestJSONIsStrict reads the JSON of each control back, with no other member.
func TestJSONIsStrict(t *testing.T) {
	code, stdout, _ := compliance(testRun("pass", aTest, "fail"), "-json", "-tests", "-")
	assert.Equal(t, exitRefused, code)
	var doc document
	dec := json.NewDecoder(strings.NewReader(stdout))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&doc))
	assert.Equal(t, 1, doc.Version)
	require.Len(t, doc.Frameworks, len(controls.Mapping().Frameworks))
	for _, f := range doc.Frameworks {
		for _, c := range f.Controls {
			require.NotNil(t, c.Shown)
			assert.Equal(t, *c.Shown, len(c.Reasons) == 0)
			if *c.Shown {
				assert.NotEmpty(t, c.Symbols)
				assert.NotEmpty(t, c.Tests)
				assert.NotContains(t, c.Tests, aTest)
			}
		}
	}
}
