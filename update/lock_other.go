//go:build !unix

package update

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// lockFile takes a lock by the existence of a file. After a crash it stays and
// has to be removed by hand.
func lockFile(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, refuse(ErrBusy, name, "wait for it, or remove the file if no updater runs")
	}
	if err != nil {
		return nil, fmt.Errorf("update: lock: %w", err)
	}
	return func() { _ = f.Close(); _ = os.Remove(name) }, nil
}
