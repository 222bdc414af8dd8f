package fscrypt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"filippo.io/age"
)

// object is an object that is being written.
type object struct {
	part part
	sink *sink
	age  io.WriteCloser
	keep bool // a segment: what was written of it stays when writing fails
}

func (v *Volume) newObject() (*object, error) {
	v.mu.RLock()
	epoch, uuid, vk := v.header.Epoch, v.header.UUID, v.keys[v.header.Epoch]
	v.mu.RUnlock()
	o := &object{part: part{ID: newObjectID(), Epoch: epoch}}
	o.sink = &sink{disk: v.disk, id: o.part.ID}
	var err error
	if o.age, err = age.Encrypt(o.sink, objectKey{vk, uuid, o.part.ID}); err != nil {
		return nil, errors.Join(err, v.discard(o))
	}
	return o, nil
}

// finish makes the object durable, or ready to be put into the log.
func (v *Volume) finish(o *object) error {
	var err error
	if v.pad && o.part.Pad == 0 {
		o.part.Pad = padding(o.part.Size)
		_, err = io.CopyN(o.age, zeros{}, o.part.Pad)
	}
	if err == nil {
		err = o.age.Close()
	}
	if err != nil {
		return errors.Join(err, v.discard(o))
	}
	if o.sink.file == nil {
		o.part.Data = o.sink.mem
		return nil
	}
	if err := o.sink.sync(); err != nil {
		return errors.Join(err, v.discard(o))
	}
	return o.sink.close()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (v *Volume) discard(o *object) error {
	if o.sink.file == nil {
		return nil
	}
	err := o.sink.close()
	if o.keep {
		return err
	}
	return errors.Join(err, v.disk.Remove("objects/"+o.part.ID))
}

// Writer writes a new version of a file. The version becomes visible, whole,
// when Close returns nil, and is then durable. A Writer is for one goroutine.
type Writer struct {
	v    *Volume
	name string
	o    *object // nil once closed
	err  error

	segment bool   // of Append
	epoch   uint64 // counted in Volume.writers
}

// Create starts a new version of a file; directories need not be made. What
// the name held before stays readable until Close. Call Close or Abort.
func (v *Volume) Create(name string) (_ *Writer, err error) {
	defer boundary("create "+name, &err)
	if err := v.hold(name); err != nil {
		return nil, err
	}
	epoch := v.beginWrite()
	o, err := v.newObject()
	if err != nil {
		v.endWrite(epoch)
		v.unhold(name)
		return nil, err
	}
	return &Writer{v: v, name: name, o: o, epoch: epoch}, nil
}

// hold counts a writer of name as open.
func (v *Volume) hold(name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.locked != nil {
		return v.locked
	}
	if err := v.portable(); err != nil {
		return err
	}
	if err := v.m.room(name); err != nil {
		return err
	}
	v.open[name]++
	return nil
}

func (v *Volume) unhold(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open[name]--; v.open[name] <= 0 {
		delete(v.open, name)
	}
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	if w.o == nil {
		return 0, fmt.Errorf("fscrypt: write %s: %w", w.name, fs.ErrClosed)
	}
	if w.err == nil {
		w.err = w.v.usable()
	}
	if w.err != nil {
		return 0, fmt.Errorf("fscrypt: write %s: %w", w.name, w.err)
	}
	n, err := w.o.age.Write(p)
	w.o.part.Size += int64(n)
	if err != nil {
		w.err = err
		err = fmt.Errorf("fscrypt: write %s: %w", w.name, err)
	}
	return n, err
}

// Close makes the new version durable and visible. After a failed Write it
// discards it and returns that error; of a segment of Append it keeps the whole
// chunks, as after a power cut.
func (w *Writer) Close() (err error) {
	defer boundary("write "+w.name, &err)
	if w.o == nil {
		return fs.ErrClosed
	}
	if w.err != nil && !w.segment {
		return errors.Join(w.err, w.Abort())
	}
	o := w.o
	w.o = nil
	defer w.v.unhold(w.name)
	defer w.v.endWrite(w.epoch)
	if w.segment {
		return w.v.closeSegment(w.name, o, w.err)
	}
	if err := w.v.finish(o); err != nil {
		return err
	}
	return w.v.put(w.name, o.part)
}

// Abort discards what was written. After Close it does nothing.
func (w *Writer) Abort() error {
	if w.o == nil {
		return nil
	}
	o := w.o
	w.o = nil
	defer w.v.unhold(w.name)
	defer w.v.endWrite(w.epoch)
	if !w.segment {
		return w.v.discard(o)
	}
	defer w.v.inactive(o.part.ID)
	if w.v.usable() != nil {
		return w.v.discard(o) // the next Open keeps what reached the disk
	}
	err := w.v.endSegment(w.name, o.part.ID, nil)
	o.keep = err != nil
	return errors.Join(err, w.v.discard(o))
}

// put makes a finished object the content of a name.
func (v *Volume) put(name string, p part) error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	err := v.usable()
	if err == nil {
		v.mu.RLock()
		err = v.m.room(name)
		v.mu.RUnlock()
	}
	if err != nil {
		return errors.Join(err, v.dropParts(&entry{Parts: []part{p}}))
	}
	old := v.m.files[name]
	e := &entry{Version: 1, Parts: []part{p}, ModTime: time.Now().UnixNano()}
	if old != nil {
		e.Version = old.Version + 1
	}
	if err := v.record(&op{Op: opPut, Name: name, File: e}); err != nil {
		return errors.Join(err, v.unrecorded(p))
	}
	v.tidy()
	return v.dropParts(old)
}

