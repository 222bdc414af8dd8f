package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt"
)

func putFlags(a *app, f *flag.FlagSet) {
	f.StringVar(&a.name, "name", "", "`name` in the volume; required unless -file is a directory")
	f.StringVar(&a.file, "file", "", "`file` or directory outside; empty means standard input")
	f.BoolVar(&a.pad, "pad", false, "hide the files' sizes")
	f.BoolVar(&a.resume, "resume", false, "leave files as they are that the volume has with the same content")
}

func getFlags(a *app, f *flag.FlagSet) {
	f.StringVar(&a.name, "name", "", "`name` in the volume; required")
	f.StringVar(&a.file, "file", "", "`file` outside, which must not exist; empty means standard output")
}

func protectFlags(a *app, f *flag.FlagSet) {
	f.StringVar(&a.name, "name", "", "`names` below the encrypted directory, separated by commas; required")
}

// bar shows progress on a terminal and nowhere else.
func (a *app) bar(what string, total int64) *progressbar.ProgressBar {
	f, ok := a.err.(*os.File)
	visible := ok && term.IsTerminal(int(f.Fd())) && !a.json
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(a.err), progressbar.OptionSetVisibility(visible), progressbar.OptionSetDescription(what),
		progressbar.OptionClearOnFinish())
}

// done is what a command for files reports.
type done struct {
	Files   int      `json:"files"`
	Bytes   int64    `json:"bytes"`
	Present int      `json:"present,omitempty"` // were there already
	Skipped []string `json:"skipped,omitempty"` // neither files nor directories
	To      string   `json:"to,omitempty"`
}

func (d *done) text(what string) string {
	s := fmt.Sprintf("%s %d files, %d bytes", what, d.Files, d.Bytes)
	if d.Present > 0 {
		s += fmt.Sprintf("; %d were there", d.Present)
	}
	for _, n := range d.Skipped {
		s += fmt.Sprintf("\nskipped %q: not a regular file", n)
	}
	return s + "\n"
}

func put(ctx context.Context, a *app) error {
	fi, err := os.Stat(a.file)
	dir := err == nil && fi.IsDir()
	switch {
	case a.file != "" && err != nil:
		return err
	case a.name == "" && !dir:
		return wire.Usage("-name is required")
	case a.resume && a.file == "":
		return wire.Usage("-resume needs -file: standard input can't be read again")
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		d := &done{}
		var err error
		switch {
		case dir:
			err = a.putDir(ctx, v, d)
		case a.file == "":
			err = a.putFrom(ctx, v, a.name, a.in, -1, d)
		default:
			err = a.putFile(ctx, v, a.name, a.file, d)
		}
		if errors.Is(err, context.Canceled) && a.file != "" {
			err = fmt.Errorf("%w after %d files: what was stored stays; put -resume goes on", err, d.Files)
		}
		if err != nil {
			return err
		}
		return a.print(d, d.text("stored"))
	})
}

// putDir stores every regular file below a directory.
func (a *app) putDir(ctx context.Context, v *fscrypt.Volume, d *done) error {
	var names []string
	err := filepath.WalkDir(a.file, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || ctx.Err() != nil:
			return errors.Join(err, ctx.Err())
		case e.Type().IsRegular():
			names = append(names, name)
		case !e.IsDir():
			d.Skipped = append(d.Skipped, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	bar := a.bar("files", int64(len(names)))
	defer bar.Close()
	for _, name := range names {
		rel, err := filepath.Rel(a.file, name)
		if err != nil {
			return err
		}
		if err := a.putFile(ctx, v, path.Join(a.name, filepath.ToSlash(rel)), name, d); err != nil {
			return err
		}
		_ = bar.Add(1)
	}
	return nil
}

func (a *app) putFile(ctx context.Context, v *fscrypt.Volume, name, file string, d *done) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(-1)
	if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
		size = fi.Size()
	}
	if a.resume {
		same, err := a.has(ctx, v, name, f, size)
		if err != nil {
			return err
		}
		if same {
			d.Present++
			return nil
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	return a.putFrom(ctx, v, name, f, size, d)
}

// has reports whether the volume has a file with this content.
func (a *app) has(ctx context.Context, v *fscrypt.Volume, name string, f io.Reader, size int64) (bool, error) {
	have, err := v.OpenFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer have.Close()
	fi, err := have.Stat()
	if err != nil || fi.Size() != size {
		return false, err
	}
	return same(ctx, f, have)
}

func (a *app) putFrom(ctx context.Context, v *fscrypt.Volume, name string, src io.Reader, size int64, d *done) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := v.Create(name)
	if err != nil {
		return err
	}
	bar := a.bar(name, size)
	n, err := io.Copy(io.MultiWriter(w, bar), newReader(ctx, src))
	if err = errors.Join(err, bar.Close()); err != nil {
		return errors.Join(err, w.Abort())
	}
	d.Files, d.Bytes = d.Files+1, d.Bytes+n
	return w.Close()
}

func get(ctx context.Context, a *app) error {
	if a.name == "" {
		return wire.Usage("-name is required")
	}
	if a.json && a.file == "" {
		return wire.Usage("-json needs -file: standard output is the content")
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		f, err := v.FS().Open(a.name)
		if err != nil {
			return err
		}
		defer f.Close()
		if a.file == "" {
			_, err = io.Copy(whileWanted{ctx, a.out}, f)
			return err
		}
		root, err := os.OpenRoot(filepath.Dir(a.file))
		if err != nil {
			return err
		}
		defer root.Close()
		n, err := copyOut(ctx, f, root, filepath.Base(a.file))
		if err != nil {
			return err
		}
		d := &done{Files: 1, Bytes: n, To: a.file}
		return a.print(d, d.text("wrote"))
	})
}

