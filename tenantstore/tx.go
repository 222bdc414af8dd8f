package tenantstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// Record is a record as it was read. Version changes with each write, never
// comes back, and is opaque otherwise; 0 stands for "no record".
type Record struct {
	Key     []byte
	Value   []byte
	Version uint64
}

// Point is one value of a time series. Points of one time keep their order.
type Point struct {
	Time  time.Time
	Value []byte
}

// Range selects keys: From <= key < To, in the order of their bytes. Nil means
// no bound. Prefix, when set, replaces From and To.
type Range struct {
	From, To, Prefix []byte
	Reverse          bool
	Limit            int // records at most; 0 means all
}

// Tx is a transaction of one tenant. It is valid inside the function it was
// given to, for one goroutine; what it returns belongs to the caller. That
// function must not call the Tenant, and may be run more than once.
type Tx struct {
	in    *instance
	tx    engine.Tx
	s     *Store
	roles []Role
	full  error // why nothing may be added; deleting is free
	ops   int
	sc    scratch
}

func (x *Tx) can(roles ...Role) error {
	for _, r := range roles {
		if slices.Contains(x.roles, r) {
			return nil
		}
	}
	return ErrDenied
}

func (x *Tx) spend() error {
	if x.ops++; x.ops > x.in.limits.q.Batch {
		return &QuotaError{What: "batch", Limit: int64(x.in.limits.q.Batch)}
	}
	return nil
}

func (x *Tx) recordKey(collection string, key []byte) ([]byte, error) {
	if err := checkName(collection); err != nil {
		return nil, err
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return x.sc.engineKey(x.in.seal.collection(collection), key), x.spend()
}

func checkKey(key []byte) error {
	if len(key) == 0 || len(key) > maxRecordKey {
		return fmt.Errorf("%w: key of %d bytes, want 1 to %d", ErrInvalid, len(key), maxRecordKey)
	}
	return nil
}

func (x *Tx) value(value []byte) error {
	if len(value) > x.in.limits.q.Value {
		return &QuotaError{What: "value", Limit: int64(x.in.limits.q.Value)}
	}
	return x.full
}

// Get returns a record, or ErrNotFound.
func (x *Tx) Get(collection string, key []byte) (Record, error) {
	if err := x.can(RoleRead); err != nil {
		return Record{}, err
	}
	ek, err := x.recordKey(collection, key)
	if err != nil {
		return Record{}, err
	}
	v, value, err := x.in.get(x.tx, &x.sc, ek)
	if err != nil {
		return Record{}, err
	}
	return Record{Key: slices.Clone(key), Value: value, Version: v}, nil
}

// Put sets a record, whatever was there, and returns its version.
func (x *Tx) Put(collection string, key, value []byte) (uint64, error) {
	if err := x.can(RoleWrite); err != nil {
		return 0, err
	}
	ek, err := x.recordKey(collection, key)
	if err == nil {
		err = x.value(value)
	}
	if err != nil {
		return 0, err
	}
	v := x.s.version()
	return v, x.in.put(x.tx, &x.sc, ek, value, v)
}

// PutIf sets a record only when its version is want (0: when there is none),
// and returns its new version, or ErrConflict.
func (x *Tx) PutIf(collection string, key, value []byte, want uint64) (uint64, error) {
	role := []Role{RoleWrite}
	if want == 0 {
		role = append(role, RoleIngest)
	}
	if err := x.can(role...); err != nil {
		return 0, err
	}
	ek, err := x.recordKey(collection, key)
	if err == nil {
		err = x.value(value)
	}
	if err != nil {
		return 0, err
	}
	v := x.s.version()
	return v, x.in.putIf(x.tx, &x.sc, ek, value, want, v)
}

// Delete removes a record. It is no error when there is none.
func (x *Tx) Delete(collection string, key []byte) error {
	if err := x.can(RoleWrite); err != nil {
		return err
	}
	ek, err := x.recordKey(collection, key)
	if err != nil {
		return err
	}
	_, err = x.tx.Delete(ek)
	return err
}

// Scan yields the records of a range as the transaction sees them. Inside the
// loop only read.
func (x *Tx) Scan(collection string, r Range) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		err := x.can(RoleRead)
		if err == nil {
			err = checkName(collection)
		}
		if err != nil {
			yield(Record{}, err)
			return
		}
		space := x.in.seal.collection(collection)
		from, to := r.bounds(space)
		limit := r.Limit
		if limit <= 0 {
			limit = 1<<31 - 1
		}
		for kv, err := range x.tx.Scan(from, to, r.Reverse, limit) {
			if err != nil {
				yield(Record{}, err)
				return
			}
			v, value, err := x.in.seal.open(&x.sc, kv.Key, kv.Value)
			if !yield(Record{Key: kv.Key[spaceSize:], Value: value, Version: v}, err) || err != nil {
				return
			}
		}
	}
}

