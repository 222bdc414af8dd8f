// Package fleet finds a module identity that appears in two places at once: a
// chip that was opened and cloned, or one that answers for another connector.
//
// Start with [Watch.Observe] in the cloud, after moduleid.Verifier.VerifyReport,
// with a [Store] that all instances of the cloud share.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trusttree/trusttree/moduleid"
)

// Sighting is where and when a module proved itself.
type Sighting struct {
	Node      string    `json:"node"`
	Connector string    `json:"connector"`
	At        time.Time `json:"at"`
}

// Store keeps the newest sighting of each identity. Swap records a sighting and
// returns the one it replaces, atomically: two instances that observe the same
// identity at once must not both see the same predecessor. A sighting older
// than the one stored is not recorded, and the stored one is returned. Safe for
// concurrent use.
type Store interface {
	Swap(ctx context.Context, id string, s Sighting) (before Sighting, known bool, err error)
}

// Conflict is one identity that was seen in two places within the window.
type Conflict struct {
	ID           string
	Here, Before Sighting
}

// Error tells both places.
func (c Conflict) Error() string {
	return fmt.Sprintf("fleet: module %s proved itself in connector %s of node %s at %s, and in connector %s of node %s at %s: one of them is a clone or a relay, or it was moved",
		c.ID, c.Here.Connector, c.Here.Node, c.Here.At.UTC().Format(time.RFC3339), c.Before.Connector, c.Before.Node, c.Before.At.UTC().Format(time.RFC3339))
}

// ErrConflict is the class of every [Conflict].
var ErrConflict = errors.New("fleet: one module in two places")

// Is makes errors.Is(err, ErrConflict) true.
func (c Conflict) Is(target error) bool { return target == ErrConflict }

// Watch compares sightings.
type Watch struct {
	// Store is required.
	Store Store

	// Window is how long a module must have been unseen elsewhere before it may
	// appear in another place: longer than the interval of attestations, and
	// shorter than a technician needs to move it. Zero means 15 minutes.
	Window time.Duration
}

// Observe records where the modules of a verdict are and returns the conflicts,
// joined; errors.As finds each [Conflict]. An error of the store is returned
// too: an identity that could not be compared must not count as unique.
func (w Watch) Observe(ctx context.Context, modules []*moduleid.Identity) error {
	if w.Store == nil {
		return errors.New("fleet: Watch needs a Store")
	}
	window := w.Window
	if window == 0 {
		window = 15 * time.Minute
	}
	var errs []error
	for _, m := range modules {
		if !m.Authenticated() {
			errs = append(errs, errors.New("fleet: an identity that is not authenticated"))
			continue
		}
		here := Sighting{m.Node(), m.Connector(), m.VerifiedAt()}
		before, known, err := w.Store.Swap(ctx, m.ID(), here)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("fleet: %w", err))
		case known && (before.Node != here.Node || before.Connector != here.Connector) && here.At.Sub(before.At).Abs() < window:
			errs = append(errs, Conflict{m.ID(), here, before})
		}
	}
	return errors.Join(errs...)
}

// Memory is a Store for one instance. Its zero value is empty and ready.
type Memory struct {
	mu   sync.Mutex
	last map[string]Sighting
}

// Swap implements Store.
func (m *Memory) Swap(_ context.Context, id string, s Sighting) (Sighting, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last == nil {
		m.last = map[string]Sighting{}
	}
	before, known := m.last[id]
	if !known || !s.At.Before(before.At) {
		m.last[id] = s
	}
	return before, known, nil
}
