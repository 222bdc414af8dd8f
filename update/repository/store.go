package repository

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/trusttree/trusttree/internal/durable"
)

// Store holds a repository's files: a directory, or any object store. Names
// are slash-separated. Implementations are safe for concurrent use.
type Store interface {
	// Get returns a file; fs.ErrNotExist where there is none.
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	// Put makes a file, atomically and durably; when r fails, nothing
	// appears. It returns fs.ErrExist when the name is taken, unless
	// replace is set, which it is for metadata/timestamp.json and drafts.
	Put(ctx context.Context, name string, r io.Reader, replace bool) error
}

// locker is a Store that keeps two edits apart until one is published.
type locker interface {
	// lock returns ErrConflict when somebody else holds the lock.
	lock() (unlock func(), err error)
}

// DirStore keeps a repository in a directory, from which any web server can
// serve it.
func DirStore(dir string) Store { return dirStore(dir) }

type dirStore string

func (d dirStore) path(name string) (string, error) {
	if !fs.ValidPath(name) || !filepath.IsLocal(filepath.FromSlash(name)) {
		return "", &fs.PathError{Op: "store", Path: name, Err: fs.ErrInvalid}
	}
	return filepath.Join(string(d), filepath.FromSlash(name)), nil
}

func (d dirStore) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := d.path(name)
	if err != nil {
		return nil, err
	}
	return os.Open(p)
}

func (d dirStore) Put(ctx context.Context, name string, r io.Reader, replace bool) error {
	p, err := d.path(name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(p); !replace && err == nil {
		return &fs.PathError{Op: "put", Path: p, Err: fs.ErrExist}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	write := func(w io.Writer) error {
		_, err := io.CopyBuffer(w, &ctxReader{ctx, r}, make([]byte, 256<<10))
		return err
	}
	if replace {
		return durable.WriteFunc(p, 0o644, write)
	}
	return putNew(p, write)
}

// putNew makes a file that must not be there yet. Of two that make it at the
// same time one succeeds: a link, unlike a renaming, replaces nothing.
func putNew(p string, write func(io.Writer) error) (err error) {
	tmp := filepath.Join(filepath.Dir(p), ".new.tmp-"+rand.Text())
	if err := durable.WriteFunc(tmp, 0o644, write); err != nil {
		return err
	}
	err = os.Link(tmp, p)
	switch {
	case err == nil, errors.Is(err, fs.ErrExist):
		return errors.Join(err, durable.Remove(tmp))
	}
	// A file system without links: who looks first is first.
	if _, serr := os.Lstat(p); serr == nil {
		return errors.Join(&fs.PathError{Op: "put", Path: p, Err: fs.ErrExist}, durable.Remove(tmp))
	}
	return durable.Rename(tmp, p)
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// get reads a small file of a store.
func get(ctx context.Context, s Store, name string) ([]byte, error) {
	r, err := s.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxMetadata+1))
	if err == nil && len(data) > maxMetadata {
		err = fmt.Errorf("%s: more than %d bytes", name, maxMetadata)
	}
	return data, err
}

const maxMetadata = 64 << 20 // bytes of one metadata file
