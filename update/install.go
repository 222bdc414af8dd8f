package update

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
	"github.com/trusttree/trusttree/update/manifest"
)

// Install writes a release into the slot that is not running, verifies what it
// reads back, and arms the slot: the next boot is a trial. It continues a
// download that was cut off. Errors wrap ErrTrialPending, ErrFailedBefore,
// ErrWithdrawn (a refresh has said so since the selection), ErrBelowFloor, ErrProvenance, ErrNoSpace, ErrHash, ErrPreflight,
// ErrActiveSlot, ErrBusy or what Client.Refresh returns for the network; the
// running slot stays as it is after all of them.
func (in *Installer) Install(ctx context.Context, sel *Selection) error {
	if sel == nil || sel.client != in.cfg.Client {
		return errors.New("update: the selection is not from this installer's client")
	}
	s, err := in.begin(ctx)
	if err != nil {
		return err
	}
	defer s.release()
	if err := s.admit(ctx, sel); err != nil {
		return err
	}
	if err := s.install(ctx, sel); err != nil {
		s.log.WarnContext(ctx, "release not installed", "event", "update.install.refused", "release", sel.release.Name, "error", err.Error())
		return err
	}
	return nil
}

// admit refuses what must not even be started.
func (s *session) admit(ctx context.Context, sel *Selection) error {
	what := "release " + sel.release.Name
	switch s.j.State.Phase {
	case Armed, Trial, Committing:
		return refuse(ErrTrialPending, what, "%s is %s: confirm it or roll it back", s.j.State.Release.Name, s.j.State.Phase)
	}
	if !s.running.Good {
		return refuse(ErrTrialPending, what, "slot %s runs but is not good: there would be nothing to fall back to", s.running.Slot)
	}
	if f := s.j.State.failed(sel.sha256); f != nil {
		return refuse(ErrFailedBefore, what, "%s on %s: publish a higher release or clear it", f.Reason, f.Time.Format("2006-01-02"))
	}
	if err := s.cfg.Client.stands(ctx, sel); err != nil {
		return err
	}
	floors, err := s.cfg.Client.cfg.Floors.Load(ctx)
	if err != nil {
		return err
	}
	if sel.release.Security < floors.Security || sel.release.DataFloor < floors.Data {
		return refuse(ErrBelowFloor, what, "security counter %d and data floor %d, floors %d and %d",
			sel.release.Security, sel.release.DataFloor, floors.Security, floors.Data)
	}
	return nil
}

func (s *session) install(ctx context.Context, sel *Selection) error {
	slot := s.other.Slot
	opaque, err := s.opaqueParts(ctx, sel)
	if err != nil {
		return err
	}
	if s.cfg.Provenance != nil {
		if err := s.cfg.Provenance.check(&sel.release, opaque); err != nil {
			return err
		}
	}
	if err := s.checkSpace(ctx, sel, slot); err != nil {
		return err
	}
	if err := s.start(ctx, sel, slot); err != nil {
		return err
	}
	for _, p := range sel.release.Parts {
		if p.Opaque {
			continue
		}
		if err := s.writePart(ctx, slot, p); err != nil {
			return err
		}
	}
	if err := s.keepOpaque(slot, opaque); err != nil {
		return err
	}
	if err := s.cfg.Preflight(ctx, opaque); err != nil {
		return refuseErr(ErrPreflight, "release "+sel.release.Name, err)
	}
	if err := s.cfg.Client.stands(ctx, sel); err != nil { // fetching it may have taken days
		return err
	}
	if err := s.move(ctx, Verified, ""); err != nil {
		return err
	}
	if err := s.cfg.Boot.Arm(ctx, slot, s.cfg.Tries); err != nil {
		return fmt.Errorf("update: boot control: %w", err)
	}
	return s.move(ctx, Armed, "")
}

// start takes the slot out of service before its first byte changes. What an
// earlier attempt at the same release has written stays.
func (s *session) start(ctx context.Context, sel *Selection, slot Slot) error {
	if err := s.cfg.Boot.Invalidate(ctx, slot); err != nil {
		return fmt.Errorf("update: boot control: %w", err)
	}
	if err := s.readBoot(ctx); err != nil {
		return err
	}
	if s.running.Slot == slot || s.other.Good || s.other.Tries > 0 {
		return fmt.Errorf("update: boot control: slot %s can still be booted after Invalidate", slot)
	}
	st := &s.j.State
	if st.Phase != Writing || st.Slot != slot || st.Release.SHA256 != sel.sha256 || s.j.Done == nil {
		s.j.Done = map[string]int64{}
	}
	st.Slot, st.Release = slot, Installed{
		Name: sel.release.Name, Version: sel.release.Version, Security: sel.release.Security, SHA256: sel.sha256, Opaque: map[string]string{},
	}
	for _, p := range sel.release.Parts {
		if p.Opaque {
			st.Release.Opaque[p.Name] = p.SHA256
		}
	}
	delete(st.Slots, slot)
	st.RebootNeeded = false
	s.j.Commit, s.j.Rearmed = sel.commit, 0
	return s.move(ctx, Writing, "")
}

