// Command publish keeps a repository of signed releases in a directory that any
// web server can serve to nodes.
//
//	publish key -out root1.pem                         make a key (root1.pem, root1.pem.pub)
//	publish init -repo R -root root1.pem.pub,root2.pem.pub -root-threshold 2 -targets t.pem.pub -online o.pem.pub -key …
//	publish release -repo R -channel stable -name os-2.0 -version 2.0 -security 5 -hardware lamp-2 -part rootfs=img -opaque pcr-policy=p.json -key …
//	publish rollout -repo R -channel stable -name os-2.0 -wave 2026-11-23T08:00:00Z=100 -wave 2026-11-24T08:00:00Z=1000 -key …
//	publish assign -repo CITY -node lamp-17 -images R -release stable/os-2.0 -key …
//	publish role -repo R -name timestamp -keys new.pem.pub -key …
//	publish delegate -repo R -name maker -keys m.pem.pub -path 'modules/*' -key …
//	publish target -repo R -role maker -name modules/camera -file fw.bin -key m.pem -key o.pem
//	publish refresh -repo R -key o.pem                 sign snapshot and timestamp anew
//	publish check -repo R [-json]                      what expires, what one lost key ends, what is missing
//	publish export -repo R -out stick.tar [PREFIX …]   for a USB stick
//	publish root -repo R -out root.json                what nodes embed
//
// A part gets a block index with -index NAME, and patches with -patch-from
// NAME=OLDFILE: nodes then fetch what they do not have.
//
// Ceremonies: -propose makes every edit wait as a draft.
//
//	publish payload -repo R -role targets -out p       carry p to the machine with the key
//	publish sign -key t.pem -in p -out s               there, with no repository in reach
//	publish signature -repo R -role targets -pub t.pem.pub -in s
//	publish draft -repo R                              what is missing
//	publish publish-draft -repo R -key o.pem
//
// Exit codes: 0 done, 1 failed (of check: something is urgent), 2 usage, 3 refused
// (signatures missing, conflict), 4 unavailable.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/trusttree/trusttree/update/repository"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// app is one call of the command.
type app struct {
	out, errw io.Writer
	fl        *flag.FlagSet
	repoDir   string
	keys      list
	propose   bool
}

var errUsage = errors.New("usage")

func usage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUsage, fmt.Sprintf(format, args...))
}

type command struct {
	what string
	run  func(ctx context.Context, a *app, args []string) error
}

func commands() map[string]command {
	return map[string]command{
		"key":           {"make a key", newKey},
		"init":          {"make a repository", initRepo},
		"release":       {"add a release", release},
		"rollout":       {"say who may install a release", rollout},
		"assign":        {"say what one node installs (director)", assign},
		"role":          {"replace the keys of a role", setRole},
		"delegate":      {"give another party a share of the target names", delegate},
		"target":        {"add a target that is no release", target},
		"refresh":       {"sign snapshot and timestamp anew", refresh},
		"check":         {"look for what will go wrong", check},
		"export":        {"write a tar archive for a USB stick", export},
		"root":          {"write the newest root", root},
		"payload":       {"write what an offline key signs", payload},
		"sign":          {"sign a payload, with no repository", sign},
		"signature":     {"add an offline signature to the draft", addSignature},
		"draft":         {"show what the draft waits for", draft},
		"publish-draft": {"publish the draft", publishDraft},
	}
}

func run(ctx context.Context, args []string, out, errw io.Writer) int {
	cmds := commands()
	help := func() {
		fmt.Fprintln(errw, "usage: publish COMMAND [flags]; commands:")
		var names []string
		for n := range cmds {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names {
			fmt.Fprintf(errw, "  %-14s %s\n", n, cmds[n].what)
		}
	}
	if len(args) == 0 {
		help()
		return 2
	}
	c, ok := cmds[args[0]]
	if !ok {
		fmt.Fprintf(errw, "publish: no command %q\n", args[0])
		help()
		return 2
	}
	a := &app{out: out, errw: errw, fl: flag.NewFlagSet("publish "+args[0], flag.ContinueOnError)}
	a.fl.SetOutput(errw)
	err := c.run(ctx, a, args[1:])
	if err == nil {
		return 0
	}
	fmt.Fprintln(errw, "publish:", err)
	switch {
	case errors.Is(err, flag.ErrHelp), errors.Is(err, errUsage):
		return 2
	case errors.Is(err, repository.ErrThreshold):
		fmt.Fprintln(errw, "hint: give more keys with -key, or use -propose and collect signatures")
		return 3
	case errors.Is(err, repository.ErrConflict):
		fmt.Fprintln(errw, "hint: somebody else was faster: run it again")
		return 3
	case errors.Is(err, context.Canceled), errors.Is(err, fs.ErrPermission):
		return 4
	}
	return 1
}

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// parse parses flags; want says how many arguments may follow, -1 for any.
func (a *app) parse(args []string, want int) error {
	if err := a.fl.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usage("%v", err)
	}
	if want >= 0 && a.fl.NArg() != want {
		return usage("unexpected argument %q", a.fl.Arg(want))
	}
	return nil
}

// onRepo adds the flags of commands that change a repository.
func (a *app) onRepo() {
	a.fl.StringVar(&a.repoDir, "repo", "", "directory of the repository")
	a.fl.Var(&a.keys, "key", "private key file that signs; may be repeated")
}

func (a *app) mayPropose() {
	a.fl.BoolVar(&a.propose, "propose", false, "make a draft that waits for signatures instead of publishing")
}

func (a *app) store() (repository.Store, error) {
	if a.repoDir == "" {
		return nil, usage("-repo is missing")
	}
	return repository.DirStore(a.repoDir), nil
}

func (a *app) open(ctx context.Context) (*repository.Repository, error) {
	s, err := a.store()
	if err != nil {
		return nil, err
	}
	r, err := repository.Open(ctx, s, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (make a repository with publish init)", err)
	}
	return r, err
}

// edit publishes an edit, or proposes it.
func (a *app) edit(ctx context.Context, f func(*repository.Tx) error) error {
	r, err := a.open(ctx)
	if err != nil {
		return err
	}
	signers, err := readSigners(a.keys)
	if err != nil {
		return err
	}
	if a.propose {
		if err := r.Propose(ctx, f, signers...); err != nil {
			return err
		}
		return showDraft(ctx, a, r)
	}
	return r.Edit(ctx, f, signers...)
}
