package tenantstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// Tenant is a handle to one tenant's instance on behalf of one principal. It
// holds nothing open, needs no Close, and is safe for concurrent use. Each use
// asks again whether the principal may, and returns ErrTenantClosed once the
// tenant is suspended or destroyed.
type Tenant struct {
	s   *Store
	p   Principal
	id  ID
	uid UID
}

// Tenant returns the handle of the tenant that p was authenticated for. There
// is no name to pass. It returns ErrDenied for a tenant that does not exist.
func (s *Store) Tenant(ctx context.Context, p Principal) (*Tenant, error) {
	t, err := s.tenant(ctx, p)
	return t, boundary(ctx, "open tenant", err)
}

func (s *Store) tenant(ctx context.Context, p Principal) (*Tenant, error) {
	denied := s.may(p, p.tenant, RoleIngest, RoleRead, RoleWrite, RoleAdmin)
	e, _, ok, err := s.lookup(ctx, p.tenant) // in any case: its time tells nothing
	switch {
	case denied != nil || p.local:
		return nil, s.deny(ctx, p, "open tenant", errors.Join(denied, errors.New("no role in a tenant")))
	case err != nil:
		return nil, err
	case !ok || e.State == stateCreating:
		return nil, s.deny(ctx, p, "open tenant", errors.New("the tenant does not exist"))
	case e.State != stateActive:
		return nil, ErrTenantClosed
	}
	return &Tenant{s: s, p: p, id: e.ID, uid: e.UID}, nil
}

// ID returns the tenant's name; empty for the system instance.
func (t *Tenant) ID() ID { return t.id }

// UID returns the tenant's identity.
func (t *Tenant) UID() UID { return t.uid }

var (
	readers = []Role{RoleRead}
	writers = []Role{RoleWrite, RoleIngest}
)

// with checks, counts and runs one use of the instance.
func (t *Tenant) with(ctx context.Context, action, collection string, roles []Role, f func(*instance) error) error {
	if err := t.s.refresh(ctx); err != nil {
		return err
	}
	if err := t.s.may(t.p, t.id, roles...); err != nil {
		return t.s.deny(ctx, t.p, action, err)
	}
	write := len(roles) != 1 || roles[0] != RoleRead
	counted := false
	err := t.use(ctx, write, func(in *instance) error {
		if counted { // it runs again
			return f(in)
		}
		if err := in.limits.op(1); err != nil {
			return err
		}
		if !t.p.local {
			if err := t.s.audit.count(in.trail(), t.p, t.id, action, collection); err != nil {
				return err
			}
		}
		counted = true
		return f(in)
	})
	switch {
	case errors.Is(err, ErrDenied):
		return t.s.deny(ctx, t.p, action, err)
	case errors.Is(err, ErrTampered), errors.Is(err, ErrRollback), errors.Is(err, engine.ErrCorrupt), errors.Is(err, engine.ErrNotFound):
		aerr := t.s.audit.refusal(ctx, t.s.systemTrail(), Event{Action: action, Outcome: "failed", Subject: t.p.subject,
			Stream: t.p.stream, Tenant: t.id, Detail: err.Error()})
		return errors.Join(err, aerr)
	}
	return err
}

// Collection is a named set of records and series of one tenant.
type Collection struct {
	t    *Tenant
	name string
}

// Collection returns the collection of a name: 1 to 128 of a-z, A-Z, 0-9, '-',
// '_', '.'. It comes into being with its first record.
func (t *Tenant) Collection(name string) *Collection { return &Collection{t: t, name: name} }

// Get returns a record, or ErrNotFound. Keys are 1 to 512 bytes.
func (c *Collection) Get(ctx context.Context, key []byte) (r Record, err error) {
	err = c.t.with(ctx, "get", c.name, readers, func(in *instance) error {
		if err := checkName(c.name); err != nil {
			return err
		}
		if err := checkKey(key); err != nil {
			return err
		}
		sc := c.t.s.scratches.Get().(*scratch)
		defer c.t.s.scratches.Put(sc)
		ek := sc.engineKey(in.seal.collection(c.name), key)
		return in.db.View(ctx, func(tx engine.Tx) (err error) {
			r.Version, r.Value, err = in.get(tx, sc, ek)
			return err
		})
	})
	if err != nil {
		return Record{}, boundary(ctx, "get", err)
	}
	r.Key = slices.Clone(key)
	return r, nil
}

// Put sets a record durably, whatever was there, and returns its version.
func (c *Collection) Put(ctx context.Context, key, value []byte) (v uint64, err error) {
	err = c.t.update(ctx, "put", c.name, func(x *Tx) error {
		v, err = x.Put(c.name, key, value)
		return err
	})
	return v, boundary(ctx, "put", err)
}