func (r Range) bounds(space []byte) (from, to []byte) {
	at := func(k []byte) []byte { return append(space[:len(space):len(space)], k...) }
	if r.Prefix != nil {
		return at(r.Prefix), prefixEnd(at(r.Prefix))
	}
	if r.To == nil {
		return at(r.From), prefixEnd(space)
	}
	return at(r.From), at(r.To)
}

// Append adds a point to a time series of a collection. Times reach from 1678
// to 2262, in nanoseconds.
func (x *Tx) Append(collection, series string, at time.Time, value []byte) error {
	if err := x.can(RoleWrite, RoleIngest); err != nil {
		return err
	}
	space, err := x.seriesSpace(collection, series)
	if err == nil {
		err = x.spend()
	}
	if err == nil {
		err = x.value(value)
	}
	if err == nil && (at.Before(minTime) || at.After(maxTime)) {
		err = fmt.Errorf("%w: time %v", ErrInvalid, at)
	}
	if err != nil {
		return err
	}
	ek := pointKey(space, at, 0)
	fresh, err := x.tx.Insert(ek, x.in.seal.seal(&x.sc, ek, x.s.version(), value))
	if err != nil || fresh {
		return err
	}
	for kv, err := range x.tx.Scan(ek, pointKey(space, at, maxSeq), true, 1) { // another of the same time
		if err != nil {
			return err
		}
		if len(kv.Key) != len(ek) {
			return fmt.Errorf("%w: a point's key has %d bytes", ErrTampered, len(kv.Key))
		}
		ek = pointKey(space, at, binary.BigEndian.Uint32(kv.Key[spaceSize+8:])+1)
	}
	fresh, err = x.tx.Insert(ek, x.in.seal.seal(&x.sc, ek, x.s.version(), value))
	if err == nil && !fresh {
		err = fmt.Errorf("%w: too many points of one time", ErrInvalid)
	}
	return err
}

const maxSeq = 1<<32 - 1

var (
	minTime = time.Unix(0, -1<<63)
	maxTime = time.Unix(0, 1<<63-1)
)

func pointKey(space []byte, at time.Time, seq uint32) []byte {
	k := binary.BigEndian.AppendUint64(space[:len(space):len(space)], uint64(at.UnixNano())^1<<63)
	return binary.BigEndian.AppendUint32(k, seq)
}

func (x *Tx) seriesSpace(collection, series string) ([]byte, error) {
	if err := checkName(collection); err != nil {
		return nil, err
	}
	if len(series) == 0 || len(series) > maxSeries {
		return nil, fmt.Errorf("%w: series name of %d bytes, want 1 to %d", ErrInvalid, len(series), maxSeries)
	}
	return x.in.seal.space(kindSeries, collection, series), nil
}

// Once marks the message id as ingested, or returns ErrDuplicate when it was
// before: call it first in the transaction that stores the message. id is 1 to
// 512 bytes and chosen by the sender.
func (x *Tx) Once(id string) error {
	if err := x.can(RoleWrite, RoleIngest); err != nil {
		return err
	}
	if len(id) == 0 || len(id) > maxRecordKey {
		return fmt.Errorf("%w: message ID of %d bytes, want 1 to %d", ErrInvalid, len(id), maxRecordKey)
	}
	if err := x.spend(); err != nil {
		return err
	}
	h := sha256.Sum256([]byte(id))
	ek := append(x.in.seal.space(kindOnce), h[:16]...)
	now := time.Now()
	fresh, err := x.tx.Insert(ek, x.in.seal.seal(&x.sc, ek, x.s.version(), nil))
	if err != nil {
		return err
	}
	if !fresh {
		return ErrDuplicate
	}
	return x.pruneOnce(now, h[:16])
}

