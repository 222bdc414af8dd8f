// Command volume creates, opens and looks after volumes of package fscrypt.
//
//	volume create -dir D -label data -tpm /dev/tpmrm0 -pcrs 7,11 -counter 0x01800112 -recipient age1pq1…
//	volume put -dir D … -name a/b -file F     volume get -dir D … -name a/b
//	volume ls -dir D …                        volume status -dir D [ … ]
//	volume unlock -dir D …                    volume lock -dir D
//	volume add-protector -dir D … -new-…      volume reseal -dir D … -new-…
//	volume rotate -dir D … [ -new-… ]         volume destroy -dir D … -yes
//	volume recover -dir D -identity F -to OUT
//
// A TPM opens a volume once in each boot. To run several commands, give them
// all -keep /run/NAME, a file in memory that unlock, or the first command,
// makes, and that lock erases. In kernel mode, unlock leaves the directory
// open for every program until lock.
//
// rotate puts everything under a new key. In kernel mode it copies the
// directory, which needs as much space again: stop what uses it first (exit
// code 4 names who does). Interrupted, it is undone.
//
// put stores a whole directory, too, file by file; interrupted, it goes on
// with -resume, as recover does.
//
// Exit codes: 0 done, 1 failed, 2 usage, 3 refused by policy, 4 unavailable,
// try later.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/fscrypt"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// app is one call of the command.
type app struct {
	in       io.Reader
	out, err io.Writer
	json     bool
	verbose  bool

	dir            string
	guard, renewed guard // what opens the volume, and what new slots are made of
	keepFile       string
	latch          string
	keep           *fscrypt.Keep
	devices        map[string]transport.TPMCloser
	resume         bool
	label          string
	kernel         bool
	pad            bool
	unsafeFresh    bool
	name, file, to string
	slot           string
	yes            bool
}

type command struct {
	name, what string
	flags      func(*app, *flag.FlagSet)
	run        func(context.Context, *app) error
}

func commands() []command {
	return []command{
		{"create", "make a volume", (*app).createFlags, create},
		{"unlock", "open a volume; in kernel mode, or with -keep, it stays open", nil, unlock},
		{"lock", "close what unlock left open", nil, lock},
		{"status", "say what is known of a volume; with protectors, verified", nil, status},
		{"add-protector", "add a slot made of the -new-… flags", newFlags, addProtector},
		{"remove-protector", "remove the slot -slot", slotFlags, removeProtector},
		{"reseal", "replace a slot by one made of the -new-… flags", newFlags, reseal},
		{"rotate", "change the volume key; the -new-… flags make the slots (none: go on with one that was cut off)", newFlags, rotate},
		{"recover", "copy every file out to -to", toFlags, recoverAll},
		{"destroy", "make a volume unreadable for good", yesFlags, destroy},
		{"put", "store -file, or standard input, as -name; a directory below -name", putFlags, put},
		{"get", "write -name to -file, or standard output", getFlags, get},
		{"ls", "list the files", nil, ls},
		{"protect", "note the digests of -name in a kernel mode volume", protectFlags, protect},
		{"verify", "hold protected files of a kernel mode volume to their digests", nil, verify},
	}
}

func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, err: errOut, devices: map[string]transport.TPMCloser{}}
	err := errors.Join(a.dispatch(ctx, args), a.close())
	return wire.Report(errOut, "volume", classify(err))
}

func (a *app) dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "-h" || args[0] == "help" {
		for _, c := range commands() {
			fmt.Fprintf(a.err, "volume %-17s %s\n", c.name, c.what)
		}
		if len(args) == 0 {
			return wire.Usage("which command?")
		}
		return wire.ErrHelp
	}
	i := slices.IndexFunc(commands(), func(c command) bool { return c.name == args[0] })
	if i < 0 {
		return wire.Usage("no command %q (volume -h lists them)", args[0])
	}
	c := commands()[i]
	f := flag.NewFlagSet("volume "+c.name, flag.ContinueOnError)
	f.StringVar(&a.dir, "dir", "", "the volume's `directory`; required")
	f.BoolVar(&a.json, "json", false, "print JSON")
	f.BoolVar(&a.verbose, "v", false, "log security events to standard error")
	f.StringVar(&a.keepFile, "keep", "", "`file` on a tmpfs, for example below /run, that keeps the volume open for commands of this boot")
	f.StringVar(&a.latch, "latch", "", "what create printed as latch, in `hexadecimal`: another volume in its place is refused")
	a.guard.flags(f, "")
	if c.flags != nil {
		c.flags(a, f)
	}
	if err := wire.ParseFlags(f, args[1:], a.err); err != nil {
		return err
	}
	if a.dir == "" {
		return wire.Usage("-dir is required")
	}
	return c.run(ctx, a)
}