// PutIf sets a record durably, only when its version is want (0: when there is
// none), and returns its new version, or ErrConflict.
func (c *Collection) PutIf(ctx context.Context, key, value []byte, want uint64) (v uint64, err error) {
	err = c.t.update(ctx, "put", c.name, func(x *Tx) error {
		v, err = x.PutIf(c.name, key, value, want)
		return err
	})
	return v, boundary(ctx, "put", err)
}

// Delete removes a record durably. It is no error when there is none.
func (c *Collection) Delete(ctx context.Context, key []byte) error {
	return boundary(ctx, "delete", c.t.update(ctx, "delete", c.name, func(x *Tx) error { return x.Delete(c.name, key) }))
}

// Append adds a point to a time series durably.
func (c *Collection) Append(ctx context.Context, series string, at time.Time, value []byte) error {
	return boundary(ctx, "append", c.t.update(ctx, "append", c.name, func(x *Tx) error { return x.Append(c.name, series, at, value) }))
}

// Records and bytes that a scan reads at once; the loop runs outside of locks.
const (
	pageRecords = 256
	pageBytes   = 4 << 20
)

// Scan yields the records of a range in the order of their keys. It reads them
// in pages, so writes during the scan may or may not be seen; Tenant.View
// gives one state. An error ends it.
func (c *Collection) Scan(ctx context.Context, r Range) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		left := r.Limit
		err := c.t.pages(ctx, "scan", c.name, func(in *instance) ([]byte, []byte, error) {
			from, to := r.bounds(in.seal.collection(c.name))
			return from, to, nil
		}, r.Reverse, func(kv engine.KV, version uint64, value []byte) bool {
			ok := yield(Record{Key: kv.Key[spaceSize:], Value: value, Version: version}, nil)
			left--
			return ok && left != 0
		})
		if err != nil {
			yield(Record{}, boundary(ctx, "scan", err))
		}
	}
}

// Series yields the points of a time series with from <= time < to, in order.
// A zero time means no bound. It reads in pages, as Scan does.
func (c *Collection) Series(ctx context.Context, series string, from, to time.Time) iter.Seq2[Point, error] {
	return func(yield func(Point, error) bool) {
		err := c.t.pages(ctx, "series", c.name, func(in *instance) (lo, hi []byte, err error) {
			space, err := (&Tx{in: in, s: c.t.s}).seriesSpace(c.name, series)
			if err != nil {
				return nil, nil, err
			}
			lo, hi = space, prefixEnd(space)
			for _, b := range []struct {
				t time.Time
				k *[]byte
			}{{from, &lo}, {to, &hi}} {
				if !b.t.IsZero() {
					if b.t.Before(minTime) || b.t.After(maxTime) {
						return nil, nil, fmt.Errorf("%w: time %v", ErrInvalid, b.t)
					}
					*b.k = pointKey(space, b.t, 0)
				}
			}
			return lo, hi, nil
		}, false, func(kv engine.KV, _ uint64, value []byte) bool {
			return yield(Point{Time: pointTime(kv.Key), Value: value}, nil)
		})
		if err != nil {
			yield(Point{}, boundary(ctx, "series", err))
		}
	}
}

// pages reads a range page by page and gives each record to each, outside of
// the instance's lock, until it returns false.
func (t *Tenant) pages(ctx context.Context, action, collection string, bounds func(*instance) (from, to []byte, err error),
	reverse bool, each func(kv engine.KV, version uint64, value []byte) bool) error {
	if err := checkName(collection); err != nil {
		return err
	}
	type row struct {
		kv      engine.KV
		version uint64
		value   []byte
	}
	var last []byte
	for {
		var page []row
		err := t.with(ctx, action, collection, []Role{RoleRead}, func(in *instance) error {
			from, to, err := bounds(in)
			if err != nil {
				return err
			}
			if last != nil && reverse {
				to = last
			} else if last != nil {
				from = append(last, 0)
			}
			return in.db.View(ctx, func(tx engine.Tx) error {
				n, sc := 0, new(scratch)
				page = page[:0]
				for kv, err := range tx.Scan(from, to, reverse, pageRecords) {
					if err != nil {
						return err
					}
					version, value, err := in.seal.open(sc, kv.Key, kv.Value)
					if err != nil {
						return err
					}
					page = append(page, row{kv, version, value})
					if n += len(kv.Value); n > pageBytes {
						break
					}
				}
				return nil
			})
		})
		if err != nil || len(page) == 0 {
			return err
		}
		for _, r := range page {
			if !each(r.kv, r.version, r.value) {
				return nil
			}
		}
		last = page[len(page)-1].kv.Key
		last = last[:len(last):len(last)]
	}
}