func partFile(target, sha string) string { return "targets/" + tufmeta.TargetName(target, sha) }

// opaqueParts fetches the small parts into memory.
func (s *session) opaqueParts(ctx context.Context, sel *Selection) (map[string][]byte, error) {
	parts := map[string][]byte{}
	for _, p := range sel.release.Parts {
		if !p.Opaque {
			continue
		}
		data, err := fetchSmall(ctx, s.cfg.Client.cfg.Images, []string{partFile(p.Target, p.SHA256)}, p.Length, s.cfg.Client.cfg.Limits,
			func(data []byte) error { return sameHash("part "+p.Name, data, p.SHA256) })
		if err != nil {
			return nil, err
		}
		parts[p.Name] = data
	}
	return parts, nil
}

func sameHash(what string, data []byte, want string) error {
	sum := sha256.Sum256(data)
	return sameSum(what, sum[:], want)
}

func sameSum(what string, sum []byte, want string) error {
	w, err := hex.DecodeString(want)
	if err != nil || subtle.ConstantTimeCompare(sum, w) != 1 {
		return refuse(ErrHash, what, "SHA-256 is %x, signed is %s", sum, want)
	}
	return nil
}

// checkSpace refuses a release that does not fit before anything changes.
func (s *session) checkSpace(ctx context.Context, sel *Selection, slot Slot) error {
	for _, p := range sel.release.Parts {
		if p.Opaque {
			continue
		}
		f, err := s.openSlot(ctx, slot, p.Name)
		if err != nil {
			return err
		}
		size := f.Size()
		if err := f.Close(); err != nil {
			return fmt.Errorf("update: slot %s, part %s: %w", slot, p.Name, err)
		}
		if size < p.Length {
			return refuse(ErrNoSpace, fmt.Sprintf("slot %s, part %s", slot, p.Name), "%d bytes do not fit into %d", p.Length, size)
		}
	}
	return nil
}

func (s *session) openSlot(ctx context.Context, slot Slot, part string) (SlotFile, error) {
	if slot == s.running.Slot {
		return nil, refuse(ErrActiveSlot, "slot "+string(slot), "refusing to write part %s", part)
	}
	f, err := s.cfg.Slots.Open(ctx, slot, part)
	if err != nil {
		return nil, s.slotError(slot, part, err)
	}
	return f, nil
}

func (s *session) slotError(slot Slot, part string, err error) error {
	what := fmt.Sprintf("slot %s, part %s", slot, part)
	r := new(RefusedError)
	switch {
	case errors.As(err, &r):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return refuseErr(ErrNoSpace, what, err)
	}
	return fmt.Errorf("update: %s: %w", what, err)
}

// writePart brings one part into the slot and proves that it is there.
func (s *session) writePart(ctx context.Context, slot Slot, p manifest.Part) (err error) {
	f, err := s.openSlot(ctx, slot, p.Name)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); cerr != nil && err == nil {
			err = s.slotError(slot, p.Name, cerr)
		}
	}()
	w := &partWriter{session: s, slot: slot, part: p, file: f}
	resumed := s.j.Done[p.Name] > 0
	again := places(s.cfg.Client.cfg.Images, partFile(p.Target, p.SHA256)) - 1
	err = w.fill(ctx)
	if err == nil {
		err = w.verify(ctx)
	}
	if resumed || w.aided {
		again++
	}
	for ; again > 0 && (errors.Is(err, ErrHash) || errors.Is(err, ErrTooLarge)); again-- {
		// What lay in the slot before, a patch, or what a mirror sent was not
		// what it should have been: once more, from the signed content alone.
		s.log.WarnContext(ctx, "part restarted", "event", "update.part.restarted", "part", p.Name, "error", err.Error())
		if err = w.restart(ctx); err == nil {
			err = w.verify(ctx)
		}
	}
	return err
}

// partWriter writes one part into one slot.
type partWriter struct {
	*session
	slot  Slot
	part  manifest.Part
	file  SlotFile
	aided bool          // an index or a patch was used
	from  io.ReadCloser // what the content came from last
}

// fill writes the part, from where an earlier attempt left off.
func (w *partWriter) fill(ctx context.Context) error {
	done := min(max(w.j.Done[w.part.Name], 0), w.part.Length)
	if done == w.part.Length && w.part.Length > 0 {
		return nil
	}
	if done == 0 {
		if ok, err := w.aid(ctx); ok || err != nil {
			return err
		}
	}
	return w.stream(ctx, done)
}

