// Package disk is the little that fscrypt asks of a file system, so that tests
// can cut the power at every step of it.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// FS is a directory tree. Names are slash-separated and relative.
type FS interface {
	// Create makes a new file for writing and reading; an existing one is
	// an error.
	Create(name string) (File, error)
	// Open opens a file for reading and writing.
	Open(name string) (File, error)
	Rename(oldName, newName string) error
	Remove(name string) error
	Mkdir(name string) error
	// List returns the names in a directory.
	List(dir string) ([]string, error)
	// SyncDir makes the entries of a directory durable.
	SyncDir(dir string) error
	Close() error
}

// File is an open file. Write appends at the file offset.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
}

// Beginner is a File that can be asked to begin writing to the disk what Sync
// will wait for.
type Beginner interface{ Begin() }

// ReadFile reads a whole file of at most limit bytes.
func ReadFile(d FS, name string, limit int64) ([]byte, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, name, limit)
}

func readAll(f io.Reader, name string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: %w: more than %d bytes", name, ErrTooLarge, limit)
	}
	return b, err
}

// WriteFile replaces a file durably and atomically.
func WriteFile(d FS, name string, data []byte) error {
	tmp := name + ".tmp"
	if err := d.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.Create(tmp)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, ignoreNotExist(d.Remove(tmp)))
	}
	return d.SyncDir(path.Dir(name))
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// OS is a directory of the operating system. It is opened once: what is later
// put in its place on the path is not seen, and no name leads out of it.
type OS struct {
	root *os.Root
	lock *os.File
}

// ErrInUse says that another process has the directory.
var ErrInUse = errors.New("another process has the volume open")

// ErrTooLarge says that a file is larger than what is read of it.
var ErrTooLarge = errors.New("file too large")

// ReadIn reads a regular file of at most limit bytes in a directory, without
// the directory's lock and without waiting for anything.
func ReadIn(dir, name string, limit int64) (b []byte, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	f, err := (&OS{root: root}).open(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, name, limit)
}

// OpenOS opens the directory dir for this process alone.
func OpenOS(dir string) (*OS, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	f, err := root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		if err = lockFile(f); err != nil {
			f.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &OS{root: root, lock: f}, nil
}

// Create implements FS.
func (d *OS) Create(name string) (File, error) {
	return d.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

// Open implements FS.
func (d *OS) Open(name string) (File, error) { return d.open(name, os.O_RDWR) }

func (d *OS) open(name string, flags int) (File, error) {
	f, err := d.root.OpenFile(name, flags|nonblock, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return osFile{f}, nil
}

// Rename implements FS.
func (d *OS) Rename(oldName, newName string) error { return d.root.Rename(oldName, newName) }

// Remove implements FS.
func (d *OS) Remove(name string) error { return d.root.Remove(name) }

// Mkdir implements FS.
func (d *OS) Mkdir(name string) error { return d.root.Mkdir(name, 0o700) }

// List implements FS.
func (d *OS) List(dir string) ([]string, error) {
	f, err := d.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// SyncDir implements FS.
func (d *OS) SyncDir(dir string) error {
	f, err := d.root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Close gives the directory up.
func (d *OS) Close() error { return errors.Join(d.lock.Close(), d.root.Close()) }

type osFile struct{ *os.File }

// Sync implements File.
func (f osFile) Sync() error { return sync(f.File) }

// Begin implements Beginner.
func (f osFile) Begin() { begin(f.File) }

func (f osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}
