package moduleid

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"sort"

	"github.com/trusttree/trusttree/moduleid/internal/strict"
)

// Class is what the owner requires of one kind of module, such as "camera".
// The zero value admits only registered modules.
type Class struct {
	// Members are CAs of the owner that certify modules of this class and
	// nothing else. A chain to one of them is membership; nil means that only
	// the registry decides. Never put a chip vendor's public root here.
	Members *x509.CertPool

	// Models are the chip models that the class allows, as the registry names
	// them. Nil allows every model. A module that is a member by CA alone has
	// no model, so that a class with Models needs the registry.
	Models []string

	// Measurements are reference values by Measurement.Index: the module must
	// have signed one of the values listed for each index. Nil requires none.
	Measurements map[int][][]byte
}

// Record is one module that the owner registered.
type Record struct {
	ID         string   `json:"id"`                   // see [ID]
	Class      string   `json:"class"`                // a key of Verifier.Classes
	Model      string   `json:"model,omitempty"`      // the chip's model, such as "ATECC608B"
	Node       string   `json:"node,omitempty"`       // the only node it may be in; empty: any
	Connectors []string `json:"connectors,omitempty"` // the only connectors it may be in; empty: any that takes the class
}

// Registry knows the owner's modules. It is safe for concurrent use. An error
// refuses the module: a registry that can't answer admits nobody.
type Registry interface {
	Module(id string) (rec Record, known bool, err error)
}

// Records is a Registry in memory, by ID.
type Records map[string]Record

// Module implements Registry.
func (r Records) Module(id string) (Record, bool, error) {
	rec, ok := r[id]
	return rec, ok, nil
}

type recordsFile struct {
	Version int      `json:"version"`
	Modules []Record `json:"modules"`
}

const maxRecordsFile = 64 << 20

// ParseRecords reads a registry file, version 1: strict JSON of at most 64 MiB.
func ParseRecords(data []byte) (Records, error) {
	var f recordsFile
	if err := strict.Decode(data, strict.Limits{Bytes: maxRecordsFile}, 1, &f); err != nil {
		return nil, fmt.Errorf("moduleid: registry: %w", err)
	}
	r := make(Records, len(f.Modules))
	for _, m := range f.Modules {
		if b, err := hex.DecodeString(m.ID); err != nil || len(b) != 32 || hex.EncodeToString(b) != m.ID {
			return nil, fmt.Errorf("moduleid: registry: module ID %.80q is not 64 lower-case hexadecimal digits", m.ID)
		}
		if err := checkName("class", m.Class); err != nil {
			return nil, err
		}
		if _, dup := r[m.ID]; dup {
			return nil, fmt.Errorf("moduleid: registry: module %s is listed twice", m.ID)
		}
		r[m.ID] = m
	}
	return r, nil
}

// MarshalJSON writes the registry file that ParseRecords reads.
func (r Records) MarshalJSON() ([]byte, error) {
	f := recordsFile{Version: 1, Modules: []Record{}}
	for _, m := range r {
		f.Modules = append(f.Modules, m)
	}
	sort.Slice(f.Modules, func(i, j int) bool { return f.Modules[i].ID < f.Modules[j].ID })
	return json.Marshal(f)
}

// allows reports why a record does not fit a place.
func (r Record) fits(node, connector string) error {
	if r.Node != "" && r.Node != node {
		return fmt.Errorf("registered for node %s", r.Node)
	}
	if len(r.Connectors) > 0 && !slices.Contains(r.Connectors, connector) {
		return fmt.Errorf("registered for connectors %v", r.Connectors)
	}
	return nil
}
