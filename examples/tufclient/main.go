// Command tufclient drives package update's client from the command line that
// the public TUF conformance suite speaks:
//
//	tufclient --metadata-dir D init ROOT
//	tufclient --metadata-url U --metadata-dir D refresh
//	tufclient --metadata-url U --metadata-dir D --target-name N --target-base-url T --target-dir X download
//
// init trusts the file ROOT and asks no network. --target-name may be given
// several times: one client fetches them in order, and a target that lies in X
// already, unaltered, is not fetched again. A download that was interrupted
// continues where it stood. The exit code is 0 or 1.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/trusttree/trusttree/update"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "tufclient:", err)
		os.Exit(1)
	}
}

type names []string

func (n *names) String() string     { return strings.Join(*n, ",") }
func (n *names) Set(s string) error { *n = append(*n, s); return nil }

func run(ctx context.Context, args []string, stderr io.Writer) error {
	fl := flag.NewFlagSet("tufclient", flag.ContinueOnError)
	fl.SetOutput(stderr)
	dir := fl.String("metadata-dir", "", "directory of trusted metadata")
	metadataURL := fl.String("metadata-url", "", "base URL of the metadata")
	targetURL := fl.String("target-base-url", "", "base URL of the targets")
	targetDir := fl.String("target-dir", "", "directory for downloaded targets")
	var targets names
	fl.Var(&targets, "target-name", "target to download; may be repeated")
	fl.Usage = func() {
		fmt.Fprintln(stderr, "usage: tufclient [flags] init ROOT | refresh | download")
		fl.PrintDefaults()
	}
	if err := fl.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("-metadata-dir is missing")
	}
	switch cmd := fl.Arg(0); {
	case cmd == "init" && fl.NArg() == 2:
		return initialize(ctx, *dir, fl.Arg(1))
	case cmd == "refresh" && fl.NArg() == 1:
		_, err := refresh(ctx, *dir, *metadataURL, *metadataURL)
		return err
	case cmd == "download" && fl.NArg() == 1:
		if len(targets) == 0 || *targetDir == "" || *targetURL == "" {
			return errors.New("download needs -target-name, -target-base-url and -target-dir")
		}
		c, err := refresh(ctx, *dir, *metadataURL, *targetURL)
		if err != nil {
			return err
		}
		for _, name := range targets {
			if err := download(ctx, c, name, *targetDir, stderr); err != nil {
				return err
			}
		}
		return nil
	}
	fl.Usage()
	return fmt.Errorf("no command %q", strings.Join(fl.Args(), " "))
}

// anchor is where init keeps the trusted root, which no update replaces.
func anchor(dir string) string { return filepath.Join(dir, "trusted-root") }

func initialize(ctx context.Context, dir, rootFile string) error {
	root, err := os.ReadFile(rootFile)
	if err != nil {
		return err
	}
	c, err := client(dir, root, update.FSSource(os.DirFS(dir)), time.Time{})
	if err != nil {
		return err
	}
	if err := c.Init(ctx); err != nil {
		return err
	}
	return writeFile(anchor(dir), root)
}

// writeFile makes a file that is there whole or not at all.
func writeFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), name)
}

func client(dir string, root []byte, src update.Source, now time.Time) (*update.Client, error) {
	return update.NewClient(update.ClientConfig{
		Root: root, Dir: dir, Images: src, Floors: update.FileFloors(filepath.Join(dir, "floors")),
		Now: func() time.Time { return now },
	})
}

func refresh(ctx context.Context, dir, metadataURL, targetURL string) (*update.Client, error) {
	root, err := os.ReadFile(anchor(dir))
	if err != nil {
		return nil, fmt.Errorf("%w (run init first)", err)
	}
	now, err := clock(ctx)
	if err != nil {
		return nil, err
	}
	src, err := update.HTTPSource(update.HTTPConfig{URLs: []string{metadataURL}, TargetURLs: []string{targetURL}, Attempts: 1})
	if err != nil {
		return nil, err
	}
	c, err := client(dir, root, src, now)
	if err != nil {
		return nil, err
	}
	_, err = c.Refresh(ctx)
	return c, err
}

// clock asks the command date, which test suites can wrap.
func clock(ctx context.Context) (time.Time, error) {
	out, err := exec.CommandContext(ctx, "date", "+%s").Output()
	if err != nil {
		return time.Time{}, fmt.Errorf("date +%%s: %w", err)
	}
	s, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("date +%%s: %w", err)
	}
	return time.Unix(s, 0), nil
}

// fileName makes one visible file name of a target's name.
func fileName(target string) string {
	name := strings.NewReplacer("%", "%25", "/", "%2F").Replace(target)
	if strings.HasPrefix(name, ".") {
		name = "%2E" + name[1:]
	}
	if len(name) > 200 {
		name = fmt.Sprintf("%.100s~%x", name, sha256.Sum256([]byte(target)))
	}
	return name
}

func download(ctx context.Context, c *update.Client, name, dir string, stderr io.Writer) error {
	t, err := c.Target(ctx, name)
	if err != nil {
		return err
	}
	progress, done := bar(stderr, name, t.Length())
	defer done()
	return c.DownloadFile(ctx, t, filepath.Join(dir, fileName(name)), progress)
}

// bar shows a progress bar on a terminal, and two plain lines elsewhere. A
// target that is there already shows neither.
func bar(w io.Writer, name string, total int64) (progress func(done, total int64), done func()) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		began := false
		return func(n, total int64) {
			if !began {
				fmt.Fprintf(w, "%s: fetching, %d bytes\n", name, total)
			}
			if began = true; n == total {
				fmt.Fprintf(w, "%s: complete\n", name)
			}
		}, func() {}
	}
	b := progressbar.NewOptions64(total, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(name), progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	// A bar that can't be drawn stops nothing.
	return func(n, _ int64) { _ = b.Set64(n) }, func() { _ = b.Exit() }
}
