// Command cloud is the other end of a fleet of city nodes: it enrols them,
// appraises their evidence, keeps their tunnels, stores each tenant's telemetry
// in an instance of its own, and serves their updates.
//
//	cloud init -state DIR [-domain D] [-host H]   make the state directory
//	cloud join -state DIR -from DIR -instance N   make the state of a further instance
//	cloud serve -state DIR [-check]               run (-check: parse and stop)
//	cloud issue -state DIR -name NAME             certificate for a tenant's service or an operator
//	cloud boot -state DIR -log FILE -reference FILE -pcr-policy FILE   sign what a good boot measured
//	cloud assign -state DIR -in FILE              sign assignments of streams to tenants
//	cloud modules -state DIR -sequence N          sign a list of revoked modules
//
// The last three sign with the owner's offline keys; -key says where one is.
//
// Exit codes: 0 done, 1 failed, 2 usage, 3 refused by policy, 4 unavailable,
// try later.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := wire.Report(os.Stderr, "cloud", command(ctx, os.Args[1:], os.Stdout))
	stop()
	os.Exit(code)
}

func command(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return wire.Usage("say what to do: cloud init, join, serve, issue, boot, assign or modules; -h behind one lists its flags")
	}
	flags := flag.NewFlagSet("cloud "+args[0], flag.ContinueOnError)
	state := flags.String("state", "", "the state directory")
	var run func() error
	switch args[0] {
	case "init":
		var o initOptions
		flags.StringVar(&o.domain, "domain", "city.example", "SPIFFE trust domain of the fleet")
		flags.StringVar(&o.host, "host", "127.0.0.1", "name or address under which nodes reach this cloud")
		flags.IntVar(&o.enroll, "enroll-port", 8440, "port of the enrolment service")
		flags.IntVar(&o.gateway, "gateway-port", 8441, "port of the tunnel gateway")
		flags.IntVar(&o.api, "api-port", 8442, "port of the API of tenants and operators")
		flags.DurationVar(&o.tokenLife, "token-life", 7*24*time.Hour, "how long the enrolment token in bootstrap.json works")
		flags.StringVar(&o.postgres, "postgres", "", "connection `string` of a PostgreSQL that several instances share; empty keeps all in the state directory")
		flags.StringVar(&o.instance, "instance", "cloud-1", "with -postgres: the name of this instance")
		run = func() error { o.state = *state; return initState(ctx, o, stdout) }
	case "join":
		var o initOptions
		from := flags.String("from", "", "state directory of the first instance, which was made with -postgres")
		flags.StringVar(&o.host, "host", "127.0.0.1", "name or address under which nodes reach this instance")
		flags.IntVar(&o.enroll, "enroll-port", 8450, "port of the enrolment service")
		flags.IntVar(&o.gateway, "gateway-port", 8451, "port of the tunnel gateway")
		flags.IntVar(&o.api, "api-port", 8452, "port of the API of tenants and operators")
		flags.StringVar(&o.instance, "instance", "cloud-2", "name of this instance")
		run = func() error { o.state = *state; return joinState(o, *from, stdout) }
	case "serve":
		check := flags.Bool("check", false, "read the state directory and everything in it, and stop")
		dsn := flags.String("postgres", "", "connection `string`, instead of the one in cloud.json")
		page := flags.String("insecure-loopback-page", "", "loopback `address` that shows the operator page without a certificate")
		run = func() error { return serve(ctx, *state, *page, *dsn, *check, stdout) }
	case "issue":
		name := flags.String("name", "", "path of the SPIFFE ID, such as tenant/lighting or operator/anna")
		run = func() error { return issueClient(*state, *name, stdout) }
	case "modules":
		sequence := flags.Uint64("sequence", 0, "number of the list, above that of the one in force")
		ids := flags.String("revoke", "", "`IDs` of the modules, or of their CAs, that are revoked, with commas between them")
		key := flags.String("key", "", "`file` of the owner's key; owner.key in the state directory when empty")
		run = func() error { return signModules(*state, *key, *sequence, *ids, stdout) }
	case "assign":
		in := flags.String("in", "", "`file` of the assignments, JSON")
		key := flags.String("key", "", "`file` of the owner's key; owner.key in the state directory when empty")
		run = func() error { return signAssignments(*state, *key, *in, stdout) }
	case "boot":
		var o bootOptions
		flags.StringVar(&o.log, "log", "", "`file` of the event log of a boot that is known to be good, as /sys/kernel/security/tpm0/binary_bios_measurements")
		flags.StringVar(&o.name, "name", "streetlight", "name of the reference values: of a kind of node")
		flags.Uint64Var(&o.serial, "serial", 1, "serial of the reference values; it grows with every boot that is signed")
		flags.DurationVar(&o.life, "life", 365*24*time.Hour, "how long the reference values count")
		flags.StringVar(&o.reference, "reference", "", "`file` for the signed reference values: for the cloud's reference/, or a release's part reference-values")
		flags.StringVar(&o.pcrPolicy, "pcr-policy", "", "`file` for the signed PCR policy: for the node's policies/, or a release's part pcr-policy")
		key := flags.String("key", "", "`file` of the policy key; policy.key in the state directory when empty")
		run = func() error { return signBoot(*state, *key, o, stdout) }
	default:
		return wire.Usage("%q is none of init, join, serve, issue, boot, assign, modules", args[0])
	}
	if err := wire.ParseFlags(flags, args[1:], stdout); err != nil {
		return err
	}
	if *state == "" {
		return wire.Usage("-state DIR is missing")
	}
	return run()
}

