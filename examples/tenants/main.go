// Command tenants keeps tenants' data with package tenantstore, from the shell.
//
//	tenants init -dir D
//	tenants create -dir D acme                 tenants list -dir D
//	tenants put -dir D acme COLLECTION KEY VALUE
//	tenants get -dir D acme COLLECTION KEY     tenants scan -dir D acme COLLECTION
//	tenants rotate -dir D acme                 tenants rewrap -dir D acme
//	tenants rotate-store -dir D                tenants rewrap-store -dir D
//	tenants verify -dir D acme                 tenants suspend|resume|hold|release -dir D acme
//	tenants backup -dir D -to age1… acme FILE  tenants restore -dir D -identity F FILE
//	tenants audit export -dir D acme FILE      tenants audit verify -key K FILE...
//	tenants destroy -dir D acme                tenants receipt verify -key K FILE
//
// (also as audit, check-audit and check-receipt).
//
// The directory holds what in a deployment is with different people: the
// owner's key and the issuer (pki), the key-encryption keys (keys) and the
// store. Each command authenticates with a certificate, as a TLS peer would.
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
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// app is one call of the command.
type app struct {
	out, err      io.Writer
	json, verbose bool
	dir           string
	to, identity  string
	keys          []string
	args          []string
}

// key is the first -key, or empty.
func (a *app) key() string {
	if len(a.keys) == 0 {
		return ""
	}
	return a.keys[0]
}

type command struct {
	name, args, what string
	run              func(context.Context, *app) error
}

func commands() []command {
	return []command{
		{"init", "", "make the directory", initialise},
		{"create", "TENANT", "make a tenant and a service that may use it", create},
		{"list", "", "list the tenants", list},
		{"put", "TENANT COLLECTION KEY VALUE", "store a record", put},
		{"get", "TENANT COLLECTION KEY", "print a record", get},
		{"scan", "TENANT COLLECTION", "list the records of a collection", scan},
		{"rotate", "TENANT", "re-encrypt a tenant under a new key", control((*tenantstore.Store).RotateKey)},
		{"rewrap", "TENANT", "wrap a tenant's key under a new one", control((*tenantstore.Store).RewrapKey)},
		{"rewrap-store", "", "wrap the store's own key under a new one", system((*tenantstore.Store).RewrapKey)},
		{"rotate-store", "", "re-encrypt the store's own instance the next time it is opened", system((*tenantstore.Store).RotateKey)},
		{"suspend", "TENANT", "close a tenant", control((*tenantstore.Store).Suspend)},
		{"resume", "TENANT", "open it again", control((*tenantstore.Store).Resume)},
		{"hold", "TENANT", "forbid to destroy a tenant", control((*tenantstore.Store).Hold)},
		{"release", "TENANT", "end a hold", control((*tenantstore.Store).Release)},
		{"verify", "TENANT", "read everything of a tenant and check it", verify},
		{"backup", "TENANT FILE", "write an age file for -to", backup},
		{"restore", "FILE", "put a backup back, with -identity", restore},
		{"audit", "TENANT FILE", "export a tenant's audit trail", audit},
		{"check-audit", "FILE...", "verify an audit trail offline with -key", checkAudit},
		{"destroy", "TENANT", "destroy a tenant for good and print the receipt", destroy},
		{"check-receipt", "FILE", "verify a receipt offline with -key", checkReceipt},
	}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	a := &app{out: out, err: errOut}
	return wire.Report(errOut, "tenants", classify(a.dispatch(ctx, args)))
}