// onceFor is how long a message ID is remembered, at least.
const onceFor = 30 * 24 * time.Hour

// pruneOnce indexes the mark by time and forgets at most two that are older
// than onceFor: the marks don't outgrow the messages of that time.
func (x *Tx) pruneOnce(now time.Time, id []byte) error {
	byTime := x.in.seal.space(kindOnceAt)
	ek := append(pointKey(byTime, now, 0), id...)
	if err := x.in.put(x.tx, &x.sc, ek, nil, x.s.version()); err != nil {
		return err
	}
	var old [][]byte
	for kv, err := range x.tx.Scan(byTime, pointKey(byTime, now.Add(-onceFor), 0), false, 2) {
		if err != nil {
			return err
		}
		old = append(old, kv.Key)
	}
	marks := x.in.seal.space(kindOnce)
	for _, k := range old {
		if _, err := x.tx.Delete(append(marks[:len(marks):len(marks)], k[len(k)-16:]...)); err != nil {
			return err
		}
		if _, err := x.tx.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// version returns a number that no write of this process had before: the time,
// the last bits of it at random, so that neither another process nor this one
// after its clock was set back gives a record a version that it had before.
func (s *Store) version() uint64 {
	for {
		last := s.lastVersion.Load()
		next := max(last+1, uint64(time.Now().UnixNano())&^versionNoise|rand.Uint64()&versionNoise)
		if s.lastVersion.CompareAndSwap(last, next) {
			return next
		}
	}
}

const versionNoise = 1<<20 - 1 // about a millisecond

// View runs f in a read-only transaction that sees one state. It needs RoleRead.
func (t *Tenant) View(ctx context.Context, f func(*Tx) error) error {
	return boundary(ctx, "view", t.view(ctx, "view", "", f))
}

func (t *Tenant) view(ctx context.Context, action, collection string, f func(*Tx) error) error {
	return t.with(ctx, action, collection, readers, func(in *instance) error {
		return in.db.View(ctx, func(tx engine.Tx) error {
			return f(&Tx{in: in, tx: tx, s: t.s, roles: readers})
		})
	})
}

// Update runs f in a transaction that is serialised against all others of the
// tenant, and durable when Update returns nil: either all of it or, after an
// error of f, nothing. Transactions that wait for the disk together share its
// sync. It needs RoleWrite or RoleIngest, and RoleRead for what f reads.
func (t *Tenant) Update(ctx context.Context, f func(*Tx) error) error {
	return boundary(ctx, "update", t.update(ctx, "update", "", f))
}

func (t *Tenant) update(ctx context.Context, action, collection string, f func(*Tx) error) error {
	return t.with(ctx, action, collection, writers, func(in *instance) error {
		var roles []Role
		for _, r := range []Role{RoleRead, RoleWrite, RoleIngest} {
			if t.s.may(t.p, t.id, r) == nil {
				roles = append(roles, r)
			}
		}
		full := in.limits.room(ctx, in.db)
		if full != nil && !errors.Is(full, ErrQuota) {
			return fmt.Errorf("%w: %w", engine.ErrAborted, full)
		}
		if err := t.s.firstWrite(ctx, in); err != nil {
			return err
		}
		var x *Tx
		err := in.db.Update(ctx, func(tx engine.Tx) error {
			noted, err := in.written(tx)
			if err != nil {
				return err
			}
			x = &Tx{in: in, tx: noted, s: t.s, roles: roles, full: full}
			return f(x)
		})
		if err == nil && x.ops > 1 {
			in.limits.charge(x.ops - 1)
		}
		return err
	})
}

// Ingest stores a message exactly once: f runs in the transaction that also
// marks id, so a message that is sent again after a lost answer changes
// nothing. It reports false for a message that was ingested before.
func (t *Tenant) Ingest(ctx context.Context, id string, f func(*Tx) error) (bool, error) {
	fresh := true
	err := t.update(ctx, "ingest", "", func(x *Tx) error {
		if err := x.Once(id); err != nil {
			return err
		}
		return f(x)
	})
	if errors.Is(err, ErrDuplicate) {
		fresh, err = false, nil
	}
	return fresh && err == nil, boundary(ctx, "ingest", err)
}

func pointTime(ek []byte) time.Time {
	return time.Unix(0, int64(binary.BigEndian.Uint64(ek[spaceSize:])^1<<63)).UTC()
}
