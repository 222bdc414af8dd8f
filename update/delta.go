package update

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/trusttree/trusttree/update/internal/delta"
	"github.com/trusttree/trusttree/update/manifest"
)

// baseSlots are Slots that can also open a part for reading only, so that an
// update reuses what the running slot holds.
type baseSlots interface {
	OpenBase(ctx context.Context, s Slot, part string) (SlotFile, error)
}

// base opens the part in the running slot; nil when there is none to reuse.
func (w *partWriter) base(ctx context.Context) SlotFile {
	bs, ok := w.cfg.Slots.(baseSlots)
	if !ok {
		return nil
	}
	f, err := bs.OpenBase(ctx, w.running.Slot, w.part.Name)
	if err != nil {
		return nil
	}
	return f
}

// aid tries to make the part out of what the node has. It reports whether the
// part is complete; an error is one that fetching the whole part would not
// avoid. The part is verified whole in any case.
func (w *partWriter) aid(ctx context.Context) (bool, error) {
	if len(w.part.Patches) == 0 && w.part.Index == nil {
		return false, nil
	}
	base := w.base(ctx)
	if base == nil {
		return false, nil
	}
	defer base.Close()
	for _, p := range w.part.Patches {
		ok, err := w.patch(ctx, base, p)
		if ok || fatal(ctx, err) {
			return ok, err
		}
		w.passedOver(ctx, "patch", err)
	}
	if w.part.Index == nil {
		return false, nil
	}
	ok, err := w.blocks(ctx, base, *w.part.Index)
	if fatal(ctx, err) {
		return false, err
	}
	w.passedOver(ctx, "index", err)
	return ok, nil
}

// fatal errors are of the slot or the caller, not of an aid.
func fatal(ctx context.Context, err error) bool {
	return err != nil && (ctx.Err() != nil || isSink(err))
}

func (w *partWriter) passedOver(ctx context.Context, what string, err error) {
	if err != nil {
		w.log.WarnContext(ctx, "aid passed over", "event", "update.aid.ignored", "aid", what, "part", w.part.Name, "error", err.Error())
	}
}

// aidFile fetches an aid of which all has to be in memory.
func (w *partWriter) aidFile(ctx context.Context, a manifest.Aid, limit int64) ([]byte, error) {
	if a.Length > limit {
		return nil, refuse(ErrTooLarge, a.Target, "%d bytes, limit %d", a.Length, limit)
	}
	return fetchSmall(ctx, w.cfg.Client.cfg.Images, []string{partFile(a.Target, a.SHA256)}, a.Length, w.cfg.Client.cfg.Limits,
		func(data []byte) error { return sameHash(a.Target, data, a.SHA256) })
}

// blocks takes blocks from the slot itself (an earlier attempt) and from the
// base, and fetches the others in ranges. Every block is compared with the
// signed index before it is written.
func (w *partWriter) blocks(ctx context.Context, base SlotFile, a manifest.Aid) (bool, error) {
	if a.Length != delta.IndexSize(w.part.Length) {
		return false, fmt.Errorf("index of %d bytes for a part of %d", a.Length, w.part.Length)
	}
	data, err := w.aidFile(ctx, a, w.cfg.Client.cfg.Limits.Signed)
	if err != nil {
		return false, err
	}
	index, err := delta.ParseIndex(data, w.part.Length)
	if err != nil {
		return false, err
	}
	old, err := delta.NewBase(base, base.Size(), ctx.Err)
	if err != nil {
		return false, err
	}
	w.aided = true
	buf := make([]byte, delta.Block)
	var missing []int
	for i := range index.Blocks() {
		if i%1024 == 0 && ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		off := int64(i) * delta.Block
		b := buf[:index.Size(i)]
		if n, err := w.file.ReadAt(b, off); n == len(b) && (err == nil || err == io.EOF) && index.Matches(i, b) {
			continue
		}
		b, ok := old.Find(index, i, buf)
		if !ok {
			missing = append(missing, i)
			continue
		}
		if _, err := w.file.WriteAt(b, off); err != nil {
			return false, sinkError{w.slotError(w.slot, w.part.Name, err)}
		}
	}
	have, began, fetched := w.part.Length-int64(len(missing))*delta.Block, time.Now(), 0
	for len(missing) > 0 {
		n := 1
		for n < len(missing) && missing[n] == missing[0]+n {
			n++
		}
		if err := w.fetchBlocks(ctx, index, missing[0], n); err != nil {
			return false, err
		}
		missing, fetched = missing[n:], fetched+n*delta.Block
		if spent := time.Since(began); spent > slowRanges && float64(fetched) < spent.Seconds()*defaultMinRate {
			return false, refuse(ErrSlow, w.part.Target, "%d bytes of single blocks in %v", fetched, spent.Round(time.Second))
		}
		have += int64(n) * delta.Block
		w.progress(min(have, w.part.Length))
	}
	return true, w.sync(ctx, w.part.Length)
}

