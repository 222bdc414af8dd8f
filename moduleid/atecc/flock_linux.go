package atecc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockPoll = 2 * time.Millisecond
	lockGap  = 5 * time.Millisecond // in which the others get the lock
)

// fileLock is flock(2) on a file that other processes open too. The kernel
// gives it back when a process ends, in whatever way.
type fileLock struct {
	f *os.File

	mu    sync.Mutex
	given time.Time // when this process gave it back
}

// take waits for the lock. Right after giving it back, it leaves others the
// time to take it: they poll, and would lose against a process that never
// pauses.
func (l *fileLock) take(ctx context.Context) (func() error, error) {
	l.mu.Lock()
	gap := time.Until(l.given.Add(lockGap))
	l.mu.Unlock()
	if gap > 0 {
		if err := pause(ctx, gap); err != nil {
			return nil, err
		}
	}
	for {
		err := unix.Flock(int(l.f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return l.give, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("%w: %w", ErrBus, err)
		}
		if err := pause(ctx, lockPoll); err != nil {
			return nil, fmt.Errorf("another process holds the bus: %w", err)
		}
	}
}

func (l *fileLock) give() error {
	l.mu.Lock()
	l.given = time.Now()
	l.mu.Unlock()
	return unix.Flock(int(l.f.Fd()), unix.LOCK_UN)
}
