//go:build unix

package tenantstore

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func lockDir(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%w: another process uses the store (%s)", ErrBusy, name)
	}
	return f, nil
}