// dropParts removes the objects of a file that is no more. Open files keep
// theirs until they are closed. It needs wmu, as packs are shared.
func (v *Volume) dropParts(e *entry) error {
	if e == nil {
		return nil
	}
	var errs []error
	for _, p := range e.Parts {
		name := p.file()
		if name == "" || v.m.packs[p.Pack] > 0 {
			continue
		}
		if err := v.disk.Remove("objects/" + name); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unrecorded removes objects that could not be recorded, unless the record may
// have reached the disk all the same: the next Open removes them then.
func (v *Volume) unrecorded(parts ...part) error {
	if v.log.Usable() != nil {
		return nil
	}
	return v.dropParts(&entry{Parts: parts})
}

// WriteFile replaces a file with data, durably and atomically.
func (v *Volume) WriteFile(name string, data []byte) error {
	w, err := v.Create(name)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Close()
}

// Rename gives a file another name, durably and atomically; a file that has
// that name is replaced.
func (v *Volume) Rename(oldName, newName string) (err error) {
	defer boundary("rename "+oldName, &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	old := v.m.files[newName]
	o := &op{Op: opRename, Name: oldName, To: newName}
	if err := v.try(o); err != nil {
		return err
	}
	if err := v.record(o); err != nil {
		return err
	}
	if oldName == newName {
		return nil
	}
	return v.dropParts(old)
}

// try says why a rename can't be made, before it is recorded.
func (v *Volume) try(o *op) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.m.files[o.To]
	if err := v.m.apply(o); err != nil || o.Name == o.To {
		return err
	}
	e := v.m.files[o.To]
	delete(v.m.files, o.To)
	v.m.unlink(o.To)
	v.m.files[o.Name] = e
	v.m.link(o.Name)
	if old != nil {
		v.m.count(old, 1)
		v.m.files[o.To] = old
		v.m.link(o.To)
	}
	return nil
}

// Remove deletes a file, durably.
func (v *Volume) Remove(name string) (err error) {
	defer boundary("remove "+name, &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	old := v.m.files[name]
	if old == nil {
		return fs.ErrNotExist
	}
	if err := v.record(&op{Op: opRemove, Name: name}); err != nil {
		return err
	}
	return v.dropParts(old)
}