// close gives TPMs and what is kept up.
func (a *app) close() error {
	var errs []error
	for _, d := range a.devices {
		errs = append(errs, d.Close())
	}
	if a.keep != nil {
		errs = append(errs, a.keep.Close())
	}
	return errors.Join(errs...)
}

// classify gives errors of fscrypt their exit codes and hints.
func classify(err error) error {
	for _, c := range []struct {
		is      error
		refused bool
		hint    string
	}{
		{fscrypt.ErrUnavailable, false, ""},
		{fscrypt.ErrLockout, false, "wait, or open with -identity"},
		{fscrypt.ErrPolicy, true, "boot an approved image, or open with -identity and reseal"},
		{fscrypt.ErrLatched, true, "reboot: a volume opens once in each boot (-keep keeps it open)"},
		{fscrypt.ErrRollback, true, "the disk was put back: open with -identity to look at it"},
		{fscrypt.ErrTPMChanged, true, "put the disk back into its node, or open with -identity"},
		{fscrypt.ErrRevoked, true, ""}, {fscrypt.ErrRefused, true, ""}, {fscrypt.ErrTampered, true, ""},
		{fscrypt.ErrWrongVolume, true, ""}, {fscrypt.ErrAuth, true, ""},
		{fscrypt.ErrNoSlot, true, "volume status lists the slots"},
	} {
		if errors.Is(err, c.is) {
			if c.refused {
				return wire.Refused(err, c.hint)
			}
			return wire.Unavailable(err, c.hint)
		}
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("interrupted: %w", err)
	}
	if busy := (*fscrypt.BusyError)(nil); errors.As(err, &busy) {
		return wire.Unavailable(err, "close the files and try again")
	}
	return err
}

// config is what every command opens and creates with.
func (a *app) config() (fscrypt.Config, error) {
	c := fscrypt.Config{Label: a.label, PadSizes: a.pad}
	if a.verbose {
		c.Logger = slog.New(slog.NewTextHandler(a.err, nil))
	}
	var err error
	if a.latch != "" {
		if c.Latch, err = parseLatch(a.latch); err != nil {
			return c, wire.Usage("-latch: %w", err)
		}
	}
	return c, nil
}

// open opens the volume. The second value ends the command's use of it: it
// leaves a volume open that was open before, or that -keep keeps open.
func (a *app) open(ctx context.Context, progress func(done, total int)) (*fscrypt.Volume, func() error, error) {
	ps, err := a.guard.protectors(a)
	if err != nil {
		return nil, nil, err
	}
	c, err := a.config()
	if err != nil {
		return nil, nil, err
	}
	c.Progress = progress
	stay := a.keep != nil || a.inUse()
	v, err := fscrypt.Open(ctx, a.dir, c, ps...)
	if err != nil {
		return nil, nil, err
	}
	return v, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockTimeout)
		defer cancel()
		if stay {
			return v.Detach(ctx)
		}
		return v.Lock(ctx)
	}, nil
}

// with opens the volume for a command and locks it afterwards.
func (a *app) with(ctx context.Context, f func(*fscrypt.Volume) error) error {
	v, end, err := a.open(ctx, nil)
	if err != nil {
		return err
	}
	return errors.Join(f(v), end())
}

// print writes a value as JSON, or as the text given.
func (a *app) print(v any, text string) error {
	if !a.json {
		_, err := io.WriteString(a.out, text)
		return err
	}
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func describe(s fscrypt.Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "volume     %s (%s, %s)\n", s.Volume, s.Label, s.Mode)
	fmt.Fprintf(&b, "opened by  %s\nfreshness  %s, generation %d\n", s.Slot, s.Freshness, s.Generation)
	if s.Rotating {
		fmt.Fprintln(&b, "rotation   unfinished: volume rotate goes on with it")
	}
	if s.Kernel != nil {
		fmt.Fprintf(&b, "directory  %s, %s and %s, key %s\n", s.Kernel.Path, s.Kernel.Contents, s.Kernel.Filenames, s.Kernel.Key)
		if s.Kernel.SlowCipher {
			fmt.Fprintln(&b, "cipher     runs in portable C: slow")
		}
	} else {
		fmt.Fprintf(&b, "files      %d\n", s.Files)
	}
	for _, sl := range s.Slots {
		fmt.Fprintf(&b, "slot       %s %s\n", sl.ID, sl.Type)
	}
	return b.String()
}
