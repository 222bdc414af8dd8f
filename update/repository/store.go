package repository

import (
	"context"
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
	return durable.WriteFunc(p, 0o644, func(w io.Writer) error {
		_, err := io.CopyBuffer(w, &ctxReader{ctx, r}, make([]byte, 256<<10))
		return err
	})
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
