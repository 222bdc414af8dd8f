// Package engine is the seam between tenantstore and what keeps its bytes. An
// engine holds one instance (a file, a database) for each tenant and knows
// nothing of tenants, records or keys: it stores ordered byte keys and values
// that tenantstore has sealed before. The package enginetest holds the suite
// that every engine passes.
package engine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
)

// Errors that engines return, wrapped with what happened.
var (
	// ErrNotFound says that the instance is not there.
	ErrNotFound = errors.New("instance not found")
	// ErrCorrupt says that the instance's bytes are damaged or were changed.
	ErrCorrupt = errors.New("instance is damaged")
	// ErrFenced says that the instance takes no more writes: it was replaced.
	ErrFenced = errors.New("instance is fenced")
	// ErrFull says that the medium is full.
	ErrFull = errors.New("no space left")
	// ErrUnavailable says that the engine can't be reached; try later.
	ErrUnavailable = errors.New("engine unavailable")
	// ErrAborted, beside another, says of an Update that nothing of it was done.
	ErrAborted = errors.New("transaction aborted")
)

// Limits of a key and a value in bytes, after sealing.
const (
	MaxKey   = 1 << 10
	MaxValue = 17 << 20
)

// Ref names an instance: the tenant's random, never reused UID and the
// generation, which grows with each re-encryption or migration.
type Ref struct {
	UID        [16]byte
	Generation uint32
}

// String is the reference as it appears in paths and database names.
func (r Ref) String() string { return fmt.Sprintf("%x-%d", r.UID, r.Generation) }

// ParseRef is the inverse of String. It accepts nothing else.
func ParseRef(s string) (r Ref, err error) {
	uid, gen, ok := strings.Cut(s, "-")
	if !ok || len(uid) != 32 {
		return r, fmt.Errorf("engine: %q is no instance name", s)
	}
	if _, err := hex.Decode(r.UID[:], []byte(uid)); err != nil {
		return r, fmt.Errorf("engine: %q is no instance name", s)
	}
	n, err := strconv.ParseUint(gen, 10, 32)
	if r.Generation = uint32(n); err != nil || r.String() != s {
		return Ref{}, fmt.Errorf("engine: %q is no instance name", s)
	}
	return r, nil
}

// Engine makes, opens and destroys instances. It is safe for concurrent use.
type Engine interface {
	// Name identifies the engine in the catalogue, for as long as it holds
	// instances: "embedded", "postgres-eu".
	Name() string
	// Shared reports whether several processes may use the instances at once.
	Shared() bool
	// Create makes an instance that holds first and nothing else, in place of
	// what an interrupted Create of the same Ref left; it is durable when Create
	// returns nil. fileKey encrypts what the engine keeps beside sealed values,
	// if it can; it is 32 bytes, and cleared by the caller.
	Create(ctx context.Context, ref Ref, fileKey []byte, first ...KV) error
	// Open opens an instance, or returns ErrNotFound or ErrCorrupt.
	Open(ctx context.Context, ref Ref, fileKey []byte) (DB, error)
	// Fence makes every later Update of an instance fail with ErrFenced, in
	// every process, once those under way are done; or, with on false, takes
	// that back. An engine that is not shared may do nothing: its one process
	// has closed the instance.
	Fence(ctx context.Context, ref Ref, on bool) error
	// Destroy removes an instance. It is no error when there is none.
	Destroy(ctx context.Context, ref Ref) error
	// List returns the instances that exist, whole or not.
	List(ctx context.Context) ([]Ref, error)
	// Close frees what the engine holds; open instances must be closed before.
	Close() error
}

// DB is one open instance. It is safe for concurrent use.
type DB interface {
	// Update runs f in a read-write transaction that is serialised against all
	// others of this instance, and is durable when Update returns nil. When f
	// returns an error nothing of it is kept. f may run in another goroutine,
	// may share a commit with others, and may be run again after a conflict;
	// it must use only the Tx and must not call the DB.
	Update(ctx context.Context, f func(Tx) error) error
	// View runs f in a read-only transaction that sees one state.
	View(ctx context.Context, f func(Tx) error) error
	// Size is what the instance occupies, in bytes.
	Size(ctx context.Context) (int64, error)
	// Check reads the whole instance and returns ErrCorrupt when the engine's
	// own structures do not hold.
	Check(ctx context.Context) error
	// Close closes the instance; it waits for transactions under way.
	Close() error
}

// KV is one pair.
type KV struct{ Key, Value []byte }

// Tx is a transaction, for one goroutine. What it returns belongs to the caller;
// of what it is given it keeps nothing.
type Tx interface {
	// Get returns a value, or nil when there is none.
	Get(key []byte) ([]byte, error)
	// Put sets a value.
	Put(key, value []byte) error
	// Insert sets a value where there is none, and reports whether it did.
	Insert(key, value []byte) (bool, error)
	// Delete removes a value and reports whether there was one.
	Delete(key []byte) (bool, error)
	// Scan yields at most limit pairs with from <= key < to in the order of
	// their bytes, or in reverse. A nil to means no end. Do not write while
	// scanning.
	Scan(from, to []byte, reverse bool, limit int) iter.Seq2[KV, error]
}

// Peeker is what a Tx may implement that shares a commit with others.
type Peeker interface {
	// Peek is Get for what changes seldom: it may return what was there before
	// the first of the transactions that are committed together.
	Peek(key []byte) ([]byte, error)
}

// Waker is what a Tx of a shared engine implements if it can tell other
// processes at once that something changed.
type Waker interface {
	// Wake wakes those that listen to the instance, when the transaction commits.
	Wake() error
}

// Listener is what a DB of such an engine implements.
type Listener interface {
	// Listen calls woken once when it listens, since something may have happened
	// before, and then after each commit that called Wake, in any process; several
	// may be one. It returns when ctx is done or the connection is lost.
	Listen(ctx context.Context, woken func()) error
}
