package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

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
}

func yesFlags(a *app, f *flag.FlagSet) {
	f.BoolVar(&a.yes, "yes", false, "there is no way back; required")
}

func fileFlags(a *app, f *flag.FlagSet) {
	f.StringVar(&a.name, "name", "", "`name` in the volume; required")
	f.StringVar(&a.file, "file", "", "`file` outside; empty means standard input or output")
	f.BoolVar(&a.pad, "pad", false, "hide the file's size")
}

func create(ctx context.Context, a *app) error {
	ps, err := a.guard.protectors()
	if err != nil {
		return err
	}
	c := a.config()
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
	return errors.Join(err, v.Lock(ctx))
}

func unlock(ctx context.Context, a *app) error {
	ps, err := a.guard.protectors()
	if err != nil {
		return err
	}
	v, err := fscrypt.Open(ctx, a.dir, a.config(), ps...)
	if err != nil {
		return err
	}
	s := v.Status()
	if err := a.print(s, describe(s)); err != nil {
		return err
	}
	if s.Kernel != nil {
		return nil // the kernel keeps the key
	}
	return v.Lock(ctx)
}

// lock takes the key of a kernel mode volume away; which one it is the
// directory's policy says.
func lock(ctx context.Context, a *app) error {
	h, err := fscrypt.Inspect(a.dir)
	if err != nil {
		return err
	}
	if h.Mode != "kernel" {
		return a.print(map[string]bool{"locked": true}, "a portable volume is locked whenever no program has it open\n")
	}
	tree := filepath.Join(a.dir, "tree")
	d, err := os.Open(tree)
	if err != nil {
		return err
	}
	p, err := kernel.GetPolicy(d)
	if err = errors.Join(err, kernel.Sync(d), d.Close()); err != nil {
		return err
	}
	if d, err = os.Open(a.dir); err != nil {
		return err
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	for {
		if _, err := kernel.RemoveKey(d, p.Identifier); err != nil {
			return err
		}
		state, err := kernel.Status(d, p.Identifier)
		if err != nil {
			return err
		}
		if state == kernel.Absent {
			return a.print(map[string]bool{"locked": true}, "locked\n")
		}
		select {
		case <-ctx.Done():
			users := kernel.Users(tree, 16)
			return &fscrypt.BusyError{Open: len(users), Paths: users}
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// lockTimeout is how long lock waits for open files.
const lockTimeout = 5 * time.Second

func status(ctx context.Context, a *app) error {
	if a.guard.tpm == "" && a.guard.passphrase == "" && a.guard.identityFile == "" {
		h, err := fscrypt.Inspect(a.dir)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("volume     %s (%.64q, %s); unverified: nothing was opened\n", h.Volume, h.Label, h.Mode)
		for _, s := range h.Slots {
			text += fmt.Sprintf("slot       %.64q %.64q\n", s.ID, s.Type)
		}
		return a.print(map[string]any{"unverified": h}, text)
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		s := v.Status()
		return a.print(s, describe(s))
	})
}

func addProtector(ctx context.Context, a *app) error {
	ps, err := a.renewed.protectors()
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
	return a.with(ctx, func(v *fscrypt.Volume) error { return v.RemoveProtector(ctx, a.slot) })
}

func reseal(ctx context.Context, a *app) error {
	ps, err := a.renewed.protectors()
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
	if a.renewed.tpm != "" || a.renewed.passphrase != "" || a.renewed.recipients != "" {
		var err error
		if renewed, err = a.renewed.protectors(); err != nil {
			return err
		}
	}
	ps, err := a.guard.protectors()
	if err != nil {
		return err
	}
	c := a.config()
	bar := a.bar("files", -1)
	c.Progress = func(done, total int) {
		bar.ChangeMax(total)
		_ = bar.Set(done)
	}
	v, err := fscrypt.Open(ctx, a.dir, c, ps...)
	if err != nil {
		return err
	}
	err = v.Rotate(ctx, renewed...)
	s := v.Status()
	if err = errors.Join(err, bar.Close(), v.Lock(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	return a.print(s, describe(s))
}

// bar shows progress on a terminal and nowhere else.
func (a *app) bar(what string, total int64) *progressbar.ProgressBar {
	f, ok := a.err.(*os.File)
	visible := ok && term.IsTerminal(int(f.Fd())) && !a.json
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(a.err), progressbar.OptionSetVisibility(visible), progressbar.OptionSetDescription(what),
		progressbar.OptionClearOnFinish())
}

func recoverAll(ctx context.Context, a *app) error {
	if a.to == "" {
		return wire.Usage("-to is required")
	}
	if err := os.Mkdir(a.to, 0o700); err != nil {
		return err
	}
	out, err := os.OpenRoot(a.to)
	if err != nil {
		return err
	}
	defer out.Close()
	return a.with(ctx, func(v *fscrypt.Volume) error {
		bar := a.bar("files", int64(v.Status().Files))
		defer bar.Close()
		n := 0
		err := fs.WalkDir(v.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil || ctx.Err() != nil:
				return errors.Join(err, ctx.Err())
			case d.IsDir():
				return out.MkdirAll(name, 0o700)
			}
			n++
			_ = bar.Add(1)
			return copyOut(v, out, name)
		})
		if err != nil {
			return err
		}
		return a.print(map[string]any{"files": n, "to": a.to}, fmt.Sprintf("%d files in %s\n", n, a.to))
	})
}

func copyOut(v *fscrypt.Volume, out *os.Root, name string) error {
	src, err := v.FS().Open(name)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := out.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

func destroy(ctx context.Context, a *app) error {
	if !a.yes {
		return wire.Usage("destroy makes the volume unreadable for good: say -yes")
	}
	ps, err := a.guard.protectors()
	if err != nil {
		return err
	}
	v, err := fscrypt.Open(ctx, a.dir, a.config(), ps...)
	if err != nil {
		return err
	}
	if err := v.Destroy(ctx); err != nil {
		return err
	}
	return a.print(map[string]bool{"destroyed": true}, "destroyed\n")
}

func put(ctx context.Context, a *app) error {
	if a.name == "" {
		return wire.Usage("-name is required")
	}
	src, size := a.in, int64(-1)
	if a.file != "" {
		f, err := os.Open(a.file)
		if err != nil {
			return err
		}
		defer f.Close()
		if fi, err := f.Stat(); err == nil {
			size = fi.Size()
		}
		src = f
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		w, err := v.Create(a.name)
		if err != nil {
			return err
		}
		bar := a.bar(a.name, size)
		_, err = io.Copy(io.MultiWriter(w, bar), src)
		if err = errors.Join(err, bar.Close(), ctx.Err()); err != nil {
			return errors.Join(err, w.Abort())
		}
		return w.Close()
	})
}

func get(ctx context.Context, a *app) error {
	if a.name == "" {
		return wire.Usage("-name is required")
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		f, err := v.OpenFile(a.name)
		if err != nil {
			return err
		}
		defer f.Close()
		if a.file == "" {
			_, err = io.Copy(a.out, f)
			return err
		}
		dst, err := os.OpenFile(a.file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(dst, f)
		return errors.Join(err, dst.Close())
	})
}

func ls(ctx context.Context, a *app) error {
	type file struct {
		Name string    `json:"name"`
		Size int64     `json:"size"`
		Time time.Time `json:"time"`
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		files := []file{}
		var text strings.Builder
		err := fs.WalkDir(v.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			files = append(files, file{name, fi.Size(), fi.ModTime().UTC()})
			fmt.Fprintf(&text, "%12d  %s  %s\n", fi.Size(), fi.ModTime().UTC().Format(time.RFC3339), name)
			return nil
		})
		if err != nil {
			return err
		}
		return a.print(files, text.String())
	})
}
