// Command demo grows the whole tree of trust on one machine: a cloud and a node
// as separate processes, a software TPM with an EK certificate, two emulated
// modules, a real boot's event log, two encrypted volumes, an inspected tunnel,
// two tenants and a software update. It prints each link as it is proven, then
// runs the attacks and prints why each was refused.
//
//	go run ./examples/demo [-keep]
//
// Exit 0 only if every link held and every attack failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	keep := flag.Bool("keep", false, "leave cloud and node running, and print the operator page's address")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *keep); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "trusttree-demo-")
	if err != nil {
		return err
	}
	d := &demo{dir: dir, started: time.Now(), keep: keep}
	defer func() {
		err = errors.Join(err, d.close())
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintf(os.Stderr, "everything that was logged is in %s\n", dir)
		}
	}()
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"Build the node and the cloud", d.build},
		{"Found the city: TPM maker, module makers, cloud", d.found},
		{"Grow the tree of trust", d.grow},
		{"Update the software", d.update},
		{"Attack it", d.attack},
	}
	for _, s := range steps {
		fmt.Printf("\n%s\n", s.title)
		if err := s.do(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("\nEvery link held and every attack failed, in %.1f s after the build.\n", time.Since(d.built).Seconds())
	if !keep {
		return nil
	}
	page := d.cloud().Page
	fmt.Printf("\nOperator page: http://%s/\n"+
		"  Open it in a browser on this machine. From another one, first: ssh -L %s:%s THIS-MACHINE\n"+
		"The node is %s; logs, keys and state are in %s.\nCtrl-C ends it.\n", page, page, page, d.node.Device, d.dir)
	<-ctx.Done()
	return nil
}

// ok prints a link that holds.
func ok(format string, args ...any) { fmt.Printf("  ✓ %s\n", fmt.Sprintf(format, args...)) }

// refused prints an attack that failed, and why.
func refused(attack, why string) { fmt.Printf("  ✗ %-22s refused: %s\n", attack, why) }
