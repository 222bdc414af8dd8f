package controls_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/controls"
	"github.com/trusttree/trusttree/internal/testenv"
)

// objects describes the objects of OSCAL 1.1.3 that are written, after its JSON
// reference: each member and its kind, "!" where the object must have it. "*X"
// is an array of at least one X. An unknown member is an error, as in NIST's
// schemas, which allow no others. It is written by hand, and smaller than the
// schemas; TestSchemaOfNIST holds the documents to these where a validator is.
var objects = map[string]map[string]string{
	"component document":      {"component-definition": "!component definition"},
	"component definition":    {"uuid": "!uuid", "metadata": "!metadata", "components": "*component"},
	"metadata":                {"title": "!text", "last-modified": "!time", "version": "!string", "oscal-version": "!string", "remarks": "text"},
	"property":                {"name": "!token", "uuid": "uuid", "ns": "uri", "value": "!string", "class": "token", "remarks": "text"},
	"component":               {"uuid": "!uuid", "type": "!string", "title": "!text", "description": "!text", "props": "*property", "control-implementations": "*control implementation"},
	"control implementation":  {"uuid": "!uuid", "source": "!uri", "description": "!text", "props": "*property", "implemented-requirements": "!*implemented requirement"},
	"implemented requirement": {"uuid": "!uuid", "control-id": "!token", "description": "!text", "props": "*property", "remarks": "text"},
	"results document":        {"assessment-results": "!assessment results"},
	"assessment results":      {"uuid": "!uuid", "metadata": "!metadata", "import-ap": "!import", "local-definitions": "local definitions", "results": "!*result", "back-matter": "back matter"},
	"import":                  {"href": "!text", "remarks": "text"},
	"local definitions":       {"objectives-and-methods": "*objective"},
	"objective":               {"control-id": "!token", "description": "text", "parts": "!*part"},
	"part":                    {"id": "token", "name": "!token", "ns": "uri", "title": "text", "props": "*property", "prose": "text"},
	"result":                  {"uuid": "!uuid", "title": "!text", "description": "!text", "start": "!time", "end": "time", "reviewed-controls": "!reviewed controls", "observations": "*observation", "findings": "*finding"},
	"reviewed controls":       {"control-selections": "!*selection"},
	"selection":               {"description": "text", "include-controls": "*selected control"},
	"selected control":        {"control-id": "!token"},
	"observation":             {"uuid": "!uuid", "title": "text", "description": "!text", "props": "*property", "methods": "!*method", "types": "*token", "collected": "!time"},
	"finding":                 {"uuid": "!uuid", "title": "!text", "description": "!text", "target": "!target", "related-observations": "*related observation"},
	"target":                  {"type": "!target type", "target-id": "!token", "title": "text", "status": "!status"},
	"status":                  {"state": "!state", "reason": "token", "remarks": "text"},
	"related observation":     {"observation-uuid": "!uuid"},
	"back matter":             {"resources": "*resource"},
	"resource":                {"uuid": "!uuid", "title": "text", "description": "text"},
}

// values are OSCAL's kinds of strings.
var values = map[string]*regexp.Regexp{
	"text":        regexp.MustCompile(`(?s)\S`),
	"string":      regexp.MustCompile(`^\S(.*\S)?$`),
	"token":       regexp.MustCompile(`^(\p{L}|_)(\p{L}|\p{N}|[.\-_])*$`),
	"uri":         regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9+\-.]+:\S+$`),
	"uuid":        regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`),
	"time":        regexp.MustCompile(`^(19|2[0-9])[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]+)?Z$`),
	"method":      regexp.MustCompile(`^(EXAMINE|INTERVIEW|TEST|UNKNOWN)$`),
	"target type": regexp.MustCompile(`^(statement-id|objective-id)$`),
	"state":       regexp.MustCompile(`^(satisfied|not-satisfied)$`),
}

// shape checks a value against a kind and gathers the UUIDs that objects have.
func shape(t *testing.T, where, kind string, v any, uuids map[string]string) {
	if item, ok := strings.CutPrefix(kind, "*"); ok {
		list, ok := v.([]any)
		if assert.True(t, ok && len(list) > 0, "%s is no list of something", where) {
			for _, e := range list {
				shape(t, where, item, e, uuids)
			}
		}
		return
	}
	if re := values[kind]; re != nil {
		s, ok := v.(string)
		assert.True(t, ok && re.MatchString(s), "%s: %v is no %s", where, v, kind)
		return
	}
	object, ok := v.(map[string]any)
	if !assert.True(t, ok && objects[kind] != nil, "%s is no %s", where, kind) {
		return
	}
	for member, e := range object {
		want, known := objects[kind][member]
		if assert.True(t, known, "%s: a %s has no %s", where, kind, member) {
			shape(t, where+"/"+member, strings.TrimPrefix(want, "!"), e, uuids)
		}
	}
	for member, want := range objects[kind] {
		if strings.HasPrefix(want, "!") {
			assert.Contains(t, object, member, where)
		}
	}
	if id, ok := object["uuid"].(string); ok {
		assert.Empty(t, uuids[id], "%s and %s share UUID %s", where, uuids[id], id)
		uuids[id] = where
	}
}

func parse(t *testing.T, kind string, doc []byte) (map[string]any, map[string]string) {
	t.Helper()
	var v map[string]any
	require.NoError(t, json.Unmarshal(doc, &v))
	uuids := map[string]string{}
	shape(t, "", kind, v, uuids)
	return v, uuids
}

