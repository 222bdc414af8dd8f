package update

import (
	"errors"
	"time"
)

// Limits bound what a repository may cost. Zero fields take the defaults.
type Limits struct {
	// Root, Timestamp, Snapshot and Targets are the largest metadata files in
	// bytes. Defaults: 512 KiB, 16 KiB, 2 MiB, 5 MiB.
	Root, Timestamp, Snapshot, Targets int64
	// Signed is the largest snapshot or targets file whose length a trusted
	// file states beforehand. Default: 64 MiB.
	Signed int64
	// RootRotations is how many new roots one refresh follows. Default: 256.
	RootRotations int
	// Roles is how many targets roles one lookup visits. Default: 32.
	Roles int
	// Attempts is how often a transfer is resumed without 128 KiB of progress
	// before it fails. Default: 4.
	Attempts int
	// Rate is the highest rate of part downloads in bytes per second. Zero
	// means no limit.
	Rate int64
	// Patch is the most memory in bytes that applying a patch may take; a
	// larger patch is passed over. Default: 48 MiB.
	Patch int64
}

// check refuses negative limits: they would mean none, or never.
func (l Limits) check() error {
	if min(l.Root, l.Timestamp, l.Snapshot, l.Targets, l.Signed, int64(l.RootRotations), int64(l.Roles), int64(l.Attempts), l.Rate, l.Patch) < 0 {
		return errors.New("update: Limits with a negative field")
	}
	return nil
}

func (l Limits) withDefaults() Limits {
	l.Root = or(l.Root, 512<<10)
	l.Timestamp = or(l.Timestamp, 16<<10)
	l.Snapshot = or(l.Snapshot, 2<<20)
	l.Targets = or(l.Targets, 5<<20)
	l.Signed = or(l.Signed, 64<<20)
	l.RootRotations = or(l.RootRotations, 256)
	l.Roles = or(l.Roles, 32)
	l.Attempts = or(l.Attempts, 4)
	l.Patch = or(l.Patch, 48<<20)
	return l
}

// Times and sizes that are not configurable.
const (
	chunk      = 256 << 10 // bytes read at a time from a source or slot
	readBack   = 1 << 20   // bytes read back at a time from a slot
	checkpoint = 16 << 20  // bytes between two durable checkpoints of a download
	retryPause = 250 * time.Millisecond

	// leastProgress is how many bytes Limits.Attempts requests must bring: more
	// than the default minimum rate asks for in that time.
	leastProgress = 128 << 10
	// slowRanges is after which time ranges of single blocks must have come at
	// the default minimum rate on the whole.
	slowRanges  = time.Minute
	defaultTrys = 3 // boots of a trial
)
