package fscrypt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/trusttree/trusttree/fscrypt/internal/copytree"
	"github.com/trusttree/trusttree/fscrypt/kernel"
)

// unmove opens the old directory again and takes back what was begun.
func (v *Volume) unmove(ctx context.Context, m *move) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if m.begun {
		if _, err := kernel.RemoveKey(m.control, m.next); err != nil {
			return err
		}
	}
	if err := v.usable(); err != nil {
		_, rerr := kernel.RemoveKey(m.control, m.old)
		return errors.Join(err, rerr)
	}
	if m.doubtful {
		// Some copy of the header may say that the copy is in force: as long
		// as it does, the old directory must not be used.
		v.wmu.Lock()
		err := v.replaceHeader(v.keys[v.header.Epoch], v.private, func(h *header) { h.Generation++ })
		v.wmu.Unlock()
		if err != nil {
			_, rerr := kernel.RemoveKey(m.control, m.old)
			return errors.Join(fmt.Errorf("the header could not be written: Lock, and Open with the old or the new protectors: %w", err), rerr)
		}
		if err := m.slots.undo(ctx); err != nil {
			return err
		}
	}
	if err := v.openKernel(); err != nil || !m.begun {
		return err
	}
	return v.settle(ctx)
}

// openedTree is nil while the volume has none open.
func (v *Volume) openedTree() *tree {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.tree
}

// exchange gives the directory in force its name.
func (v *Volume) exchange(t *tree) error {
	if t == nil {
		return ErrLocked
	}
	if t.name == treeDir {
		return nil
	}
	if err := v.treeStep(); err != nil {
		return err
	}
	if err := kernel.Exchange(t.control, treeDir, nextDir); err != nil {
		return err
	}
	t.name = treeDir
	if err := v.treeStep(); err != nil {
		return err
	}
	return t.control.Sync()
}

// settle finishes or undoes a rotation, as the header says.
func (v *Volume) settle(ctx context.Context) error {
	info := v.kernelInfo()
	if !info.rotating() {
		return nil
	}
	if v.openedTree() == nil {
		if err := v.openKernel(); err != nil {
			return err
		}
	}
	t := v.openedTree()
	if t == nil {
		return ErrLocked
	}
	if info.Old != nil {
		if err := v.exchange(t); err != nil {
			return err
		}
	}
	// The exchange is durable before anything that it replaced goes.
	if err := t.control.Sync(); err != nil {
		return err
	}
	if _, err := kernel.RemoveKey(t.control, kernel.Identifier(slices.Concat(info.Next, info.Old))); err != nil {
		return err
	}
	top, err := os.OpenRoot(v.dir)
	if err != nil {
		return err
	}
	err = copytree.Remove(top, nextDir, v.stepping(ctx))
	if err = errors.Join(err, top.Close()); err != nil {
		return fmt.Errorf("remove %s: %w", nextDir, err)
	}
	if err := t.control.Sync(); err != nil {
		return err
	}
	if info.Old != nil {
		_, err := v.endRotation(ctx)
		return err
	}
	v.wmu.Lock()
	defer v.wmu.Unlock()
	p, k := *v.private, *v.private.Kernel
	k.Next = nil
	p.Kernel = &k
	return v.commitHeader(&p, func(*header) {})
}

// settleAtOpen finishes or undoes what a cut left. What can wait does not keep
// the volume closed: Status.Rotating says so.
func (v *Volume) settleAtOpen(ctx context.Context) error {
	if !v.kernelMode || !v.kernelInfo().rotating() {
		return nil
	}
	if v.kernelInfo().Old != nil {
		if err := v.exchange(v.openedTree()); err != nil {
			return err
		}
	}
	err := v.settle(ctx)
	if err != nil && ctx.Err() == nil && v.usable() == nil {
		v.event(ctx, slog.LevelWarn, "fscrypt.rotation.pending", slog.String("reason", err.Error()))
		return nil
	}
	return err
}
