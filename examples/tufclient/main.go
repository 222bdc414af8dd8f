// Command tufclient drives package update's client from the command line that
// the public TUF conformance suite speaks:
//
//	tufclient --metadata-dir D init ROOT
//	tufclient --metadata-url U --metadata-dir D refresh
//	tufclient --metadata-url U --metadata-dir D --target-name N --target-base-url T --target-dir X download
//
// init trusts the file ROOT and asks no network. --target-name may be given
// several times: one client fetches them in order, and a target that lies in X
// already, unaltered, is not fetched again. The exit code is 0 or 1.
package main

import (
	"context"
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
			if err := download(ctx, c, name, *targetDir); err != nil {
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
	return os.WriteFile(anchor(dir), root, 0o600)
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
	src := split{}
	for prefix, url := range map[string]string{"metadata/": metadataURL, "targets/": targetURL} {
		if src[prefix], err = update.HTTPSource(update.HTTPConfig{URLs: []string{url}, Attempts: 2}); err != nil {
			return nil, err
		}
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

// split reads metadata and targets from two places.
type split map[string]update.Source

func (s split) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	for prefix, src := range s {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return src.Open(ctx, rest, off, n)
		}
	}
	return nil, fmt.Errorf("no source for %s", name)
}

func download(ctx context.Context, c *update.Client, name, dir string) (err error) {
	t, err := c.Target(ctx, name)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, strings.NewReplacer("%", "%25", "/", "%2F").Replace(name))
	if f, err := os.Open(file); err == nil {
		same := t.Verify(f)
		if err := f.Close(); err != nil {
			return err
		}
		if same == nil {
			return nil
		}
	}
	tmp, err := os.CreateTemp(dir, ".download-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	err = c.Download(ctx, t, tmp)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
