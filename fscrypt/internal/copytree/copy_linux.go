package copytree

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is how much is copied between two calls of step, in bytes.
const chunk = 1 << 20

// Copy makes the tree anew below to, which is empty but for the file skipped.
// Nothing is durable afterwards: flush the file system. It calls step before
// each change and ends with its error, and progress after each regular file;
// progress may be nil.
func (t *Tree) Copy(from, to *os.Root, step func() error, progress func(done, total int)) error {
	c := &copier{t: t, from: from, to: to, step: step, progress: progress, buf: make([]byte, chunk), sums: map[string]*entry{}}
	for _, d := range t.dirs {
		if err := c.fill(d); err != nil {
			return fmt.Errorf("copy %s: %w", d.path, err)
		}
	}
	// Directories get their times once nothing changes in them any more.
	for i := len(t.dirs) - 1; i >= 0; i-- {
		if err := c.finishDir(t.dirs[i]); err != nil {
			return fmt.Errorf("copy %s: %w", t.dirs[i].path, err)
		}
	}
	return nil
}

type copier struct {
	t        *Tree
	from, to *os.Root
	step     func() error
	progress func(done, total int)
	done     int
	buf      []byte
	sums     map[string]*entry // files that have more names
}

// fill makes what a directory holds.
func (c *copier) fill(d *dir) error {
	src, err := openDir(c.from, d)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := c.to.Open(d.path)
	if err != nil {
		return err
	}
	defer dst.Close()
	for _, e := range d.children {
		if err := c.step(); err != nil {
			return err
		}
		full := path.Join(d.path, e.name)
		switch {
		case e.kind() == unix.S_IFDIR:
			err = unix.Mkdirat(int(dst.Fd()), e.name, 0o700)
		case e.first != "":
			err = c.to.Link(e.first, full)
			e.sum, e.xattrs = c.sums[e.first].sum, c.sums[e.first].xattrs
		case e.kind() == unix.S_IFLNK:
			err = c.symlink(src, dst, e)
		default:
			if err = c.file(src, dst, e); err == nil && c.progress != nil {
				c.done++
				c.progress(c.done, c.t.Files)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		if e.nlink > 1 && e.first == "" && e.kind() != unix.S_IFDIR {
			c.sums[full] = e
		}
	}
	return nil
}

func (c *copier) finishDir(d *dir) error {
	src, err := openDir(c.from, d)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := c.to.Open(d.path)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := c.step(); err != nil {
		return err
	}
	return finish(src, dst, ".", &d.entry)
}

func (c *copier) symlink(src, dst *os.File, e *entry) error {
	target, err := readlink(src, e.name)
	if err != nil {
		return err
	}
	e.sum = sha256.Sum256([]byte(target))
	if err := unix.Symlinkat(target, int(dst.Fd()), e.name); err != nil {
		return err
	}
	return finish(src, dst, e.name, e)
}

func readlink(d *os.File, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(d.Fd()), name, b)
	if err == nil && n == len(b) {
		err = unix.ENAMETOOLONG
	}
	return string(b[:max(n, 0)]), err
}

// open opens a regular file for reading, without a trace in its times where
// that is allowed.
func open(d *os.File, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(int(d.Fd()), name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Openat(int(d.Fd()), name, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (c *copier) file(src, dst *os.File, e *entry) error {
	in, err := open(src, e.name)
	if err != nil {
		return err
	}
	defer in.Close()
	fd, err := unix.Openat(int(dst.Fd()), e.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), e.name)
	err = extents(in, e, c.buf, c.step, out)
	if err == nil {
		err = out.Truncate(e.size)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return finish(src, dst, e.name, e)
}

// extents hashes a file, holes as zeros, and writes what is no hole to out.
func extents(in *os.File, e *entry, buf []byte, step func() error, out io.WriterAt) error {
	h := sha256.New()
	for off := int64(0); off < e.size; {
		data, err := in.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = e.size, nil
		}
		end := e.size
		if err == nil && data < e.size {
			if end, err = in.Seek(data, unix.SEEK_HOLE); end > e.size {
				end = e.size
			}
		}
		if err == nil {
			err = zeros(h, buf, min(data, e.size)-off, step)
		}
		for off = data; err == nil && off < end; {
			if err = step(); err != nil {
				break
			}
			b := buf[:min(int64(len(buf)), end-off)]
			if _, err = in.ReadAt(b, off); err != nil {
				break
			}
			h.Write(b)
			if out != nil {
				_, err = out.WriteAt(b, off)
			}
			off += int64(len(b))
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("shorter than it was: %w", ErrChanged)
		}
		if err != nil {
			return err
		}
	}
	h.Sum(e.sum[:0])
	return nil
}

func zeros(h hash.Hash, buf []byte, n int64, step func() error) error {
	if n > 0 {
		clear(buf)
	}
	for n > 0 {
		if err := step(); err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), n)]
		h.Write(b)
		n -= int64(len(b))
	}
	return nil
}

// finish gives a copy the owner, mode, attributes and times, in the order in
// which none undoes another.
func finish(src, dst *os.File, name string, e *entry) (err error) {
	if err := unix.Fchownat(int(dst.Fd()), name, int(e.uid), int(e.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner: %w", err)
	}
	if e.kind() != unix.S_IFLNK {
		if err := unix.Fchmodat(int(dst.Fd()), name, uint32(e.mode&0o7777), 0); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	if e.xattrs, err = copyXattrs(src, dst, name); err != nil {
		return err
	}
	times := make([]unix.Timespec, 2)
	for i, t := range []unix.StatxTimestamp{e.atime, e.mtime} {
		if times[i], err = unix.TimeToTimespec(time.Unix(t.Sec, int64(t.Nsec))); err != nil {
			return fmt.Errorf("times: %w", err)
		}
	}
	if err := unix.UtimesNanoAt(int(dst.Fd()), name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}
