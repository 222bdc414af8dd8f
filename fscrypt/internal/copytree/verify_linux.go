package copytree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Verify reads the whole copy below to and holds it to what Copy read:
// ErrChanged. It calls alive before each name and ends with its error.
func (t *Tree) Verify(to *os.Root, alive func() error) error {
	buf := make([]byte, chunk)
	copies := map[uint64]uint64{} // inodes of files with more than one name
	for _, d := range t.dirs {
		if err := t.verifyDir(to, d, copies, buf, alive); err != nil {
			return fmt.Errorf("verify %s: %w", d.path, err)
		}
	}
	return nil
}

func (t *Tree) verifyDir(to *os.Root, d *dir, copies map[uint64]uint64, buf []byte, alive func() error) error {
	f, err := to.Open(d.path)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return path.Join(d.path, n) == t.skip })
	if len(names) != len(d.children) {
		return fmt.Errorf("%d names, want %d: %w", len(names), len(d.children), ErrChanged)
	}
	for _, e := range append([]*entry{&d.entry}, d.children...) {
		if err := alive(); err != nil {
			return err
		}
		if e.kind() == unix.S_IFDIR && e != &d.entry {
			continue // at its own turn
		}
		name := e.name
		if e == &d.entry {
			name = "."
		}
		if err := verify(f, name, e, copies, buf, alive); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func verify(d *os.File, name string, e *entry, copies map[uint64]uint64, buf []byte, alive func() error) error {
	m, _, _, err := stat(d, name)
	if err != nil {
		return err
	}
	x, err := sumXattrs(d, name)
	if err != nil {
		return err
	}
	isDir := e.kind() == unix.S_IFDIR
	if m.mode != e.mode || m.uid != e.uid || m.gid != e.gid || m.mtime != e.mtime || (!isDir && (m.size != e.size || m.nlink != e.nlink)) || x != e.xattrs {
		return fmt.Errorf("mode, owner, size, time, links or attributes are others: %w", ErrChanged)
	}
	if isDir {
		return nil
	}
	if e.nlink > 1 {
		if ino, ok := copies[e.ino]; ok {
			if ino != m.ino {
				return fmt.Errorf("no longer one file under several names: %w", ErrChanged)
			}
			return nil
		}
		copies[e.ino] = m.ino
	}
	got := entry{meta: m}
	if e.kind() == unix.S_IFLNK {
		target, err := readlink(d, name)
		if err != nil {
			return err
		}
		got.sum = sha256.Sum256([]byte(target))
	} else {
		in, err := open(d, name)
		if err != nil {
			return err
		}
		if err := errors.Join(extents(in, &got, buf, alive, nil), in.Close()); err != nil {
			return err
		}
	}
	if got.sum != e.sum {
		return fmt.Errorf("content differs: %w", ErrChanged)
	}
	return nil
}

// proc names a file for the calls that know no directory descriptors.
func proc(d *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + name
}

// maxXattr is the kernel's limit of a value and of the list, in bytes.
const maxXattr = 64 << 10

// listXattrs returns the names of attributes that may be read, sorted.
// security.evm belongs to the inode; the kernel makes it.
func listXattrs(d *os.File, name string) ([]string, error) {
	b := make([]byte, maxXattr)
	n, err := unix.Llistxattr(proc(d, name), b)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attributes: %w", err)
	}
	names := strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 })
	names = slices.DeleteFunc(names, func(n string) bool { return n == "security.evm" })
	slices.Sort(names)
	return names, nil
}

// eachXattr calls f with every attribute that can be read.
func eachXattr(d *os.File, name string, f func(attr string, value []byte) error) error {
	names, err := listXattrs(d, name)
	if err != nil {
		return err
	}
	b := make([]byte, maxXattr)
	for _, attr := range names {
		n, err := unix.Lgetxattr(proc(d, name), attr, b)
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err == nil {
			err = f(attr, b[:n])
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
	}
	return nil
}

func addXattr(h hash.Hash, attr string, value []byte) {
	for _, b := range [][]byte{[]byte(attr), value} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		h.Write(b)
	}
}

func sumXattrs(d *os.File, name string) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	err = eachXattr(d, name, func(attr string, value []byte) error { addXattr(h, attr, value); return nil })
	h.Sum(sum[:0])
	return sum, err
}

// copyXattrs makes the attributes of dst those of src, and hashes them.
func copyXattrs(src, dst *os.File, name string) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	want := map[string]bool{}
	have := make([]byte, maxXattr)
	err = eachXattr(src, name, func(attr string, value []byte) error {
		want[attr] = true
		addXattr(h, attr, value)
		if n, err := unix.Lgetxattr(proc(dst, name), attr, have); err == nil && bytes.Equal(have[:n], value) {
			return nil
		}
		return unix.Lsetxattr(proc(dst, name), attr, value, 0)
	})
	if err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	names, err := listXattrs(dst, name)
	for _, attr := range names {
		if err == nil && !want[attr] { // inherited from the directory above
			err = unix.Lremovexattr(proc(dst, name), attr)
		}
	}
	return sum, err
}
