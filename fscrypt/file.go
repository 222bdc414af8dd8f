package fscrypt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"

	"filippo.io/age"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// chunkSize is age's: what is decrypted and authenticated at once.
const chunkSize = 64 << 10

// File reads one version of a file, from anywhere in it. ReadAt may be called
// concurrently. What a File returns was authenticated: a changed, swapped or
// cut object is ErrTampered.
type File struct {
	v     *Volume
	name  string
	info  fileInfo
	entry *entry
	parts []partReader

	mu     sync.Mutex // guards off and closed
	off    int64
	closed bool
}

type partReader struct {
	part
	start int64 // of the part in the file
	file  source
	plain io.ReaderAt
}

// source is what an object is read from: a file, a part of one, or the log's
// copy in memory.
type source interface {
	io.Reader
	io.ReaderAt
	io.Closer
	Size() (int64, error)
}

type memSource struct{ *bytes.Reader }

func (m memSource) Size() (int64, error) { return m.Reader.Size(), nil }
func (m memSource) Close() error         { return nil }

type packSource struct {
	*io.SectionReader
	disk.File
}

func (s packSource) Read(p []byte) (int, error)              { return s.SectionReader.Read(p) }
func (s packSource) ReadAt(p []byte, off int64) (int, error) { return s.SectionReader.ReadAt(p, off) }
func (s packSource) Size() (int64, error)                    { return s.SectionReader.Size(), nil }

func (v *Volume) openPart(p *part) (source, error) {
	if p.Data != nil {
		return memSource{bytes.NewReader(p.Data)}, nil
	}
	f, err := v.disk.Open("objects/" + p.file())
	if err != nil || p.Pack == "" {
		return f, err
	}
	return packSource{io.NewSectionReader(f, p.Off, p.Len), f}, nil
}

// OpenFile opens a file for reading. Close it: a volume with open files can't
// be locked.
func (v *Volume) OpenFile(name string) (opened *File, err error) {
	defer boundary("open "+name, &err)
	err = v.again(func() error {
		f, err := v.openFile(name)
		if err == nil {
			err = f.decrypt()
		}
		opened = f
		return err
	})
	if err != nil {
		return nil, err
	}
	return opened, nil
}

// again repeats what a rotation that ended meanwhile made fail: the file is
// under the new key then.
func (v *Volume) again(f func() error) error {
	for try := 0; ; try++ {
		err := f()
		if !errors.Is(err, ErrLocked) || v.usable() != nil || try == 3 {
			return err
		}
	}
}

// decrypt makes the file's parts readable, or closes it.
func (f *File) decrypt() error {
	v := f.v
	for i := range f.parts {
		p := &f.parts[i]
		size, err := p.file.Size()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		var n int64
		p.plain, n, err = age.DecryptReaderAt(p.file, size, v.objectKey(p.part))
		if err == nil && n != p.Size+p.Pad {
			err = fmt.Errorf("has %d bytes, the manifest says %d", n, p.Size+p.Pad)
		}
		if err != nil {
			return errors.Join(damaged(p.ID, err), f.Close())
		}
	}
	return nil
}

// damaged says that an object does not decrypt; unless it could not be read or
// the volume was locked, which is no sign of tampering.
func damaged(id string, err error) error {
	var pe *fs.PathError
	if errors.Is(err, ErrLocked) || errors.As(err, &pe) {
		return fmt.Errorf("object %s: %w", id, err)
	}
	return fmt.Errorf("object %s: %w: %w", id, ErrTampered, err)
}

func (v *Volume) objectKey(p part) objectKey {
	v.mu.RLock()
	defer v.mu.RUnlock()
	vk := v.keys[p.Epoch]
	if vk == nil {
		vk = new(Secret)
	}
	return objectKey{vk, v.header.UUID, p.ID}
}

// openFile opens the objects of a file and counts it as open.
func (v *Volume) openFile(name string) (*File, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.locked != nil {
		return nil, v.locked
	}
	if err := v.portable(); err != nil {
		return nil, err
	}
	e := v.m.files[name]
	if e == nil {
		if v.m.dirs[name] != nil {
			return nil, errors.New("is a directory")
		}
		return nil, fs.ErrNotExist
	}
	f := &File{v: v, name: name, entry: e}
	f.info, _ = v.m.stat(name) // e is there
	var at int64
	for _, p := range e.Parts {
		if p.Open {
			continue // nothing of it is visible yet
		}
		file, err := v.openPart(&p)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("object %s is gone: %w", p.ID, ErrTampered)
		}
		if err != nil {
			return nil, errors.Join(err, f.closeParts())
		}
		f.parts = append(f.parts, partReader{part: p, start: at, file: file})
		at += p.Size
	}
	v.open[name]++
	return f, nil
}

// Stat returns name, size and time of the file.
func (f *File) Stat() (fs.FileInfo, error) { return f.info, nil }

func (f *File) usable() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	return f.v.usable()
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	n, err = f.readAt(p, off)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("fscrypt: read %s: %w", f.name, err)
	}
	return n, err
}

