// Command node is the daemon of a city node: it proves its TPM's identity,
// authenticates its modules, opens its volumes, keeps one tunnel to its cloud,
// ships telemetry, and takes updates.
//
//	node run -config FILE [-check]   run the daemon (-check: parse and stop)
//	node status -config FILE         print each link of the tree of trust
//
// Exit codes: 0 done, 1 failed, 2 usage, 3 refused by policy, 4 unavailable,
// try later; 10 with "exit_for_reboot": reboot into a release, or back from it.
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
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tlsconn"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := wire.Report(os.Stderr, "node", command(ctx, os.Args[1:], os.Stdout))
	stop()
	os.Exit(code)
}

func command(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 || (args[0] != "run" && args[0] != "status") {
		return wire.Usage("say what to do: node run -config FILE, or node status -config FILE")
	}
	flags := flag.NewFlagSet("node "+args[0], flag.ContinueOnError)
	name := flags.String("config", "/etc/trusttree/node.json", "the configuration file")
	check := flags.Bool("check", false, "parse the configuration and what it names, and stop")
	if err := wire.ParseFlags(flags, args[1:], stdout); err != nil {
		return err
	}
	cfg, err := loadConfig(*name)
	if err != nil {
		return err
	}
	if args[0] == "status" {
		return showStatus(cfg, stdout)
	}
	boot, err := wire.LoadBootstrap(cfg.Bootstrap)
	if err != nil {
		return err
	}
	if *check {
		if err := checkFiles(cfg, boot); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: ok, for the cloud at %s\n", *name, boot.EnrollURL)
		return nil
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	n, err := newNode(ctx, cfg, boot, log)
	if err != nil {
		return err
	}
	return n.run(ctx)
}

// exitReboot asks whoever started the daemon for a reboot.
const exitReboot = 10

// link is one step of the tree of trust as the node has proven it.
type link struct {
	Name   string    `json:"name"`
	OK     bool      `json:"ok"`
	Detail string    `json:"detail"`
	At     time.Time `json:"at"`
}

// statusFile is where the running node keeps its links for `node status`.
func statusFile(cfg *config) string { return filepath.Join(cfg.State, "status.json") }

// checkFiles reads what the configuration names, as far as it must be there
// before the daemon runs.
func checkFiles(cfg *config, boot *wire.Bootstrap) error {
	var errs []error
	text, err := wire.ReadCapped(cfg.Flows, maxConfig)
	if err == nil {
		if _, err = tlsconn.ParsePolicy(text); err != nil {
			err = fmt.Errorf("flows: %s: %w", cfg.Flows, err)
		}
	}
	errs = append(errs, err)
	_, err = readPEM(cfg.TPMMakers)
	errs = append(errs, err)
	for _, m := range cfg.Modules {
		_, err := readPEM(m.CA)
		_, aerr := opener(m)
		errs = append(errs, err, aerr)
	}
	if names, _ := filepath.Glob(filepath.Join(cfg.Policies, "*.json")); len(names) > 0 { // none yet: the volumes stay closed
		_, err := (&node{cfg: cfg, boot: boot}).bootPolicies()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func showStatus(cfg *config, w io.Writer) error {
	data, err := wire.ReadCapped(statusFile(cfg), maxConfig)
	if err != nil {
		return wire.Unavailable(err, "is the node running?")
	}
	var links []link
	if err := json.Unmarshal(data, &links); err != nil {
		return fmt.Errorf("%s: %w", statusFile(cfg), err)
	}
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, l := range links {
		mark := "ok"
		if !l.OK {
			mark = "FAILED"
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\n", l.Name, mark, l.At.Format(time.DateTime), l.Detail)
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	// Who gets the daemon's lock knows that there is no daemon.
	if f, err := lockState(cfg.State, 0); err == nil {
		return errors.Join(wire.Unavailable(errors.New("the daemon does not run: this is what it proved last"), ""), f.Close())
	}
	return nil
}
