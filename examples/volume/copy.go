package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// untilDone ends a copy when the context does, also while the source says
// nothing.
type untilDone struct {
	ctx    context.Context
	r      io.Reader
	blocks chan []byte
	err    error
	rest   []byte
}

func newReader(ctx context.Context, r io.Reader) io.Reader {
	u := &untilDone{ctx: ctx, r: r, blocks: make(chan []byte)}
	go func() {
		defer close(u.blocks)
		for u.err == nil {
			b := make([]byte, 256<<10)
			var n int
			n, u.err = r.Read(b)
			select {
			case u.blocks <- b[:n]:
			case <-ctx.Done():
				return
			}
		}
	}()
	return u
}

func (u *untilDone) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		if err := u.ctx.Err(); err != nil {
			return 0, err
		}
		select {
		case <-u.ctx.Done():
			return 0, u.ctx.Err()
		case b, ok := <-u.blocks:
			if !ok {
				return 0, u.err
			}
			u.rest = b
		}
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

// whileWanted ends a copy from a source that never waits.
type whileWanted struct {
	ctx context.Context
	w   io.Writer
}

func (u whileWanted) Write(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.w.Write(p)
}

// same compares what two readers have.
func same(ctx context.Context, a, b io.Reader) (bool, error) {
	x, y := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if errA != nil {
			return errB != nil, nil
		}
	}
}

// copyOut makes a file that is whole or not there.
func copyOut(ctx context.Context, src io.Reader, out *os.Root, name string) (int64, error) {
	if _, err := out.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return 0, errors.Join(err, fmt.Errorf("%s: %w", name, fs.ErrExist))
	}
	tmp := name + ".partial"
	dst, err := out.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(whileWanted{ctx, dst}, src)
	if err == nil {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err == nil {
		err = out.Rename(tmp, name)
	}
	if err != nil {
		return n, errors.Join(err, out.Remove(tmp))
	}
	return n, nil
}
