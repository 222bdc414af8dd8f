package fscrypt

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// Open opens a volume with whichever of the protectors fits a slot, tried in
// the order given. It creates nothing, and it falls back to nothing.
//
// Errors wrap this package's sentinels; those of all attempts are joined.
func Open(ctx context.Context, dir string, cfg Config, protectors ...Protector) (v *Volume, err error) {
	defer boundary("open "+dir, &err)
	meta := filepath.Join(dir, metaDir)
	if fi, err := os.Lstat(meta); err != nil {
		return nil, fmt.Errorf("%w (no volume was created here)", err)
	} else if !fi.IsDir() {
		return nil, fmt.Errorf("%s is not a directory: %w", meta, ErrWrongVolume)
	}
	d, err := disk.OpenOS(meta)
	if errors.Is(err, disk.ErrInUse) {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil {
		return nil, err
	}
	v, err = openOn(ctx, dir, d, cfg, protectors)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return v, nil
}

func openOn(ctx context.Context, dir string, d disk.FS, cfg Config, protectors []Protector) (_ *Volume, err error) {
	v := newVolume(dir, d, cfg, protectors)
	n := new(notes)
	defer func() {
		if err != nil {
			n.forget()
			err = errors.Join(err, closeLatches(n, refusedLatch[:]), v.abandon())
			v.event(ctx, slog.LevelWarn, "fscrypt.refused", slog.String("reason", err.Error()))
		}
	}()
	headers, differ, err := readHeaders(d)
	if err != nil {
		return nil, err
	}
	for i, h := range headers {
		var e error
		if e = v.unlock(ctx, h, cfg, n, protectors); e == nil {
			err = nil
			break
		}
		err = errors.Join(err, e)
		if i == len(headers)-1 || n.guessed || final(e, headers[i+1].Generation < h.Generation) {
			return nil, err
		}
	}
	if err := v.setLatch(); err != nil {
		return nil, err
	}
	if len(cfg.Latch) > 0 && !hmac.Equal(cfg.Latch, v.latch) {
		return nil, fmt.Errorf("its latch is %.8x…, not %.8x…: %w", v.latch, cfg.Latch, ErrWrongVolume)
	}
	v.latched = n.reused || len(n.latches) > 0
	if err := closeLatches(n, v.latch); err != nil {
		return nil, fmt.Errorf("close the latch: %w", err)
	}
	if err := v.load(ctx, differ); err != nil {
		return nil, err
	}
	if n.lease != nil {
		v.startLease(n.lease)
	}
	v.keepAll(ctx, n)
	v.event(ctx, slog.LevelInfo, "fscrypt.opened", slog.String("slot", v.slot), slog.Bool("kept", n.reused))
	return v, nil
}

// final reports an error that the other copy of the header would only repeat, or
// must not outvote: who may open a volume is for the newest copy to say, and a cut
// may have left an older one that still lets in who was removed. Any other error
// may come from damage to this copy.
func final(err error, otherIsOlder bool) bool {
	no := errors.Is(err, ErrAuth) || errors.Is(err, ErrRefused) || errors.Is(err, ErrTPMChanged)
	return errors.Is(err, ErrLockout) || errors.Is(err, ErrUnavailable) || no && otherIsOlder
}

// unlock finds a slot that one of the protectors opens, and authenticates the
// header with what it held.
func (v *Volume) unlock(ctx context.Context, h *header, cfg Config, n *notes, protectors []Protector) error {
	if cfg.Label != "" && cfg.Label != h.Label {
		return fmt.Errorf("volume is %q, not %q: %w", h.Label, cfg.Label, ErrWrongVolume)
	}
	var errs []error
	for _, p := range protectors {
		for _, s := range h.Slots {
			if s.Type != p.Type() {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			n.lease, n.reused = nil, false
			n.forget()
			var err error
			erasing(func() { err = v.tryslot(ctx, h, s, p, n) })
			if err == nil {
				return nil
			}
			errs = append(errs, fmt.Errorf("%s: %w", s.Type, err))
			if errors.Is(err, ErrAuth) && len(tpmsOf(p)) > 0 {
				n.guessed = true
				break // another try would use up the TPM's patience
			}
		}
	}
	if errs == nil {
		return ErrNoSlot
	}
	return errors.Join(errs...)
}

// tryslot opens one slot with one protector.
func (v *Volume) tryslot(ctx context.Context, h *header, s Slot, p Protector, n *notes) error {
	vk, err := p.Unwrap(ctx, s, Binding{Volume: h.UUID, Label: h.Label, Slot: s.ID, notes: n})
	if err != nil {
		return err
	}
	priv, err := h.open(vk)
	if err != nil {
		vk.Erase()
		return err
	}
	v.slot = s.Type
	return v.adopt(h, priv, vk)
}

// adopt takes over an authenticated header.
func (v *Volume) adopt(h *header, priv *private, vk *Secret) (err error) {
	v.header, v.private, v.kernelMode = h, priv, h.Mode == modeKernel
	v.keys = map[uint64]*Secret{h.Epoch: vk}
	for _, o := range priv.Old {
		if v.keys[o.Epoch], err = NewSecret(slices.Clone(o.Key)); err != nil {
			return err
		}
	}
	if k := priv.Kernel; k != nil && k.Key != nil {
		if v.treeKey, err = NewSecret(slices.Clone(k.Key)); err != nil {
			return err
		}
	}
	v.stable, err = NewSecret(slices.Clone(priv.Stable))
	return err
}

// load reads the manifest, checks that it is the newest, and tidies up after a
// cut.
func (v *Volume) load(ctx context.Context, repair bool) error {
	logs, rest, err := findLogs(v.disk)
	if err != nil {
		return err
	}
	if len(logs) == 0 {
		return fmt.Errorf("the manifest is gone: %w", ErrTampered)
	}
	v.num = logs[len(logs)-1]
	vk := v.keys[v.num.epoch]
	if vk == nil {
		return fmt.Errorf("manifest %s is under a key that the header does not know: %w", v.num.name(), ErrTampered)
	}
	if v.m, v.log, err = loadLog(v.disk, v.header, v.num, vk); err != nil {
		return err
	}
	if v.header.Generation < v.m.head {
		return fmt.Errorf("header has generation %d, the manifest knows %d: %w", v.header.Generation, v.m.head, ErrRollback)
	}
	if err := v.verifyFresh(ctx); err != nil {
		return err
	}
	if v.kernelMode {
		if err := v.openKernel(); err != nil {
			return err
		}
	}
	for _, l := range logs[:len(logs)-1] {
		rest = append(rest, l.name())
	}
	for _, name := range rest {
		if err := v.disk.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if repair {
		// Not needed as long as the newer copy is there: on a full disk, the
		// next Open tries again.
		if err := writeHeader(v.disk, v.header); err != nil {
			v.event(ctx, slog.LevelWarn, "fscrypt.header.repair.failed", slog.String("reason", err.Error()))
		}
	}
	v.salvage(ctx)
	if err := v.removeOrphans(); err != nil {
		return err
	}
	if err := v.settleAtOpen(ctx); err != nil {
		return err
	}
	v.catchUp(ctx)
	return v.checkpoint(ctx)
}

// removeOrphans deletes objects that no file names: of writes that were cut
// off, and of files replaced or removed.
func (v *Volume) removeOrphans() error {
	names, err := v.disk.List("objects")
	if err != nil {
		return err
	}
	used := v.m.objects()
	for _, n := range names {
		if !used[n] {
			if err := v.disk.Remove("objects/" + n); err != nil {
				return err
			}
		}
	}
	return nil
}
