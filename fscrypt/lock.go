package fscrypt

import (
	"context"
	"errors"
	"log/slog"
	"slices"
)

// Lock writes a checkpoint, erases the keys, also from TPM.Keep, and closes
// the volume. While files or writers are open it returns a *BusyError and
// nothing is locked. In kernel mode it polls until the kernel has dropped the
// key, or ctx is done.
func (v *Volume) Lock(ctx context.Context) (err error) {
	defer boundary("lock "+v.dir, &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if v.log == nil {
		return nil
	}
	if err := v.busy(); err != nil {
		return err
	}
	if v.kernelMode {
		if err := v.lockKernel(ctx); err != nil {
			return err
		}
	}
	v.dropKeeps()
	err = v.leave(ctx)
	v.event(ctx, slog.LevelInfo, "fscrypt.locked")
	return err
}

// Detach is Lock for a process that will be started anew in the same boot: it
// leaves what TPM.Keep holds, and in kernel mode the kernel's key, so that
// other programs go on reading and writing below Path. The next Open with that
// Keep, or with a protector that no latch guards, attaches again. A process
// that is killed leaves the same behind, without the checkpoint.
func (v *Volume) Detach(ctx context.Context) (err error) {
	defer boundary("detach "+v.dir, &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if v.log == nil {
		return nil
	}
	if err := v.busy(); err != nil {
		return err
	}
	v.mu.Lock()
	if v.tree != nil {
		err = v.tree.close()
		v.tree, v.detached = nil, true
	}
	v.mu.Unlock()
	err = errors.Join(err, v.leave(ctx))
	v.event(ctx, slog.LevelInfo, "fscrypt.detached")
	return err
}

// busy returns a *BusyError while files or writers are open.
func (v *Volume) busy() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var busy BusyError
	if v.moving {
		busy = BusyError{Open: 1, Paths: []string{"Rotate is running"}}
	}
	for name, n := range v.open {
		busy.Open += n
		busy.Paths = append(busy.Paths, name)
	}
	if busy.Open == 0 {
		return nil
	}
	slices.Sort(busy.Paths)
	busy.Paths = busy.Paths[:min(len(busy.Paths), 16)]
	return &busy
}

// leave writes a checkpoint, erases the keys and gives the disk up.
func (v *Volume) leave(ctx context.Context) error {
	var cerr error
	if v.usable() == nil {
		cerr = v.checkpoint(ctx)
	}
	v.erase(ErrLocked)
	err := errors.Join(cerr, v.log.Close(), v.disk.Close())
	v.log = nil
	return err
}

// abandon lets go of a volume that did not come to be open.
func (v *Volume) abandon() error {
	v.erase(ErrLocked)
	v.dropKernelKey()
	if v.log == nil {
		return nil
	}
	log := v.log
	v.log = nil
	return log.Close()
}

// erase forgets every key.
func (v *Volume) erase(why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.locked == nil {
		v.locked = why
	}
	for _, k := range v.keys {
		k.Erase()
	}
	v.stable.Erase()
	v.treeKey.Erase()
	if v.private != nil {
		v.private.erase()
	}
	v.cache.clear()
	if v.timer != nil {
		v.timer.Stop()
	}
}
