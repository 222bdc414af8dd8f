package fscrypt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/trusttree/trusttree/fscrypt/internal/copytree"
	"github.com/trusttree/trusttree/fscrypt/kernel"
)

// Rotation of a kernel mode volume. The header says which step a cut hit:
//
//   - Next names the key of a copy that is being made: nextDir goes.
//   - Old names the key of the directory that the copy has replaced: the
//     directory under the key in force gets the name treeDir, the other goes.
//
// The secret of the new key is written under the new volume key only, so that
// an old slot and an old block of the header never lead to it.
const (
	busyWait = 5 * time.Second // how long Rotate waits for the kernel to drop a key
	// clockTick is the coarsest step of a file system's clock.
	clockTick = 10 * time.Millisecond
	undoTime  = time.Second // how long a cancelled Rotate goes on to undo its work
)

// move is one rotation.
type move struct {
	control *os.File
	tree    *copytree.Tree
	old     kernel.Identifier
	next    kernel.Identifier
	secret  *Secret // of the copy
	policy  kernel.Policy
	slots   *notes // of slots that may be in force
	// begun: the header may name the copy. doubtful: it may be in force.
	begun, doubtful, committed bool
}

// stepper is a disk that wants to know of changes beside it, as tests do that
// cut the power there.
type stepper interface{ Step() error }

// treeStep is called before each change of the encrypted directories.
func (v *Volume) treeStep() error {
	if s, ok := v.disk.(stepper); ok {
		return s.Step()
	}
	return nil
}

// alive says why work on the directories has to end.
func (v *Volume) alive(ctx context.Context) func() error {
	return func() error { return errors.Join(ctx.Err(), v.usable()) }
}

func (v *Volume) stepping(ctx context.Context) func() error {
	alive := v.alive(ctx)
	return func() error {
		if err := alive(); err != nil {
			return err
		}
		return v.treeStep()
	}
}

// rotateKernel needs the right to rotate.
func (v *Volume) rotateKernel(ctx context.Context, protectors []Protector) error {
	if err := v.usable(); err != nil {
		return err
	}
	was := v.kernelInfo()
	if err := v.settle(ctx); err != nil {
		return err
	}
	switch {
	case len(protectors) > maxSlots:
		return fmt.Errorf("%d protectors, want 1 to %d", len(protectors), maxSlots)
	case len(protectors) == 0 && was.Old != nil:
		return nil
	case len(protectors) == 0:
		return errors.New("no rotation to go on with: Open has finished or undone it; give the new protectors to start one")
	}
	v.mu.Lock()
	t := v.tree
	if t == nil {
		v.mu.Unlock()
		return ErrLocked
	}
	err := t.leave()
	v.tree, v.moving = nil, true
	v.mu.Unlock()
	m := &move{control: t.control, old: t.id}
	if err == nil {
		err = v.move(ctx, m, protectors)
	}
	if !m.committed {
		err = errors.Join(err, v.unmove(ctx, m))
	}
	m.secret.Erase()
	err = errors.Join(err, m.control.Close())
	v.mu.Lock()
	v.moving = false
	v.mu.Unlock()
	if !m.committed || err != nil {
		return err
	}
	return v.settle(ctx)
}

// move copies the directory and puts the copy in force.
func (v *Volume) move(ctx context.Context, m *move, protectors []Protector) error {
	// Once to refuse early, once when nobody changes anything unnoticed.
	if err := v.scan(ctx, m); err != nil {
		return err
	}
	if users := kernel.Users(v.Path(), 16); len(users) > 0 {
		return &BusyError{Open: len(users), Paths: users}
	}
	if err := v.evictSoon(ctx, m, m.old); err != nil {
		return err
	}
	time.Sleep(2 * clockTick)
	start := time.Now()
	if err := v.scan(ctx, m); err != nil {
		return err
	}
	if err := m.tree.Quiet(start.Add(-clockTick), time.Now()); err != nil {
		return otherProgram(err)
	}
	if err := v.begin(m); err != nil {
		return err
	}
	if err := v.copyTree(ctx, m); err != nil {
		return err
	}
	// Without the key nobody changes what the old directory holds, until the
	// copy is in force or was given up.
	if err := errors.Join(v.evictSoon(ctx, m, m.old), v.evictSoon(ctx, m, m.next)); err != nil {
		return err
	}
	if err := v.verifyCopy(ctx, m); err != nil {
		return err
	}
	return v.commitMove(ctx, m, protectors)
}

// evictSoon takes a key away: nobody has anything of its directory open then.
func (v *Volume) evictSoon(ctx context.Context, m *move, id kernel.Identifier) error {
	if err := kernel.Sync(m.control); err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	err := v.evict(soon, m.control, id)
	var busy *BusyError
	if errors.As(err, &busy) && ctx.Err() == nil {
		return busy
	}
	return err
}

