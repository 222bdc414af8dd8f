package main

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

func initRepo(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	rootKeys := a.fl.String("root", "", "public keys of the root role, comma-separated")
	threshold := a.fl.Int("root-threshold", 0, "how many root keys must sign")
	targets := a.fl.String("targets", "", "public keys of the targets role")
	targetsThreshold := a.fl.Int("targets-threshold", 0, "how many targets keys must sign")
	online := a.fl.String("online", "", "public key of snapshot, timestamp and bins")
	bins := a.fl.Int("bins", 0, "spread targets over 2^N bins; 0 for none")
	grace := a.fl.Duration("offline-grace", 0, "how long a stick whose timestamp has expired may still be used, where the node's policy says so too")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	s, err := a.store()
	if err != nil {
		return err
	}
	cfg := repository.Config{Bins: *bins, OfflineGrace: *grace}
	if cfg.Root, err = role(*rootKeys, *threshold); err != nil {
		return err
	}
	if cfg.Targets, err = role(*targets, *targetsThreshold); err != nil {
		return err
	}
	if cfg.Snapshot, err = role(*online, 0); err != nil {
		return err
	}
	cfg.Timestamp = cfg.Snapshot
	if *bins > 0 {
		cfg.Bin = cfg.Snapshot
	}
	signers, err := readSigners(a.keys)
	if err != nil {
		return err
	}
	_, err = repository.Create(ctx, s, cfg, signers...)
	return err
}

func release(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	a.mayPropose()
	var rel manifest.Release
	var hardware, tenants, parts, opaque, downgrade, index, patches list
	a.fl.StringVar(&rel.Channel, "channel", "stable", "stream of releases")
	a.fl.StringVar(&rel.Name, "name", "", "name, unique in the channel")
	a.fl.StringVar(&rel.Version, "version", "", "one to four numbers with dots")
	a.fl.Uint64Var(&rel.Security, "security", 0, "security counter")
	a.fl.Uint64Var(&rel.DataFloor, "data-floor", 0, "number of the data format that it writes")
	a.fl.StringVar(&rel.MinFrom, "min-from", "", "lowest version to come from")
	a.fl.StringVar(&rel.Notes, "notes", "", "text for people")
	a.fl.Var(&hardware, "hardware", "kind of node; may be repeated")
	a.fl.Var(&tenants, "tenant", "tenant; may be repeated; none means all")
	a.fl.Var(&downgrade, "downgrade-from", "higher version whose nodes may go down to this; may be repeated")
	a.fl.Var(&parts, "part", "NAME=FILE written to the slot; may be repeated")
	a.fl.Var(&index, "index", "part that gets a block index, for images that are not compressed; may be repeated")
	a.fl.Var(&patches, "patch-from", "NAME=OLDFILE: part that gets a patch from an older content; may be repeated")
	a.fl.Var(&opaque, "opaque", "NAME=FILE handed to the node's preflight; may be repeated")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	rel.Hardware, rel.Tenants, rel.DowngradeFrom = hardware, tenants, downgrade
	if len(parts) == 0 {
		return usage("no -part given")
	}
	contents, done, err := a.contents(parts, opaque)
	defer done()
	if err != nil {
		return err
	}
	doneOld, err := aids(contents, index, patches)
	defer doneOld()
	if err != nil {
		return err
	}
	return a.edit(ctx, func(tx *repository.Tx) error { return tx.AddRelease(rel, contents...) })
}

// contents opens the files of NAME=FILE pairs.
func (a *app) contents(parts, opaque []string) (out []repository.Content, done func(), err error) {
	var files []*os.File
	done = func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	for i, pair := range append(append([]string{}, parts...), opaque...) {
		name, file, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, done, usage("%q: want NAME=FILE", pair)
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, done, err
		}
		files = append(files, f)
		out = append(out, repository.Content{Name: name, Reader: a.watched(f, name), Opaque: i >= len(parts)})
	}
	return out, done, nil
}

