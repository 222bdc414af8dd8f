package tenantstore

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/trusttree/trusttree/tenantstore/engine"
)

// Quota limits one tenant. A zero field takes the default beside it.
type Quota struct {
	Bytes     int64 `json:"bytes,omitempty"`     // what the instance may occupy; 10 GiB
	OpsPerSec int   `json:"ops_per_s,omitempty"` // operations and records written a second, with a burst of one second; 10,000
	Value     int   `json:"value,omitempty"`     // bytes of one value; 1 MiB, at most 16 MiB
	Batch     int   `json:"batch,omitempty"`     // operations in one transaction; 10,000
}

// Defaults and hard limits.
const (
	defaultBytes = 10 << 30
	defaultOps   = 10_000
	defaultValue = 1 << 20
	defaultBatch = 10_000

	maxValue     = 16 << 20
	maxRecordKey = 512
	maxSeries    = 128
)

func (q Quota) or(d Quota) Quota {
	pick := func(a, b, c int64) int64 {
		if a > 0 {
			return a
		}
		if b > 0 {
			return b
		}
		return c
	}
	return Quota{
		Bytes:     pick(q.Bytes, d.Bytes, defaultBytes),
		OpsPerSec: int(pick(int64(q.OpsPerSec), int64(d.OpsPerSec), defaultOps)),
		Value:     int(min(pick(int64(q.Value), int64(d.Value), defaultValue), maxValue)),
		Batch:     int(pick(int64(q.Batch), int64(d.Batch), defaultBatch)),
	}
}

// sizeEvery is how old the known size of an instance may be.
const sizeEvery = time.Second

type limiter struct {
	q    Quota
	rate *rate.Limiter

	mu    sync.Mutex
	size  int64
	asked time.Time
}

func newLimiter(q Quota) *limiter {
	return &limiter{q: q, rate: rate.NewLimiter(rate.Limit(q.OpsPerSec), max(q.OpsPerSec, q.Batch))}
}

// op spends n operations.
func (l *limiter) op(n int) error {
	now := time.Now()
	if l.rate.AllowN(now, n) {
		return nil
	}
	r := l.rate.ReserveN(now, n)
	if !r.OK() {
		return &QuotaError{What: "operations", Limit: int64(l.q.OpsPerSec)}
	}
	if d := r.DelayFrom(now); d > 0 {
		r.CancelAt(now)
		return &QuotaError{What: "operations", Limit: int64(l.q.OpsPerSec), RetryAfter: d}
	}
	return nil
}

// charge spends n operations that are done already: the next ones wait.
func (l *limiter) charge(n int) { _ = l.rate.ReserveN(time.Now(), min(n, l.rate.Burst())) }

// room returns ErrQuota when the instance has no room for writes.
func (l *limiter) room(ctx context.Context, db engine.DB) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.asked) > sizeEvery || l.size >= l.q.Bytes {
		n, err := db.Size(ctx)
		if err != nil {
			return err
		}
		l.size, l.asked = n, time.Now()
	}
	if l.size >= l.q.Bytes {
		return &QuotaError{What: "bytes", Limit: l.q.Bytes}
	}
	return nil
}
