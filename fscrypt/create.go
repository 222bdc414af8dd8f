package fscrypt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
	"github.com/trusttree/trusttree/internal/durable"
)

// Create makes a volume in an empty or missing directory and opens it. Each
// protector becomes a slot: any one of them opens the volume later. Give a
// Recovery besides the TPM, or a broken TPM takes the data with it.
//
// The TPM's latch closes as it does on Open: the volume opens again after a
// reboot, volumes that were created one after another in the same order with
// each one's Latch in the next one's TPM.After.
func Create(ctx context.Context, dir string, cfg Config, protectors ...Protector) (v *Volume, err error) {
	defer boundary("create "+dir, &err)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return nil, fmt.Errorf("holds %s: a volume is created in an empty directory only", e.Name())
		}
	}
	meta := filepath.Join(dir, metaDir)
	if err := durable.MkdirAll(meta, 0o700); err != nil {
		return nil, err
	}
	d, err := disk.OpenOS(meta)
	if err != nil {
		return nil, err
	}
	v, err = createOn(ctx, dir, d, cfg, protectors)
	if err != nil {
		// What is left is no volume: without a header nothing opens it.
		return nil, errors.Join(err, d.Close(), os.RemoveAll(meta))
	}
	return v, nil
}

func createOn(ctx context.Context, dir string, d disk.FS, cfg Config, protectors []Protector) (_ *Volume, err error) {
	v := newVolume(dir, d, cfg, protectors)
	defer func() {
		if err != nil {
			err = errors.Join(err, v.abandon())
		}
	}()
	mode := modePortable
	if cfg.Kernel {
		mode = modeKernel
	}
	if v.header, err = newHeader(cfg.Label, mode); err != nil {
		return nil, err
	}
	v.header.Generation = 1
	v.kernelMode = mode == modeKernel
	vk := randomSecret()
	v.keys[v.header.Epoch] = vk
	stable := randomSecret()
	v.private = new(private)
	if err := stable.Use(func(b []byte) error { v.private.Stable = slices.Clone(b); return nil }); err != nil {
		return nil, err
	}
	v.stable = stable
	if v.counter != nil && v.counter.Counter == 0 {
		v.counter = nil
	}
	if v.counter == nil && !cfg.UnsafeNoFreshness {
		return nil, errors.New("no TPM protector with a Counter: an older copy of the disk could be put back unnoticed (UnsafeNoFreshness allows it)")
	}
	n := new(notes)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.undo(ctx))
		}
	}()
	if v.header.Slots, err = makeSlots(ctx, v.header, vk, n, protectors); err != nil {
		return nil, err
	}
	v.slot = createdBy(protectors).Type()
	if v.counter != nil {
		if err := v.defineCounter(ctx); err != nil {
			return nil, err
		}
	}
	if err := v.setLatch(); err != nil {
		return nil, err
	}
	if err := v.format(ctx); err != nil {
		return nil, errors.Join(err, v.dropCounter(ctx))
	}
	v.latched = len(n.latches) > 0
	if err := closeLatches(n, v.latch); err != nil {
		return nil, errors.Join(err, v.dropCounter(ctx))
	}
	if n.lease != nil {
		v.startLease(n.lease)
	}
	v.keepAll(ctx, n)
	v.event(ctx, slog.LevelInfo, "fscrypt.created")
	return v, nil
}

// format writes what a new volume consists of: the header last, since without
// it there is no volume.
func (v *Volume) format(ctx context.Context) (err error) {
	if err := v.disk.Mkdir("objects"); err != nil {
		return err
	}
	v.m = newManifest()
	v.m.gen, v.m.head = 1, 1
	v.num = logFile{num: 1, epoch: v.header.Epoch}
	if v.kernelMode {
		if err := v.formatKernel(ctx); err != nil {
			return err
		}
	}
	if v.log, err = writeLog(v.disk, v.header, v.num, v.keys[v.header.Epoch], v.m); err != nil {
		return err
	}
	if err := v.header.seal(v.keys[v.header.Epoch], v.private); err != nil {
		return err
	}
	if err := writeHeader(v.disk, v.header); err != nil {
		return err
	}
	return v.witness(ctx)
}

// makeSlots wraps the volume key for each protector.
func makeSlots(ctx context.Context, h *header, vk *Secret, n *notes, protectors []Protector) ([]Slot, error) {
	if len(protectors) == 0 || len(protectors) > maxSlots {
		return nil, fmt.Errorf("%d protectors, want 1 to %d", len(protectors), maxSlots)
	}
	var slots []Slot
	for _, p := range protectors {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var s Slot
		var err error
		erasing(func() {
			s, err = p.Wrap(ctx, vk, Binding{Volume: h.UUID, Label: h.Label, Slot: newObjectID(), notes: n})
			s = s.clone()
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Type(), err)
		}
		slots = append(slots, s)
	}
	return slots, nil
}

// createdBy is the protector that counts as the one that opened a new volume:
// the one whose lease it has, otherwise the first.
func createdBy(protectors []Protector) Protector {
	for _, p := range slices.Backward(protectors) {
		if leases(p) {
			return p
		}
	}
	return protectors[0]
}

// leases reports whether a protector's secret is released for a lease.
func leases(p Protector) bool {
	switch p := p.(type) {
	case *Remote:
		return true
	case all:
		return slices.ContainsFunc(p.parts, leases)
	}
	return false
}
