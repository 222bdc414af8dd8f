package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/fscrypt/kernel"
)

func (a *app) createFlags(f *flag.FlagSet) {
	f.StringVar(&a.label, "label", "", "what the volume is for, for example `data`; required")
	f.BoolVar(&a.kernel, "kernel", false, "encrypt with the kernel")
	f.BoolVar(&a.unsafeFresh, "unsafe-no-freshness", false, "do without a counter: an older copy of the disk can be put back")
}

func newFlags(a *app, f *flag.FlagSet) { a.renewed.flags(f, "new-") }
func slotFlags(a *app, f *flag.FlagSet) {
	f.StringVar(&a.slot, "slot", "", "`ID` of the slot; required")
}
func toFlags(a *app, f *flag.FlagSet) {
	f.StringVar(&a.to, "to", "", "`directory` that must not exist; required")
	f.BoolVar(&a.resume, "resume", false, "go on with an interrupted recover to the same directory")
}

func yesFlags(a *app, f *flag.FlagSet) {
	f.BoolVar(&a.yes, "yes", false, "there is no way back; required")
}

func create(ctx context.Context, a *app) error {
	if a.label == "" {
		return wire.Usage("-label is required")
	}
	ps, err := a.guard.protectors(a)
	if err != nil {
		return err
	}
	c, err := a.config()
	if err != nil {
		return err
	}
	c.Kernel, c.UnsafeNoFreshness = a.kernel, a.unsafeFresh
	v, err := fscrypt.Create(ctx, a.dir, c, ps...)
	if err != nil {
		return err
	}
	s := v.Status()
	err = a.print(struct {
		fscrypt.Status
		Latch string `json:"latch"`
	}{s, hex.EncodeToString(v.Latch())}, describe(s)+"latch      "+hex.EncodeToString(v.Latch())+"\n")
	end := v.Lock
	if a.keep != nil {
		end = v.Detach
	}
	return errors.Join(err, end(context.WithoutCancel(ctx)))
}

func unlock(ctx context.Context, a *app) error {
	v, end, err := a.open(ctx, nil)
	if err != nil {
		return err
	}
	s := v.Status()
	err = a.print(s, describe(s))
	if s.Kernel != nil {
		return errors.Join(err, v.Detach(ctx)) // the kernel keeps the key
	}
	return errors.Join(err, end())
}

// tree opens the encrypted directory of a kernel mode volume and reads which
// key it is under; nil and no error for a portable volume.
func (a *app) tree() (control *os.File, p kernel.Policy, err error) {
	h, err := fscrypt.Inspect(a.dir)
	if err != nil || h.Mode != "kernel" {
		return nil, p, err
	}
	d, err := os.Open(filepath.Join(a.dir, "tree"))
	if err != nil {
		return nil, p, err
	}
	p, err = kernel.GetPolicy(d)
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, p, err
	}
	control, err = os.Open(a.dir)
	return control, p, err
}

// inUse reports whether the kernel has the key, so that programs may be using
// the volume.
func (a *app) inUse() bool {
	d, p, err := a.tree()
	if err != nil || d == nil {
		return false
	}
	defer d.Close()
	state, err := kernel.Status(d, p.Identifier)
	return err == nil && state == kernel.Present
}

// lock takes the key of a kernel mode volume away; which one it is the
// directory's policy says. What -keep names it erases.
func lock(ctx context.Context, a *app) error {
	d, p, err := a.tree()
	if err == nil && d != nil {
		err = errors.Join(a.lockTree(ctx, d, p.Identifier), d.Close())
	}
	if a.keepFile != "" {
		err = errors.Join(err, eraseKeep(a.keepFile))
	}
	if err != nil {
		return err
	}
	text := "locked\n"
	if d == nil && a.keepFile == "" {
		text = "a portable volume is locked whenever no program has it open, unless -keep keeps it open\n"
	}
	return a.print(map[string]bool{"locked": true}, text)
}

