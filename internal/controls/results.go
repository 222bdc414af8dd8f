package controls

import (
	"fmt"
	"strings"
	"time"
)

type (
	assessmentResults struct {
		UUID             string           `json:"uuid"`
		Metadata         metadata         `json:"metadata"`
		ImportAP         importAP         `json:"import-ap"`
		LocalDefinitions localDefinitions `json:"local-definitions"`
		Results          []result         `json:"results"`
		BackMatter       backMatter       `json:"back-matter"`
	}
	importAP struct {
		Href    string `json:"href"`
		Remarks string `json:"remarks,omitempty"`
	}
	localDefinitions struct {
		Objectives []objective `json:"objectives-and-methods"`
	}
	objective struct {
		ControlID   string `json:"control-id"`
		Description string `json:"description"`
		Parts       []part `json:"parts"`
	}
	part struct {
		ID    string `json:"id"`
		Name  string `json:"name"`
		Prose string `json:"prose"`
	}
	result struct {
		UUID         string           `json:"uuid"`
		Title        string           `json:"title"`
		Description  string           `json:"description"`
		Start        string           `json:"start"`
		End          string           `json:"end"`
		Reviewed     reviewedControls `json:"reviewed-controls"`
		Observations []observation    `json:"observations,omitempty"`
		Findings     []finding        `json:"findings,omitempty"`
	}
	reviewedControls struct {
		Selections []selection `json:"control-selections"`
	}
	selection struct {
		Description string     `json:"description"`
		Include     []selected `json:"include-controls"`
	}
	selected struct {
		ControlID string `json:"control-id"`
	}
	observation struct {
		UUID        string     `json:"uuid"`
		Title       string     `json:"title"`
		Description string     `json:"description"`
		Props       []property `json:"props"`
		Methods     []string   `json:"methods"`
		Types       []string   `json:"types"`
		Collected   string     `json:"collected"`
	}
	finding struct {
		UUID        string    `json:"uuid"`
		Title       string    `json:"title"`
		Description string    `json:"description"`
		Target      target    `json:"target"`
		Related     []related `json:"related-observations,omitempty"`
	}
	target struct {
		Type   string `json:"type"`
		ID     string `json:"target-id"`
		Title  string `json:"title"`
		Status status `json:"status"`
	}
	status struct {
		State   string `json:"state"`
		Reason  string `json:"reason"`
		Remarks string `json:"remarks,omitempty"`
	}
	related struct {
		ObservationUUID string `json:"observation-uuid"`
	}
	backMatter struct {
		Resources []resource `json:"resources"`
	}
	resource struct {
		UUID        string `json:"uuid"`
		Title       string `json:"title"`
		Description string `json:"description"`
	}
)

// AssessmentResults returns what a run shows of the table as OSCAL assessment
// results: one result for each framework, an observation for each test, and a
// finding for each control. A finding's target is the library's part of the
// control, which is defined in the document, and never the control. It is
// "satisfied" only when Table.Shown says so.
//
// at becomes metadata's last-modified; zero means the end of the run. The same
// table, run and time make the same bytes.
func AssessmentResults(t Table, r *Run, at time.Time) ([]byte, error) {
	if r.End.IsZero() {
		return nil, fmt.Errorf("controls: the run has no time")
	}
	if at.IsZero() {
		at = r.End
	}
	if !datable(at) {
		return nil, errTime
	}
	start, end := r.Start.UTC().Format(time.RFC3339Nano), r.End.UTC().Format(time.RFC3339Nano)
	plan := resource{
		UUID: uuid("plan"), Title: "Assessment plan: the mapping and the tests that it names",
		Description: "There is no separate plan. The tests that the mapping of trusttree names for each control are run with go test -json, and each of them must pass.",
	}
	doc := assessmentResults{
		Metadata: head("trusttree: what a run of its tests shows for which control", at),
		ImportAP: importAP{Href: "#" + plan.UUID, Remarks: plan.Description},
	}
	doc.BackMatter.Resources = []resource{plan}
	doc.UUID = uuid("assessment-results", doc.Metadata.LastModified, start, end, names(t))
	for _, f := range t.Frameworks {
		doc.Results = append(doc.Results, assess(t, f, r, start, end))
		for _, c := range f.Controls {
			doc.LocalDefinitions.Objectives = append(doc.LocalDefinitions.Objectives, objectiveOf(f, c))
		}
	}
	return encode(map[string]any{"assessment-results": doc})
}

// objectiveID names the library's part of a control.
func objectiveID(f Framework, c Control) string { return controlID(f, c) + "_trusttree" }

func objectiveOf(f Framework, c Control) objective {
	prose := c.Covers
	if prose == "" {
		prose = "None: the library covers nothing of this control."
	}
	return objective{
		ControlID: controlID(f, c), Description: join("The library's part of "+c.ID+" "+c.Title+", and nothing else of it.", remarks(c)),
		Parts: []part{{ID: objectiveID(f, c), Name: "assessment-objective", Prose: prose}},
	}
}

func assess(t Table, f Framework, r *Run, start, end string) result {
	res := result{
		UUID: uuid("result", f.ID, start, end), Title: f.Title + ", " + f.Edition, Start: start, End: end,
		Description: join("Automated tests of the library's part of each control.", Notice, f.Note),
	}
	reviewed := selection{Description: "Controls of the mapping. Of each, the library's part alone was assessed."}
	seen := map[string]string{} // test → UUID of its observation
	for _, c := range f.Controls {
		reviewed.Include = append(reviewed.Include, selected{controlID(f, c)})
		find := finding{
			UUID: uuid("finding", f.ID, c.ID, start, end), Title: c.ID + " " + c.Title,
			Target: target{Type: "objective-id", ID: objectiveID(f, c), Title: "The library's part of " + c.ID},
		}
		for _, name := range t.Tests(c) {
			if seen[name] == "" {
				o := observe(f, r, name, start, end)
				seen[name] = o.UUID
				res.Observations = append(res.Observations, o)
			}
			find.Related = append(find.Related, related{seen[name]})
		}
		shown, why := t.Shown(c, r)
		switch {
		case shown:
			find.Description = "Every test that the mapping names for the library's part passed. What remains with the operator was not assessed."
			find.Target.Status = status{State: "satisfied", Reason: "pass", Remarks: remarks(c)}
		case len(c.By) == 0:
			find.Description = "The library covers nothing of this control."
			find.Target.Status = status{State: "not-satisfied", Reason: "other", Remarks: remarks(c)}
		default:
			find.Description = "The run does not show the library's part."
			find.Target.Status = status{State: "not-satisfied", Reason: "fail", Remarks: strings.Join(why, "\n")}
		}
		res.Findings = append(res.Findings, find)
	}
	res.Reviewed.Selections = []selection{reviewed}
	return res
}

func observe(f Framework, r *Run, name, start, end string) observation {
	outcome, why := r.Outcome(name)
	said := "Test " + name + ": " + string(outcome)
	if why != "" {
		said += ", " + why
	}
	return observation{
		UUID: uuid("observation", f.ID, name, start, end), Title: name, Description: said + ".",
		Props:   []property{prop("test", name), prop("outcome", string(outcome))},
		Methods: []string{"TEST"}, Types: []string{"control-objective"}, Collected: end,
	}
}