func documents(t *testing.T) (component, results []byte) {
	t.Helper()
	table := controls.Mapping()
	component, err := controls.ComponentDefinition(table, time.Date(2026, 1, 31, 0, 0, 0, 0, time.FixedZone("", 3600)))
	require.NoError(t, err)
	outcomes := []string{"pass", "pass", "pass", "pass", "fail", "skip", ""}
	run := readRun(t, lines(table, func(name string) string { return outcomes[len(name)%len(outcomes)] }))
	results, err = controls.AssessmentResults(table, run, time.Time{})
	require.NoError(t, err)
	return component, results
}

func TestComponentDefinition(t *testing.T) {
	component, _ := documents(t)
	v, _ := parse(t, "component document", component)
	def := v["component-definition"].(map[string]any)
	assert.Equal(t, "1.1.3", def["metadata"].(map[string]any)["oscal-version"])
	assert.Equal(t, "2026-01-30T23:00:00Z", def["metadata"].(map[string]any)["last-modified"])
	assert.Len(t, def["components"], len(controls.Packages), "each package can be taken alone")
	again, _ := documents(t)
	assert.Equal(t, component, again, "the same in every run")
	for _, id := range []string{`"sc-28.1"`, `"ac-17.2"`, `"hipaa-164.312.a.2.iv"`, `"iec62443-cr-1.2"`, `"cra-i.2.d"`, `"a.8.24"`, `"en303645-5.3"`} {
		assert.Contains(t, string(component), id)
	}
	assert.NotContains(t, string(component), `"pe-3"`, "no requirement for what nothing covers")
	_, err := controls.ComponentDefinition(controls.Mapping(), time.Time{})
	assert.Error(t, err, "a document has a date")
}

func TestAssessmentResults(t *testing.T) {
	_, doc := documents(t)
	v, uuids := parse(t, "results document", doc)
	_, again := documents(t)
	assert.Equal(t, doc, again)
	ar := v["assessment-results"].(map[string]any)
	plan := strings.TrimPrefix(ar["import-ap"].(map[string]any)["href"].(string), "#")
	assert.Contains(t, uuids[plan], "resources")
	objectives := map[string]bool{}
	for _, o := range ar["local-definitions"].(map[string]any)["objectives-and-methods"].([]any) {
		p := o.(map[string]any)["parts"].([]any)[0].(map[string]any)
		id := p["id"].(string)
		assert.False(t, objectives[id], "%s is defined twice", id)
		objectives[id] = true
	}
	states := map[any]int{}
	for _, r := range ar["results"].([]any) {
		res := r.(map[string]any)
		outcome := map[any]any{} // of an observation
		for _, o := range res["observations"].([]any) {
			props := o.(map[string]any)["props"].([]any)
			outcome[o.(map[string]any)["uuid"]] = props[1].(map[string]any)["value"]
		}
		for _, f := range res["findings"].([]any) {
			target := f.(map[string]any)["target"].(map[string]any)
			assert.True(t, objectives[target["target-id"].(string)], "the target is defined in the document")
			related, _ := f.(map[string]any)["related-observations"].([]any)
			good := len(related) > 0
			for _, o := range related {
				said, there := outcome[o.(map[string]any)["observation-uuid"]]
				assert.True(t, there)
				good = good && said == "pass"
			}
			state := target["status"].(map[string]any)["state"]
			assert.Equal(t, good, state == "satisfied", "%v", f.(map[string]any)["title"])
			states[state]++
		}
	}
	assert.Positive(t, states["satisfied"])
	assert.Positive(t, states["not-satisfied"])
	_, err := controls.AssessmentResults(controls.Mapping(), &controls.Run{}, time.Time{})
	assert.Error(t, err, "no run, no results")
}

// TestShapeRefusesWhatIsNoOSCAL makes sure that the shapes refuse something.
func TestShapeRefusesWhatIsNoOSCAL(t *testing.T) {
	component, _ := documents(t)
	for _, change := range [][2]string{
		{`"control-id": "ac-2"`, `"control-id": "2-ac"`},
		{`"last-modified"`, `"modified"`},
		{`"source": "https:`, `"source": "`},
		{`"type": "software"`, `"kind": "software"`},
		{`"value": "partial"`, `"value": " partial"`},
	} {
		require.Contains(t, string(component), change[0])
		var v any
		require.NoError(t, json.Unmarshal(bytes.Replace(component, []byte(change[0]), []byte(change[1]), 1), &v))
		quiet := &testing.T{}
		shape(quiet, "", "component document", v, map[string]string{})
		assert.True(t, quiet.Failed(), change[1])
	}
}

// TestSchemaOfNIST validates the documents against NIST's own JSON schemas of
// OSCAL 1.1.3. The go-oscal command carries them; internal/tools names its
// version.
func TestSchemaOfNIST(t *testing.T) {
	if !testenv.CI() {
		t.Skip("builds go-oscal; runs with CI=true. The shapes of this file are checked all the same")
	}
	tool := filepath.Join(t.TempDir(), "go-oscal")
	build := exec.Command("go", "build", "-o", tool, "github.com/defenseunicorns/go-oscal")
	build.Dir = "../tools"
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	component, results := documents(t)
	broken := bytes.Replace(component, []byte(`"oscal-version": "1.1.3"`), []byte(`"oscal-version": "1.1.3", "of": "none"`), 1)
	require.NotEqual(t, component, broken)
	for name, doc := range map[string][]byte{"component": component, "results": results, "broken": broken} {
		file := filepath.Join(t.TempDir(), name+".json")
		require.NoError(t, os.WriteFile(file, doc, 0o600))
		out, err := exec.Command(tool, "validate", "-f", file).CombinedOutput()
		assert.Equal(t, name == "broken", err != nil, "%s: %s", name, out)
	}
}