func (a *app) lockTree(ctx context.Context, d *os.File, id kernel.Identifier) error {
	if err := kernel.Sync(d); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	for {
		if _, err := kernel.RemoveKey(d, id); err != nil {
			return err
		}
		state, err := kernel.Status(d, id)
		if err != nil || state == kernel.Absent {
			return err
		}
		select {
		case <-ctx.Done():
			users := kernel.Users(filepath.Join(a.dir, "tree"), 16)
			return &fscrypt.BusyError{Open: len(users), Paths: users}
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// eraseKeep overwrites and removes what -keep names.
func eraseKeep(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() > 4096) {
		return errors.Join(wire.Usage("%s is not what unlock -keep made", name), f.Close())
	}
	if err == nil {
		_, err = f.WriteAt(make([]byte, fi.Size()), 0)
	}
	return errors.Join(err, f.Close(), os.Remove(name))
}

// lockTimeout is how long lock waits for open files.
const lockTimeout = 5 * time.Second

// unverified is what a header says that nothing has authenticated.
type unverified struct {
	*fscrypt.Unverified
	Key string `json:"key,omitempty"` // of a kernel mode volume: "present", "absent"
}

func status(ctx context.Context, a *app) error {
	if a.guard.named() {
		return a.with(ctx, func(v *fscrypt.Volume) error {
			s := v.Status()
			return a.print(s, describe(s))
		})
	}
	h, err := fscrypt.Inspect(a.dir)
	if err != nil {
		return err
	}
	u := unverified{Unverified: h}
	text := fmt.Sprintf("volume     %s (%.64q, %s); unverified: nothing was opened\n", h.Volume, h.Label, h.Mode)
	for _, s := range h.Slots {
		text += fmt.Sprintf("slot       %.64q %.64q\n", s.ID, s.Type)
	}
	if h.Mode == "kernel" {
		u.Key = "absent"
		if a.inUse() {
			u.Key = "present"
		}
		text += fmt.Sprintf("directory  %s, key %s\n", filepath.Join(a.dir, "tree"), u.Key)
	}
	return a.print(map[string]any{"unverified": u}, text)
}

func addProtector(ctx context.Context, a *app) error {
	ps, err := a.renewed.protectors(a)
	if err != nil {
		return err
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		var ids []string
		for _, p := range ps {
			id, err := v.AddProtector(ctx, p)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return a.print(map[string][]string{"slots": ids}, strings.Join(ids, "\n")+"\n")
	})
}

func removeProtector(ctx context.Context, a *app) error {
	if a.slot == "" {
		return wire.Usage("-slot is required")
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		if err := v.RemoveProtector(ctx, a.slot); err != nil {
			return err
		}
		return a.print(map[string]string{"removed": a.slot}, "removed "+a.slot+"\n")
	})
}

func reseal(ctx context.Context, a *app) error {
	ps, err := a.renewed.protectors(a)
	if err != nil {
		return err
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		for _, p := range ps {
			if err := v.Reseal(ctx, p); err != nil {
				return err
			}
		}
		s := v.Status()
		return a.print(s, describe(s))
	})
}

func rotate(ctx context.Context, a *app) error {
	var renewed []fscrypt.Protector
	if a.renewed.named() {
		var err error
		if renewed, err = a.renewed.protectors(a); err != nil {
			return err
		}
	}
	bar := a.bar("files", -1)
	v, end, err := a.open(ctx, func(done, total int) {
		bar.ChangeMax(total)
		_ = bar.Set(done)
	})
	if err != nil {
		return err
	}
	err = v.Rotate(ctx, renewed...)
	s := v.Status()
	if err = errors.Join(err, bar.Close(), end()); err != nil {
		return err
	}
	return a.print(s, describe(s))
}

func destroy(ctx context.Context, a *app) error {
	if !a.yes {
		return wire.Usage("destroy makes the volume unreadable for good: say -yes")
	}
	v, _, err := a.open(ctx, nil)
	if err != nil {
		return err
	}
	if err := v.Destroy(ctx); err != nil {
		return err
	}
	return a.print(map[string]bool{"destroyed": true}, "destroyed\n")
}
