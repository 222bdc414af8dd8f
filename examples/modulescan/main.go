// Modulescan asks removable modules to prove themselves, and prints what each
// proved and why one was refused.
//
//	modulescan -i2c /dev/i2c-1 -addr 0x60,0x61 -root owner-ca.pem
//	modulescan -spdm tcp:10.0.0.7:4194 -root maker.pem -registry modules.json -measurements
//	modulescan -spdm emu:127.0.0.1:2323 -root ca.cert.der
//
// What proves itself is authenticated if its chain leads to a root, or, with a
// registry, if the registry lists it. Without either it is shown and refused.
//
// Exit status: 0 all modules are authenticated, 1 failed, 2 usage, 3 at least
// one module was refused, 4 at least one could not be reached.
package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

const (
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 3
	exitUnavailable = 4
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// class is what every module that the scan trusts is called.
const class = "module"

// options are the parsed flags.
type options struct {
	targets  []target
	roots    *x509.CertPool
	records  moduleid.Records // nil: a chain to a root is enough
	scheme   spdm.Scheme
	strict   bool
	slot     int
	chain    [][]byte
	timeout  time.Duration
	json     bool
	rootSeen bool
}

// target is one module to ask.
type target struct {
	name string
	open func(ctx context.Context, o *options) (moduleid.Chip, error)
}

// result is one line of the table.
type result struct {
	Module        string                 `json:"module"`
	Authenticated bool                   `json:"authenticated"`
	ID            string                 `json:"id,omitempty"`
	Subject       string                 `json:"subject,omitempty"`
	Scheme        string                 `json:"scheme,omitempty"`
	Model         string                 `json:"model,omitempty"`
	Measurements  []moduleid.Measurement `json:"measurements,omitempty"`
	Findings      []moduleid.Finding     `json:"findings,omitempty"`
	Error         string                 `json:"error,omitempty"`
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "modulescan:", err)
		return exitUsage
	}
	results := make([]result, len(o.targets))
	code := 0
	var wg sync.WaitGroup
	for i, t := range o.targets {
		wg.Go(func() { results[i] = o.scan(ctx, t) })
	}
	wg.Wait()
	unique(results)
	for _, r := range results {
		switch {
		case r.Authenticated:
		case len(r.Findings) > 0:
			code = exitRefused
		case code == 0:
			code = exitUnavailable
		}
	}
	if err := o.print(stdout, results); err != nil {
		fmt.Fprintln(stderr, "modulescan:", err)
		return exitFailed
	}
	if !o.rootSeen && o.records == nil {
		fmt.Fprintln(stderr, "modulescan: "+nothingToTrust)
		code = exitRefused
	}
	return code
}

// unique refuses an identity that proved itself in two places.
func unique(results []result) {
	places := map[string]string{}
	twice := map[string]bool{}
	for _, r := range results {
		if at, ok := places[r.ID]; ok && at != r.Module && r.Authenticated {
			twice[r.ID] = true
		}
		if r.Authenticated {
			places[r.ID] = r.Module
		}
	}
	for i, r := range results {
		if r.Authenticated && twice[r.ID] {
			results[i].Authenticated = false
			results[i].Findings = []moduleid.Finding{{Reason: moduleid.ReasonDuplicate, Detail: "the same identity proved itself in another place: one of the two is a clone or a relay"}}
		}
	}
}

const nothingToTrust = "nothing to trust: give the CA that certifies the modules with -root, or the modules that are yours with -registry (their IDs are in this table); no module is authenticated without"

// scan asks one module.
func (o *options) scan(ctx context.Context, t target) result {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	r := result{Module: t.name}
	id, err := o.authenticate(ctx, t)
	var refused *moduleid.RefusedError
	var told *spdm.ResponderError
	switch {
	case errors.As(err, &refused):
		r.ID, r.Findings = refused.ID, refused.Findings
	case errors.As(err, &told):
		// It is there, it answers, and its answer is no proof.
		r.Findings = []moduleid.Finding{{Reason: moduleid.ReasonProof, Detail: err.Error()}}
	case err != nil:
		r.Error = err.Error()
	default:
		r.Authenticated, r.ID, r.Scheme, r.Model = id.Authenticated(), id.ID(), id.Scheme(), id.Model()
		r.Subject, r.Measurements = id.Certificate().Subject.String(), id.Measurements()
	}
	return r
}