func (a *app) dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "-h" || args[0] == "help" {
		for _, c := range commands() {
			fmt.Fprintf(a.err, "tenants %-14s %-29s %s\n", c.name, c.args, c.what)
		}
		if len(args) == 0 {
			return wire.Usage("which command?")
		}
		return wire.ErrHelp
	}
	args = words(args)
	i := slices.IndexFunc(commands(), func(c command) bool { return c.name == args[0] })
	if i < 0 {
		return wire.Usage("no command %q (tenants -h lists them)", args[0])
	}
	c := commands()[i]
	f := flag.NewFlagSet("tenants "+c.name, flag.ContinueOnError)
	f.StringVar(&a.dir, "dir", "", "the `directory` of store, keys and PKI")
	f.BoolVar(&a.json, "json", false, "print JSON")
	f.BoolVar(&a.verbose, "v", false, "log security events to standard error")
	f.StringVar(&a.to, "to", "", "age `recipient` of a backup")
	f.StringVar(&a.identity, "identity", "", "`file` with the age identity of a backup")
	f.Func("key", "the store's audit `key` (tenants init and list print it); one for each log or witness", func(k string) error {
		a.keys = append(a.keys, k)
		return nil
	})
	f.SetOutput(a.err)
	if err := f.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
		return wire.ErrHelp
	} else if err != nil {
		return wire.Usage("%v", err)
	}
	a.args = f.Args()
	want, more := countArgs(c.args), strings.HasSuffix(c.args, "...")
	if len(a.args) != want && (!more || len(a.args) < want) {
		return wire.Usage("tenants %s wants %d arguments: %s", c.name, want, c.args)
	}
	offline := c.name == "check-audit" || c.name == "check-receipt"
	if !offline && a.dir == "" {
		return wire.Usage("-dir is required")
	}
	if offline && len(a.keys) == 0 {
		return wire.Usage("-key is required")
	}
	return c.run(ctx, a)
}

// words lets "audit export" and "audit verify" stand for audit and check-audit,
// "receipt verify" for check-receipt.
func words(args []string) []string {
	if len(args) > 1 {
		for long, short := range map[[2]string]string{{"audit", "export"}: "audit", {"audit", "verify"}: "check-audit", {"receipt", "verify"}: "check-receipt"} {
			if [2]string(args[:2]) == long {
				return append([]string{short}, args[2:]...)
			}
		}
	}
	return args
}

func countArgs(s string) (n int) {
	in := false
	for _, r := range s {
		if r != ' ' && !in {
			n++
		}
		in = r != ' '
	}
	return n
}

// classify gives errors of tenantstore their exit codes and hints.
func classify(err error) error {
	for _, c := range []struct {
		is      error
		refused bool
		hint    string
	}{
		{tenantstore.ErrTampered, true, "restore the tenant from a backup"},
		{tenantstore.ErrRollback, true, "restore the tenant from a backup"},
		{tenantstore.ErrDenied, true, "tenants -v shows the reason"},
		{tenantstore.ErrHeld, true, "tenants release, or wait for the end of the retention"},
		{tenantstore.ErrExists, true, "choose another ID"},
		{tenantstore.ErrTenantClosed, true, "tenants list shows the state"},
		{tenantstore.ErrRegion, true, ""}, {tenantstore.ErrKeyDestroyed, true, ""},
		{tenantstore.ErrQuota, false, ""}, {tenantstore.ErrBusy, false, "is another process using the store?"},
		{tenantstore.ErrKeyUnavailable, false, ""}, {tenantstore.ErrAudit, false, "is the disk full?"},
	} {
		if errors.Is(err, c.is) {
			if c.refused {
				return wire.Refused(err, c.hint)
			}
			return wire.Unavailable(err, c.hint)
		}
	}
	return err
}

// print writes v as JSON, or rows as a table.
func (a *app) print(v any, rows ...[]string) error {
	if a.json {
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i, cell := range r {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, cell)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// open opens the store with the PKI of the directory.
func (a *app) open(ctx context.Context, p *pki) (*tenantstore.Store, error) {
	kek, err := keys.OpenDir(ctx, filepath.Join(a.dir, "keys"), nil)
	if err != nil {
		return nil, err
	}
	cfg := p.config(filepath.Join(a.dir, "store"), kek)
	if a.verbose {
		cfg.Logger = slog.New(slog.NewTextHandler(a.err, nil))
	}
	return tenantstore.Open(ctx, cfg)
}

// with opens the store, authenticates as who and runs f.
func (a *app) with(ctx context.Context, who string, f func(*tenantstore.Store, tenantstore.Principal, *pki) error) error {
	p, err := loadPKI(filepath.Join(a.dir, "pki"))
	if err != nil {
		return fmt.Errorf("%w (tenants init makes the directory)", err)
	}
	s, err := a.open(ctx, p)
	if err != nil {
		return err
	}
	chain, err := p.certificate(who)
	if err != nil {
		return errors.Join(err, s.Close(ctx))
	}
	principal, err := s.Authenticate(ctx, chain, "")
	if err == nil {
		err = f(s, principal, p)
	}
	return errors.Join(err, s.Close(context.WithoutCancel(ctx)))
}
