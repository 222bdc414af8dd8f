package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/tenantstore"
)

// Collections of the store's system instance.
const (
	devicesCollection    = "devices"
	challengesCollection = "challenges"
	tokensCollection     = "enrol-tokens"
)

// devices is attest's device registry in the store's system instance, so that
// any number of cloud instances serve one registry.
type devices struct {
	t *tenantstore.Tenant
	// parsed saves parsing an entry again that did not change; nil saves none.
	// An attestation reads its device four times.
	parsed *parsedDevices
}

func (s devices) Get(ctx context.Context, id registry.DeviceID) (registry.Device, error) {
	rec, err := s.t.Collection(devicesCollection).Get(ctx, id[:])
	if errors.Is(err, tenantstore.ErrNotFound) {
		return registry.Device{}, registry.ErrNotFound
	}
	if err != nil {
		return registry.Device{}, err
	}
	return s.parsed.parse(id, rec)
}

func (s devices) Put(ctx context.Context, d registry.Device) (uint64, error) {
	stored := d
	stored.Version++
	value, err := stored.Marshal()
	if err != nil {
		return 0, err
	}
	var written uint64
	err = s.t.Update(ctx, func(tx *tenantstore.Tx) error {
		var current uint64
		rec, err := tx.Get(devicesCollection, d.ID[:])
		switch {
		case err == nil:
			have, err := s.parsed.parse(d.ID, rec)
			if err != nil {
				return err
			}
			current = have.Version
		case !errors.Is(err, tenantstore.ErrNotFound):
			return err
		}
		if current != d.Version {
			return registry.ErrConflict
		}
		written, err = tx.Put(devicesCollection, d.ID[:], value)
		return err
	})
	if err == nil {
		if _, err := s.parsed.parse(d.ID, tenantstore.Record{Value: value, Version: written}); err != nil {
			return 0, err
		}
	}
	return stored.Version, err
}

// parsedDevices holds entries by the version of their record, which never comes
// back. It is safe for concurrent use.
type parsedDevices struct {
	mu  sync.Mutex
	all map[registry.DeviceID]parsedDevice
}

type parsedDevice struct {
	record uint64
	device registry.Device
}

// maxParsed bounds it: what is under way at once, and not a whole fleet.
const maxParsed = 4096

func (c *parsedDevices) parse(id registry.DeviceID, rec tenantstore.Record) (registry.Device, error) {
	if c == nil {
		return registry.ParseDevice(rec.Value)
	}
	c.mu.Lock()
	have, ok := c.all[id]
	c.mu.Unlock()
	if !ok || have.record != rec.Version {
		d, err := registry.ParseDevice(rec.Value)
		if err != nil {
			return d, err
		}
		have = parsedDevice{rec.Version, d}
		c.mu.Lock()
		if c.all == nil || len(c.all) >= maxParsed {
			c.all = map[registry.DeviceID]parsedDevice{}
		}
		c.all[id] = have
		c.mu.Unlock()
	}
	d := have.device
	d.EKCertificate, d.AKPublic, d.KeySPKI = bytes.Clone(d.EKCertificate), bytes.Clone(d.AKPublic), bytes.Clone(d.KeySPKI)
	return d, nil
}

func (s devices) List(ctx context.Context, after registry.DeviceID, limit int) ([]registry.Device, error) {
	var out []registry.Device
	from := append(append([]byte{}, after[:]...), 0) // the next possible key
	for rec, err := range s.t.Collection(devicesCollection).Scan(ctx, tenantstore.Range{From: from, Limit: limit}) {
		if err != nil {
			return nil, err
		}
		d, err := registry.ParseDevice(rec.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// challenges is attest's challenge store, in the same place. A value is kept
// behind its expiry time in eight bytes.
type challenges struct{ t *tenantstore.Tenant }

func (s challenges) Put(ctx context.Context, id string, value []byte, expires time.Time) error {
	stored := append(binary.BigEndian.AppendUint64(nil, uint64(expires.UnixNano())), value...)
	_, err := s.t.Collection(challengesCollection).PutIf(ctx, []byte(id), stored, 0)
	if errors.Is(err, tenantstore.ErrConflict) {
		return registry.ErrConflict
	}
	return err
}

func (s challenges) Take(ctx context.Context, id string) (value []byte, err error) {
	err = s.t.Update(ctx, func(tx *tenantstore.Tx) error {
		rec, err := tx.Get(challengesCollection, []byte(id))
		if errors.Is(err, tenantstore.ErrNotFound) || (err == nil && len(rec.Value) < 8) {
			return registry.ErrNotFound
		}
		if err != nil {
			return err
		}
		value = rec.Value[8:]
		return tx.Delete(challengesCollection, []byte(id))
	})
	if err != nil {
		return nil, err
	}
	return value, nil
}

// sweep removes challenges that nobody answered in time.
func (s challenges) sweep(ctx context.Context, now time.Time) error {
	c := s.t.Collection(challengesCollection)
	for rec, err := range c.Scan(ctx, tenantstore.Range{}) {
		if err != nil {
			return err
		}
		if len(rec.Value) < 8 || now.UnixNano() > int64(binary.BigEndian.Uint64(rec.Value)) {
			if err := c.Delete(ctx, rec.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// tokens are the single-use enrolment tokens, kept by their hash.
type tokens struct{ t *tenantstore.Tenant }

var errToken = errors.New("enrolment token unknown, used or expired")

func (s tokens) add(ctx context.Context, token []byte, expires time.Time) error {
	key := sha256.Sum256(token)
	_, err := s.t.Collection(tokensCollection).PutIf(ctx, key[:], binary.BigEndian.AppendUint64(nil, uint64(expires.Unix())), 0)
	return err
}

// check says whether a token would be taken; use takes it. A token used twice
// by the same TPM (after an answer that was lost) counts once: by is that TPM.
func (s tokens) check(ctx context.Context, token []byte, by registry.DeviceID, now time.Time) error {
	return s.t.View(ctx, func(tx *tenantstore.Tx) error { return s.usable(tx, token, by, now) })
}

func (s tokens) use(ctx context.Context, token []byte, by registry.DeviceID, now time.Time) error {
	return s.t.Update(ctx, func(tx *tenantstore.Tx) error {
		if err := s.usable(tx, token, by, now); err != nil {
			return err
		}
		key := sha256.Sum256(token)
		rec, err := tx.Get(tokensCollection, key[:])
		if err != nil {
			return err
		}
		_, err = tx.Put(tokensCollection, key[:], append(rec.Value[:8:8], by[:]...))
		return err
	})
}

func (s tokens) usable(tx *tenantstore.Tx, token []byte, by registry.DeviceID, now time.Time) error {
	key := sha256.Sum256(token)
	rec, err := tx.Get(tokensCollection, key[:])
	if errors.Is(err, tenantstore.ErrNotFound) {
		return errToken
	}
	if err != nil {
		return err
	}
	if len(rec.Value) < 8 {
		return fmt.Errorf("enrolment token record of %d bytes", len(rec.Value))
	}
	usedBy := rec.Value[8:]
	if len(usedBy) != 0 && subtle.ConstantTimeCompare(usedBy, by[:]) != 1 {
		return errToken
	}
	if now.Unix() > int64(binary.BigEndian.Uint64(rec.Value)) {
		return errToken
	}
	return nil
}
