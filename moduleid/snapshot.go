package moduleid

import (
	"crypto"
	"fmt"
)

// Entry is one connector in an inventory: with an ID, an admitted module; with
// a reason, a refused one; with neither, nothing.
type Entry struct {
	Connector string `json:"connector"`
	ID        string `json:"id,omitempty"`     // of an admitted module; see [ID]
	Class     string `json:"class,omitempty"`  // of an admitted module
	Reason    Reason `json:"reason,omitempty"` // why what is there was refused
}

// Admitted reports whether the connector holds a module that proved itself.
func (e Entry) Admitted() bool { return e.ID != "" }

// Refused reports whether it holds something that did not.
func (e Entry) Refused() bool { return e.Reason != "" }

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
		fields = append(fields, []byte(e.Connector), []byte(e.ID), []byte(e.Class), []byte(e.Reason))
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
		// An ID has 64 digits and a class; a refusal has neither.
		if e.Admitted() && (len(e.ID) != 64 || e.Class == "" || e.Refused()) || !e.Admitted() && e.Class != "" || len(e.Class) > maxName || len(e.Reason) > maxName {
			return fmt.Errorf("connector %s: id %.64q with class %.64q and reason %.64q makes no sense", e.Connector, e.ID, e.Class, e.Reason)
		}
	}
	return nil
}
