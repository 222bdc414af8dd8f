package fscrypt

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockedMemory returns memory outside the Go heap that is never swapped out,
// dumped or inherited. Where the limit on locked memory is used up, the pages
// are still kept out of dumps and children.
func lockedMemory(size int) (b []byte, free func()) {
	mem, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, size), func() {}
	}
	_ = unix.Mlock(mem)
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	_ = unix.Madvise(mem, unix.MADV_WIPEONFORK)
	return mem[:size:size], func() { _ = unix.Munmap(mem) }
}
