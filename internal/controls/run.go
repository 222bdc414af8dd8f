package controls

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxEvent is the longest line of a run that is read. The go command splits
// longer output over several events.
const maxEvent = 4 << 20

// Outcome is what a run says about one test.
type Outcome string

// Outcomes, from the best to the worst. Only Passed shows anything.
const (
	Passed     Outcome = "pass"
	Missing    Outcome = "missing"    // the run has no such test
	Partial    Outcome = "partial"    // it passed, and skipped a part of itself
	LongOnly   Outcome = "long"       // it was skipped, and says that TRUSTTREE_LONG=1 runs it
	Skipped    Outcome = "skip"       //
	Unfinished Outcome = "unfinished" // it, or its package, did not come to an end
	Failed     Outcome = "fail"       // it failed, or its package did without naming a test
)

// worst orders what several executions of one test say.
var worst = [...]Outcome{Missing, Passed, Partial, Skipped, Unfinished, Failed}

// A Run is what "go test -json" reported. Its zero value is a run without
// tests. It is not changed after ReadRun, and safe for concurrent use.
type Run struct {
	// Start and End are the times of the first and the last event.
	Start, End time.Time
	packages   map[string]*packageRun
}

type packageRun struct {
	ended, failed bool
	tests         map[string]*testRun // top-level and sub-tests
}

type testRun struct {
	running int
	outcome Outcome // of the executions that ended; empty when none
	long    bool    // it named the variable of the long run
}

type event struct {
	Time    time.Time
	Action  string
	Package string
	Test    string
	Output  string
}

// ReadRun reads the output of "go test -json", of one invocation or of several
// one after the other. Memory is bounded by the number of tests and the longest
// line, 4 MiB. A line that is no event is an error: what printed it may have
// hidden a result.
func ReadRun(r io.Reader) (*Run, error) {
	run := &Run{packages: map[string]*packageRun{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxEvent)
	n := 0
	for lines.Scan() {
		n++
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil || e.Action == "" {
			return nil, fmt.Errorf("controls: line %d of the run is no event of go test -json; keep its standard error apart", n)
		}
		run.add(e)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("controls: line %d of the run: %w", n+1, err)
	}
	if len(run.packages) == 0 || run.End.IsZero() {
		return nil, errors.New("controls: the run has no events of tests")
	}
	if !datable(run.Start) || !datable(run.End) {
		return nil, errors.New("controls: the run's times are before 1970 or after 2999")
	}
	return run, nil
}

// datable reports whether OSCAL can write a time: its years have four digits and
// begin with 19 or 2.
func datable(t time.Time) bool { return t.UTC().Year() >= 1970 && t.UTC().Year() <= 2999 }

func (r *Run) add(e event) {
	if !e.Time.IsZero() {
		if r.Start.IsZero() || e.Time.Before(r.Start) {
			r.Start = e.Time
		}
		if e.Time.After(r.End) {
			r.End = e.Time
		}
	}
	if e.Package == "" {
		return
	}
	p := r.packages[e.Package]
	if p == nil {
		p = &packageRun{tests: map[string]*testRun{}}
		r.packages[e.Package] = p
	}
	if e.Test == "" {
		switch e.Action {
		case "start":
			p.ended = false
		case "pass", "skip":
			p.ended = true
		case "fail":
			p.ended, p.failed = true, true
		}
		return
	}
	t := p.tests[e.Test]
	if t == nil {
		t = &testRun{}
		p.tests[e.Test] = t
	}
	switch o := Outcome(e.Action); o {
	case "output":
		t.long = t.long || strings.Contains(e.Output, "TRUSTTREE_LONG")
	case "run":
		t.running++
	case Passed, Failed, Skipped:
		t.running--
		if t.outcome == "" || slices.Index(worst[:], o) > slices.Index(worst[:], t.outcome) {
			t.outcome = o
		}
	}
}

// Outcome says what the run shows about a test, "DIR: TestName" or
// "DIR: TestName/sub", and why it is not Passed. A name that is none is Missing.
func (r *Run) Outcome(name string) (Outcome, string) {
	dir, test, err := splitTest(name)
	if err != nil {
		return Missing, err.Error()
	}
	p := r.packages[Module+"/"+dir]
	if p == nil {
		return Missing, "the run has nothing of package " + dir
	}
	t := p.tests[strings.ReplaceAll(test, " ", "_")]
	if t == nil {
		return Missing, "the run has no such test"
	}
	switch {
	case t.outcome == Failed:
		return Failed, "it failed"
	case p.failed && !p.blamed():
		return Failed, "package " + dir + " failed without naming a test"
	case t.running > 0 || t.outcome == "" || !p.ended:
		return Unfinished, "the run ended before the test or its package did"
	case t.outcome == Skipped && t.long:
		return LongOnly, "it runs with TRUSTTREE_LONG=1 only"
	case t.outcome == Skipped:
		return Skipped, "it was skipped"
	}
	if parts := p.skippedParts(test); len(parts) > 0 {
		return Partial, fmt.Sprintf("%d of its parts were skipped: %s", len(parts), strings.Join(parts[:min(3, len(parts))], ", "))
	}
	return Passed, ""
}

// blamed reports whether a test of the package failed, so that the package's
// failure is explained.
func (p *packageRun) blamed() bool {
	for _, t := range p.tests {
		if t.outcome == Failed {
			return true
		}
	}
	return false
}

func (p *packageRun) skippedParts(test string) []string {
	var parts []string
	for name, t := range p.tests {
		if sub, ok := strings.CutPrefix(name, test+"/"); ok && t.outcome == Skipped {
			parts = append(parts, strconv.Quote(sub)) // the file's, and goes to terminals
		}
	}
	slices.Sort(parts)
	return parts
}

// Shown reports whether a run shows what the library covers of a control: there
// is something to show, and every test of it passed. Otherwise it says why not.
func (t Table) Shown(c Control, r *Run) (bool, []string) {
	if len(c.By) == 0 {
		return false, []string{"the library covers nothing of it"}
	}
	tests := t.Tests(c)
	if len(tests) == 0 || len(t.capabilities(c)) != len(c.By) {
		return false, []string{"no test shows it"}
	}
	var why []string
	for _, name := range tests {
		if o, reason := r.Outcome(name); o != Passed {
			why = append(why, fmt.Sprintf("%s: %s (%s)", name, o, reason))
		}
	}
	return len(why) == 0, why
}
