package update_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/updatetest"
)

const modelFile = "model/installer.pml"

// spin checks a model and returns the verifier's report.
func spin(t *testing.T, model string, flags ...string) string {
	t.Helper()
	tool, cc := testenv.Tool(t, "spin", "spin"), testenv.Tool(t, "gcc", "gcc")
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "m.pml"), []byte(model), 0o600))
	for _, c := range [][]string{append(append([]string{tool}, flags...), "-a", "m.pml"), {cc, "-w", "-DSAFETY", "-o", "pan", "pan.c"}, {"./pan", "-m500000"}} {
		cmd := exec.Command(c[0], c[1:]...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", c[0], out)
		if c[0] == "./pan" {
			return string(out)
		}
	}
	return ""
}

func TestModelHolds(t *testing.T) {
	model, err := os.ReadFile(modelFile)
	require.NoError(t, err)
	for _, releases := range []string{"2", "3", "4"} {
		out := spin(t, string(model), "-DLAST="+releases)
		assert.Contains(t, out, "errors: 0", "%s", out)
		assert.NotContains(t, out, "max search depth too small")
	}
}

// A model that can't fail proves nothing: each of these mistakes is found.
func TestModelFindsMistakes(t *testing.T) {
	data, err := os.ReadFile(modelFile)
	require.NoError(t, err)
	model := string(data)
	for name, change := range map[string][2]string{
		"the slot is written while it can be booted": {"inline install(r) {\n\tinvalidate(other(running));", "inline install(r) {"},
		"armed before it is whole":                   {"\tjournal(Writing);\n\tif\n\t:: content[jslot] == r", "\tjournal(Writing);\n\tgood[jslot] = false; tries[jslot] = TRIES;\n\tif\n\t:: content[jslot] == r"},
		"floors rise before the slot is good":        {"inline commit() {", "inline commit() {\n\tatomic { floor = jrelease; invariants() };"},
		"armed without preflight":                    {"\topens[r] = true;\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			broken := strings.Replace(model, change[0], change[1], 1)
			require.NotEqual(t, model, broken)
			out := spin(t, broken, "-DLAST=3")
			assert.NotContains(t, out, "errors: 0")
		})
	}
}

// step is what a cut of the model's is called in the code.
func step(cut string) func(string) bool {
	name, slot, _ := strings.Cut(cut, " ")
	exact := map[string]string{
		"boot_invalidate": "boot invalidate " + slot, "boot_invalidated": "boot invalidate " + slot + " done",
		"boot_good": "boot good " + slot, "boot_made_good": "boot good " + slot + " done",
		"boot_arm": "boot arm " + slot, "boot_armed": "boot arm " + slot + " done",
		"raise_floors": "raise floors", "raised_floors": "raised floors",
		"preflight": "preflight", "before_reboot": "reboot", "after_reboot": "rebooted",
	}
	want, ok := exact[name]
	if !ok && name != "write_slot" {
		want = "log update.phase " + strings.TrimPrefix(strings.ReplaceAll(strings.ToLower(name), "rolledback", "rolled-back"), " ")
	}
	return func(s string) bool {
		if name == "write_slot" {
			return strings.HasPrefix(s, "write ")
		}
		return s == want
	}
}

func TestModelTracesAreTheCodes(t *testing.T) {
	tool := testenv.Tool(t, "spin", "spin")
	pub := newPublisher(t)
	pub.release("2.0", 5, image("2.0", crashImage))
	seen := map[string]bool{}
	for seed := range testenv.N(40, 400) {
		out, err := exec.Command(tool, "-n"+strconv.Itoa(seed), "-DMAXCUTS=5", "-T", modelFile).Output()
		require.NoError(t, err, "%s", out)
		var trace []string
		healthy := false
		for _, l := range strings.Split(string(out), "\n") {
			l = strings.TrimSpace(l)
			switch word, _, _ := strings.Cut(l, " "); word {
			case "healthy":
				healthy = strings.HasSuffix(l, "1")
			case "phase", "cut", "boot", "rest":
				trace = append(trace, l)
			}
		}
		require.NotEmpty(t, trace)
		require.True(t, strings.HasPrefix(trace[len(trace)-1], "rest "))
		seen[strings.Join(trace, "\n")] = true
		assert.Equal(t, trace, replay(t, pub, trace, healthy), "seed %d", seed)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d different traces replayed", len(seen))
}

// replay runs the code with the trace's power cuts and returns its events.
func replay(t *testing.T, pub *publisher, trace []string, healthy bool) []string {
	var cuts, events []string
	var nth []int // a phase may be entered several times before the cut that is called after it
	seen := map[string]int{}
	for _, e := range trace {
		if c, ok := strings.CutPrefix(e, "cut "); ok {
			cuts, nth = append(cuts, c), append(nth, max(seen["phase "+c], 1))
			clear(seen)
		}
		seen[e]++
	}
	w := newWorld(t, pub, updatetest.NewPower(-1), healthy)
	w.booted = func(s update.Slot) { events = append(events, "boot "+string(s)) }
	names := map[string]string{"rolled-back": "RolledBack"}
	for {
		match := func(string) bool { return false }
		if len(cuts) > 0 {
			is, left := step(cuts[0]), nth[0]
			match = func(s string) bool {
				if is(s) {
					left--
				}
				return left == 0 && is(s)
			}
		}
		w.setPower(updatetest.CutAt(func(s string) bool {
			if p, ok := strings.CutPrefix(s, "log update.phase "); ok {
				if names[p] == "" {
					names[p] = strings.ToUpper(p[:1]) + p[1:]
				}
				events = append(events, "phase "+names[p])
			}
			return match(s)
		}))
		_, gone := w.power.Run(func() { w.live() })
		if !gone {
			return append(events, "rest "+string(w.loader.Running))
		}
		events = append(events, "cut "+cuts[0])
		cuts, nth = cuts[1:], nth[1:]
		w.booted(w.loader.Boot())
	}
}
