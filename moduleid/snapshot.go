package moduleid

import (
	"crypto"
	"fmt"
	"slices"
	"strings"
)

// State is what is in a connector.
type State string

// The states of a connector.
const (
	StateEmpty    State = "empty"    // nothing there
	StateAdmitted State = "admitted" // a module that proved itself
	StateRefused  State = "refused"  // something that did not
)

// Entry is one connector in an inventory.
type Entry struct {
	Connector string `json:"connector"`
	State     State  `json:"state"`
	ID        string `json:"id,omitempty"`     // of an admitted module; see [ID]
	Class     string `json:"class,omitempty"`  // of an admitted module
	Reason    Reason `json:"reason,omitempty"` // why it was refused
}

// Snapshot is the inventory of a node at one moment, sorted by connector. It
// holds nothing that differs between two boots with the same modules, so that
// its digest can be a reference value.
type Snapshot []Entry

const maxConnectors = 256

// Digest returns what an application PCR of the given bank is extended with:
// the hash, with the label "moduleid.v1", a zero byte, "inventory", over the
// node's name and each entry's fields, each after its length as a 32-bit
// big-endian integer.
func (s Snapshot) Digest(bank crypto.Hash, node string) []byte {
	fields := [][]byte{[]byte(node)}
	for _, e := range s {
		fields = append(fields, []byte(e.Connector), []byte(e.State), []byte(e.ID), []byte(e.Class), []byte(e.Reason))
	}
	return hashFields(bank, labelInventory, fields...)
}

func (s Snapshot) check() error {
	if len(s) > maxConnectors {
		return fmt.Errorf("%d connectors; the limit is %d", len(s), maxConnectors)
	}
	for i, e := range s {
		if err := checkName("connector", e.Connector); err != nil {
			return err
		}
		if i > 0 && e.Connector <= s[i-1].Connector {
			return fmt.Errorf("connector %s is out of order", e.Connector)
		}
		ok := false
		switch e.State {
		case StateEmpty:
			ok = e.ID == "" && e.Class == "" && e.Reason == ""
		case StateAdmitted:
			ok = len(e.ID) == 64 && e.Class != "" && e.Reason == ""
		case StateRefused:
			ok = e.ID == "" && e.Class == "" && e.Reason != ""
		}
		if !ok || len(e.Class) > maxName || len(e.Reason) > maxName {
			return fmt.Errorf("connector %s: state %.20q with id %.64q, class %.64q, reason %.64q makes no sense", e.Connector, e.State, e.ID, e.Class, e.Reason)
		}
	}
	return nil
}

func sortSnapshot(s Snapshot) {
	slices.SortFunc(s, func(a, b Entry) int { return strings.Compare(a.Connector, b.Connector) })
}
