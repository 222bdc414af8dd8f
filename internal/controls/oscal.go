package controls

import (
	"crypto/sha1"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// OSCALVersion is the version of OSCAL whose JSON formats are written.
const OSCALVersion = "1.1.3"

// namespace qualifies this project's OSCAL properties, and is where the
// identifiers of its OSCAL objects derive from.
const namespace = "https://" + Module + "/ns/oscal"

var errTime = errors.New("controls: last-modified is before 1970 or after 2999")

// urlNamespace is the name space for URLs of RFC 9562, section 6.6.
var urlNamespace = [16]byte{0x6b, 0xa7, 0xb8, 0x11, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}

// uuid returns the version 5 UUID (RFC 9562, section 5.5) of a name, which is
// the same in every run. SHA-1 is what version 5 is made of; nothing rests on it.
func uuid(parts ...string) string {
	sum := sha1.Sum(append(urlNamespace[:], namespace+"/"+strings.Join(parts, "/")...))
	u := sum[:16]
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// controlID is how a control is called in OSCAL: the framework's prefix and the
// ID in lower case, with enhancements after a dot as in NIST's own catalogs.
func controlID(f Framework, c Control) string {
	return f.Prefix + strings.ToLower(strings.NewReplacer("(", ".", ")", "", " ", "-").Replace(c.ID))
}

type (
	metadata struct {
		Title        string `json:"title"`
		LastModified string `json:"last-modified"`
		Version      string `json:"version"`
		OSCALVersion string `json:"oscal-version"`
		Remarks      string `json:"remarks,omitempty"`
	}
	property struct {
		Name    string `json:"name"`
		NS      string `json:"ns"`
		Value   string `json:"value"`
		Remarks string `json:"remarks,omitempty"`
	}
	component struct {
		UUID        string                  `json:"uuid"`
		Type        string                  `json:"type"`
		Title       string                  `json:"title"`
		Description string                  `json:"description"`
		Props       []property              `json:"props,omitempty"`
		Controls    []controlImplementation `json:"control-implementations,omitempty"`
	}
	controlImplementation struct {
		UUID         string                   `json:"uuid"`
		Source       string                   `json:"source"`
		Description  string                   `json:"description"`
		Requirements []implementedRequirement `json:"implemented-requirements"`
	}
	implementedRequirement struct {
		UUID        string     `json:"uuid"`
		ControlID   string     `json:"control-id"`
		Description string     `json:"description"`
		Props       []property `json:"props,omitempty"`
		Remarks     string     `json:"remarks,omitempty"`
	}
	componentDefinition struct {
		UUID       string      `json:"uuid"`
		Metadata   metadata    `json:"metadata"`
		Components []component `json:"components"`
	}
)

func head(title string, at time.Time) metadata {
	at = at.UTC().Truncate(time.Second)
	return metadata{
		Title: title, LastModified: at.Format(time.RFC3339), OSCALVersion: OSCALVersion,
		// The document is as old as the table or the run that it is made from.
		Version: at.Format("2006.01.02"), Remarks: Notice,
	}
}

func prop(name, value string) property { return property{Name: name, NS: namespace, Value: value} }

// ComponentDefinition returns the table as an OSCAL component definition: one
// component for each package, with the requirements that it implements a part
// of. at becomes metadata's last-modified. The same table and time make the
// same bytes. A time before 1970 or after 2999 is an error.
func ComponentDefinition(t Table, at time.Time) ([]byte, error) {
	if !datable(at) {
		return nil, errTime
	}
	doc := componentDefinition{Metadata: head("trusttree: what each package does for which control", at)}
	doc.UUID = uuid("component-definition", doc.Metadata.LastModified, names(t))
	for _, pkg := range Packages {
		c := component{
			UUID: uuid("component", pkg), Type: "software", Title: Module + "/" + pkg,
			Description: "Go package " + pkg + " of trusttree. " + statements(t, pkg),
			Props:       []property{prop("package", Module+"/"+pkg)},
		}
		for _, f := range t.Frameworks {
			if ci := implementation(t, f, pkg); len(ci.Requirements) > 0 {
				c.Controls = append(c.Controls, ci)
			}
		}
		if len(c.Controls) > 0 {
			doc.Components = append(doc.Components, c)
		}
	}
	return encode(map[string]any{"component-definition": doc})
}

// names tells documents of different selections apart.
func names(t Table) string {
	var ids []string
	for _, f := range t.Frameworks {
		ids = append(ids, f.ID)
	}
	return strings.Join(ids, "+")
}

func statements(t Table, pkg string) string {
	var all []string
	for _, k := range t.Capabilities {
		if k.Package == pkg {
			all = append(all, k.Statement)
		}
	}
	return strings.Join(all, " ")
}

func implementation(t Table, f Framework, pkg string) controlImplementation {
	ci := controlImplementation{
		UUID: uuid("implementation", pkg, f.ID), Source: f.Source,
		Description: join(f.Title+", "+f.Edition+".", f.Note, Notice),
	}
	var nothing []string
	for _, c := range f.Controls {
		if len(c.By) == 0 {
			nothing = append(nothing, c.ID)
			continue
		}
		r := implementedRequirement{
			UUID: uuid("requirement", pkg, f.ID, c.ID), ControlID: controlID(f, c),
			Props:   []property{prop("control", f.ID+" "+c.ID), prop("coverage", "partial")},
			Remarks: remarks(c),
		}
		var said []string
		for _, k := range t.capabilities(c) {
			if k.Package != pkg {
				continue
			}
			said = append(said, k.Statement)
			r.Props = append(r.Props, prop("capability", k.ID))
			for _, s := range k.Symbols {
				r.Props = append(r.Props, prop("symbol", s))
			}
			for _, s := range k.Tests {
				r.Props = append(r.Props, prop("test", s))
			}
		}
		if len(said) > 0 {
			r.Description = c.ID + " " + c.Title + ". This package's part: " + strings.Join(said, " ")
			ci.Requirements = append(ci.Requirements, r)
		}
	}
	if len(nothing) > 0 {
		ci.Description = join(ci.Description, "No package covers anything of: "+strings.Join(nothing, ", ")+".")
	}
	return ci
}

// remarks say what all packages together cover, and what they do not.
func remarks(c Control) string {
	var parts []string
	for _, p := range [...][2]string{{"Covered by the library", c.Covers}, {"Remains with the operator", c.Operator}, {"Not covered", c.Gaps}} {
		if p[1] != "" {
			parts = append(parts, p[0]+": "+p[1])
		}
	}
	return strings.Join(parts, "\n")
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}

func encode(doc any) ([]byte, error) {
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("controls: %w", err)
	}
	return append(b, '\n'), nil
}
