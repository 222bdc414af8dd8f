package fscrypt

import (
	"errors"
	"maps"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// Unverified is what a volume's header says before any key has authenticated
// it: whoever can write the disk can have written this.
type Unverified struct {
	Volume string `json:"volume"` // UUID
	Label  string `json:"label"`
	Mode   string `json:"mode"`
	Slots  []Slot `json:"slots"`
}

// Inspect reads the header of a volume without opening it, for example to see
// which protectors it wants, or to hand a recovery slot's age file to its
// owner.
func Inspect(dir string) (_ *Unverified, err error) {
	defer boundary("inspect "+dir, &err)
	var errs []error
	for _, name := range headerNames {
		b, err := disk.ReadIn(filepath.Join(dir, metaDir), name, maxHeader)
		var h *header
		if err == nil {
			h, err = parseHeader(b)
		}
		if err == nil {
			return &Unverified{Volume: h.UUID, Label: h.Label, Mode: h.Mode, Slots: h.Slots}, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Status describes an open volume.
type Status struct {
	Volume     string        `json:"volume"` // UUID
	Label      string        `json:"label"`
	Mode       string        `json:"mode"` // "portable" or "kernel"
	Locked     bool          `json:"locked"`
	Slot       string        `json:"slot"` // type of the slot that opened it
	Slots      []SlotStatus  `json:"slots"`
	Generation uint64        `json:"generation"`
	Freshness  string        `json:"freshness"` // "witnessed", "unchecked" (no TPM given) or "none"
	Files      int           `json:"files"`     // in kernel mode, those that Protect noted
	Open       int           `json:"open"`      // open files and writers
	Rotating   bool          `json:"rotating"`  // old volume keys or directories are still there: Rotate again
	LeaseUntil time.Time     `json:"lease_until,omitzero"`
	Kernel     *KernelStatus `json:"kernel,omitempty"`
}

// SlotStatus names a slot.
type SlotStatus struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}

// Status reports the volume's state. It does not fail on a locked volume.
func (v *Volume) Status() Status {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := Status{
		Volume: v.header.UUID, Label: v.header.Label, Mode: v.header.Mode, Locked: v.locked != nil, Slot: v.slot,
		Generation: v.m.gen, Files: len(v.m.files), Rotating: len(v.private.Old) > 0 || v.private.Kernel.rotating(), Freshness: v.freshness(),
	}
	for _, sl := range v.header.Slots {
		s.Slots = append(s.Slots, SlotStatus{sl.ID, sl.Type})
	}
	for n := range maps.Values(v.open) {
		s.Open += n
	}
	if v.lease != nil {
		s.LeaseUntil = v.lease.until
	}
	if v.kernelMode {
		s.Kernel = v.kernelStatus()
	}
	return s
}