func recoverAll(ctx context.Context, a *app) error {
	if a.to == "" {
		return wire.Usage("-to is required")
	}
	if !a.guard.named() {
		return wire.Usage("no protector: -identity, -passphrase-file or -tpm")
	}
	return a.with(ctx, func(v *fscrypt.Volume) error {
		if err := os.Mkdir(a.to, 0o700); err != nil && !(a.resume && errors.Is(err, fs.ErrExist)) {
			return err
		}
		out, err := os.OpenRoot(a.to)
		if err != nil {
			return err
		}
		defer out.Close()
		bar := a.bar("files", int64(v.Status().Files))
		defer bar.Close()
		d := &done{To: a.to}
		err = a.walk(ctx, v, func(name string, e fs.DirEntry) error {
			if e.IsDir() {
				return out.MkdirAll(name, 0o700)
			}
			_ = bar.Add(1)
			return a.recoverFile(ctx, v, out, name, e, d)
		})
		if errors.Is(err, context.Canceled) {
			err = fmt.Errorf("%w after %d files: recover -resume goes on", err, d.Files)
		}
		if err != nil {
			return err
		}
		return a.print(d, d.text("recovered"))
	})
}

// anchor is the file by which a kernel mode volume knows its directory.
const anchor = ".fscrypt-anchor"

// walk calls f with every name of the volume.
func (a *app) walk(ctx context.Context, v *fscrypt.Volume, f func(name string, e fs.DirEntry) error) error {
	return fs.WalkDir(v.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if name == "." || (name == anchor && v.Path() != "") {
			return nil
		}
		return f(name, e)
	})
}

func (a *app) recoverFile(ctx context.Context, v *fscrypt.Volume, out *os.Root, name string, e fs.DirEntry, d *done) error {
	if !e.Type().IsRegular() {
		d.Skipped = append(d.Skipped, name)
		return nil
	}
	open := func() (fs.File, error) { return v.FS().Open(name) }
	if old, err := out.Open(name); a.resume && err == nil {
		defer old.Close()
		src, err := open()
		if err != nil {
			return err
		}
		defer src.Close()
		is, err := same(ctx, src, old)
		if err != nil {
			return err
		}
		if is {
			d.Present++
			return nil
		}
		if err := out.Remove(name); err != nil {
			return err
		}
	}
	src, err := open()
	if err != nil {
		return err
	}
	defer src.Close()
	n, err := copyOut(ctx, src, out, name)
	d.Files, d.Bytes = d.Files+1, d.Bytes+n
	return err
}

// protect notes the digests of files of a kernel mode volume.
func protect(ctx context.Context, a *app) error {
	if a.name == "" {
		return wire.Usage("-name is required")
	}
	names := strings.Split(a.name, ",")
	return a.with(ctx, func(v *fscrypt.Volume) error {
		if err := v.Protect(ctx, names...); err != nil {
			return err
		}
		return a.print(map[string][]string{"protected": names}, "protected "+strings.Join(names, ", ")+"\n")
	})
}

// verify holds the files of a kernel mode volume to their digests.
func verify(ctx context.Context, a *app) error {
	return a.with(ctx, func(v *fscrypt.Volume) error {
		if err := v.Verify(ctx); err != nil {
			return err
		}
		n := v.Status().Files
		return a.print(map[string]int{"verified": n}, fmt.Sprintf("%d files are as they were protected\n", n))
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
		err := a.walk(ctx, v, func(name string, e fs.DirEntry) error {
			if e.IsDir() {
				return nil
			}
			fi, err := e.Info()
			if err != nil {
				return err
			}
			files = append(files, file{name, fi.Size(), fi.ModTime().UTC()})
			return nil
		})
		if err != nil {
			return err
		}
		slices.SortFunc(files, func(x, y file) int { return strings.Compare(x.Name, y.Name) })
		var text strings.Builder
		for _, f := range files {
			fmt.Fprintf(&text, "%12d  %s  %q\n", f.Size, f.Time.Format(time.RFC3339), f.Name)
		}
		return a.print(files, text.String())
	})
}
