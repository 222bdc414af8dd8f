package tenantstore

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// States of a tenant in the catalogue.
const (
	stateCreating   = "creating"
	stateActive     = "active"
	stateSuspended  = "suspended"
	stateDestroying = "destroying"
	stateDestroyed  = "destroyed" // the tombstone, for ever
)

// entry is a tenant's record in the catalogue, which is a collection of the
// system instance. Version 3; version 2 had no copies that go on where they were cut,
// version 1 no grace either.
type entry struct {
	Version    int       `json:"version"`
	ID         ID        `json:"id"`
	UID        UID       `json:"uid"`
	State      string    `json:"state"`
	Region     string    `json:"region"`
	Engine     string    `json:"engine"`
	Generation uint32    `json:"generation"`
	Provider   string    `json:"provider,omitempty"`
	KeyID      string    `json:"key_id"`
	KeyNumber  int64     `json:"key_number"` // of KeyID; each is used once
	Wrapped    []byte    `json:"wrapped,omitempty"`
	Quota      Quota     `json:"quota"`
	Created    time.Time `json:"created"`
	Hold       bool      `json:"hold,omitempty"`
	Retain     time.Time `json:"retain,omitzero"`
	Grace      int64     `json:"grace_ns,omitempty"` // between being asked to destroy and doing it
	Due        time.Time `json:"due,omitzero"`       // when Destroy may, once it was asked
	Pending    *pending  `json:"pending,omitempty"`
}

// pending is a change under way: the key and the instance that it is making,
// or, after the switch, that were replaced. A restart undoes it, unless Wrapped
// says that the instance is made and being filled: then it goes on.
type pending struct {
	KeyID      string `json:"key_id,omitempty"`
	Provider   string `json:"provider,omitempty"`
	Engine     string `json:"engine,omitempty"`
	Generation uint32 `json:"generation,omitempty"`
	Wrapped    []byte `json:"wrapped,omitempty"`
}

func (e entry) ref() engine.Ref { return engine.Ref{UID: e.UID, Generation: e.Generation} }

func (e entry) keyContext(store UID) KeyContext {
	return KeyContext{Store: store, Tenant: e.UID, Generation: e.Generation}
}

// Collections of the system instance that only the store itself can name.
const (
	catalogName = "~catalog"
	uidsName    = "~uids"
	stateName   = "~state"
	logsName    = "~logs" // audit keys of the processes, by the names of their logs
)

// lookup reads a tenant's entry; ok is false when there is none.
func (s *Store) lookup(ctx context.Context, id ID) (e entry, version uint64, ok bool, err error) {
	err = s.sys.db.View(ctx, func(tx engine.Tx) error {
		var value []byte
		version, value, err = s.sys.get(tx, new(scratch), s.catalogKey(id))
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("catalogue entry of %q: %w", id, err)
		}
		ok = true
		return decodeEntry(value, &e)
	})
	return e, version, ok, err
}

func decodeEntry(value []byte, e *entry) error {
	if err := strictJSON(value, e); err != nil {
		return fmt.Errorf("catalogue entry: %w", err)
	}
	if e.Version < 1 || e.Version > 3 {
		return fmt.Errorf("%w: catalogue entry of version %d, this reader knows 1 to 3", ErrInvalid, e.Version)
	}
	return nil
}

func (s *Store) catalogKey(id ID) []byte {
	return append(s.sys.seal.space(kindRecord, catalogName), id...)
}

// save writes an entry when its version is still the one that was read
// (0: there was none), and returns the new version.
func (s *Store) save(ctx context.Context, e entry, version uint64) (uint64, error) {
	e.Version = 3
	value, err := json.Marshal(e)
	if err != nil {
		return 0, err
	}
	next := s.version()
	err = s.sys.db.Update(ctx, func(tx engine.Tx) error {
		if version == 0 { // a UID is taken for ever, too
			if err := s.sys.putIf(tx, new(scratch), s.uidKey(e.UID), []byte(e.ID), 0, next); err != nil {
				return err
			}
		}
		if err := s.sys.putIf(tx, new(scratch), s.catalogKey(e.ID), value, version, next); err != nil {
			return err
		}
		return tellOthers(tx)
	})
	return next, err
}

// drop forgets a tenant that nobody was told of.
func (s *Store) drop(ctx context.Context, e entry) error {
	return s.sys.db.Update(ctx, func(tx engine.Tx) error {
		_, err := tx.Delete(s.catalogKey(e.ID))
		if err == nil {
			_, err = tx.Delete(s.uidKey(e.UID))
		}
		return err
	})
}

