package moduleid

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// BayConfig describes one connector of a node.
type BayConfig struct {
	// Connector is its name, and the key in Verifier.Connectors.
	Connector string

	// Open reaches the chip of the module that is plugged in now, or returns
	// an error that is [ErrAbsent]. It honours ctx. The bay closes the chip.
	Open func(ctx context.Context) (Chip, error)

	// Lease is how long a proof is good for. Zero means 10 minutes.
	Lease time.Duration

	// Timeout bounds opening and proving. Zero means 5 seconds. It is also
	// the deadline against a relay: keep it as short as the chip allows.
	Timeout time.Duration
}

// Bay keeps one connector: what is in it, since when, and whether it still is
// what it proved to be. [NewInventory] makes it. Safe for concurrent use.
type Bay struct {
	cfg BayConfig
	inv *Inventory
	log *slog.Logger

	proving chan struct{} // holds a token while a proof runs; never two at once

	mu         sync.Mutex
	generation uint64    // of what is plugged in: changes with every doubt
	chip       Chip      // open while something answers
	identity   *Identity // nil: not admitted
	expires    time.Time // end of the lease
	entry      Entry
	changes    int // of entry since the start; see set
}

// set changes the entry, within what the inventory's log has room for: a
// connector whose module comes and goes for ever is given up until the next
// start, so that it can't take the other connectors' share. It reports whether
// the connector is usable. The caller holds mu.
func (b *Bay) set(e Entry) bool {
	if b.changes >= b.inv.perBay {
		return false
	}
	if e != b.entry {
		if b.changes++; b.changes == b.inv.perBay {
			b.identity = nil
			e = Entry{Connector: b.cfg.Connector, Reason: ReasonUnstable}
		}
		b.entry = e
	}
	return b.changes < b.inv.perBay
}

// Connector returns the connector's name.
func (b *Bay) Connector() string { return b.cfg.Connector }

// Entry returns what is in the connector, as the last proof or event left it.
func (b *Bay) Entry() Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.entry
}

// Admit asks the module for a proof and, if it holds, admits it for a lease
// and measures the changed inventory. A module that is already admitted and
// proves the same identity keeps its sessions.
func (b *Bay) Admit(ctx context.Context) (*Session, error) {
	s, _, err := b.admit(ctx, NewChallenge(b.inv.cfg.Node, b.cfg.Connector))
	if merr := b.inv.measure(ctx); merr != nil {
		b.doubt(Entry{Connector: b.cfg.Connector})
		return nil, merr
	}
	return s, err
}

// Removed ends every session: the module was pulled out, or its bus was
// enumerated anew. The next Admit starts over.
func (b *Bay) Removed(ctx context.Context) error {
	b.doubt(Entry{Connector: b.cfg.Connector})
	b.inv.vacated(b)
	b.log.InfoContext(ctx, "module removed", "event", "moduleid.removed", "connector", b.cfg.Connector)
	return b.inv.measure(ctx)
}

// doubt forgets what was proven.
func (b *Bay) doubt(e Entry) {
	b.mu.Lock()
	chip := b.chip
	b.generation++
	b.chip, b.identity = nil, nil
	b.set(e)
	b.mu.Unlock()
	if chip != nil {
		if err := b.shut(chip); err != nil {
			b.log.Warn("closing a chip failed", "event", "moduleid.close", "connector", b.cfg.Connector, "error", err)
		}
	}
}

// closing is how long a chip waits, when it is closed, for what is under way; a
// bay waits half as long again before it leaves the chip behind.
const closing = time.Second

// shut closes a chip, and does not wait for one that hangs.
func (b *Bay) shut(chip Chip) error {
	done := make(chan error, 1)
	go func() { done <- chip.Close() }()
	late := time.NewTimer(closing + closing/2)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return fmt.Errorf("moduleid: connector %s: its chip did not close in time", b.cfg.Connector)
	}
}

// unstable is the refusal of a connector that was given up.
func (b *Bay) unstable() error {
	r := &RefusedError{Node: b.inv.cfg.Node, Connector: b.cfg.Connector}
	r.add(ReasonUnstable, fmt.Sprintf("what is in it changed %d times; look at the connector, then reboot the node", b.inv.perBay))
	return r
}

// admit runs one proof and takes its consequences, but does not measure.
func (b *Bay) admit(ctx context.Context, c Challenge) (*Session, *Evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	select {
	case b.proving <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("moduleid: connector %s: an earlier proof still runs: %w", b.cfg.Connector, ctx.Err())
	}
	b.mu.Lock()
	gen, usable := b.generation, b.changes < b.inv.perBay
	b.mu.Unlock()
	if !usable {
		<-b.proving
		return nil, nil, b.unstable()
	}
	evidence, err := b.prove(ctx, c)
	if err != nil {
		return nil, nil, b.silent(ctx, gen, err)
	}
	id, err := b.inv.cfg.Verifier.Verify(c, evidence)
	if err != nil {
		return nil, evidence, b.refuse(ctx, err)
	}
	if ctx.Err() != nil {
		return nil, nil, b.silent(ctx, gen, ctx.Err())
	}
	b.mu.Lock()
	if b.generation != gen {
		b.mu.Unlock()
		return nil, nil, fmt.Errorf("%w: connector %s changed while its module was proving itself", ErrUnproven, b.cfg.Connector)
	}
	if b.identity != nil && b.identity.id != id.id {
		b.generation++ // another module, and no removal was seen
	}
	changed := b.identity == nil || b.identity.id != id.id
	b.identity, b.expires = id, b.inv.cfg.now().Add(b.cfg.Lease)
	if !b.set(Entry{Connector: b.cfg.Connector, ID: id.id, Class: id.class}) {
		b.identity = nil
		b.mu.Unlock()
		return nil, evidence, b.unstable()
	}
	s := &Session{bay: b, generation: b.generation, id: id.id}
	b.mu.Unlock()
	if err := b.inv.unique(ctx, b, id.id); err != nil {
		return nil, evidence, err
	}
	if changed {
		b.log.InfoContext(ctx, "module admitted", "event", "moduleid.admitted", "connector", b.cfg.Connector, "id", id.id, "class", id.class)
	}
	return s, evidence, nil
}

