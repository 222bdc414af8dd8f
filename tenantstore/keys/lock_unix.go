//go:build unix

package keys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/tenantstore"
)

// Waits for a lock: nobody holds it for longer than a few writes take.
const (
	lockWait = 5 * time.Second
	lockPoll = 2 * time.Millisecond
)

// lockDir locks the directory against other processes: alone, or together with
// others who only read.
func lockDir(ctx context.Context, dir string, alone bool) (unlock func(), err error) {
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", tenantstore.ErrKeyUnavailable, err)
	}
	for end := time.Now().Add(lockWait); ; {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			_ = f.Close()
			return nil, fmt.Errorf("%w: directory %s can't be locked (%w): keep it on a file system that can, or use a transit engine, or a directory for each instance",
				tenantstore.ErrKeyUnavailable, dir, err)
		case time.Now().After(end):
			_ = f.Close()
			return nil, fmt.Errorf("%w: directory %s has been locked by another process for %v: is that process stuck? (a transit engine, or a directory for each instance, does without the lock)",
				tenantstore.ErrKeyUnavailable, dir, lockWait)
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		}
	}
}