func (o *options) authenticate(ctx context.Context, t target) (*moduleid.Identity, error) {
	chip, err := t.open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer chip.Close()
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	const connector = "scan"
	v := &moduleid.Verifier{
		Schemes:    []moduleid.Scheme{atecc.Scheme(), o.scheme},
		Roots:      o.roots,
		Classes:    map[string]moduleid.Class{class: {}},
		Connectors: map[string]moduleid.Connector{connector: {Classes: []string{class}}},
		// A scan is a look at what is there: admission on a node checks them.
		UnsafeNoRevocations: true,
	}
	if o.strict {
		v.Schemes[0] = atecc.InternalScheme()
	}
	switch {
	case o.records != nil:
		v.Registry = o.records
		for _, rec := range o.records {
			v.Classes[rec.Class] = moduleid.Class{}
			v.Connectors[connector] = moduleid.Connector{Classes: append(v.Connectors[connector].Classes, rec.Class)}
		}
	case o.rootSeen:
		v.Classes[class] = moduleid.Class{Members: o.roots}
	}
	c := moduleid.NewChallenge(host, connector)
	e, err := chip.Prove(ctx, c)
	if err != nil {
		return nil, err
	}
	if o.records != nil && !o.rootSeen {
		v.Roots = anchor(v.Schemes, c, e)
	}
	id, err := v.Verify(c, e)
	var refused *moduleid.RefusedError
	if errors.As(err, &refused) && o.records == nil && !o.rootSeen {
		refused.Findings = append(refused.Findings, moduleid.Finding{Reason: moduleid.ReasonForeign, Detail: nothingToTrust})
	}
	return id, err
}

// anchor is the top of the module's own chain, for a registry without roots:
// the registry names the key of each module, and the Verifier admits no other
// with a class, so that the chain only leads to that key.
func anchor(schemes []moduleid.Scheme, c moduleid.Challenge, e *moduleid.Evidence) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, s := range schemes {
		if s.Name() != e.Scheme {
			continue
		}
		if p, err := s.Check(c, e); err == nil && len(p.Chain) > 0 {
			pool.AddCert(p.Chain[len(p.Chain)-1])
		}
	}
	return pool
}

func (o *options) print(w io.Writer, results []result) error {
	if o.json {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			Version int      `json:"version"`
			Modules []result `json:"modules"`
		}{1, results})
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MODULE\tRESULT\tPROOF\tID\tDETAIL")
	for _, r := range results {
		switch {
		case r.Authenticated:
			fmt.Fprintf(t, "%s\tauthenticated\t%s\t%.16s\t%s\n", r.Module, r.Scheme, r.ID, oneLine(r.Subject))
			for _, m := range r.Measurements {
				fmt.Fprintf(t, "\t\t\t\t%d %s %.64x\n", m.Index, oneLine(m.Kind), m.Value)
			}
		case len(r.Findings) > 0:
			for i, f := range r.Findings {
				fmt.Fprintf(t, "%s\t%s\t\t%.16s\t%s: %s\n", []string{r.Module, ""}[min(i, 1)], []string{"refused", ""}[min(i, 1)], []string{r.ID, ""}[min(i, 1)], f.Reason, oneLine(f.Detail))
			}
		default:
			fmt.Fprintf(t, "%s\tno proof\t\t\t%s\n", r.Module, oneLine(r.Error))
		}
	}
	return t.Flush()
}

// oneLine keeps what a module says from writing further rows, and from talking to
// the terminal.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) && !unicode.IsSpace(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}
