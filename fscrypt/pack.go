package fscrypt

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
	"github.com/trusttree/trusttree/fscrypt/internal/journal"
)

// Small objects first live in the log. When they have grown to maxLogged bytes
// they move to one file together, a pack, and the log is written anew once
// most of it is what moved out.
const (
	maxLogged = 4 << 20
	maxLog    = 32 << 20
)

// tidy moves small objects out of the log when there are many. What was
// written is durable before, so that a failure is no failure of the write: it
// is tried again when as much has been written once more. It needs wmu.
func (v *Volume) tidy() {
	if v.m.inline < v.maxLogged+v.packLater {
		return
	}
	if err := v.pack(); err != nil {
		v.packLater = v.m.inline
		v.event(context.Background(), slog.LevelWarn, "fscrypt.pack.failed", slog.String("reason", err.Error()))
		return
	}
	v.packLater = 0
}

// pack moves the small objects to a file of their own.
func (v *Volume) pack() error {
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
		if err := v.record(o); err != nil {
			return errors.Join(err, v.unrecorded(part{ID: id, Pack: id}))
		}
	}
	if v.log.Size() < maxLog+int64(v.maxLogged) {
		return nil
	}
	return v.compact(v.m.gen)
}

// fillPack writes the objects of the log one behind the other and returns the
// changes of the manifest, as records that a power cut leaves whole or not at
// all.
func (v *Volume) fillPack(s *sink) (moved []*op, err error) {
	var w packBuffer
	var size int
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
		o := &op{Op: opPut, Name: name, File: &next}
		b, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		if size += len(b) + 1; size > journal.MaxRecord-batchRoom || len(moved) == 0 {
			moved = append(moved, &op{Op: opBatch})
			size = len(b) + 1
		}
		last := moved[len(moved)-1]
		last.Batch = append(last.Batch, o)
	}
	return moved, w.flush(s.file)
}

// batchRoom is what a batch needs beside its changes, in bytes.
const batchRoom = 64

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
