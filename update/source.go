package update

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Source is where a repository is read from: metadata/… and targets/… below
// one root. Implementations are safe for concurrent use.
type Source interface {
	// Open returns the bytes of a file from offset off on. name is
	// slash-separated and not escaped, but that role names in metadata/ are
	// percent-encoded, as they are in a URL. n is how many bytes are wanted, or
	// negative for all; a source may deliver more, which is not read. What
	// is not there is reported as fs.ErrNotExist. When ctx is done, reading
	// fails.
	Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error)
}

// FSSource reads a repository from a file system: a USB stick, a mirror on
// disk, a test's map. Names that are not plain relative paths and files that
// are not regular are refused; use os.Root.FS to keep symbolic links from
// leading out.
func FSSource(fsys fs.FS) Source { return fsSource{fsys} }

type fsSource struct{ fsys fs.FS }

func (s fsSource) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !fs.ValidPath(name) || strings.Contains(name, "\\") {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	if err := noLinks(s.fsys, name); err != nil {
		return nil, err
	}
	f, err := s.fsys.Open(name)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err == nil && off > 0 {
		if sk, ok := f.(io.Seeker); ok {
			_, err = sk.Seek(off, io.SeekStart)
		} else {
			_, err = io.CopyN(io.Discard, f, off)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &ctxReader{ctx: ctx, r: f, c: f}, nil
}

// noLinks refuses symbolic links and devices on the way to a file, where the
// file system can tell before opening.
func noLinks(fsys fs.FS, name string) error {
	l, ok := fsys.(fs.ReadLinkFS)
	if !ok {
		return nil
	}
	for p := name; p != "."; p = path.Dir(p) {
		fi, err := l.Lstat(p)
		if err != nil {
			return err
		}
		if fi.Mode()&^fs.ModePerm&^fs.ModeDir != 0 {
			return &fs.PathError{Op: "open", Path: p, Err: errors.New("neither a regular file nor a directory")}
		}
	}
	return nil
}

// ctxReader stops reading once its context is done.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
	c   io.Closer
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

func (r *ctxReader) Close() error { return r.c.Close() }
