package fscrypt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// startLease lets the volume lock itself when its lease ends.
func (v *Volume) startLease(l *lease) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lease = l
	if v.timer != nil {
		v.timer.Stop()
	}
	v.timer = time.AfterFunc(time.Until(l.until), v.expire)
}

// changeLease goes over to the lease of the slot that replaced the one which
// opened the volume; nil ends a lease that no slot needs any more.
func (v *Volume) changeLease(l *lease) {
	v.mu.RLock()
	leased := v.lease != nil
	v.mu.RUnlock()
	switch {
	case leased && l != nil:
		v.startLease(l)
	case leased:
		v.mu.Lock()
		v.timer.Stop()
		v.lease = nil
		v.mu.Unlock()
	}
}

func (v *Volume) expire() {
	v.mu.RLock()
	over := v.lease != nil && !time.Now().Before(v.lease.until)
	v.mu.RUnlock()
	if over {
		v.shut(fmt.Errorf("the lease of the remote share ended: %w", ErrLocked))
	}
}

// shut closes the volume at once, also over open files.
func (v *Volume) shut(why error) {
	v.erase(why)
	v.dropKernelKey()
	v.event(context.Background(), slog.LevelWarn, "fscrypt.lease.ended", slog.String("reason", why.Error()))
}

// RenewLease asks the service for more time. When the service revoked or
// refused the node, the volume shuts at once, over open files; while the
// service can't be reached the old lease runs on. It returns until when the
// lease runs, on this process's monotonic clock.
func (v *Volume) RenewLease(ctx context.Context) (until time.Time, err error) {
	defer boundary("renew lease of "+v.dir, &err)
	v.mu.RLock()
	l, locked := v.lease, v.locked
	v.mu.RUnlock()
	if locked != nil {
		return time.Time{}, locked
	}
	if l == nil {
		return time.Time{}, errors.New("volume was opened without a remote share")
	}
	until, err = l.renew(ctx)
	if errors.Is(err, ErrRevoked) || errors.Is(err, ErrRefused) {
		v.shut(fmt.Errorf("%w: %w", ErrLocked, err))
		return time.Time{}, err
	}
	if err != nil {
		return l.until, err
	}
	v.startLease(&lease{until: until, renew: l.renew})
	return until, nil
}
