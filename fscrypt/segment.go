package fscrypt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"time"

	"filippo.io/age"
)

// Append adds a segment at the end of a file, or starts the file: for
// recordings. The segment becomes visible when Close returns nil. Unlike a new
// version, what was written of it is not all lost in a power cut: the next
// Open keeps the whole chunks of 64 KiB that had reached the disk, of which
// Sync makes sure. A file has at most 4096 segments and one Append at a time.
func (v *Volume) Append(name string) (_ *Writer, err error) {
	defer boundary("append to "+name, &err)
	if err := v.hold(name); err != nil {
		return nil, err
	}
	epoch := v.beginWrite()
	defer func() {
		if err != nil {
			v.endWrite(epoch)
			v.unhold(name)
		}
	}()
	o, err := v.newObject()
	if err != nil {
		return nil, err
	}
	o.sink.through = true // what a program that is killed had written is in the file
	if err = o.sink.spill(); err == nil {
		err = o.sink.sync()
	}
	if err == nil {
		err = v.addSegment(name, o.part)
	}
	if err != nil {
		return nil, errors.Join(err, v.discard(o))
	}
	o.keep = true
	return &Writer{v: v, name: name, o: o, segment: true, epoch: epoch}, nil
}

// addSegment notes that a segment is being written.
func (v *Volume) addSegment(name string, p part) error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	p.Open = true
	next := entry{Version: 1, ModTime: time.Now().UnixNano()}
	if err := v.endLeftOver(name); err != nil {
		return err
	}
	if e := v.m.files[name]; e != nil {
		if e.segment() >= 0 {
			return errors.New("another Append to it is open")
		}
		if len(e.Parts) >= maxParts {
			return fmt.Errorf("has %d segments, the most allowed: write it anew", maxParts)
		}
		next.Version = e.Version + 1
		next.Parts = slices.Clone(e.Parts)
	}
	next.Parts = append(next.Parts, p)
	if err := v.record(&op{Op: opPut, Name: name, File: &next}); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.active[p.ID] = true
	return nil
}

// inactive says that nobody writes a segment any more.
func (v *Volume) inactive(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.active, id)
}

// segment is the index of the part that is still being written, or -1.
func (e *entry) segment() int { return slices.IndexFunc(e.Parts, func(p part) bool { return p.Open }) }

// closeSegment ends a segment; failed is why its writing failed, if it did.
// Then the whole chunks that authenticate are kept, at the latest when the
// file is appended to or the volume opened again.
func (v *Volume) closeSegment(name string, o *object, failed error) error {
	id := o.part.ID
	defer v.inactive(id)
	if failed == nil {
		failed = v.finish(o)
	} else {
		failed = errors.Join(failed, v.discard(o))
	}
	if failed == nil {
		return v.endSegment(name, id, &o.part)
	}
	v.wmu.Lock()
	defer v.wmu.Unlock()
	v.inactive(id)
	if v.usable() == nil {
		failed = errors.Join(failed, v.endLeftOver(name))
	}
	return failed
}

// endSegment puts a finished segment in place of the one being written; nil
// drops it.
func (v *Volume) endSegment(name, id string, p *part) error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	return v.setSegment(name, id, p)
}

// setSegment is endSegment for who has wmu.
func (v *Volume) setSegment(name, id string, p *part) error {
	e := v.m.files[name]
	if e == nil || e.segment() < 0 || e.Parts[e.segment()].ID != id {
		return fmt.Errorf("was removed, renamed or written anew meanwhile: %w", fs.ErrNotExist)
	}
	next := *e
	next.Parts = slices.Clone(e.Parts)
	i := e.segment()
	if p == nil {
		next.Parts = slices.Delete(next.Parts, i, i+1)
	} else {
		next.Parts[i] = *p
		next.ModTime = time.Now().UnixNano()
	}
	if len(next.Parts) == 0 {
		return v.record(&op{Op: opRemove, Name: name})
	}
	return v.record(&op{Op: opPut, Name: name, File: &next})
}

// Sync makes sure that the whole chunks of 64 KiB written so far survive a
// power cut, in a Writer of Append; in one of Create nothing does before
// Close.
func (w *Writer) Sync() (err error) {
	defer boundary("sync "+w.name, &err)
	if w.o == nil {
		return fs.ErrClosed
	}
	if w.err != nil {
		return w.err
	}
	if w.o.sink.file == nil {
		return nil
	}
	if err := w.o.sink.file.Sync(); err != nil {
		w.err = err
		return err
	}
	return nil
}

// salvage ends the segments that a cut left unfinished. Where the disk is full
// or fails, one stays as it is, for a later try. It needs wmu, or that nobody
// else uses the volume.
func (v *Volume) salvage(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(v.m.files)) {
		if err := v.endLeftOver(name); err != nil {
			v.event(ctx, slog.LevelWarn, "fscrypt.salvage.failed", slog.String("reason", err.Error()))
		}
	}
}

// endLeftOver ends a file's segment that nobody writes any more, if it has one:
// the whole chunks that authenticate are kept. It needs wmu.
func (v *Volume) endLeftOver(name string) error {
	e := v.m.files[name]
	if e == nil || e.segment() < 0 {
		return nil
	}
	p := e.Parts[e.segment()]
	v.mu.RLock()
	active := v.active[p.ID]
	v.mu.RUnlock()
	if active {
		return nil
	}
	kept, err := v.salvagePart(p)
	if err != nil {
		return err
	}
	if err := v.setSegment(name, p.ID, kept); err != nil {
		if kept != nil {
			err = errors.Join(err, v.unrecorded(*kept))
		}
		return err
	}
	return v.dropParts(&entry{Parts: []part{p}})
}

// salvagePart copies the authenticated prefix of an unfinished object into a
// new one; nil if there is none.
func (v *Volume) salvagePart(p part) (*part, error) {
	f, err := v.disk.Open("objects/" + p.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := age.Decrypt(f, v.objectKey(p))
	if err != nil {
		return nil, nil // not even its header reached the disk
	}
	o, err := v.newObject()
	if err != nil {
		return nil, err
	}
	if err := o.sink.spill(); err != nil { // many small ones would make a record too large
		return nil, errors.Join(err, v.discard(o))
	}
	buf := make([]byte, chunkSize)
	for {
		n, rerr := io.ReadFull(r, buf)
		if n == 0 || (rerr != nil && n < chunkSize && !errors.Is(rerr, io.ErrUnexpectedEOF)) {
			break
		}
		if _, err := o.age.Write(buf[:n]); err != nil {
			return nil, errors.Join(err, v.discard(o))
		}
		o.part.Size += int64(n)
		if rerr != nil {
			break
		}
	}
	if o.part.Size == 0 {
		return nil, v.discard(o)
	}
	if err := v.finish(o); err != nil {
		return nil, err
	}
	return &o.part, nil
}