func (w *partWriter) fetchBlocks(ctx context.Context, index *delta.Index, first, n int) error {
	off := int64(first) * delta.Block
	end := min(off+int64(n)*delta.Block, w.part.Length)
	buf := make([]byte, delta.Block)
	limits := w.cfg.Client.cfg.Limits
	again := places(w.cfg.Client.cfg.Images, partFile(w.part.Target, w.part.SHA256)) - 1
	for failures, i := 0, first; i < first+n; {
		start := i
		err := func() error {
			at := int64(i) * delta.Block
			r, err := w.cfg.Client.cfg.Images.Open(ctx, partFile(w.part.Target, w.part.SHA256), at, end-at)
			if err != nil {
				return err
			}
			defer r.Close()
			for ; i < first+n; i++ {
				b := buf[:index.Size(i)]
				if _, err := io.ReadFull(r, b); err != nil {
					return err
				}
				if !index.Matches(i, b) {
					passOver(r)
					return refuse(ErrHash, w.part.Target, "block %d is not the signed one", i)
				}
				if _, err := w.file.WriteAt(b, int64(i)*delta.Block); err != nil {
					return sinkError{w.slotError(w.slot, w.part.Name, err)}
				}
			}
			return nil
		}()
		if err == nil {
			return nil
		}
		if i > start {
			failures = 0
		}
		if errors.Is(err, ErrHash) && again > 0 { // a mirror lied
			again--
			continue
		}
		if failures++; fatal(ctx, err) || errors.Is(err, ErrHash) || failures >= limits.Attempts {
			return err
		}
		if err := sleep(ctx, retryPause<<failures); err != nil {
			return err
		}
	}
	return nil
}

// patch applies a patch, if the base is what it starts from. The patch is
// streamed and its hash checked at the end; what it made is verified whole.
func (w *partWriter) patch(ctx context.Context, base SlotFile, a manifest.Aid) (bool, error) {
	limits := w.cfg.Client.cfg.Limits
	if limits.Patch < delta.PatchMemory {
		return false, refuse(ErrTooLarge, a.Target, "patches take %d bytes of memory, limit %d", int64(delta.PatchMemory), limits.Patch)
	}
	name := partFile(a.Target, a.SHA256)
	head, err := w.cfg.Client.cfg.Images.Open(ctx, name, 0, 24)
	if err != nil {
		return false, err
	}
	var first [24]byte
	_, err = io.ReadFull(head, first[:])
	if err = errors.Join(err, head.Close()); err != nil {
		return false, err
	}
	from, err := delta.PatchFrom(first[:])
	if err != nil {
		return false, err
	}
	if from > base.Size() {
		return false, nil
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(onlyWriter{h}, &ctxReader{ctx: ctx, r: io.NewSectionReader(base, 0, from)}, make([]byte, chunk)); err != nil {
		return false, err
	}
	if sameSum("base", h.Sum(nil), a.From) != nil {
		return false, nil // another version runs: not an error
	}
	w.aided = true
	pr, pw := io.Pipe()
	fetched := make(chan error, 1)
	fctx, cancel := context.WithCancel(ctx)
	go func() {
		d := download{src: w.cfg.Client.cfg.Images, names: []string{name}, length: a.Length, limits: limits}
		sum := sha256.New()
		err := d.run(fctx, func(p []byte, _ int64) error {
			sum.Write(p)
			_, err := pw.Write(p)
			return err
		})
		if err == nil {
			err = sameSum(a.Target, sum.Sum(nil), a.SHA256)
		}
		pw.CloseWithError(err) // nil means EOF
		fetched <- err
	}()
	next := int64(checkpoint)
	err = delta.ApplyPatch(pr, base, base.Size(), w.part.Length, func(p []byte, off int64) error {
		if _, err := w.file.WriteAt(p, off); err != nil {
			return sinkError{w.slotError(w.slot, w.part.Name, err)}
		}
		w.progress(off + int64(len(p)))
		if off+int64(len(p)) < next {
			return nil
		}
		next += checkpoint
		return w.file.Sync()
	})
	if err == nil {
		_, err = io.Copy(io.Discard, pr)
	}
	cancel()
	_ = pr.CloseWithError(context.Canceled)
	if ferr := <-fetched; err == nil {
		err = ferr
	}
	if err != nil {
		return false, err
	}
	return true, w.sync(ctx, w.part.Length)
}
