package registry

import (
	"context"
	"errors"
	"time"
)

// Errors of stores; test with errors.Is.
var (
	ErrNotFound = errors.New("registry: not found")
	ErrConflict = errors.New("registry: entry was changed by somebody else, or exists already")
	ErrFull     = errors.New("registry: store is full")
)

// DeviceStore keeps devices. Implementations are safe for concurrent use by
// any number of processes; registrytest.Devices checks one.
type DeviceStore interface {
	// Get returns a device, or ErrNotFound.
	Get(ctx context.Context, id DeviceID) (Device, error)
	// Put stores d when the version stored now is d.Version (0: none is
	// stored), with d.Version+1 as the new version, which it returns. Else it
	// changes nothing and returns ErrConflict.
	Put(ctx context.Context, d Device) (version uint64, err error)
	// List returns at most limit devices whose ID is greater than after, in
	// ascending order of ID. The zero ID starts.
	List(ctx context.Context, after DeviceID, limit int) ([]Device, error)
}

// ChallengeStore keeps open challenges until they are answered or expire.
// Implementations are safe for concurrent use by any number of processes;
// registrytest.Challenges checks one.
type ChallengeStore interface {
	// Put stores a value under an ID that was never used. An ID that is in use
	// is ErrConflict. When expires has passed the value may be dropped.
	Put(ctx context.Context, id string, value []byte, expires time.Time) error
	// Take removes and returns a value: of any number of concurrent calls with
	// one ID exactly one gets it, the others ErrNotFound.
	Take(ctx context.Context, id string) ([]byte, error)
}