// restart writes the whole part from the source.
func (w *partWriter) restart(ctx context.Context) error {
	w.aided = false
	if err := w.mark(ctx, 0); err != nil {
		return err
	}
	return w.stream(ctx, 0)
}

func (w *partWriter) stream(ctx context.Context, from int64) error {
	next := from + checkpoint
	d := download{src: w.cfg.Client.cfg.Images, names: []string{partFile(w.part.Target, w.part.SHA256)}, length: w.part.Length, off: from, limits: w.cfg.Client.cfg.Limits}
	err := d.run(ctx, func(p []byte, off int64) error {
		if _, err := w.file.WriteAt(p, off); err != nil {
			return w.slotError(w.slot, w.part.Name, err)
		}
		end := off + int64(len(p))
		w.progress(end)
		if end < next {
			return nil
		}
		next = end + checkpoint
		return w.sync(ctx, end)
	})
	w.from = d.from
	if err != nil {
		if d.off > from && !isSink(err) {
			err = errors.Join(err, w.sync(ctx, d.off))
		}
		return err
	}
	return w.sync(ctx, w.part.Length)
}

func (w *partWriter) progress(done int64) {
	if w.cfg.Progress != nil {
		w.cfg.Progress(w.part.Name, done, w.part.Length)
	}
}

// sync makes the first n bytes of the part durable and remembers that.
func (w *partWriter) sync(ctx context.Context, n int64) error {
	if err := w.file.Sync(); err != nil {
		return w.slotError(w.slot, w.part.Name, err)
	}
	return w.mark(ctx, n)
}

func (w *partWriter) mark(_ context.Context, n int64) error {
	w.j.Done[w.part.Name] = n
	return w.j.save(w.cfg.Dir)
}

// verify reads the part back from the slot and compares it with the signed hash.
func (w *partWriter) verify(ctx context.Context) error {
	h := sha256.New()
	r := &ctxReader{ctx: ctx, r: io.NewSectionReader(w.file, 0, w.part.Length)}
	n, err := io.CopyBuffer(onlyWriter{h}, r, make([]byte, readBack))
	if err != nil {
		return fmt.Errorf("update: read back slot %s, part %s: %w", w.slot, w.part.Name, err)
	}
	what := fmt.Sprintf("slot %s, part %s", w.slot, w.part.Name)
	if n != w.part.Length {
		return refuse(ErrHash, what, "%d bytes could be read back, signed are %d", n, w.part.Length)
	}
	err = sameSum(what, h.Sum(nil), w.part.SHA256)
	if err != nil {
		passOver(w.from)
		return errors.Join(err, w.mark(ctx, 0))
	}
	return nil
}

type onlyWriter struct{ io.Writer }

func (in *Installer) opaqueFile(slot Slot, part string) string {
	return filepath.Join(in.cfg.Dir, "parts", tufmeta.Quote(string(slot)), path.Base(part))
}

func (s *session) keepOpaque(slot Slot, parts map[string][]byte) error {
	dir := filepath.Dir(s.opaqueFile(slot, "x"))
	if err := os.RemoveAll(dir); err != nil {
		return stateError("opaque parts", err)
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return stateError("opaque parts", err)
	}
	for name, data := range parts {
		if err := durable.WriteFile(s.opaqueFile(slot, name), data, 0o600); err != nil {
			return s.slotError(slot, name, err)
		}
	}
	return nil
}

// Parts returns the opaque parts of the release on trial or committed in a
// slot: the PCR policy with which the volumes of the running slot open, for
// one. They are compared with the hashes in the installer's state; what must
// be believed of them carries a signature of its own.
func (in *Installer) Parts(ctx context.Context, slot Slot) (map[string][]byte, error) {
	s, err := in.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer s.release()
	rel, ok := s.j.State.Slots[slot]
	if p := s.j.State.Phase; s.j.State.Slot == slot && (p == Armed || p == Trial || p == Committing) {
		rel, ok = s.j.State.Release, true
	}
	if !ok {
		return nil, refuse(ErrNotInRepository, "slot "+string(slot), "no release of this installer is in it")
	}
	parts := map[string][]byte{}
	for name, sum := range rel.Opaque {
		data, err := readFileLimit(in.opaqueFile(slot, name), manifest.MaxOpaque)
		if err != nil {
			return nil, fmt.Errorf("update: part %s: %w", name, err)
		}
		if err := sameHash("part "+name, data, sum); err != nil {
			return nil, err
		}
		parts[name] = data
	}
	return parts, nil
}
