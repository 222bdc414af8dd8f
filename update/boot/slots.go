package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/update"
)

// FileSlots are slots whose parts are files or block devices. The key says
// which: "a/rootfs" is part rootfs of slot a.
type FileSlots struct {
	// Paths maps SLOT/PART to a device or file.
	Paths map[string]string
	// Dir, where Paths has no entry, holds DIR/SLOT/PART as a file.
	Dir string
	// Capacity is how many bytes a file in Dir may hold. Zero means no files
	// are made in Dir.
	Capacity int64
}

// Open implements update.Slots.
func (s FileSlots) Open(ctx context.Context, slot update.Slot, part string) (update.SlotFile, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if path, ok := s.Paths[string(slot)+"/"+part]; ok {
		return openDevice(path)
	}
	if s.Dir == "" || s.Capacity <= 0 || !filepath.IsLocal(string(slot)) || !filepath.IsLocal(part) || filepath.Base(part) != part {
		return nil, fmt.Errorf("boot: no place for part %q in slot %q", part, slot)
	}
	dir := filepath.Join(s.Dir, string(slot))
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, part), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := durable.SyncDir(dir); err != nil { // the file may be new
		return nil, errors.Join(err, f.Close())
	}
	return &slotFile{File: f, size: s.Capacity}, nil
}

// OpenBase opens a part for reading only: the running slot, whose blocks an
// update reuses.
func (s FileSlots) OpenBase(ctx context.Context, slot update.Slot, part string) (update.SlotFile, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path, ok := s.Paths[string(slot)+"/"+part]
	if !ok {
		if s.Dir == "" || !filepath.IsLocal(string(slot)) || filepath.Base(part) != part {
			return nil, fmt.Errorf("boot: no place for part %q in slot %q", part, slot)
		}
		path = filepath.Join(s.Dir, string(slot), part)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &slotFile{File: f, size: size}, nil
}

func openDevice(path string) (update.SlotFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &slotFile{File: f, size: size}, nil
}

type slotFile struct {
	*os.File
	size   int64
	direct *os.File // for large reads, which come from the medium; may be nil
	tried  bool     // to open direct
}

func (f *slotFile) Size() int64 { return f.size }

// ReadAt reads large aligned pieces from the medium itself. Like the rest of a
// SlotFile it is used by one goroutine at a time.
func (f *slotFile) ReadAt(p []byte, off int64) (int, error) {
	if fitsDirect(p, off) {
		if !f.tried {
			f.direct, f.tried = openDirect(f.File), true
		}
		if f.direct != nil {
			n, err := f.direct.ReadAt(p, off)
			if !errors.Is(err, syscall.EINVAL) {
				return n, err
			}
			_ = f.direct.Close() // the device wants another alignment
			f.direct = nil
		}
	}
	return f.File.ReadAt(p, off)
}

// Close closes the file.
func (f *slotFile) Close() error {
	if f.direct != nil {
		return errors.Join(f.File.Close(), f.direct.Close())
	}
	return f.File.Close()
}

func (f *slotFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > f.size {
		return 0, fmt.Errorf("boot: write %d bytes at %d of %s, which has %d: %w", len(p), off, f.Name(), f.size, syscall.ENOSPC)
	}
	return f.File.WriteAt(p, off)
}

// Sync writes to the medium and drops the page cache, so that what is read
// back comes from the medium.
func (f *slotFile) Sync() error {
	if err := f.File.Sync(); err != nil {
		return err
	}
	return dropCache(f.File)
}
