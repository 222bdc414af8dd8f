package fscrypt

import (
	"errors"
	"maps"
	"slices"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// Small objects first live in the log. When they have grown to maxLogged bytes
// they move to one file together, a pack, and the log is written anew once
// most of it is what moved out.
const (
	maxLogged = 4 << 20
	maxLog    = 32 << 20
)

// pack moves small objects out of the log when there are many. It needs wmu.
func (v *Volume) pack() error {
	if v.m.inline < v.maxLogged {
		return nil
	}
	id := newObjectID()
	f, err := v.disk.Create("objects/" + id)
	if err != nil {
		return err
	}
	s := &sink{disk: v.disk, id: id, file: f}
	moved, err := v.fillPack(s)
	if err == nil {
		err = s.sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, v.disk.Remove("objects/"+id))
	}
	for _, o := range moved {
		if err := addOp(v.log, o); err != nil {
			return err
		}
	}
	if err := v.log.Sync(); err != nil {
		return err
	}
	v.mu.Lock()
	for _, o := range moved {
		if err := v.m.apply(o); err != nil {
			v.mu.Unlock()
			return err
		}
	}
	v.mu.Unlock()
	if v.log.Size() < maxLog+int64(v.maxLogged) {
		return nil
	}
	return v.compact(v.m.gen)
}

// fillPack writes the objects of the log one behind the other and returns the
// changes of the manifest.
func (v *Volume) fillPack(s *sink) (moved []*op, err error) {
	var w packBuffer
	for _, name := range slices.Sorted(maps.Keys(v.m.files)) {
		e := v.m.files[name]
		if !slices.ContainsFunc(e.Parts, func(p part) bool { return p.Data != nil }) {
			continue
		}
		next := *e
		next.Parts = slices.Clone(e.Parts)
		for i := range next.Parts {
			p := &next.Parts[i]
			if p.Data == nil {
				continue
			}
			p.Pack, p.Off, p.Len = s.id, w.off, int64(len(p.Data))
			if err := w.add(s.file, p.Data); err != nil {
				return nil, err
			}
			p.Data = nil
		}
		moved = append(moved, &op{Op: opPut, Name: name, File: &next})
	}
	return moved, w.flush(s.file)
}

// packBuffer gathers small objects for larger writes.
type packBuffer struct {
	buf []byte
	off int64
}

func (w *packBuffer) add(f disk.File, b []byte) error {
	w.buf = append(w.buf, b...)
	w.off += int64(len(b))
	if len(w.buf) < 256<<10 {
		return nil
	}
	return w.flush(f)
}

func (w *packBuffer) flush(f disk.File) error {
	_, err := f.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}