func (s *Store) uidKey(uid UID) []byte {
	return append(s.sys.seal.space(kindRecord, uidsName), uid[:]...)
}

// entries reads the whole catalogue in the order of IDs.
func (s *Store) entries(ctx context.Context, each func(entry, uint64) error) error {
	from := s.catalogKey("")
	to := prefixEnd(from)
	for {
		var page []engine.KV
		err := s.sys.db.View(ctx, func(tx engine.Tx) error {
			page = page[:0]
			for kv, err := range tx.Scan(from, to, false, pageRecords) {
				if err != nil {
					return err
				}
				page = append(page, kv)
			}
			return nil
		})
		if err != nil || len(page) == 0 {
			return err
		}
		for _, kv := range page {
			version, value, err := s.sys.seal.open(new(scratch), kv.Key, kv.Value)
			if err != nil {
				return fmt.Errorf("catalogue: %w", err)
			}
			var e entry
			if err := decodeEntry(value, &e); err != nil {
				return err
			}
			if err := each(e, version); err != nil {
				return err
			}
		}
		from = append(page[len(page)-1].Key, 0)
	}
}

func prefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// registerLog makes this process's log known to all who share the store.
func (s *Store) registerLog(ctx context.Context) error {
	key := append(s.sys.seal.space(kindRecord, logsName), s.signer.Name()...)
	var there []byte
	err := s.sys.db.View(ctx, func(tx engine.Tx) (err error) {
		_, there, err = s.sys.get(tx, new(scratch), key)
		return ignoreNotFound(err)
	})
	if err != nil || string(there) == s.auditKey {
		return err
	}
	return s.sys.db.Update(ctx, func(tx engine.Tx) error {
		return s.sys.put(tx, new(scratch), key, []byte(s.auditKey), s.version())
	})
}

// logs returns the audit keys of all processes.
func (s *Store) logs(ctx context.Context) (keys []string, err error) {
	space := s.sys.seal.space(kindRecord, logsName)
	err = s.sys.db.View(ctx, func(tx engine.Tx) error {
		keys = nil
		for kv, err := range tx.Scan(space, prefixEnd(space), false, maxLogs) {
			if err != nil {
				return err
			}
			_, value, err := s.sys.seal.open(new(scratch), kv.Key, kv.Value)
			if err != nil {
				return fmt.Errorf("registry of logs: %w", err)
			}
			keys = append(keys, string(value))
		}
		return nil
	})
	return keys, err
}

const assignmentsKey = "assignments"

func (s *Store) stateKey(name string) []byte {
	return append(s.sys.seal.space(kindRecord, stateName), name...)
}

func (s *Store) loadState(ctx context.Context, name string) (value []byte, err error) {
	err = s.sys.db.View(ctx, func(tx engine.Tx) error {
		_, value, err = s.sys.get(tx, new(scratch), s.stateKey(name))
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	})
	return value, err
}

func (s *Store) saveAssignments(ctx context.Context, signed []byte) error {
	return s.sys.db.Update(ctx, func(tx engine.Tx) error {
		if err := s.sys.put(tx, new(scratch), s.stateKey(assignmentsKey), signed, s.version()); err != nil {
			return err
		}
		return tellOthers(tx)
	})
}

func (s *Store) sameAssignments(ctx context.Context, signed []byte) bool {
	old, err := s.loadState(ctx, assignmentsKey)
	return err == nil && subtle.ConstantTimeCompare(old, signed) == 1
}

// get, put and putIf work on sealed records.

func (in *instance) get(tx engine.Tx, sc *scratch, ek []byte) (version uint64, value []byte, err error) {
	sealed, err := tx.Get(ek)
	if err != nil {
		return 0, nil, err
	}
	if sealed == nil {
		return 0, nil, ErrNotFound
	}
	return in.seal.open(sc, ek, sealed)
}

func (in *instance) put(tx engine.Tx, sc *scratch, ek, value []byte, version uint64) error {
	return tx.Put(ek, in.seal.seal(sc, ek, version, value))
}

func (in *instance) putIf(tx engine.Tx, sc *scratch, ek, value []byte, want, version uint64) error {
	if want == 0 {
		fresh, err := tx.Insert(ek, in.seal.seal(sc, ek, version, value))
		if err == nil && !fresh {
			err = fmt.Errorf("%w: the record exists", ErrConflict)
		}
		return err
	}
	have, _, err := in.get(tx, sc, ek)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if have != want {
		return fmt.Errorf("%w: version is %d, expected %d", ErrConflict, have, want)
	}
	return in.put(tx, sc, ek, value, version)
}
