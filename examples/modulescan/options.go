package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

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
		data, err := readFile(registry, maxRegistry)
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
	slots := 8 // of SPDM certificates
	if !slices.ContainsFunc(targets, func(t string) bool { return strings.HasPrefix(t, "spdm ") }) {
		slots = 16 // of an ATECC's keys
	}
	if o.slot < 0 || o.slot >= slots {
		return nil, fmt.Errorf("-slot %d: the slots are 0 to %d", o.slot, slots-1)
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

const (
	maxFile     = 1 << 20
	maxRegistry = 64 << 20
)

func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return data, err
}

// readCertificates reads PEM blocks, or DER certificates one after the other.
func readCertificates(name string) ([][]byte, error) {
	data, err := readFile(name, maxFile)
	if err != nil {
		return nil, err
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
