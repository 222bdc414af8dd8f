package manifest

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/trusttree/trusttree/update/internal/lint"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

const (
	// MaxAssignment is the most bytes of an assignment.
	MaxAssignment  = 64 << 10
	maxAssignments = 64
)

// Assignment is what a director says to one node: these releases and no
// others. It is the director repository's target of the name that
// AssignmentTarget gives. An assignment without releases stops updates.
type Assignment struct {
	// Node is the node's ID, so that no other node's assignment fits.
	Node string `json:"node"`
	// Releases are the releases that the node may install.
	Releases []AssignedRelease `json:"releases"`
}

// AssignedRelease names a release so that the image repository can mean no
// other by the same name.
type AssignedRelease struct {
	Name     string `json:"name"`
	Channel  string `json:"channel"`
	Security uint64 `json:"security"`
	SHA256   string `json:"sha256"` // of the release object, lower-case hex
}

type assignmentFile struct {
	FormatVersion int `json:"format_version"`
	Assignment
}

// AssignmentTarget is the TUF target name of a node's assignment.
func AssignmentTarget(node string) string { return "nodes/" + tufmeta.Quote(node) + ".json" }

// Encode checks an assignment and returns its stored form.
func (a *Assignment) Encode() ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, invalid("assignment of "+strconv.Quote(a.Node), err)
	}
	f := assignmentFile{1, *a}
	f.Releases = append([]AssignedRelease{}, a.Releases...)
	return json.Marshal(f)
}

func (a *Assignment) check() error {
	if a.Node == "" || len(a.Node) > 200 || len(a.Releases) > maxAssignments {
		return fmt.Errorf("node %.60q with %d releases", a.Node, len(a.Releases))
	}
	for _, r := range a.Releases {
		if err := checkFile(ReleaseTarget(r.Channel, r.Name), 0, r.SHA256); err != nil {
			return err
		}
	}
	return nil
}

// ParseAssignment decodes and checks an assignment.
func ParseAssignment(data []byte) (*Assignment, error) {
	var f assignmentFile
	err := lint.Strict(data, MaxAssignment, &f)
	if err == nil && f.FormatVersion != 1 {
		err = fmt.Errorf("format_version %d: this node reads version 1", f.FormatVersion)
	}
	if err == nil {
		err = f.check()
	}
	if err != nil {
		return nil, invalid("assignment", err)
	}
	return &f.Assignment, nil
}
