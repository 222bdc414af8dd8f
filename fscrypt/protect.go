package fscrypt

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"
)

// The kernel's encryption does not authenticate. For files that matter, the
// manifest of a kernel mode volume holds size and SHA-256.

// Protect makes files of a kernel mode volume durable and notes their digests
// in the manifest: from now on ReadFile returns exactly this content, and
// Verify finds any other. Checkpoint witnesses it. Call it again after each
// change; until then a changed file is ErrTampered. Names are relative to Path.
func (v *Volume) Protect(ctx context.Context, names ...string) (err error) {
	defer boundary("protect", &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	for _, name := range names {
		if err := v.usable(); err != nil {
			return err
		}
		e, err := v.digest(ctx, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		v.mu.RLock()
		err = v.m.room(name)
		if old := v.m.files[name]; old != nil {
			e.Version = old.Version + 1
		}
		v.mu.RUnlock()
		if err == nil {
			err = v.record(&op{Op: opPut, Name: name, File: e})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Unprotect forgets the digests of files, which stay as they are.
func (v *Volume) Unprotect(names ...string) (err error) {
	defer boundary("unprotect", &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	for _, name := range names {
		if err := v.usable(); err != nil {
			return err
		}
		if v.m.files[name] == nil || v.m.files[name].Digest == nil {
			return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		if err := v.record(&op{Op: opRemove, Name: name}); err != nil {
			return err
		}
	}
	return nil
}

// Verify reads every protected file of a kernel mode volume. Its error joins
// one ErrTampered for each that is not as Protect noted it.
func (v *Volume) Verify(ctx context.Context) (err error) {
	defer boundary("verify "+v.dir, &err)
	if !v.kernelMode {
		return fmt.Errorf("a portable volume authenticates whatever is read: %w", ErrUnsupported)
	}
	v.mu.RLock()
	files := maps.Clone(v.m.files)
	v.mu.RUnlock()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := v.usable(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		now, err := v.digest(ctx, name)
		if err == nil {
			err = files[name].compare(now)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("is gone: %w", ErrTampered)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		v.event(ctx, slog.LevelError, "fscrypt.tampered", slog.Int("files", len(errs)), slog.String("reason", err.Error()))
		return err
	}
	return nil
}

// openTreeFile opens a file of the encrypted directory.
func (v *Volume) openTreeFile(name string) (*os.File, error) {
	if !v.kernelMode {
		return nil, fmt.Errorf("a portable volume protects every file: %w", ErrUnsupported)
	}
	if err := validName(name); err != nil {
		return nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.tree == nil || v.tree.root == nil {
		return nil, ErrLocked
	}
	f, err := v.tree.root.Open(name)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// digest makes a file durable and describes it.
func (v *Volume) digest(ctx context.Context, name string) (*entry, error) {
	f, err := v.openTreeFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return nil, err
	}
	h := sha256.New()
	n, err := io.Copy(h, untilDone{ctx, f})
	if err != nil {
		return nil, err
	}
	return newDigest(h, n), nil
}

func newDigest(h hash.Hash, size int64) *entry {
	return &entry{Version: 1, ModTime: time.Now().UnixNano(), Digest: h.Sum(nil), Bytes: size}
}

func (e *entry) compare(now *entry) error {
	if e.Bytes != now.Bytes || subtle.ConstantTimeCompare(e.Digest, now.Digest) != 1 {
		return fmt.Errorf("is not what was protected: %w", ErrTampered)
	}
	return nil
}

// readProtected returns a protected file, or nothing.
func (v *Volume) readProtected(name string) ([]byte, error) {
	v.mu.RLock()
	e, locked := v.m.files[name], v.locked
	v.mu.RUnlock()
	switch {
	case locked != nil:
		return nil, locked
	case e == nil:
		return nil, fmt.Errorf("is not protected; %w", v.portable())
	case e.Bytes > maxReadFile:
		return nil, fmt.Errorf("has %d bytes, ReadFile returns at most %d", e.Bytes, int64(maxReadFile))
	}
	f, err := v.openTreeFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("is gone: %w", ErrTampered)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, e.Bytes+1))
	if err == nil {
		h := sha256.New()
		h.Write(data)
		err = e.compare(newDigest(h, int64(len(data))))
	}
	if err != nil {
		clear(data)
		return nil, err
	}
	return data, nil
}

// untilDone ends a copy with its context.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}
