package fscrypt

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"time"

	"filippo.io/age"
)

// Rotate changes the volume key: the protectors given become the slots in
// place of all old ones, and every file is encrypted anew, so that whoever
// knew the old key, or can open a removed slot, reads nothing that the disk
// holds afterwards. The volume stays in use meanwhile.
//
// Rotate waits for writers that began before it. It can be cut off at any step.
// Status.Rotating then says so after the next Open, and Rotate without
// protectors goes on where it ended.
//
// In kernel mode, where a directory can't be encrypted anew in place, Rotate
// copies it to one under a new key, reads the copy back, puts it in force with
// one write of the header, and removes the old one. It takes as much space
// again (syscall.ENOSPC) and the directory for itself: while others have files
// open there it is a *BusyError and nothing is changed; until Rotate returns,
// stop the programs that use it. What they change all the same makes it fail;
// at its end, their calls fail for some moments as if the volume were locked.
// The volume's own methods that read files return ErrLocked meanwhile, Lock a
// *BusyError. Rotate keeps modes, owners, times, attributes, links and holes,
// and what Protect noted, which must still be so (ErrTampered). Sockets, pipes,
// devices, mounts, and files that are immutable, append-only or under fs-verity
// are refused before anything is changed. Cut off or cancelled before the
// write, it is undone, at once or by the next Open, and needs its protectors
// again; after it, the next Open finishes it, or Rotate without protectors.
func (v *Volume) Rotate(ctx context.Context, protectors ...Protector) (err error) {
	defer boundary("rotate "+v.dir, &err)
	select {
	case v.rotating <- struct{}{}:
		defer func() { <-v.rotating }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if v.kernelMode {
		return v.rotateKernel(ctx, protectors)
	}
	if len(protectors) > 0 {
		if err := v.newEpoch(ctx, protectors); err != nil {
			return err
		}
	}
	v.wmu.Lock()
	if v.usable() == nil {
		v.salvage(ctx)
	}
	v.wmu.Unlock()
	for {
		left, err := v.stale()
		if err != nil {
			return err
		}
		if len(left) == 0 {
			done, err := v.endRotation(ctx)
			if done || err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(writersPoll):
			}
		}
		for i, name := range left {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := v.reencrypt(name); err != nil {
				return err
			}
			if v.progress != nil {
				v.progress(i+1, len(left))
			}
		}
	}
}

// writersPoll is how long Rotate waits before it looks again whether writers
// under old keys are done.
const writersPoll = 10 * time.Millisecond

// newEpoch puts a new volume key in force. Old ones stay in the encrypted part
// of the header until no file needs them.
func (v *Volume) newEpoch(ctx context.Context, protectors []Protector) (err error) {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	old := v.header.Slots
	epoch := v.header.Epoch
	vk := randomSecret()
	slots, n, err := v.newSlots(ctx, vk, protectors, old)
	if err != nil {
		vk.Erase()
		return err
	}
	p := *v.private
	p.Old = slices.Clone(p.Old)
	err = v.keys[epoch].Use(func(b []byte) error {
		p.Old = append(p.Old, oldKey{Epoch: epoch, Key: slices.Clone(b)})
		return nil
	})
	if err != nil {
		vk.Erase()
		return errors.Join(err, n.undo(ctx))
	}
	defer n.forget()
	// From here on the new slots may be in force, whatever fails.
	if err := v.replaceHeader(vk, &p, func(h *header) { h.Epoch, h.Slots = epoch+1, slots }); err != nil {
		vk.Erase()
		return err
	}
	v.mu.Lock()
	v.keys[epoch+1] = vk
	v.mu.Unlock()
	if err := v.rewriteLog(v.m.gen, epoch+1); err != nil {
		return err
	}
	if err := v.checkpoint(ctx); err != nil {
		return err
	}
	v.keepAll(ctx, n)
	v.given = protectors
	v.changeLease(n.lease)
	v.event(ctx, slog.LevelInfo, "fscrypt.rotating", slog.Uint64("epoch", epoch+1))
	return v.retire(ctx, old, v.header.Slots, protectors)
}