// aids marks the parts that get a block index, and opens the older contents
// that patches start from.
func aids(contents []repository.Content, index, patches []string) (done func(), err error) {
	var files []*os.File
	done = func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	part := func(name string) (*repository.Content, error) {
		for i := range contents {
			if contents[i].Name == name && !contents[i].Opaque {
				return &contents[i], nil
			}
		}
		return nil, usage("no -part is called %q", name)
	}
	for _, name := range index {
		c, err := part(name)
		if err != nil {
			return done, err
		}
		c.Index = true
	}
	for _, pair := range patches {
		name, file, ok := strings.Cut(pair, "=")
		if !ok {
			return done, usage("%q: want NAME=OLDFILE", pair)
		}
		c, err := part(name)
		if err != nil {
			return done, err
		}
		f, err := os.Open(file)
		if err != nil {
			return done, err
		}
		files = append(files, f)
		size, err := f.Seek(0, io.SeekEnd) // a block device has a size too
		if err != nil {
			return done, err
		}
		c.PatchFrom = append(c.PatchFrom, io.NewSectionReader(f, 0, size))
	}
	return done, nil
}

// watched shows a progress bar while a file is read, on a terminal.
func (a *app) watched(f *os.File, name string) io.Reader {
	fi, err := f.Stat()
	errf, ok := a.errw.(*os.File)
	if err != nil || !ok || !term.IsTerminal(int(errf.Fd())) {
		return f
	}
	bar := progressbar.NewOptions64(2*fi.Size(), // hashed, then stored
		progressbar.OptionSetWriter(errf), progressbar.OptionSetDescription(name), progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	return &barFile{f, bar}
}

type barFile struct {
	*os.File
	bar *progressbar.ProgressBar
}

func (b *barFile) Read(p []byte) (int, error) {
	n, err := b.File.Read(p)
	_ = b.bar.Add(n) // a bar that can't be drawn stops nothing
	return n, err
}

func rollout(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	a.mayPropose()
	channel := a.fl.String("channel", "stable", "stream of releases")
	name := a.fl.String("name", "", "release")
	var waves, nodes list
	var r manifest.Rollout
	a.fl.Var(&waves, "wave", "START=PERMILLE, START in RFC 3339 or \"now\"; may be repeated")
	a.fl.Var(&nodes, "node", "node that may install at once; may be repeated")
	a.fl.BoolVar(&r.Paused, "pause", false, "stop the rollout")
	a.fl.StringVar(&r.Withdrawn, "withdraw", "", "take the release back, with the reason")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	for _, w := range waves {
		start, share, _ := strings.Cut(w, "=")
		at, err := time.Parse(time.RFC3339, start)
		if start == "now" {
			at, err = time.Now().UTC().Truncate(time.Second), nil
		}
		permille, perr := strconv.Atoi(share)
		if err := errors.Join(err, perr); err != nil {
			return usage("-wave %q: want START=PERMILLE: %v", w, err)
		}
		r.Waves = append(r.Waves, manifest.Wave{Start: at, Permille: permille})
	}
	r.Nodes = nodes
	return a.edit(ctx, func(tx *repository.Tx) error { return tx.SetRollout(*channel, *name, r) })
}

func assign(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	a.mayPropose()
	node := a.fl.String("node", "", "node ID")
	images := a.fl.String("images", "", "directory of the image repository")
	var releases list
	a.fl.Var(&releases, "release", "CHANNEL/NAME; may be repeated; none stops the node's updates")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	as := manifest.Assignment{Node: *node}
	if len(releases) > 0 {
		src, err := repository.Open(ctx, repository.DirStore(*images), nil)
		if err != nil {
			return err
		}
		for _, r := range releases {
			channel, name, _ := strings.Cut(r, "/")
			as.Releases = append(as.Releases, manifest.AssignedRelease{})
			if as.Releases[len(as.Releases)-1], err = src.Assigned(ctx, channel, name); err != nil {
				return err
			}
		}
	}
	return a.edit(ctx, func(tx *repository.Tx) error { return tx.Assign(as) })
}

func setRole(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	a.mayPropose()
	name := a.fl.String("name", "", "root, targets, snapshot or timestamp")
	keys := a.fl.String("keys", "", "public keys, comma-separated")
	threshold := a.fl.Int("threshold", 0, "how many must sign")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	r, err := role(*keys, *threshold)
	if err != nil {
		return err
	}
	return a.edit(ctx, func(tx *repository.Tx) error { return tx.SetRole(*name, r) })
}

func delegate(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	a.mayPropose()
	var d repository.Delegation
	var paths list
	a.fl.StringVar(&d.From, "from", "", "role that delegates; empty for targets")
	a.fl.StringVar(&d.Name, "name", "", "delegated role")
	a.fl.BoolVar(&d.Terminating, "terminating", false, "end the search for a target in this role")
	a.fl.Var(&paths, "path", "pattern of target names, segment by segment; may be repeated")
	keys := a.fl.String("keys", "", "public keys, comma-separated")
	threshold := a.fl.Int("threshold", 0, "how many must sign")
	revoke := a.fl.Bool("revoke", false, "take the delegation away")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	if d.Name == "" {
		return usage("-name is missing")
	}
	if *revoke {
		return a.edit(ctx, func(tx *repository.Tx) error { return tx.RevokeDelegation(d.Name) })
	}
	if len(paths) == 0 {
		return usage("no -path given")
	}
	var err error
	if d.Role, err = role(*keys, *threshold); err != nil {
		return err
	}
	d.Paths = paths
	return a.edit(ctx, func(tx *repository.Tx) error { return tx.Delegate(d) })
}

func target(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	a.mayPropose()
	in := a.fl.String("role", "", "delegated role that lists it; empty for targets")
	name := a.fl.String("name", "", "target name")
	file := a.fl.String("file", "", "its content")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	if *name == "" || *file == "" {
		return usage("-name and -file are needed")
	}
	f, err := os.Open(*file)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.edit(ctx, func(tx *repository.Tx) error {
		if *in == "" {
			return tx.AddTarget(*name, a.watched(f, *name), nil)
		}
		return tx.AddDelegatedTarget(*in, *name, repository.Content{Reader: a.watched(f, *name)})
	})
}

func refresh(ctx context.Context, a *app, args []string) error {
	return a.sign(ctx, args, (*repository.Repository).Refresh)
}

// sign runs what takes no argument but the repository and the keys.
func (a *app) sign(ctx context.Context, args []string, f func(*repository.Repository, context.Context, ...crypto.Signer) error) error {
	a.onRepo()
	if err := a.parse(args, 0); err != nil {
		return err
	}
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	signers, err := readSigners(a.keys)
	if err != nil {
		return err
	}
	return f(r, ctx, signers...)
}

func check(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	asJSON := a.fl.Bool("json", false, "print JSON")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	problems, err := r.Check(ctx)
	if err != nil {
		return err
	}
	urgent := 0
	for _, p := range problems {
		mark := " "
		if p.Urgent {
			mark = "!"
			urgent++
		}
		if !*asJSON {
			fmt.Fprintf(a.out, "%s %s: %s\n", mark, p.What, p.Detail)
		}
	}
	if *asJSON {
		if err := json.NewEncoder(a.out).Encode(append([]repository.Problem{}, problems...)); err != nil {
			return err
		}
	}
	if urgent > 0 {
		return fmt.Errorf("%d urgent problems", urgent)
	}
	return nil
}

func export(ctx context.Context, a *app, args []string) (err error) {
	a.onRepo()
	out := a.fl.String("out", "", "tar file")
	if err := a.parse(args, -1); err != nil {
		return err
	}
	if *out == "" {
		return usage("-out is missing")
	}
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(*out), ".export-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = r.Export(ctx, f, a.fl.Args()...)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), *out)
}

func root(ctx context.Context, a *app, args []string) error {
	a.onRepo()
	out := a.fl.String("out", "", "file; empty for standard output")
	if err := a.parse(args, 0); err != nil {
		return err
	}
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	data, err := r.Root(ctx)
	if err != nil {
		return err
	}
	if *out == "" {
		_, err = a.out.Write(append(data, '\n'))
		return err
	}
	return os.WriteFile(*out, data, 0o644)
}
