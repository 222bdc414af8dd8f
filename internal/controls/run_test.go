package controls_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/controls"
)

// TestRealRun reads what the go command really prints.
func TestRealRun(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
	}
	write("go.mod", "module "+controls.Module+"\n\ngo 1.26\n")
	write("attest/a_test.go", `package attest

import "testing"

func TestPass(t *testing.T) { t.Run("a part", func(t *testing.T) {}) }
func TestFail(t *testing.T) { t.Run("a", func(t *testing.T) { t.Error("no") }) }
func TestSkip(t *testing.T) { t.Skip("no tool") }
func TestPart(t *testing.T) { t.Run("a", func(t *testing.T) {}); t.Run("b", func(t *testing.T) { t.Skip() }) }
func FuzzSeeds(f *testing.F) { f.Add("x"); f.Fuzz(func(t *testing.T, s string) {}) }
`)
	write("update/a_test.go", `package update

import (
	"os"
	"testing"
)

func TestPass(t *testing.T) {}
func TestMain(m *testing.M) { m.Run(); os.Exit(1) }
`)
	write("fscrypt/a_test.go", "package fscrypt\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n\nfunc TestPass(t *testing.T) {}\n\nfunc TestZExit(t *testing.T) { os.Exit(1) }\n")
	write("tlsconn/a_test.go", "package tlsconn\n\nimport \"testing\"\n\nfunc TestPass(t *testing.T) { undefined() }\n")
	cmd := exec.Command("go", "test", "-vet=off", "-json", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	out, err := cmd.Output()
	require.Error(t, err, "tests fail")
	run, err := controls.ReadRun(bytes.NewReader(out))
	require.NoError(t, err)
	for name, want := range map[string]controls.Outcome{
		"attest: TestPass":        controls.Passed,
		"attest: TestPass/a part": controls.Passed,
		"attest: TestFail":        controls.Failed,
		"attest: TestFail/a":      controls.Failed,
		"attest: TestSkip":        controls.Skipped,
		"attest: TestPart":        controls.Partial,
		"attest: TestPart/a":      controls.Passed,
		"attest: TestPart/b":      controls.Skipped,
		"attest: FuzzSeeds":       controls.Passed,
		"attest: TestNone":        controls.Missing,
		"moduleid: TestPass":      controls.Missing,
		"update: TestPass":        controls.Failed, // its package failed afterwards
		"tlsconn: TestPass":       controls.Missing,
		"not a test":              controls.Missing,
	} {
		got, why := run.Outcome(name)
		assert.Equal(t, want, got, name)
		assert.Equal(t, want == controls.Passed, why == "", "%s: %s", name, why)
	}
	got, _ := run.Outcome("fscrypt: TestZExit")
	assert.NotEqual(t, controls.Passed, got, "a test that ends the process has not passed")
	assert.False(t, run.Start.IsZero())
	assert.True(t, run.End.After(run.Start))
}

const head = `{"Time":"2026-01-31T12:00:00Z","Action":"start","Package":"` + controls.Module + `/attest"}` + "\n"

func event(action, test string) string {
	return `{"Time":"2026-01-31T12:00:01.5Z","Action":"` + action + `","Package":"` + controls.Module + `/attest","Test":"` + test + `"}` + "\n"
}

const end = `{"Time":"2026-01-31T12:00:02Z","Action":"pass","Package":"` + controls.Module + `/attest"}` + "\n"

