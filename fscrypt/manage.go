package fscrypt

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// retirer is a Protector that keeps something outside the header, which a slot
// that is no more leaves behind.
type retirer interface {
	retire(ctx context.Context, s Slot, b Binding) error
}

func (a all) retire(ctx context.Context, s Slot, b Binding) error {
	var d allData
	if err := strictJSON(s.Data, &d); err != nil {
		return err
	}
	var errs []error
	for i, p := range a.parts {
		if r, ok := p.(retirer); ok && i < len(d.Parts) && d.Parts[i].Type == p.Type() {
			errs = append(errs, r.retire(ctx, d.Parts[i], a.part(b, i)))
		}
	}
	return errors.Join(errs...)
}

// retire removes what slots left outside the header. It tries every protector
// that fits; what fails is reported and leaves nothing open: at worst an NV
// index or a share that nobody needs.
func (v *Volume) retire(ctx context.Context, slots, inForce []Slot, protectors []Protector) error {
	var errs []error
	n := &notes{counters: countersOf(inForce)}
	for _, s := range slots {
		for _, p := range append(slices.Clone(protectors), v.given...) {
			if r, ok := p.(retirer); ok && p.Type() == s.Type {
				errs = append(errs, r.retire(ctx, s, Binding{Volume: v.header.UUID, Label: v.header.Label, Slot: s.ID, notes: n}))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// sharesInUse lists the NV indices that slots of the header name.
func sharesInUse(slots []Slot) map[tpm2.TPMHandle]bool {
	used := map[tpm2.TPMHandle]bool{}
	for _, s := range slots {
		var a allData
		var t tpmData
		if strictJSON(s.Data, &a) == nil {
			for h := range sharesInUse(a.Parts) {
				used[h] = true
			}
		} else if strictJSON(s.Data, &t) == nil && t.Share != nil {
			used[tpm2.TPMHandle(t.Share.Index)] = true
		}
	}
	return used
}

// replaceHeader makes a changed copy of the header durable and current, and
// lets the manifest refuse the one before. It needs wmu.
func (v *Volume) replaceHeader(vk *Secret, p *private, change func(*header)) error {
	h := *v.header
	h.Slots = slices.Clone(h.Slots)
	h.Generation++
	change(&h)
	if err := h.seal(vk, p); err != nil {
		return err
	}
	if err := writeHeader(v.disk, &h); err != nil {
		return err
	}
	v.mu.Lock()
	v.header, v.private = &h, p
	v.mu.Unlock()
	return nil
}

// newSlots wraps the volume key for more protectors.
// Old ones are those whose place they take, with their revocation counters.
func (v *Volume) newSlots(ctx context.Context, vk *Secret, protectors []Protector, old []Slot) (slots []Slot, n *notes, err error) {
	n = &notes{shares: sharesInUse(v.header.Slots), counters: countersOf(v.header.Slots), replaced: countersOf(old)}
	v.useKeeps(protectors)
	slots, err = makeSlots(ctx, v.header, vk, n, protectors)
	// Opened with a TPM, the volume has closed the latch already.
	if err == nil && !v.latched {
		err = closeLatches(n, v.latch)
		v.latched = err == nil
	}
	n.latches = nil
	if err != nil {
		return nil, nil, errors.Join(err, n.undo(ctx))
	}
	return slots, n, nil
}

// AddProtector adds a slot and returns its ID.
func (v *Volume) AddProtector(ctx context.Context, p Protector) (id string, err error) {
	defer boundary("add protector", &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return "", err
	}
	if len(v.header.Slots) >= maxSlots {
		return "", fmt.Errorf("the volume has %d slots, the most allowed", maxSlots)
	}
	slots, n, err := v.newSlots(ctx, v.keys[v.header.Epoch], []Protector{p}, nil)
	if err != nil {
		return "", err
	}
	// From here on the new slot may be in force, whatever fails.
	defer n.forget()
	if err := v.commitHeader(v.private, func(h *header) { h.Slots = append(h.Slots, slots...) }); err != nil {
		return "", err
	}
	v.keepAll(ctx, n)
	v.event(ctx, slog.LevelInfo, "fscrypt.slot.added", slog.String("slot", slots[0].ID), slog.String("type", slots[0].Type))
	return slots[0].ID, nil
}

// commitHeader replaces the header under the current volume key and notes its
// generation in the manifest, so that the header before is ErrRollback.
func (v *Volume) commitHeader(p *private, change func(*header)) error {
	if err := v.replaceHeader(v.keys[v.header.Epoch], p, change); err != nil {
		return err
	}
	return v.record(&op{Op: opHead, Gen: v.m.gen, Head: v.header.Generation})
}

// RemoveProtector removes a slot; the last one stays. Who has a copy of the
// old header and what opens the slot can still decrypt the disk, unless the
// slot had a TPM.Share or a Remote share, or until Rotate.
func (v *Volume) RemoveProtector(ctx context.Context, id string) (err error) {
	defer boundary("remove protector "+id, &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	i := slices.IndexFunc(v.header.Slots, func(s Slot) bool { return s.ID == id })
	if i < 0 {
		return ErrNoSlot
	}
	if len(v.header.Slots) == 1 {
		return errors.New("it is the last slot: nothing would open the volume any more")
	}
	old := v.header.Slots[i]
	if err := v.commitHeader(v.private, func(h *header) { h.Slots = slices.Delete(h.Slots, i, i+1) }); err != nil {
		return err
	}
	v.keepAll(ctx, new(notes))
	v.event(ctx, slog.LevelInfo, "fscrypt.slot.removed", slog.String("slot", id), slog.String("type", old.Type))
	return v.retire(ctx, []Slot{old}, v.header.Slots, nil)
}

// Reseal replaces the one slot of a protector's type by a new one, for example
// for new literal PCR values, for another PIN, or on a new TPM. Given a TPM
// with a Counter on a volume whose counter is not at hand, it also starts a new
// counter there.
func (v *Volume) Reseal(ctx context.Context, p Protector) (err error) {
	defer boundary("reseal", &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	at := -1
	for i, s := range v.header.Slots {
		if s.Type != p.Type() {
			continue
		}
		if at >= 0 {
			return fmt.Errorf("several slots are of type %s: AddProtector a new one and RemoveProtector the old", s.Type)
		}
		at = i
	}
	if at < 0 {
		return fmt.Errorf("type %s: %w: AddProtector makes one", p.Type(), ErrNoSlot)
	}
	old := v.header.Slots[at]
	slots, n, err := v.newSlots(ctx, v.keys[v.header.Epoch], []Protector{p}, []Slot{old})
	if err != nil {
		return err
	}
	priv, before := v.private, v.counter
	if t := tpmsOf(p); len(t) > 0 && t[0].Counter != 0 && v.freshness() != "witnessed" {
		if priv, err = v.newCounter(ctx, t[0]); err != nil {
			return errors.Join(err, n.undo(ctx))
		}
	}
	defer n.forget()
	if err := v.commitHeader(priv, func(h *header) { h.Slots[at] = slots[0] }); err != nil {
		v.counter = before
		return err
	}
	v.keepAll(ctx, n)
	if old.Type == v.slot {
		v.changeLease(n.lease)
	}
	v.event(ctx, slog.LevelInfo, "fscrypt.resealed", slog.String("slot", slots[0].ID), slog.String("type", slots[0].Type))
	return v.retire(ctx, []Slot{old}, v.header.Slots, []Protector{p})
}

// newCounter starts a counter at the current generation.
func (v *Volume) newCounter(ctx context.Context, t *TPM) (*private, error) {
	auth, err := v.counterAuth()
	if err != nil {
		return nil, err
	}
	defer clear(auth)
	info, err := t.defineCounter(ctx, auth)
	if err != nil {
		return nil, err
	}
	p := *v.private
	info.Start = v.m.gen
	p.Counter = info
	v.counter, v.witnessed = t, v.m.gen
	return &p, nil
}

// Destroy makes the volume's content unreadable for good: it undefines the
// TPM's shares and counter, has the remote shares dropped, overwrites and
// removes both headers, and removes the rest. It goes on where a step fails
// and reports what failed. Flash memory may keep old blocks of a header: a
// slot with TPM.Share or Remote is worth nothing then, a Recovery or
// Passphrase slot in such a block still opens a copy of the disk.
func (v *Volume) Destroy(ctx context.Context) (err error) {
	defer boundary("destroy "+v.dir, &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if v.log == nil {
		return ErrLocked
	}
	v.mu.RLock()
	moving := v.moving
	v.mu.RUnlock()
	if moving {
		return v.busy()
	}
	if err := v.destroyTree(ctx); err != nil {
		return err
	}
	errs := []error{v.retire(ctx, v.header.Slots, nil, nil), v.dropCounter(ctx)}
	v.erase(ErrLocked)
	v.dropKeeps()
	for _, name := range headerNames {
		errs = append(errs, shred(v.disk, name))
	}
	errs = append(errs, v.log.Close())
	v.log = nil
	errs = append(errs, removeAll(v.disk), v.disk.Close())
	v.event(ctx, slog.LevelWarn, "fscrypt.destroyed")
	return errors.Join(errs...)
}

// shred overwrites a file in place, durably, and removes it.
func shred(d disk.FS, name string) error {
	f, err := d.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err == nil && size <= maxHeader {
		b := make([]byte, size)
		rand.Read(b)
		if _, err = f.WriteAt(b, 0); err == nil {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close(), d.Remove(name), d.SyncDir("."))
}

func removeAll(d disk.FS) error {
	var errs []error
	objects, err := d.List("objects")
	errs = append(errs, err)
	for _, n := range objects {
		errs = append(errs, d.Remove("objects/"+n))
	}
	names, err := d.List(".")
	errs = append(errs, err)
	for _, n := range names {
		errs = append(errs, d.Remove(n))
	}
	return errors.Join(append(errs, d.SyncDir("."))...)
}
