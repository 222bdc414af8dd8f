package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/update/internal/lint"
)

// Phase is where an installation stands.
type Phase string

// The phases of an installation. From any of them the node boots a slot that
// was verified.
const (
	Idle       Phase = "idle"        // nothing was installed yet
	Writing    Phase = "writing"     // the slot is invalid and being written
	Verified   Phase = "verified"    // all parts were read back and have the signed hashes
	Armed      Phase = "armed"       // the next boot is a trial of the slot
	Trial      Phase = "trial"       // the slot runs, and waits for Confirm
	Committing Phase = "committing"  // healthy; the slot is becoming permanent, the floors rise
	Committed  Phase = "committed"   // permanent, floors risen
	RolledBack Phase = "rolled-back" // the release failed; the old slot stays
)

const (
	maxJournal = 256 << 10
	maxFailed  = 64 // failed releases remembered
)

// State is what an Installer knows about this node's software.
type State struct {
	Phase Phase `json:"phase"`
	// Slot is the slot that the phase is about.
	Slot Slot `json:"slot,omitempty"`
	// Release is what the phase is about.
	Release Installed `json:"release"`
	// Reason says why a release was rolled back.
	Reason string `json:"reason,omitempty"`
	// RebootNeeded says that the node runs a slot that must not stay: reboot.
	RebootNeeded bool `json:"reboot_needed,omitempty"`
	// Slots says which release each slot holds, as far as this installer
	// wrote them.
	Slots map[Slot]Installed `json:"slots,omitempty"`
	// Failed lists releases that failed on this node and are not tried again.
	Failed []Failure `json:"failed,omitempty"`
}

// Installed names a release and the hashes of its opaque parts.
type Installed struct {
	Name     string            `json:"name,omitempty"`
	Version  string            `json:"version,omitempty"`
	Security uint64            `json:"security,omitempty"`
	SHA256   string            `json:"sha256,omitempty"`
	Opaque   map[string]string `json:"opaque,omitempty"`
}

// Failure says when and why a release failed on this node.
type Failure struct {
	Name   string    `json:"name"`
	SHA256 string    `json:"sha256"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
}

// journal is the installer's state on disk: strict JSON with a checksum, in
// two files that are written in turn. What it says decides what to do next; it
// never makes a slot bootable: that takes a verification by the same process.
type journal struct {
	Version int    `json:"version"`
	Seq     uint64 `json:"seq"`
	State   State  `json:"state"`
	// Commit is what the floors rise to when the release is committed.
	Commit Floors `json:"commit"`
	// Done is how many bytes of each part are in the slot and durable.
	Done map[string]int64 `json:"done,omitempty"`
	// Rearmed is how often a clean shutdown has given a trial its try back.
	Rearmed int    `json:"rearmed,omitempty"`
	CRC     uint32 `json:"crc32"`
}

func (j journal) sum() uint32 {
	j.CRC = 0
	data, err := json.Marshal(j)
	if err != nil {
		return 0 // no field of the struct can fail to encode
	}
	return crc32.ChecksumIEEE(data)
}

func journalFile(dir string, seq uint64) string {
	return filepath.Join(dir, fmt.Sprintf("installer-%d.state", seq%2))
}

// loadJournal returns the newest valid copy. lost says that there was one, but
// that none is readable.
func loadJournal(dir string) (j *journal, lost error, err error) {
	for i := range uint64(2) {
		name := journalFile(dir, i)
		data, err := readFileLimit(name, maxJournal)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			lost = err
			continue
		}
		var c journal
		if err := lint.Strict(data, maxJournal, &c); err != nil {
			lost = fmt.Errorf("%s: %w", name, err)
			continue
		}
		if c.Version != 1 || c.CRC != c.sum() {
			lost = fmt.Errorf("%s: version %d or checksum is wrong", name, c.Version)
			continue
		}
		if j == nil || c.Seq > j.Seq {
			j = &c
		}
	}
	if j != nil {
		return j, nil, nil
	}
	return &journal{State: State{Phase: Idle}}, lost, nil
}

// save writes the next version of the journal.
func (j *journal) save(dir string) error {
	if j.State.Slots == nil {
		j.State.Slots = map[Slot]Installed{}
	}
	j.Version, j.Seq = 1, j.Seq+1
	j.CRC = j.sum()
	data, err := json.Marshal(j)
	if err != nil {
		return stateError("installer state", err)
	}
	if err := durable.WriteFile(journalFile(dir, j.Seq), data, 0o600); err != nil {
		return stateError("installer state", err)
	}
	return nil
}

func (s *State) failed(sha string) *Failure {
	for i := range s.Failed {
		if s.Failed[i].SHA256 == sha {
			return &s.Failed[i]
		}
	}
	return nil
}

func (s *State) remember(f Failure) {
	if s.failed(f.SHA256) != nil {
		return
	}
	s.Failed = append(s.Failed, f)
	if n := len(s.Failed); n > maxFailed {
		s.Failed = slices.Clone(s.Failed[n-maxFailed:])
	}
}