// scan refuses what can't be copied, before anything is changed.
func (v *Volume) scan(ctx context.Context, m *move) (err error) {
	t, err := openTree(v.dir, treeDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if _, err := os.Lstat(filepath.Join(v.dir, nextDir)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is in the way, and not of a rotation: remove it: %w", nextDir, errors.Join(err, fs.ErrExist))
	}
	if err := v.addKey(t, v.treeSecret()); err != nil {
		return err
	}
	if m.tree, err = copytree.Scan(t.root, anchorFile, v.alive(ctx)); errors.Is(err, copytree.ErrUnsupported) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	} else if err != nil {
		return err
	}
	return m.tree.Room(m.control)
}

// begin names the copy in the header.
func (v *Volume) begin(m *move) error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	m.secret = randomSecret()
	key, err := v.policyKey(m.secret)
	if err != nil {
		return err
	}
	m.next, err = kernel.KeyIdentifier(key)
	clear(key)
	if err != nil {
		return err
	}
	p, k := *v.private, *v.private.Kernel
	k.Next = slices.Clone(m.next[:])
	p.Kernel = &k
	m.begun = true
	return v.commitHeader(&p, func(*header) {})
}

// copyTree makes the copy, durably.
func (v *Volume) copyTree(ctx context.Context, m *move) (err error) {
	step := v.stepping(ctx)
	if err := step(); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(v.dir, nextDir), 0o700); err != nil {
		return err
	}
	from, err := openTree(v.dir, treeDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.close()) }()
	to, err := openTree(v.dir, nextDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	if err := step(); err != nil {
		return err
	}
	if err := v.encrypt(to, m.secret); err != nil {
		return err
	}
	m.policy = to.policy
	if err := m.tree.Copy(from.root, to.root, step, v.progress); err != nil {
		return err
	}
	if err := step(); err != nil {
		return err
	}
	return kernel.Sync(m.control)
}

// verifyCopy reads the copy back from the disk.
func (v *Volume) verifyCopy(ctx context.Context, m *move) (err error) {
	from, err := openTree(v.dir, treeDir)
	if err != nil {
		return err
	}
	if err := errors.Join(m.tree.Unchanged(from.root, v.alive(ctx)), from.close()); err != nil {
		return otherProgram(err)
	}
	to, err := openTree(v.dir, nextDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	if err := v.addKey(to, m.secret); err != nil {
		return err
	}
	return m.tree.Verify(to.root, v.alive(ctx))
}

func otherProgram(err error) error {
	if !errors.Is(err, copytree.ErrChanged) {
		return err
	}
	return fmt.Errorf("another program used the directory while it was copied: stop it and try again: %w", err)
}

// checkProtected holds what was copied to what Protect noted.
func (v *Volume) checkProtected(m *move) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var errs []error
	found := 0
	m.tree.Each(func(path string, sum []byte, size int64) {
		if e := v.m.files[path]; e != nil && e.Digest != nil {
			found++
			if err := e.compare(&entry{Digest: sum, Bytes: size}); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", path, err))
			}
		}
	})
	if found != len(v.m.files) {
		errs = append(errs, fmt.Errorf("%d of %d protected files are gone: %w", len(v.m.files)-found, len(v.m.files), ErrTampered))
	}
	return errors.Join(errs...)
}

// commitMove puts the copy in force, with new slots and a new volume key.
func (v *Volume) commitMove(ctx context.Context, m *move, protectors []Protector) error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.alive(ctx)(); err != nil {
		return err
	}
	if err := v.checkProtected(m); err != nil {
		return err
	}
	old, epoch, before := v.header.Slots, v.header.Epoch, v.private.Kernel
	vk := randomSecret()
	slots, n, err := v.newSlots(ctx, vk, protectors, old)
	if err != nil {
		vk.Erase()
		return err
	}
	defer n.forget()
	p := *v.private
	p.Old = slices.Clone(p.Old)
	p.Kernel = &kernelInfo{Contents: m.policy.Contents, Filenames: m.policy.Filenames, Old: slices.Clone(m.old[:])}
	err = errors.Join(
		v.keys[epoch].Use(func(b []byte) error {
			p.Old = append(p.Old, oldKey{Epoch: epoch, Key: slices.Clone(b)})
			return nil
		}),
		m.secret.Use(func(b []byte) error { p.Kernel.Key = slices.Clone(b); return nil }))
	if err != nil {
		vk.Erase()
		return errors.Join(err, n.undo(ctx))
	}
	m.slots, m.doubtful = n, true
	if err := v.replaceHeader(vk, &p, func(h *header) { h.Epoch, h.Slots = epoch+1, slots }); err != nil {
		vk.Erase()
		clear(p.Kernel.Key)
		return err
	}
	m.committed = true
	clear(before.Key)
	v.mu.Lock()
	v.keys[epoch+1] = vk
	v.treeKey.Erase()
	v.treeKey, m.secret = m.secret, nil
	locked := v.locked
	v.mu.Unlock()
	if locked != nil { // shut meanwhile
		v.erase(locked)
		_, err := kernel.RemoveKey(m.control, m.next)
		return errors.Join(locked, err)
	}
	if err := v.rewriteLog(v.m.gen, epoch+1); err != nil {
		return err
	}
	if err := v.openKernel(); err != nil {
		return err
	}
	if err := v.exchange(v.openedTree()); err != nil {
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