func TestWhatEndsBadlyCountsAsBad(t *testing.T) {
	for name, c := range map[string]struct {
		run  string
		want controls.Outcome
	}{
		"passed":                         {head + event("run", "TestA") + event("pass", "TestA") + end, controls.Passed},
		"paused and continued":           {head + event("run", "TestA") + event("pause", "TestA") + event("cont", "TestA") + event("pass", "TestA") + end, controls.Passed},
		"cut off in the test":            {head + event("run", "TestA"), controls.Unfinished},
		"cut off after the test":         {head + event("run", "TestA") + event("pass", "TestA"), controls.Unfinished},
		"cut off in its second run":      {head + event("run", "TestA") + event("pass", "TestA") + event("run", "TestA") + end, controls.Unfinished},
		"failed once and passed":         {head + event("run", "TestA") + event("fail", "TestA") + event("run", "TestA") + event("pass", "TestA") + end, controls.Failed},
		"skipped once and passed":        {head + event("run", "TestA") + event("skip", "TestA") + event("run", "TestA") + event("pass", "TestA") + end, controls.Skipped},
		"skipped":                        {head + event("run", "TestA") + event("skip", "TestA") + end, controls.Skipped},
		"a part of a part was skipped":   {head + event("run", "TestA") + event("skip", "TestA/b/c") + event("pass", "TestA") + end, controls.Partial},
		"another test's part":            {head + event("run", "TestA") + event("skip", "TestAB/c") + event("pass", "TestA") + end, controls.Passed},
		"an outcome that there is none":  {head + event("run", "TestA") + event("won", "TestA") + end, controls.Unfinished},
		"the package ran twice, cut off": {head + event("run", "TestA") + event("pass", "TestA") + end + head, controls.Unfinished},
		"the package failed, unexplained": {head + event("run", "TestA") + event("pass", "TestA") +
			strings.Replace(end, `"pass"`, `"fail"`, 1), controls.Failed},
		"another test failed": {head + event("run", "TestA") + event("pass", "TestA") + event("run", "TestB") + event("fail", "TestB") +
			strings.Replace(end, `"pass"`, `"fail"`, 1), controls.Passed},
		"of another module": {strings.ReplaceAll(head+event("run", "TestA")+event("pass", "TestA")+end, "trusttree/attest", "other/attest"), controls.Missing},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := readRun(t, []byte(c.run)).Outcome("attest: TestA")
			assert.Equal(t, c.want, got)
		})
	}
}

func TestNamesOfARunAreQuoted(t *testing.T) {
	run := readRun(t, []byte(head+event("run", "TestA")+event("skip", `TestA/\u001b[2J`)+event("pass", "TestA")+end))
	_, why := run.Outcome("attest: TestA")
	assert.Contains(t, why, `\x1b[2J`)
	assert.NotContains(t, why, "\x1b")
}

func TestWhatIsNoRunIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":          "",
		"plain go test":    "ok  \tattest\t0.1s\n",
		"text in between":  head + "warning: something\n" + end,
		"no events":        "{}\n",
		"an array":         "[]\n",
		"a line too long":  `{"Action":"` + strings.Repeat("x", 5<<20) + `"}` + "\n",
		"events, no tests": `{"Time":"2026-01-31T12:00:00Z","Action":"build-output"}` + "\n",
		"no year of ours":  strings.ReplaceAll(head, "2026", "1026"),
		"no time":          strings.ReplaceAll(head, "Time", "Tome"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := controls.ReadRun(strings.NewReader(text))
			assert.ErrorContains(t, err, "controls: ")
		})
	}
}

// TestOnlyAWholePassShowsAControl makes each test of a control fail, skip and
// be missing in turn.
func TestOnlyAWholePassShowsAControl(t *testing.T) {
	table := controls.Mapping()
	good := passing(t, table)
	for _, f := range table.Frameworks {
		for _, c := range f.Controls {
			shown, why := table.Shown(c, good)
			assert.Equal(t, len(c.By) > 0, shown, "%s %s: %v", f.ID, c.ID, why)
			shown, _ = table.Shown(c, &controls.Run{})
			assert.False(t, shown, "%s %s by a run of nothing", f.ID, c.ID)
		}
	}
	c := table.Frameworks[0].Controls[0]
	for _, victim := range table.Tests(c) {
		for _, action := range []string{"fail", "skip", ""} {
			run := readRun(t, lines(table, func(name string) string {
				if name == victim {
					return action
				}
				return "pass"
			}))
			shown, why := table.Shown(c, run)
			assert.False(t, shown, "%s %q", victim, action)
			require.Len(t, why, 1)
			assert.Contains(t, why[0], victim)
		}
	}
	c.By = append(c.By, "gone")
	shown, _ := table.Shown(c, passing(t, table))
	assert.False(t, shown, "a capability that does not exist shows nothing")
}

func FuzzReadRun(f *testing.F) {
	f.Add([]byte(head + event("run", "TestA") + event("pass", "TestA") + end))
	f.Add([]byte(head + event("run", "TestA/b") + event("skip", "TestA/b")))
	f.Add([]byte(`{"Time":"2026-01-31T12:00:00Z","Action":"output","Package":"p","Output":"x"}`))
	table := small()
	f.Fuzz(func(t *testing.T, data []byte) {
		run, err := controls.ReadRun(bytes.NewReader(data))
		if err != nil {
			return
		}
		shown, why := table.Shown(table.Frameworks[0].Controls[0], run)
		assert.Equal(t, shown, len(why) == 0)
		out, err := controls.AssessmentResults(table, run, run.End)
		require.NoError(t, err)
		assert.Equal(t, shown, bytes.Contains(out, []byte(`"state": "satisfied"`)))
	})
}
