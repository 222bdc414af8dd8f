package fscrypt_test

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

var errCut = errors.New("power cut")

// crashFS is a disk in memory that knows what was flushed. At a chosen step
// the power is cut; Reboot then says what the disk may hold.
type crashFS struct {
	mu    sync.Mutex
	steps int // writes and flushes so far
	cut   int // the step at which the power goes, 0 for never
	files map[string]*inode
	dirs  map[string]bool
	saved map[string]*inode // names that are durable
	todo  []dirOp           // changes of names that are not

	each func() // runs before every step, for what a cut there would leave
	fail func(op string) error
	room int64 // bytes that all files may have, 0 for any number
}

func (c *crashFS) stepAs(op string) error {
	if err := c.step(); err != nil {
		return err
	}
	if c.fail != nil {
		return c.fail(op)
	}
	return nil
}

type inode struct {
	data  []byte
	saved []byte
	dirty []write
}

type write struct {
	off  int64
	data []byte
	trim bool // truncate to off
}

type dirOp struct {
	dir  string
	do   func(map[string]*inode)
	desc string
}

func newCrashFS() *crashFS {
	return &crashFS{files: map[string]*inode{}, saved: map[string]*inode{}, dirs: map[string]bool{".": true}}
}

func (c *crashFS) step() error {
	if c.each != nil {
		c.each()
	}
	if c.cut > 0 && c.steps >= c.cut {
		return errCut
	}
	c.steps++
	return nil
}

func (c *crashFS) change(desc string, do func(map[string]*inode), dirs ...string) {
	do(c.files)
	c.todo = append(c.todo, dirOp{dirs[0], do, desc})
}

func (c *crashFS) Create(name string) (disk.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.stepAs("create"); err != nil {
		return nil, err
	}
	if c.files[name] != nil {
		return nil, fs.ErrExist
	}
	if c.room > 0 && c.used() >= c.room {
		return nil, syscall.ENOSPC
	}
	n := &inode{}
	c.change("create "+name, func(m map[string]*inode) { m[name] = n }, path.Dir(name))
	return &crashFile{c: c, n: n}, nil
}

func (c *crashFS) used() (n int64) {
	for _, f := range c.files {
		n += int64(len(f.data))
	}
	return n
}

func (c *crashFS) Open(name string) (disk.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.files[name]
	if n == nil {
		return nil, fs.ErrNotExist
	}
	return &crashFile{c: c, n: n}, nil
}

func (c *crashFS) Rename(a, b string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.stepAs("rename"); err != nil {
		return err
	}
	n := c.files[a]
	if n == nil {
		return fs.ErrNotExist
	}
	c.change("rename "+a, func(m map[string]*inode) { delete(m, a); m[b] = n }, path.Dir(b))
	return nil
}

func (c *crashFS) Remove(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.stepAs("remove"); err != nil {
		return err
	}
	if c.dirs[name] {
		return nil
	}
	if c.files[name] == nil {
		return fs.ErrNotExist
	}
	c.change("remove "+name, func(m map[string]*inode) { delete(m, name) }, path.Dir(name))
	return nil
}

func (c *crashFS) Mkdir(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirs[name] = true
	return nil
}

func (c *crashFS) List(dir string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for n := range c.files {
		if path.Dir(n) == dir {
			names = append(names, path.Base(n))
		}
	}
	for n := range c.dirs {
		if n != "." && path.Dir(n) == dir {
			names = append(names, path.Base(n))
		}
	}
	return names, nil
}

func (c *crashFS) SyncDir(dir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.stepAs("syncdir"); err != nil {
		return err
	}
	c.todo = slices.DeleteFunc(c.todo, func(o dirOp) bool {
		if o.dir == dir {
			o.do(c.saved)
		}
		return o.dir == dir
	})
	return nil
}

func (c *crashFS) Close() error { return nil }

// Reboot returns the disk after the cut. Of what was not flushed, keep decides
// for each change of a name and each written sector whether it is there.
func (c *crashFS) Reboot(keep func() bool) *crashFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reboot(keep)
}

// reboot is Reboot for each, which has the lock.
func (c *crashFS) reboot(keep func() bool) *crashFS {
	names := maps.Clone(c.saved)
	for _, o := range c.todo {
		if keep() {
			o.do(names)
		}
	}
	out := newCrashFS()
	out.dirs = maps.Clone(c.dirs)
	copies := map[*inode]*inode{}
	for name, n := range names {
		if copies[n] == nil {
			b := slices.Clone(n.saved)
			for _, w := range n.dirty {
				b = w.land(b, keep)
			}
			copies[n] = &inode{data: b, saved: slices.Clone(b)}
		}
		out.files[name], out.saved[name] = copies[n], copies[n]
	}
	return out
}

// land applies those sectors of a write that reached the disk.
func (w write) land(b []byte, keep func() bool) []byte {
	if w.trim {
		if keep() && int64(len(b)) > w.off {
			b = b[:w.off]
		}
		return b
	}
	const sector = 512
	for from := w.off; from < w.off+int64(len(w.data)); {
		to := min((from/sector+1)*sector, w.off+int64(len(w.data)))
		if keep() {
			if int64(len(b)) < to {
				b = append(b, make([]byte, to-int64(len(b)))...)
			}
			copy(b[from:to], w.data[from-w.off:])
		}
		from = to
	}
	return b
}

// fates are what may become of what was not flushed.
func fates(seed uint64) []func() bool {
	rnd := rand.New(rand.NewPCG(seed, 7))
	return []func() bool{
		func() bool { return false },
		func() bool { return true },
		func() bool { return rnd.IntN(2) == 0 },
	}
}

type crashFile struct {
	c   *crashFS
	n   *inode
	off int64
}

func (f *crashFile) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.off)
	f.off += int64(n)
	return n, err
}

func (f *crashFile) WriteAt(p []byte, off int64) (int, error) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if err := f.c.stepAs("write"); err != nil {
		return 0, err
	}
	var err error
	if most := int64(len(f.n.data)) + f.c.room - f.c.used(); f.c.room > 0 && off+int64(len(p)) > most {
		p, err = p[:max(most-off, 0)], syscall.ENOSPC
	}
	if end := off + int64(len(p)); int64(len(f.n.data)) < end {
		f.n.data = append(f.n.data, make([]byte, end-int64(len(f.n.data)))...)
	}
	if len(p) > 0 {
		copy(f.n.data[off:], p)
		f.n.dirty = append(f.n.dirty, write{off: off, data: slices.Clone(p)})
	}
	return len(p), err
}

func (f *crashFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *crashFile) ReadAt(p []byte, off int64) (int, error) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *crashFile) Sync() error {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if err := f.c.stepAs("sync"); err != nil {
		return err
	}
	for _, w := range f.n.dirty {
		f.n.saved = w.land(f.n.saved, func() bool { return true })
	}
	f.n.dirty = nil
	return nil
}

func (f *crashFile) Truncate(size int64) error {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if err := f.c.stepAs("truncate"); err != nil {
		return err
	}
	f.n.data = f.n.data[:size]
	f.n.dirty = append(f.n.dirty, write{off: size, trim: true})
	return nil
}

func (f *crashFile) Size() (int64, error) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	return int64(len(f.n.data)), nil
}

func (f *crashFile) Close() error { return nil }

// leftovers lists temporary files.
func (c *crashFS) leftovers() (names []string) {
	for n := range c.files {
		if strings.HasSuffix(n, ".tmp") {
			names = append(names, n)
		}
	}
	return names
}
