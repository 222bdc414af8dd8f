package tenantstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// Errors by class, for errors.Is.
var (
	// ErrDenied says that the principal may not do this. It is the same error
	// for a tenant of somebody else and for one that does not exist.
	ErrDenied = errors.New("denied")
	// ErrNotFound says that there is no record under the key.
	ErrNotFound = errors.New("no such record")
	// ErrConflict says that a precondition does not hold: the record has
	// another version. Read again and decide again.
	ErrConflict = errors.New("version conflict")
	// ErrDuplicate says that this message was ingested before.
	ErrDuplicate = errors.New("already ingested")
	// ErrExists says that the tenant ID is taken, by a destroyed tenant too.
	ErrExists = errors.New("tenant ID is taken")
	// ErrTenantClosed says that the tenant is suspended or destroyed.
	ErrTenantClosed = errors.New("tenant is closed")
	// ErrHeld says that a hold or a retention period forbids to destroy.
	ErrHeld = errors.New("held")
	// ErrTampered says that bytes are not those that were written here: changed,
	// moved between tenants, collections, keys or generations, or truncated.
	ErrTampered = errors.New("tampered or damaged")
	// ErrRollback says that an older state was put in place of a newer one.
	ErrRollback = errors.New("rolled back to an older state")
	// ErrKeyUnavailable says that the key provider can't be reached; try later.
	ErrKeyUnavailable = errors.New("key unavailable")
	// ErrKeyDestroyed says that the key is gone for good, and the data with it.
	ErrKeyDestroyed = errors.New("key destroyed")
	// ErrRegion says that the store may not touch the tenant's region.
	ErrRegion = errors.New("region mismatch")
	// ErrQuota says that a limit is reached; QuotaError has the facts.
	ErrQuota = errors.New("quota exceeded")
	// ErrBusy says that too much is open or under way; try later.
	ErrBusy = errors.New("busy")
	// ErrAudit says that the audit log can't be written, so nothing was done.
	ErrAudit = errors.New("audit log unavailable")
	// ErrInvalid says that a name, key, value or document is malformed.
	ErrInvalid = errors.New("invalid")
)

// QuotaError is ErrQuota with its facts.
type QuotaError struct {
	What  string // "bytes", "operations", "value", "batch"
	Limit int64  // in bytes, operations a second, or records
	// RetryAfter is how long to wait; 0 when waiting does not help.
	RetryAfter time.Duration
}

// Error implements error.
func (e *QuotaError) Error() string {
	s := fmt.Sprintf("quota exceeded: %s, limit %d", e.What, e.Limit)
	if e.RetryAfter > 0 {
		s += fmt.Sprintf(", retry after %v", e.RetryAfter.Round(time.Millisecond))
	}
	return s
}

// Is makes errors.Is(err, ErrQuota) true.
func (e *QuotaError) Is(target error) bool { return target == ErrQuota }

// boundary adds the prefix once, and puts engine errors into our classes.
func boundary(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if cerr := ctx.Err(); cerr != nil && !errors.Is(err, cerr) && !errors.Is(err, ErrTampered) {
		err = cerr
	}
	switch {
	case (errors.Is(err, engine.ErrCorrupt) || errors.Is(err, engine.ErrNotFound)) && !errors.Is(err, ErrTampered):
		err = fmt.Errorf("%w: %w", ErrTampered, err)
	case errors.Is(err, engine.ErrFenced) && !errors.Is(err, ErrBusy):
		err = fmt.Errorf("%w: %w", ErrTenantClosed, err)
	case errors.Is(err, engine.ErrFull):
		err = fmt.Errorf("%w: %w", &QuotaError{What: "medium"}, err)
	case errors.Is(err, engine.ErrUnavailable) && !errors.Is(err, ErrBusy):
		err = fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return fmt.Errorf("tenantstore: %s: %w", what, err)
}