func serve(ctx context.Context, state, loopbackPage, dsn string, check bool, stdout io.Writer) error {
	if loopbackPage != "" && !loopback(loopbackPage) {
		return wire.Usage("-insecure-loopback-page %q: only a loopback address, such as 127.0.0.1:8443, may go without certificates", loopbackPage)
	}
	cfg, err := loadConfig(state)
	if err != nil {
		return err
	}
	if dsn != "" {
		cfg.Postgres = dsn
		if err := cfg.check(); err != nil {
			return wire.Usage("-postgres: %w", err)
		}
	}
	level := slog.LevelInfo
	if check {
		level = slog.LevelWarn // a check that finds nothing says so in one line
	}
	c, err := newCloud(ctx, state, cfg, slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err != nil {
		return err
	}
	if check {
		refs, err := c.references.current(ctx)
		switch {
		case err != nil:
		case len(refs) == 0:
			fmt.Fprintf(stdout, "%s: no reference values are in force, so no node can attest yet: cloud boot signs some\n", state)
			fallthrough
		default:
			fmt.Fprintf(stdout, "%s: ok, domain %s\n", state, cfg.TrustDomain)
		}
		return errors.Join(err, c.store.Close(ctx))
	}
	return c.run(ctx, loopbackPage)
}

// issueClient makes a client certificate for a tenant's service or an operator.
func issueClient(state, name string, stdout io.Writer) error {
	if name == "" || filepath.Clean("/"+name) != "/"+name {
		return wire.Usage("-name %q: give a path such as tenant/lighting", name)
	}
	cfg, err := loadConfig(state)
	if err != nil {
		return err
	}
	ca, err := loadAuthority(cfg, state)
	if err != nil {
		return err
	}
	file := filepath.Join(state, "issued-"+filepath.Base(name))
	if _, err := os.Stat(file + ".crt"); err == nil {
		return wire.Usage("%s.crt exists", file)
	}
	s := &newState{dir: state, domain: cfg.TrustDomain, ca: ca}
	cert, key, err := ca.issue(cfg.TrustDomain, name, x509.ExtKeyUsageClientAuth, nil)
	if err != nil {
		return err
	}
	s.cert("issued-"+filepath.Base(name), cert, key)
	s.sync("")
	if s.err == nil {
		fmt.Fprintf(stdout, "%s.crt and .key: %s, until %s\n", file, cert.URIs[0], cert.NotAfter.Format(time.DateOnly))
	}
	return s.err
}
