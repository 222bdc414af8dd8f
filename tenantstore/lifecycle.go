package tenantstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Spec describes a tenant to create.
type Spec struct {
	ID ID
	// Region pins the tenant: its instance is only ever made and opened by an
	// engine of this region. Empty means Config.Region.
	Region string
	// Engine names the engine; empty means the first of the region.
	Engine string
	// Keys names a provider of Config.MoreKeys; empty means Config.Keys.
	Keys string
	// Retain, if set, forbids to destroy the tenant before that time.
	Retain time.Time
	// Grace, if set, is how long a tenant is closed, and can be taken back by
	// Resume, before Destroy destroys it: the first Destroy schedules it, one
	// after that time does it.
	Grace time.Duration
	Quota Quota
}

// Info is what the catalogue says about a tenant.
type Info struct {
	ID         ID        `json:"id"`
	UID        UID       `json:"uid"`
	State      string    `json:"state"` // "active", "suspended", "destroying", "destroyed"
	Region     string    `json:"region"`
	Engine     string    `json:"engine"`
	Generation uint32    `json:"generation"`
	KeyID      string    `json:"key_id"`
	Created    time.Time `json:"created"`
	Hold       bool      `json:"hold,omitempty"`
	Retain     time.Time `json:"retain,omitzero"`
	Due        time.Time `json:"due,omitzero"` // when a scheduled Destroy may be done
}

func (e entry) info() Info {
	return Info{ID: e.ID, UID: e.UID, State: e.State, Region: e.Region, Engine: e.Engine, Generation: e.Generation,
		KeyID: e.KeyID, Created: e.Created, Hold: e.Hold, Retain: e.Retain, Due: e.Due}
}

// operate checks that p is an operator and puts the action into the audit log
// before it is done; when the log fails, nothing is done. The caller holds
// the tenant's control lock.
func (s *Store) operate(ctx context.Context, p Principal, action string, id ID, detail string) error {
	if err := s.may(p, "", RoleControl); err != nil {
		return s.deny(ctx, p, action, fmt.Errorf("%w (tenant %q)", err, clip(string(id))))
	}
	if _, err := ParseID(string(id)); err != nil {
		return err
	}
	return s.audit.record(ctx, s.systemTrail(), Event{Action: action, Subject: p.subject, Stream: p.stream, Tenant: id, Detail: detail})
}

// Create makes a tenant with an instance and a key of its own. It needs
// RoleControl. It returns ErrExists when the ID is or was taken, ErrRegion when
// no engine is in the region.
func (s *Store) Create(ctx context.Context, p Principal, spec Spec) (Info, error) {
	unlock, err := s.lockControl(ctx, p, "create", spec.ID)
	var e entry
	if err == nil {
		defer unlock()
		e, err = s.create(ctx, p, spec)
	}
	if err != nil {
		return Info{}, boundary(ctx, fmt.Sprintf("create tenant %q", clip(string(spec.ID))), err)
	}
	return e.info(), nil
}

func (s *Store) create(ctx context.Context, p Principal, spec Spec) (e entry, err error) {
	if err := s.operate(ctx, p, "create", spec.ID, ""); err != nil {
		return e, err
	}
	place, err := s.place(spec.Region, spec.Engine)
	if err != nil {
		return e, err
	}
	keys, err := s.provider(spec.Keys)
	if err != nil {
		return e, err
	}
	if _, _, ok, err := s.lookup(ctx, spec.ID); err != nil {
		return e, err
	} else if ok {
		return e, ErrExists
	}
	e = entry{ID: spec.ID, UID: newUID(), State: stateCreating, Region: place.Region, Engine: place.Engine.Name(), Generation: 1,
		Provider: spec.Keys, KeyNumber: 1, Quota: spec.Quota, Created: s.cfg.Clock().UTC(), Retain: spec.Retain, Grace: int64(max(spec.Grace, 0))}
	e.KeyID = keyName(e.UID, 1)
	version, err := s.save(ctx, e, 0)
	if errors.Is(err, ErrConflict) {
		return e, ErrExists
	}
	if err != nil {
		return e, err
	}
	sec := newSecret(nil)
	defer sec.zero()
	return s.finishCreate(ctx, p, "create", e, version, keys, sec, func(*instance) error { return nil })
}

// finishCreate makes key and instance of an entry that is in the catalogue as
// being created, and opens the tenant.
func (s *Store) finishCreate(ctx context.Context, p Principal, action string, e entry, version uint64, keys KeyProvider, sec secret,
	fill func(*instance) error) (entry, error) {
	var err error
	if e.Wrapped, err = s.wrapNew(ctx, keys, e, sec); err == nil {
		err = s.fillNew(ctx, e, sec, fill)
	}
	if err != nil {
		return e, errors.Join(err, s.undoCreate(context.WithoutCancel(ctx), e))
	}
	e.State = stateActive
	if _, err = s.save(ctx, e, version); err != nil {
		return e, err
	}
	z, err := newSealer(sec, s.uid, e.ref())
	if err != nil {
		return e, err
	}
	return e, s.audit.record(ctx, trail{uid: e.UID, seal: z}, Event{Action: action, Subject: p.subject, Stream: p.stream,
		Tenant: e.ID, Detail: "region " + e.Region + ", engine " + e.Engine + ", key " + e.KeyID})
}

