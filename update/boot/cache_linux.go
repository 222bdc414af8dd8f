package boot

import (
	"os"

	"golang.org/x/sys/unix"
)

// dropCache is advice that some file systems do not take.
func dropCache(f *os.File) error {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil && err != unix.ESPIPE && err != unix.EINVAL && err != unix.ENOSYS {
		return &os.PathError{Op: "fadvise", Path: f.Name(), Err: err}
	}
	return nil
}
