package copytree

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is a directory tree as Scan found it. Copy adds what it read.
type Tree struct {
	Totals
	skip  string
	dirs  []*dir                         // parents before what they hold; "." first
	seen  map[uint64]unix.StatxTimestamp // inode to time of change
	names int
}

type dir struct {
	path string
	entry
	children []*entry
}

type entry struct {
	name string
	meta
	first string // another name of the same file, copied before; "" in others

	sum    [sha256.Size]byte // of the content, or of where a link leads
	xattrs [sha256.Size]byte
}

type meta struct {
	ino                 uint64
	mode                uint16
	nlink, uid, gid     uint32
	size, space         int64
	atime, mtime, ctime unix.StatxTimestamp
}

func (m *meta) kind() uint16 { return m.mode & unix.S_IFMT }

const (
	statxMask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID
	casefold  = 0x40000000 // FS_CASEFOLD_FL
)

// where is what everything in a tree has to share.
type where struct {
	major, minor uint32
	mount        uint64
}

func stat(d *os.File, name string) (meta, where, uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(d.Fd()), name, unix.AT_SYMLINK_NOFOLLOW, statxMask, &st); err != nil {
		return meta{}, where{}, 0, fmt.Errorf("%s: %w", name, err)
	}
	return meta{
		ino: st.Ino, mode: st.Mode, nlink: st.Nlink, uid: st.Uid, gid: st.Gid, size: int64(st.Size), space: int64(st.Blocks) * 512,
		atime: st.Atime, mtime: st.Mtime, ctime: st.Ctime,
	}, where{st.Dev_major, st.Dev_minor, st.Mnt_id}, st.Attributes & st.Attributes_mask, nil
}

// Scan lists the tree below root; it opens no file. It refuses, ErrUnsupported,
// what Copy could not make anew: sockets, pipes, devices, mounts, files made
// immutable, append-only or verified (fs-verity), directories that ignore case.
// The file skip of the topmost directory is no part of the copy. Scan calls
// alive before each name and ends with its error.
func Scan(root *os.Root, skip string, alive func() error) (*Tree, error) {
	t := &Tree{skip: skip, seen: map[uint64]unix.StatxTimestamp{}}
	top, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	m, home, _, err := stat(top, ".")
	if err = errors.Join(err, top.Close()); err != nil {
		return nil, err
	}
	t.note(m)
	t.dirs = []*dir{{path: ".", entry: entry{name: ".", meta: m}}}
	links := map[uint64]string{}
	for i := 0; i < len(t.dirs); i++ {
		if err := t.scanDir(root, t.dirs[i], home, links, alive); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *Tree) note(m meta) {
	t.seen[m.ino] = m.ctime
	t.Inodes++
	t.Bytes += m.space
}

func (t *Tree) scanDir(root *os.Root, d *dir, home where, links map[uint64]string, alive func() error) error {
	f, err := openDir(root, d)
	if err != nil {
		return err
	}
	defer f.Close()
	if flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil && flags&casefold != 0 {
		return fmt.Errorf("%s ignores case in names: %w", d.path, ErrUnsupported)
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := alive(); err != nil {
			return err
		}
		m, at, attrs, err := stat(f, name)
		if err != nil {
			return err
		}
		full := path.Join(d.path, name)
		if why := obstacle(&m, attrs, at != home); why != "" {
			return fmt.Errorf("%s is %s: %w", full, why, ErrUnsupported)
		}
		t.names++
		e := &entry{name: name, meta: m}
		switch {
		case full == t.skip:
			t.seen[m.ino] = m.ctime
			continue
		case m.kind() == unix.S_IFDIR:
			t.note(m)
			t.dirs = append(t.dirs, &dir{path: full, entry: entry{name: name, meta: m}})
		case links[m.ino] != "":
			e.first = links[m.ino]
		default:
			t.note(m)
			if m.nlink > 1 {
				links[m.ino] = full
			}
			if m.kind() == unix.S_IFREG {
				t.Files++
			}
		}
		d.children = append(d.children, e)
	}
	return nil
}

// obstacle says why something can't be copied.
func obstacle(m *meta, attrs uint64, elsewhere bool) string {
	kinds := map[uint16]string{unix.S_IFSOCK: "a socket", unix.S_IFIFO: "a named pipe", unix.S_IFBLK: "a block device", unix.S_IFCHR: "a character device"}
	switch {
	case elsewhere:
		return "on another file system or mount"
	case kinds[m.kind()] != "":
		return kinds[m.kind()]
	case m.kind() != unix.S_IFREG && m.kind() != unix.S_IFDIR && m.kind() != unix.S_IFLNK:
		return "of unknown kind"
	case attrs&unix.STATX_ATTR_IMMUTABLE != 0:
		return "immutable"
	case attrs&unix.STATX_ATTR_APPEND != 0:
		return "append-only"
	case attrs&unix.STATX_ATTR_VERITY != 0:
		return "verified by fs-verity"
	}
	return ""
}

// openDir opens a directory that was scanned.
func openDir(root *os.Root, d *dir) (*os.File, error) {
	f, err := root.Open(d.path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); !ok || st.Ino != d.ino {
			err = fmt.Errorf("%s: %w", d.path, ErrChanged)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Room compares what the copy takes with what the file system of f has left:
// syscall.ENOSPC.
func (t *Tree) Room(f *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return err
	}
	need, free := uint64(t.Bytes+t.Bytes/64+1<<20), st.Bavail*uint64(st.Bsize)
	if need > free {
		return fmt.Errorf("a second copy takes %d bytes, the file system has %d left: %w", need, free, syscall.ENOSPC)
	}
	if need := t.Inodes + 8; st.Files > 0 && need > st.Ffree {
		return fmt.Errorf("a second copy takes %d inodes, the file system has %d left: %w", need, st.Ffree, syscall.ENOSPC)
	}
	return nil
}

// Quiet refuses, ErrChanged, a tree in which something changed in a span of
// time: a later change might leave the same time of change there.
func (t *Tree) Quiet(from, to time.Time) error {
	for ino, c := range t.seen {
		if at := time.Unix(c.Sec, int64(c.Nsec)); at.After(from) && !at.After(to) {
			return fmt.Errorf("a file or directory (inode %d): %w", ino, ErrChanged)
		}
	}
	return nil
}

// Unchanged holds the tree to what Scan found, by inodes and times of change.
// Names are not compared: they may be encrypted, without the key.
func (t *Tree) Unchanged(root *os.Root, alive func() error) error {
	names := 0
	todo := []string{"."}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		f, err := root.Open(p)
		if err != nil {
			return err
		}
		found, err := f.Readdirnames(-1)
		for _, name := range append([]string{"."}, found...) {
			var m meta
			if err == nil {
				err = alive()
			}
			if err == nil {
				m, _, _, err = stat(f, name)
			}
			if err != nil {
				break
			}
			if was, ok := t.seen[m.ino]; !ok || was != m.ctime {
				err = fmt.Errorf("a file or directory (inode %d): %w", m.ino, ErrChanged)
			} else if m.kind() == unix.S_IFDIR && name != "." {
				todo = append(todo, path.Join(p, name))
			}
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		names += len(found)
	}
	if names != t.names {
		return fmt.Errorf("%d names, were %d: %w", names, t.names, ErrChanged)
	}
	return nil
}

// Each calls f with every regular file that Copy read.
func (t *Tree) Each(f func(path string, sum []byte, size int64)) {
	for _, d := range t.dirs {
		for _, e := range d.children {
			if e.kind() == unix.S_IFREG {
				f(path.Join(d.path, e.name), e.sum[:], e.size)
			}
		}
	}
}