// prove opens the chip if need be and asks it, and returns when ctx ends even
// if the chip does not. It gives the proving token back when the chip does.
func (b *Bay) prove(ctx context.Context, c Challenge) (*Evidence, error) {
	type result struct {
		e   *Evidence
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-b.proving }()
		e, err := b.openAndProve(ctx, c)
		done <- result{e, err}
	}()
	select {
	case r := <-done:
		return r.e, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *Bay) openAndProve(ctx context.Context, c Challenge) (*Evidence, error) {
	b.mu.Lock()
	chip, gen := b.chip, b.generation
	b.mu.Unlock()
	if chip == nil {
		var err error
		if chip, err = b.cfg.Open(ctx); err != nil {
			return nil, err
		}
		if chip == nil {
			return nil, ErrAbsent
		}
		b.mu.Lock()
		stale := b.generation != gen || ctx.Err() != nil
		if !stale {
			b.chip = chip
		}
		b.mu.Unlock()
		if stale {
			return nil, errors.Join(ErrUnproven, b.shut(chip))
		}
	}
	return chip.Prove(ctx, c)
}

// silent records that no proof came: nothing is there, or it does not answer.
func (b *Bay) silent(ctx context.Context, gen uint64, err error) error {
	b.mu.Lock()
	same := b.generation == gen
	b.mu.Unlock()
	if !same {
		return fmt.Errorf("%w: connector %s changed while its module was proving itself: %w", ErrUnproven, b.cfg.Connector, err)
	}
	e := Entry{Connector: b.cfg.Connector}
	if errors.Is(err, ErrAbsent) {
		b.doubt(e)
		b.inv.vacated(b)
		return fmt.Errorf("moduleid: connector %s: %w", b.cfg.Connector, err)
	}
	refused := &RefusedError{Node: b.inv.cfg.Node, Connector: b.cfg.Connector}
	var own *RefusedError
	if errors.As(err, &own) { // a driver that refuses by itself, such as an unlocked chip
		refused.ID, refused.Findings, refused.Read = own.ID, own.Findings, own.Read
	} else {
		refused.add(ReasonSilent, err.Error())
	}
	return b.refuse(ctx, refused)
}

// refuse records a refusal and ends every session.
func (b *Bay) refuse(ctx context.Context, err error) error {
	reason := ReasonMalformed
	var refused *RefusedError
	if errors.As(err, &refused) {
		refused.clean()
		reason = refused.Reason()
	}
	b.mu.Lock()
	b.generation++
	b.identity = nil
	was := b.entry
	b.set(Entry{Connector: b.cfg.Connector, Reason: reason})
	chip := b.chip
	b.chip = nil // whatever answers next is asked from the start
	now := b.entry
	b.mu.Unlock()
	if chip != nil {
		err = errors.Join(err, b.shut(chip))
	}
	if was != now {
		b.log.WarnContext(ctx, "module refused", "event", "moduleid.refused", "connector", b.cfg.Connector, "reason", string(reason), "error", err)
	}
	return err
}

// Session is the right to use an admitted module. Its zero value gives none.
// It ends with the lease, the module's removal, or any doubt about it. Safe
// for concurrent use.
type Session struct {
	bay        *Bay
	generation uint64
	id         string
}

// Identity returns who is used, or [ErrUnproven].
func (s *Session) Identity() (*Identity, error) {
	if s == nil || s.bay == nil {
		return nil, ErrUnproven
	}
	b := s.bay
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.generation != s.generation || b.identity == nil || b.identity.id != s.id:
		return nil, fmt.Errorf("%w: what is in connector %s changed; admit it again", ErrUnproven, b.cfg.Connector)
	case !b.inv.cfg.now().Before(b.expires):
		return nil, fmt.Errorf("%w: the lease of connector %s ended; admit it again", ErrUnproven, b.cfg.Connector)
	}
	return b.identity, nil
}

// Use calls f while the module is proven, and checks again afterwards: if it
// returns an error that is [ErrUnproven], what f read may be of another module
// and must be thrown away. The check costs no traffic to the chip.
func (s *Session) Use(ctx context.Context, f func(context.Context, *Identity) error) error {
	id, err := s.Identity()
	if err != nil {
		return err
	}
	ferr := f(ctx, id)
	if _, err := s.Identity(); err != nil {
		return errors.Join(err, ferr)
	}
	return ferr
}

// UsePrivileged is Use with a fresh proof by the chip before and after f, for
// what a swap without a trace must not reach: a swap and back again inside f
// is all that is left.
func (s *Session) UsePrivileged(ctx context.Context, f func(context.Context, *Identity) error) error {
	renew := func() error {
		if _, err := s.Identity(); err != nil {
			return err
		}
		if _, err := s.bay.Admit(ctx); err != nil {
			return errors.Join(ErrUnproven, err)
		}
		return nil
	}
	if err := renew(); err != nil {
		return err
	}
	if err := s.Use(ctx, f); err != nil {
		return err
	}
	if err := renew(); err != nil {
		return err
	}
	_, err := s.Identity()
	return err
}
