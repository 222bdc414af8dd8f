package fscrypt

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// secretFile makes a file in memory.
func secretFile() (*os.File, error) {
	fd, err := memfdSecret()
	if err != nil { // before Linux 5.14, switched off, or a processor that does not have it
		if fd, err = unix.MemfdCreate("fscrypt-keep", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL); err != nil {
			fd, err = unix.MemfdCreate("fscrypt-keep", unix.MFD_CLOEXEC) // before Linux 6.3
		}
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), "fscrypt-keep"), nil
}

// secretmemMagic is the file system of memfd_secret (linux/magic.h).
const secretmemMagic = 0x5345434d

// mapFile maps a file that must be in memory, and this user's alone.
func mapFile(f *os.File) (mem []byte, free func(), err error) {
	var st unix.Stat_t
	var sfs unix.Statfs_t
	fd := int(f.Fd())
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, err
	}
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return nil, nil, err
	}
	// A memfd has no name that others could open: its mode says nothing.
	switch t := uint32(sfs.Type); {
	case t != unix.TMPFS_MAGIC && t != unix.RAMFS_MAGIC && t != secretmemMagic:
		return nil, nil, fmt.Errorf("%s is not in memory: what is kept would be written to a disk: %w", f.Name(), ErrUnsupported)
	case st.Nlink > 0 && (st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() || st.Mode&unix.S_IFMT != unix.S_IFREG):
		return nil, nil, fmt.Errorf("%s: others have access to it: want a regular file of this user's with mode 0600", f.Name())
	case st.Size != 0 && st.Size != keepSize:
		return nil, nil, fmt.Errorf("%s has %d bytes, want %d: %w", f.Name(), st.Size, keepSize, ErrUnsupported)
	}
	if st.Size == 0 {
		if err := unix.Ftruncate(fd, keepSize); err != nil {
			return nil, nil, os.NewSyscallError("ftruncate", err)
		}
	}
	// Nobody makes it shorter under the mapping; memfd_secret and files on a
	// tmpfs have no seals.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	if mem, err = unix.Mmap(fd, 0, keepSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, nil, os.NewSyscallError("mmap", err)
	}
	_ = unix.Mlock(mem)
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	return mem, func() { _ = unix.Munmap(mem) }, nil
}