// place finds the engine for a region.
func (s *Store) place(region, name string) (Placement, error) {
	if region == "" {
		region = s.cfg.Region
	}
	if name != "" {
		p, ok := s.engines[name]
		if !ok || p.Region != region {
			return p, fmt.Errorf("%w: no engine %q in region %q", ErrRegion, clip(name), clip(region))
		}
		return p, nil
	}
	if region == s.cfg.Region {
		return s.engines["embedded"], nil
	}
	for _, p := range s.cfg.Placement {
		if p.Region == region {
			return p, nil
		}
	}
	return Placement{}, fmt.Errorf("%w: no engine in region %q", ErrRegion, clip(region))
}

// undoCreate removes what an unfinished Create left; nobody was told of it.
func (s *Store) undoCreate(ctx context.Context, e entry) error {
	if err := s.shred(ctx, e); err != nil {
		return err
	}
	return s.drop(ctx, e)
}

// shred destroys the tenant's keys and then its instances. It may be repeated.
func (s *Store) shred(ctx context.Context, e entry) error {
	keys := map[string]string{e.KeyID: e.Provider}
	if e.Pending != nil && e.Pending.KeyID != "" {
		keys[e.Pending.KeyID] = e.Pending.Provider
	}
	for id, name := range keys {
		p, err := s.provider(name)
		if err != nil {
			return err
		}
		kctx, cancel := context.WithTimeout(ctx, keyTimeout)
		err = p.Destroy(kctx, id)
		cancel()
		if err != nil {
			return keyError(err)
		}
	}
	engines := map[string]bool{e.Engine: true}
	if e.Pending != nil && e.Pending.Engine != "" {
		engines[e.Pending.Engine] = true
	}
	for name := range engines {
		p, ok := s.engines[name]
		if !ok {
			return fmt.Errorf("%w: no engine %q is configured", ErrRegion, name)
		}
		refs := []uint32{e.Generation}
		if e.Pending != nil && e.Pending.Generation != 0 {
			refs = append(refs, e.Pending.Generation)
		}
		for _, g := range refs {
			r := e.ref()
			r.Generation = g
			if err := p.Engine.Destroy(ctx, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// urgent locks the control plane of a tenant for what does not wait until a
// rotation has copied everything: that stops, and can be taken up again.
func (s *Store) urgent(ctx context.Context, p Principal, action string, id ID) (unlock func(), err error) {
	if s.may(p, "", RoleControl) == nil {
		s.control.interrupt(id)
	}
	return s.lockControl(ctx, p, action, id)
}

// lockControl locks the control plane of a tenant. Who may not is denied at
// once, whatever is under way there.
func (s *Store) lockControl(ctx context.Context, p Principal, action string, id ID) (unlock func(), err error) {
	if err := s.may(p, "", RoleControl); err != nil {
		return nil, s.deny(ctx, p, action, fmt.Errorf("%w (tenant %q)", err, clip(string(id))))
	}
	return s.control.lock(ctx, id)
}

// change edits a tenant's entry as an operator.
func (s *Store) change(ctx context.Context, p Principal, action string, id ID, edit func(*entry) error) (entry, uint64, error) {
	if err := s.operate(ctx, p, action, id, ""); err != nil {
		return entry{}, 0, err
	}
	e, version, ok, err := s.lookup(ctx, id)
	if err != nil {
		return e, 0, err
	}
	if !ok {
		return e, 0, fmt.Errorf("%w: no tenant %q", ErrNotFound, id)
	}
	if err := edit(&e); err != nil {
		return e, 0, err
	}
	version, err = s.save(ctx, e, version)
	return e, version, err
}

func from(states ...string) func(*entry) error {
	return func(e *entry) error {
		for _, st := range states {
			if e.State == st {
				return nil
			}
		}
		return fmt.Errorf("%w: tenant %q is %s", ErrTenantClosed, e.ID, e.State)
	}
}

// Suspend closes a tenant: every handle returns ErrTenantClosed until Resume.
// It needs RoleControl.
func (s *Store) Suspend(ctx context.Context, p Principal, id ID) error {
	return boundary(ctx, "suspend", s.setState(ctx, p, "suspend", id, stateActive, stateSuspended))
}

// Resume opens a suspended tenant again. It needs RoleControl.
func (s *Store) Resume(ctx context.Context, p Principal, id ID) error {
	return boundary(ctx, "resume", s.setState(ctx, p, "resume", id, stateSuspended, stateActive))
}

func (s *Store) setState(ctx context.Context, p Principal, action string, id ID, old, state string) error {
	unlock, err := s.urgent(ctx, p, action, id)
	if err != nil {
		return err
	}
	defer unlock()
	e, _, err := s.change(ctx, p, action, id, func(e *entry) error {
		if err := from(old, state)(e); err != nil {
			return err
		}
		e.State = state
		if state == stateActive {
			e.Due = time.Time{} // what was scheduled is taken back
		}
		return nil
	})
	if err != nil {
		return err
	}
	unblock, err := s.cache.block(ctx, e.UID)
	if err == nil {
		unblock()
	}
	return err
}

// Hold forbids to destroy a tenant until Release. It needs RoleControl.
func (s *Store) Hold(ctx context.Context, p Principal, id ID) error {
	return boundary(ctx, "hold", s.setHold(ctx, p, "hold", id, true))
}

// Release ends a hold. A retention period goes on. It needs RoleControl.
func (s *Store) Release(ctx context.Context, p Principal, id ID) error {
	return boundary(ctx, "release", s.setHold(ctx, p, "release", id, false))
}

func (s *Store) setHold(ctx context.Context, p Principal, action string, id ID, hold bool) error {
	unlock, err := s.urgent(ctx, p, action, id)
	if err != nil {
		return err
	}
	defer unlock()
	_, _, err = s.change(ctx, p, action, id, func(e *entry) error {
		e.Hold = hold
		return from(stateActive, stateSuspended)(e)
	})
	return err
}

// Destroy shreds a tenant: its key is destroyed first, so that files, backups
// and audit bodies become noise wherever they are, then its instance. It waits
// for uses under way; handles then return ErrTenantClosed. What remains is a
// tombstone: neither ID nor UID come back. It returns ErrHeld during a hold or
// retention period, and when it only schedules (Spec.Grace): the tenant is then
// suspended. After a crash, Open finishes it. It needs RoleControl.
func (s *Store) Destroy(ctx context.Context, p Principal, id ID) (*Receipt, error) {
	var r *Receipt
	unlock, err := s.urgent(ctx, p, "destroy", id)
	if err == nil {
		defer unlock()
		r, err = s.destroy(ctx, p, id)
	}
	return r, boundary(ctx, fmt.Sprintf("destroy tenant %q", clip(string(id))), err)
}

func (s *Store) destroy(ctx context.Context, p Principal, id ID) (*Receipt, error) {
	scheduled := false
	e, version, err := s.change(ctx, p, "destroy", id, func(e *entry) error {
		if err := from(stateActive, stateSuspended, stateDestroying)(e); err != nil {
			return err
		}
		if e.Hold {
			return fmt.Errorf("%w: tenant %q is on hold (Release)", ErrHeld, e.ID)
		}
		if now := s.cfg.Clock(); now.Before(e.Retain) {
			return fmt.Errorf("%w: tenant %q is retained until %v", ErrHeld, e.ID, e.Retain)
		}
		now := s.cfg.Clock().UTC()
		switch {
		case e.Grace > 0 && e.Due.IsZero() && e.State != stateDestroying:
			e.State, e.Due, scheduled = stateSuspended, now.Add(time.Duration(e.Grace)), true
			return nil
		case now.Before(e.Due):
			return fmt.Errorf("%w: tenant %q is to be destroyed after %v (Resume takes it back)", ErrHeld, e.ID, e.Due)
		}
		e.State = stateDestroying
		return nil
	})
	if err != nil {
		return nil, err
	}
	if scheduled {
		unblock, err := s.cache.block(ctx, e.UID)
		if err == nil {
			unblock()
			err = fmt.Errorf("%w: tenant %q is closed now and to be destroyed after %v: Destroy again then (Resume takes it back)", ErrHeld, e.ID, e.Due)
		}
		return nil, err
	}
	return s.finishDestroy(ctx, e, version)
}

func (s *Store) finishDestroy(ctx context.Context, e entry, version uint64) (*Receipt, error) {
	unblock, err := s.cache.block(ctx, e.UID)
	if err != nil {
		return nil, err
	}
	defer unblock()
	if err := s.shred(ctx, e); err != nil {
		return nil, err
	}
	r := &Receipt{Version: 1, Store: s.cfg.Name, Action: "destroy", Tenant: e.ID, UID: e.UID, Time: s.cfg.Clock().UTC(), KeyIDs: []string{e.KeyID}}
	e.State, e.Wrapped, e.Pending = stateDestroyed, nil, nil
	if _, err := s.save(ctx, e, version); err != nil {
		return nil, err
	}
	if err := s.audit.record(ctx, s.systemTrail(), Event{Action: "destroyed", Tenant: e.ID, Detail: "uid " + e.UID.String() + ", key " + e.KeyID}); err != nil {
		return nil, err
	}
	_, n, err := s.audit.checkpoint()
	if err != nil {
		return nil, err
	}
	r.LogSize = n
	r.Signed, err = s.signJSON(r)
	return r, err
}

// Tenants lists the catalogue in the order of IDs, tombstones too. It needs
// RoleControl.
func (s *Store) Tenants(ctx context.Context, p Principal) ([]Info, error) {
	if err := s.may(p, "", RoleControl); err != nil {
		return nil, boundary(ctx, "list tenants", s.deny(ctx, p, "list", err))
	}
	var list []Info
	err := s.entries(ctx, func(e entry, _ uint64) error {
		if e.State != stateCreating {
			list = append(list, e.info())
		}
		return nil
	})
	return list, boundary(ctx, "list tenants", err)
}
