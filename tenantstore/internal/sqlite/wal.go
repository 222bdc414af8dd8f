package sqlite

import (
	"sync"

	"github.com/ncruces/go-sqlite3/vfs"
)

// walVFS gathers the small writes to a write-ahead log before the encrypting
// VFS sees them. SQLite writes a frame as 24 bytes and a page, at offsets that
// are no multiple of the cipher's block: written one by one, each costs the
// reading, opening and sealing anew of the blocks it begins and ends in.
// Gathered, a transaction's frames cost that twice in all. What is on the disk
// is the same, byte for byte, and so is when it is there: gathered bytes are
// written before a sync, before anything is read, and before a change of size.
type walVFS struct {
	vfs.VFS
	buffers sync.Pool // of *[walGather]byte, for transactions under way
}

// OpenFilename implements vfs.VFSFilename.
func (v *walVFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, out, err := v.VFS.(vfs.VFSFilename).OpenFilename(name, flags)
	if err == nil && flags&vfs.OPEN_WAL != 0 {
		f = &gathered{File: f, pool: &v.buffers}
	}
	return f, out, err
}

// walGather is how many bytes are gathered at most: 16 frames.
const walGather = 16 * (24 + 4096)

// gathered is used under the connection's lock, as every vfs.File.
type gathered struct {
	vfs.File
	pool *sync.Pool
	mem  *[walGather]byte // lent by the pool until the next sync
	at   int64
	n    int // bytes in mem that are not yet written, for offset at
}

// WriteAt implements vfs.File.
func (w *gathered) WriteAt(p []byte, off int64) (int, error) {
	if w.n > 0 && (off != w.at+int64(w.n) || w.n+len(p) > walGather) {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) > walGather {
		return w.File.WriteAt(p, off)
	}
	if w.mem == nil {
		if w.mem, _ = w.pool.Get().(*[walGather]byte); w.mem == nil {
			w.mem = new([walGather]byte)
		}
	}
	if w.n == 0 {
		w.at = off
	}
	w.n += copy(w.mem[w.n:], p)
	return len(p), nil
}

// flush writes what was gathered. What could not be written stays, so that no
// later read or sync succeeds without it.
func (w *gathered) flush() error {
	if w.n == 0 {
		return nil
	}
	if _, err := w.File.WriteAt(w.mem[:w.n], w.at); err != nil {
		return err
	}
	w.n = 0
	return nil
}

// giveBack returns the memory, so that idle instances hold none.
func (w *gathered) giveBack() {
	if w.mem != nil {
		clear(w.mem[:])
		w.pool.Put(w.mem)
		w.mem = nil
	}
}

// ReadAt implements vfs.File.
func (w *gathered) ReadAt(p []byte, off int64) (int, error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	return w.File.ReadAt(p, off)
}

// Sync implements vfs.File.
func (w *gathered) Sync(flags vfs.SyncFlag) error {
	if err := w.flush(); err != nil {
		return err
	}
	w.giveBack()
	return w.File.Sync(flags)
}

// Truncate implements vfs.File.
func (w *gathered) Truncate(size int64) error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.File.Truncate(size)
}

// Size implements vfs.File.
func (w *gathered) Size() (int64, error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	return w.File.Size()
}

// Close implements vfs.File.
func (w *gathered) Close() error {
	err := w.flush()
	w.giveBack()
	if cerr := w.File.Close(); err == nil {
		err = cerr
	}
	return err
}
