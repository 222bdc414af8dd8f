//go:build unix

package repository

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/internal/durable"
)

// lock takes a lock that ends with the process.
func (d dirStore) lock() (unlock func(), err error) {
	if err := durable.MkdirAll(string(d), 0o755); err != nil {
		return nil, fmt.Errorf("repository: lock: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(string(d), ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("repository: lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrConflict
		}
		return nil, errors.Join(fmt.Errorf("repository: lock: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