func (f *File) readAt(p []byte, off int64) (n int, err error) {
	if err := f.usable(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	for i := range f.parts {
		pr := &f.parts[i]
		if off >= pr.Size {
			off -= pr.Size
			continue
		}
		for len(p) > 0 && off < pr.Size {
			m, err := f.v.cache.read(pr, p, off)
			if err != nil {
				return n, damaged(pr.ID, err)
			}
			n, off, p = n+m, off+int64(m), p[m:]
		}
		if len(p) == 0 {
			return n, nil
		}
		off = 0
	}
	if len(p) == 0 {
		return n, nil
	}
	return n, io.EOF
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	f.mu.Lock()
	off := f.off
	f.mu.Unlock()
	n, err := f.ReadAt(p, off)
	f.mu.Lock()
	f.off = off + int64(n)
	f.mu.Unlock()
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// WriteTo implements io.WriterTo: it writes what is left of the file, and
// decrypts ahead on several cores. After an error, what was written is an
// authenticated prefix.
func (f *File) WriteTo(w io.Writer) (n int64, err error) {
	f.mu.Lock()
	off := f.off
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.off = off + n
		f.mu.Unlock()
	}()
	for i := range f.parts {
		p := &f.parts[i]
		if off+n >= p.start+p.Size {
			continue
		}
		m, err := f.stream(w, p, off+n-p.start)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Decrypting ahead: spans in flight, and bytes of each.
const (
	aheadSpans = 4
	aheadSize  = 16 * chunkSize
)

// stream writes a part from an offset on.
func (f *File) stream(w io.Writer, p *partReader, off int64) (n int64, err error) {
	type span struct {
		b   []byte
		err error
	}
	workers := min(runtime.GOMAXPROCS(0), aheadSpans)
	free := make(chan []byte, workers)
	for range workers {
		free <- nil
	}
	next := make(chan chan span, workers)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		defer close(next)
		for at := off; at < p.Size; {
			var buf []byte
			select {
			case buf = <-free:
			case <-stop:
				return
			}
			if buf == nil {
				buf = make([]byte, aheadSize)
			}
			end := min((at/aheadSize+1)*aheadSize, p.Size) // spans begin with a chunk
			b, from := buf[:end-at], at                    // the capacity stays
			done := make(chan span, 1)
			wg.Go(func() {
				m, err := p.plain.ReadAt(b, from)
				if err == io.EOF && m == len(b) {
					err = nil
				}
				done <- span{b, err}
			})
			next <- done
			at = end
		}
	})
	for done := range next {
		s := <-done
		if err := errors.Join(s.err, f.usable()); err != nil {
			return n, fmt.Errorf("fscrypt: read %s: %w", f.name, damaged(p.ID, err))
		}
		m, err := w.Write(s.b)
		n += int64(m)
		if err != nil {
			return n, err
		}
		free <- s.b[:cap(s.b)]
	}
	return n, nil
}

// Seek implements io.Seeker.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += f.off
	case io.SeekEnd:
		offset += f.info.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("fscrypt: seek %s: %w", f.name, fs.ErrInvalid)
	}
	f.off = offset
	return offset, nil
}

// Close closes the file.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("fscrypt: close %s: %w", f.name, fs.ErrClosed)
	}
	f.closed = true
	f.v.unhold(f.name)
	return f.closeParts()
}

func (f *File) closeParts() error {
	var errs []error
	for _, p := range f.parts {
		errs = append(errs, p.file.Close())
	}
	return errors.Join(errs...)
}

// ReadFile returns a whole file, or nothing. In kernel mode, it returns files
// that Protect noted.
func (v *Volume) ReadFile(name string) (data []byte, err error) {
	defer boundary("read "+name, &err)
	if v.kernelMode {
		return v.readProtected(name)
	}
	err = v.again(func() error {
		data, err = v.readFile(name)
		return err
	})
	return data, err
}

func (v *Volume) readFile(name string) ([]byte, error) {
	f, err := v.openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.info.size > maxReadFile {
		return nil, fmt.Errorf("has %d bytes, ReadFile returns at most %d: use OpenFile", f.info.size, int64(maxReadFile))
	}
	data := make([]byte, f.info.size)
	rest := data
	for i := range f.parts {
		p := &f.parts[i]
		if err := v.readPart(p, rest[:p.Size]); err != nil {
			clear(data)
			return nil, damaged(p.ID, err)
		}
		rest = rest[p.Size:]
	}
	return data, nil
}

// maxReadFile bounds what ReadFile holds in memory, in bytes.
const maxReadFile = 1 << 30

// readPart decrypts a whole object, which must fill data exactly.
func (v *Volume) readPart(p *partReader, data []byte) error {
	size, err := p.file.Size()
	if err != nil {
		return err
	}
	var src io.Reader = p.file
	if size <= chunkSize {
		b := make([]byte, size)
		if _, err := io.ReadFull(p.file, b); err != nil {
			return err
		}
		src = bytes.NewReader(b)
	}
	r, err := age.Decrypt(src, v.objectKey(p.part))
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(r, data); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(r, p.Pad+1)); err != nil || n != p.Pad {
		return errors.Join(errors.New("not as long as the manifest says"), err)
	}
	return nil
}
