// Measure runs the benchmarks that internal/perf declares and writes
// docs/performance.md with its data.
//
//	measure [-rounds N] [-limit DURATION] [-fresh] [PART...]
//	measure -render
//	measure -list
//
// It measures in rounds: every benchmark of every part once, ours and the
// peers' in turn, then the next round. A run that was stopped goes on with the
// round that is missing, as long as the commit is the same; -fresh begins
// anew. After -limit no further round begins; the page counts the rounds. Exit
// status: 0 done; 1 failed; 2 wrong flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/trusttree/trusttree/internal/perf"
)

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 6, "rounds; fewer than six have no 95 % interval")
	flag.DurationVar(&o.limit, "limit", 16*time.Minute, "no further round begins after this time")
	flag.BoolVar(&o.fresh, "fresh", false, "forget the rounds of a run that was stopped")
	flag.StringVar(&o.benchtime, "benchtime", "", "instead of each benchmark's own; to try the command")
	render := flag.Bool("render", false, "write the page from the data that are there")
	list := flag.Bool("list", false, "list the parts")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, *render, *list, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		if errors.Is(err, errUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

type options struct {
	rounds    int
	limit     time.Duration
	fresh     bool
	benchtime string
}

var errUsage = errors.New("usage")

func run(ctx context.Context, o options, render, list bool, names []string) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	repo := filepath.Dir(strings.TrimSpace(string(out)))
	parts, err := choose(names)
	if err != nil {
		return err
	}
	if o.rounds < 1 {
		return fmt.Errorf("%w: -rounds is at least 1", errUsage)
	}
	switch {
	case list:
		for _, p := range parts {
			fmt.Printf("%-10s %s\n", p.Name, p.Title)
		}
		return nil
	case !render:
		if err := measure(ctx, repo, o, parts); err != nil {
			return err
		}
	}
	all := perf.Parts()
	data, err := perf.Load(os.DirFS(repo), all)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(repo, perf.Page), []byte(perf.Render(all, data)), 0o644); err != nil {
		return err
	}
	fmt.Println("wrote", perf.Page)
	return nil
}

// choose returns the parts of these names, or all.
func choose(names []string) ([]perf.Part, error) {
	all := perf.Parts()
	if len(names) == 0 {
		return all, nil
	}
	var out []perf.Part
	for _, n := range names {
		found := false
		for _, p := range all {
			if p.Name == n {
				out, found = append(out, p), true
			}
		}
		if !found {
			return nil, fmt.Errorf("%w: no part %q; -list names them", errUsage, n)
		}
	}
	return out, nil
}