// stale lists the files that an old volume key opens.
func (v *Volume) stale() ([]string, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.locked != nil {
		return nil, v.locked
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(v.m.files)) {
		e := v.m.files[name]
		if e.stale(v.header.Epoch) && e.segment() >= 0 {
			return nil, &BusyError{Open: 1, Paths: []string{name + ": Append is open"}}
		}
		if e.stale(v.header.Epoch) {
			names = append(names, name)
		}
	}
	return names, nil
}

func (e *entry) stale(epoch uint64) bool {
	return slices.ContainsFunc(e.Parts, func(p part) bool { return p.Epoch != epoch })
}

// reencrypt copies the parts of a file that an old key opens into new objects.
func (v *Volume) reencrypt(name string) error {
	f, err := v.openFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	defer f.Close()
	next := *f.entry
	next.Parts = slices.Clone(next.Parts)
	var made []part
	for i := range f.parts {
		p := &f.parts[i]
		if p.Epoch == v.epoch() {
			continue
		}
		n, err := v.copyPart(p, len(f.parts) > 1)
		if err != nil {
			v.wmu.Lock()
			defer v.wmu.Unlock()
			return errors.Join(damaged(p.ID, err), v.dropParts(&entry{Parts: made}))
		}
		made = append(made, n)
		next.Parts[i] = n
	}
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	if v.m.files[name] != f.entry { // written or moved meanwhile: seen again
		return v.dropParts(&entry{Parts: made})
	}
	if err := v.record(&op{Op: opPut, Name: name, File: &next}); err != nil {
		return errors.Join(err, v.unrecorded(made...))
	}
	v.tidy()
	return v.dropParts(&entry{Parts: slices.DeleteFunc(slices.Clone(f.entry.Parts), func(p part) bool {
		return slices.ContainsFunc(next.Parts, func(q part) bool { return p.ID == q.ID })
	})})
}

func (v *Volume) epoch() uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.header.Epoch
}

// copyPart encrypts an object anew, where asked for in a file of its own: many
// small ones would make a record too large.
func (v *Volume) copyPart(p *partReader, own bool) (part, error) {
	r, err := age.Decrypt(p.file, v.objectKey(p.part))
	if err != nil {
		return part{}, err
	}
	o, err := v.newObject()
	if err != nil {
		return part{}, err
	}
	var n int64
	if own {
		err = o.sink.spill()
	}
	if err == nil {
		n, err = io.Copy(o.age, r)
	}
	if err == nil && n != p.Size+p.Pad {
		err = ErrTampered
	}
	if err != nil {
		return part{}, errors.Join(err, v.discard(o))
	}
	o.part.Size, o.part.Pad = p.Size, p.Pad
	err = v.finish(o)
	return o.part, err
}

// endRotation forgets the old volume keys, unless somebody still writes, or
// meanwhile wrote, under one.
func (v *Volume) endRotation(ctx context.Context) (done bool, err error) {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	left, err := v.stale()
	if err != nil || len(left) > 0 || v.oldWriters() {
		return false, err
	}
	if len(v.private.Old) == 0 {
		return true, nil
	}
	p := *v.private
	p.Old = nil
	old := v.private.Old
	if p.Kernel != nil {
		k := *p.Kernel
		k.Old = nil
		p.Kernel = &k
	}
	if v.num.epoch != v.header.Epoch {
		if err := v.rewriteLog(v.m.gen, v.header.Epoch); err != nil {
			return false, err
		}
	}
	if err := v.commitHeader(&p, func(*header) {}); err != nil {
		return false, err
	}
	v.mu.Lock()
	for _, o := range old {
		v.keys[o.Epoch].Erase()
		delete(v.keys, o.Epoch)
		clear(o.Key)
	}
	v.mu.Unlock()
	v.event(ctx, slog.LevelInfo, "fscrypt.rotated", slog.Uint64("epoch", v.header.Epoch))
	return true, v.checkpoint(ctx)
}

// beginWrite counts a writer under the current volume key.
func (v *Volume) beginWrite() (epoch uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	epoch = v.header.Epoch
	v.writers[epoch]++
	return epoch
}

func (v *Volume) endWrite(epoch uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.writers[epoch]--; v.writers[epoch] == 0 {
		delete(v.writers, epoch)
	}
}

// oldWriters reports whether somebody writes under an old volume key.
func (v *Volume) oldWriters() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for epoch := range v.writers {
		if epoch != v.header.Epoch {
			return true
		}
	}
	return false
}
