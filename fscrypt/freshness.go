package fscrypt

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/tpm"
)

// compactAt is the size of the log, in bytes, from which a checkpoint writes
// it anew if that makes it much smaller.
const compactAt = 1 << 20

func (v *Volume) counterAuth() ([]byte, error) { return nvAuth(v.stable, "counter auth") }

// defineCounter makes the volume's counter.
func (v *Volume) defineCounter(ctx context.Context) error {
	auth, err := v.counterAuth()
	if err != nil {
		return err
	}
	defer clear(auth)
	v.private.Counter, err = v.counter.defineCounter(ctx, auth)
	return err
}

// dropCounter removes a counter, as far as it is this volume's.
func (v *Volume) dropCounter(ctx context.Context) error {
	info := v.private.Counter
	if info == nil || v.counter == nil {
		return nil
	}
	return v.counter.do(ctx, v.counter.pins(), func(t *tpm.Device, srk *tpm.Key) error {
		idx, _, err := readIndex(t, tpm2.TPMHandle(info.Index))
		if errors.Is(err, tpm2.TPMRCHandle) || (err == nil && hex.EncodeToString(idx.name.Buffer) != info.Name) {
			return nil
		}
		if err != nil {
			return err
		}
		return undefineNV(t, srk, tpm2.TPMHandle(info.Index), v.counter.OwnerAuth)
	})
}

func (v *Volume) freshness() string {
	switch {
	case v.private.Counter == nil:
		return "none"
	case v.counter == nil:
		return "unchecked"
	}
	return "witnessed"
}

// verifyFresh compares the manifest's generation g with the counter c. The
// generation is written before the counter is incremented, so that the newest
// state has c = g, or c = g-1 after a cut.
func (v *Volume) verifyFresh(ctx context.Context) error {
	if v.freshness() != "witnessed" {
		if v.private.Counter != nil {
			v.event(ctx, slog.LevelWarn, "fscrypt.freshness.unchecked")
		}
		return nil
	}
	auth, err := v.counterAuth()
	if err != nil {
		return err
	}
	defer clear(auth)
	g := v.m.gen
	v.witnessed, err = v.counter.useCounter(ctx, v.private.Counter, auth, func(c uint64) (bool, error) {
		switch {
		case c > g:
			return false, fmt.Errorf("the disk has generation %d, the TPM witnessed %d: %w", g, c, ErrRollback)
		case c+1 < g:
			return false, fmt.Errorf("the TPM's counter is at %d, behind generation %d: it is not the volume's: %w", c, g, ErrRollback)
		}
		return c < g, nil
	})
	return err
}

// witness increments the counter to the manifest's generation.
func (v *Volume) witness(ctx context.Context) error {
	if v.freshness() != "witnessed" {
		return nil
	}
	auth, err := v.counterAuth()
	if err != nil {
		return err
	}
	defer clear(auth)
	v.witnessed, err = v.counter.useCounter(ctx, v.private.Counter, auth, func(c uint64) (bool, error) {
		if c > v.m.gen {
			return false, fmt.Errorf("the TPM witnessed generation %d, this is %d: %w", c, v.m.gen, ErrRollback)
		}
		return c < v.m.gen, nil
	})
	return err
}

// Checkpoint lets the TPM's counter witness the volume's content: a disk that
// is put back to before it is ErrRollback from now on. Open and Lock make one;
// what changed between two checkpoints can be dropped unnoticed by who holds
// the disk. A checkpoint costs a write to the TPM's NV memory, which wears out
// after some 100 000.
func (v *Volume) Checkpoint(ctx context.Context) (err error) {
	defer boundary("checkpoint", &err)
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if err := v.usable(); err != nil {
		return err
	}
	return v.checkpoint(ctx)
}

// checkpoint needs wmu.
func (v *Volume) checkpoint(ctx context.Context) error {
	if v.freshness() != "witnessed" {
		return v.compact(v.m.gen)
	}
	if v.m.gen == v.witnessed {
		if err := v.compact(v.m.gen + 1); err != nil {
			return err
		}
		if v.m.gen == v.witnessed { // not compacted
			if err := v.record(&op{Op: opHead, Gen: v.m.gen + 1, Head: v.header.Generation}); err != nil {
				return err
			}
		}
	}
	return v.witness(ctx)
}

// compact writes the log anew, with generation gen, if it has grown.
func (v *Volume) compact(gen uint64) error {
	if v.log.Size() < compactAt || v.log.Size() < 4*(int64(len(v.m.files))*300+int64(v.m.inline)*4/3) {
		return nil
	}
	return v.rewriteLog(gen, v.header.Epoch)
}

// rewriteLog replaces the log by a snapshot under the volume key of an epoch.
func (v *Volume) rewriteLog(gen, epoch uint64) error {
	next := *v.m
	next.gen, next.head = gen, v.header.Generation
	num := logFile{num: v.num.num + 1, epoch: epoch}
	log, err := writeLog(v.disk, v.header, num, v.keys[epoch], &next)
	if err != nil {
		if f, e := v.disk.Open(num.name()); !errors.Is(e, fs.ErrNotExist) {
			// The next Open reads this log: nothing more may go to the old one.
			v.log.Break(err)
			if e == nil {
				err = errors.Join(err, f.Close())
			}
		}
		return err
	}
	old := v.num
	err = v.log.Close()
	v.mu.Lock()
	v.m.gen, v.m.head = next.gen, next.head
	v.log, v.num = log, num
	v.mu.Unlock()
	return errors.Join(err, v.disk.Remove(old.name()))
}

// record makes a change durable and then visible. It needs wmu.
func (v *Volume) record(o *op) error {
	if err := addOp(v.log, o); err != nil {
		return err
	}
	if err := v.log.Sync(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.m.apply(o)
}
