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
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

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
			fmt.Fprintf(t, "%s\tauthenticated\t%s\t%.16s\t%s\n", r.Module, r.Scheme, r.ID, r.Subject)
			for _, m := range r.Measurements {
				fmt.Fprintf(t, "\t\t\t\t%d %s %.64x\n", m.Index, m.Kind, m.Value)
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

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{roots: x509.NewCertPool()}
	var roots, targets []string
	var addr, version, registry, chain string
	fs := flag.NewFlagSet("modulescan", flag.ContinueOnError)
	fs.SetOutput(stderr)
	add := func(kind string) func(string) error {
		return func(s string) error { targets = append(targets, kind+" "+s); return nil }
	}
	fs.Func("spdm", "SPDM responder: tcp:HOST:PORT (DSP0287) or emu:HOST:PORT (reference emulator; emu+doe:, emu+tcp: and emu+none: for its other --trans); may be repeated", add("spdm"))
	fs.Func("i2c", "I2C bus with ATECC chips, such as /dev/i2c-1; may be repeated", add("i2c"))
	fs.Func("atecc", "emulated ATECC chip: tcp:HOST:PORT; may be repeated", add("atecc"))
	fs.StringVar(&addr, "addr", "0x60", "7-bit addresses on the I2C buses, separated by commas")
	fs.Func("root", "file with CA certificates to trust, PEM or DER; may be repeated", func(s string) error { roots = append(roots, s); return nil })
	fs.StringVar(&registry, "registry", "", "file with the owner's modules; without it a chain to a root is enough, and without roots the registry is")
	fs.StringVar(&chain, "chain", "", "file with the ATECC's certificate chain, leaf first; without it, it is read from slot 8")
	fs.StringVar(&version, "min-version", "1.2", "lowest SPDM version: 1.0 to 1.4")
	fs.BoolVar(&o.scheme.Measurements, "measurements", false, "ask SPDM modules for signed measurements")
	fs.BoolVar(&o.strict, "strict", false, "ATECC proofs by internal messages only")
	fs.IntVar(&o.slot, "slot", 0, "key slot of the ATECC, certificate slot of SPDM")
	fs.DurationVar(&o.timeout, "timeout", 10*time.Second, "for each module")
	fs.BoolVar(&o.json, "json", false, "print JSON")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	var err error
	if o.scheme.MinVersion, err = parseVersion(version); err != nil {
		return nil, err
	}
	if o.timeout <= 0 {
		return nil, fmt.Errorf("-timeout %s is not positive", o.timeout)
	}
	for _, name := range roots {
		if err := o.addRoots(name); err != nil {
			return nil, err
		}
	}
	if registry != "" {
		data, err := os.ReadFile(registry)
		if err != nil {
			return nil, err
		}
		if o.records, err = moduleid.ParseRecords(data); err != nil {
			return nil, fmt.Errorf("%s: %w", registry, err)
		}
	}
	if chain != "" {
		if o.chain, err = readCertificates(chain); err != nil {
			return nil, err
		}
	}
	for _, t := range targets {
		kind, where, _ := strings.Cut(t, " ")
		if err := o.addTarget(kind, where, addr); err != nil {
			return nil, err
		}
	}
	if len(o.targets) == 0 {
		return nil, errors.New("no module to ask: give -i2c, -atecc or -spdm (-h explains)")
	}
	return o, nil
}

func parseVersion(s string) (spdm.Version, error) {
	for v := spdm.Version10; v <= spdm.Version14; v++ {
		if v.String() == s {
			return v, nil
		}
	}
	return 0, fmt.Errorf("-min-version %q is not one of 1.0 to 1.4", s)
}

func (o *options) addTarget(kind, where, addrs string) error {
	network, rest, _ := strings.Cut(where, ":")
	binding, emulated := map[string]spdm.Binding{"emu": spdm.BindingMCTP, "emu+doe": spdm.BindingPCIDOE, "emu+tcp": spdm.BindingTCP, "emu+none": spdm.BindingNone}[network]
	switch {
	case kind == "spdm" && network == "tcp":
		o.spdm(where, func(ctx context.Context) (spdm.Transport, error) { return spdm.DialTCP(ctx, rest) })
	case kind == "spdm" && emulated:
		o.spdm(where, func(ctx context.Context) (spdm.Transport, error) {
			return spdm.DialEmulatorWith(ctx, rest, binding)
		})
	case kind == "atecc" && network == "tcp":
		o.targets = append(o.targets, target{where, func(ctx context.Context, o *options) (moduleid.Chip, error) {
			bus, err := atecc.OpenTCP(ctx, rest)
			if err != nil {
				return nil, err
			}
			chip, err := atecc.NewHost(bus).Chip(o.atecc(atecc.DefaultAddress))
			return &owned{chip, bus}, err
		}})
	case kind == "i2c":
		// One host for the bus: its chips compute at the same time.
		open := sync.OnceValues(func() (*atecc.Host, error) {
			bus, err := atecc.OpenI2C(where)
			if err != nil {
				return nil, err
			}
			return atecc.NewHost(bus), nil
		})
		for _, a := range strings.Split(addrs, ",") {
			n, err := strconv.ParseUint(strings.TrimSpace(a), 0, 8)
			if err != nil || n < 0x08 || n > 0x77 {
				return fmt.Errorf("-addr %q is no 7-bit address between 0x08 and 0x77 (data sheets print them shifted left: their 0xc0 is 0x60)", a)
			}
			o.targets = append(o.targets, target{fmt.Sprintf("%s %#02x", where, n), func(_ context.Context, o *options) (moduleid.Chip, error) {
				host, err := open()
				if err != nil {
					return nil, err
				}
				return host.Chip(o.atecc(uint8(n)))
			}})
		}
	default:
		return fmt.Errorf("-%s %q: it begins with tcp:%s", kind, where, map[string]string{"spdm": " or emu:"}[kind])
	}
	return nil
}

// owned closes the bus with the only chip on it.
type owned struct {
	moduleid.Chip
	bus atecc.Bus
}

func (c *owned) Close() error { return errors.Join(c.Chip.Close(), c.bus.Close()) }

func (o *options) spdm(name string, dial func(context.Context) (spdm.Transport, error)) {
	o.targets = append(o.targets, target{name, func(ctx context.Context, o *options) (moduleid.Chip, error) {
		t, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return spdm.NewRequester(t, spdm.Config{Slot: o.slot, Scheme: o.scheme})
	}})
}

func (o *options) atecc(addr uint8) atecc.Config {
	c := atecc.Config{Address: addr, Slot: o.slot, Strict: o.strict}
	if o.chain != nil {
		c.Certificates = atecc.FixedChain(o.chain...)
	}
	return c
}

func (o *options) addRoots(name string) error {
	ders, err := readCertificates(name)
	if err != nil {
		return err
	}
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		o.roots.AddCert(cert)
		o.rootSeen = true
	}
	return nil
}

const maxFile = 1 << 20

// readCertificates reads PEM blocks, or DER certificates one after the other.
func readCertificates(name string) ([][]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	var ders [][]byte
	for rest := data; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type == "CERTIFICATE" {
			ders = append(ders, b.Bytes)
		}
	}
	if len(ders) == 0 {
		certs, err := x509.ParseCertificates(data)
		if err != nil {
			return nil, fmt.Errorf("%s is neither PEM nor DER: %w", name, err)
		}
		for _, c := range certs {
			ders = append(ders, c.Raw)
		}
	}
	if len(ders) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", name)
	}
	return ders, nil
}
