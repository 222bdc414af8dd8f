package boot

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropCache is advice that some file systems do not take.
func dropCache(f *os.File) error {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil && err != unix.ESPIPE && err != unix.EINVAL && err != unix.ENOSYS {
		return &os.PathError{Op: "fadvise", Path: f.Name(), Err: err}
	}
	return nil
}

const (
	directMin   = 64 << 10 // bytes; smaller reads are better served by the cache
	directAlign = 4096
)

// openDirect opens the same file once more, for reads that pass the page cache
// by. It returns nil where the file system has no such reads.
func openDirect(f *os.File) *os.File {
	d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil
	}
	return d
}

// fitsDirect reports whether a read can pass the cache by.
func fitsDirect(p []byte, off int64) bool {
	return len(p) >= directMin && len(p)%directAlign == 0 && off%directAlign == 0 && uintptr(unsafe.Pointer(&p[0]))%directAlign == 0
}
