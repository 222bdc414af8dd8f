package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

// openModules sets up the connectors. Nothing is asked yet: AdmitAll does that,
// and measures the inventory into PCR 13.
func (n *node) openModules() error {
	if err := n.openModuleList(); err != nil {
		return err
	}
	v := &moduleid.Verifier{
		Schemes: []moduleid.Scheme{atecc.Scheme(), spdm.Scheme{}}, Revocations: n.revoked,
		Roots: x509.NewCertPool(), Classes: map[string]moduleid.Class{}, Connectors: map[string]moduleid.Connector{},
	}
	var bays []moduleid.BayConfig
	for _, m := range n.cfg.Modules {
		certs, err := readPEM(m.CA)
		if err != nil {
			return err
		}
		members := x509.NewCertPool()
		for _, c := range certs {
			members.AddCert(c)
			v.Roots.AddCert(c)
		}
		v.Classes[m.Class] = moduleid.Class{Members: members}
		v.Connectors[m.Bay] = moduleid.Connector{Classes: []string{m.Class}, Required: !m.Optional}
		open, err := opener(m)
		if err != nil {
			return err
		}
		bays = append(bays, moduleid.BayConfig{Connector: m.Bay, Open: open})
	}
	name := filepath.Join(n.runDir(), "modules.cel")
	log, err := wire.ReadCapped(name, 64<<20)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	inventory, err := moduleid.NewInventory(moduleid.InventoryConfig{
		Node: n.attest.Device().String(), Verifier: v, Bays: bays, PCRs: modulePCRs{n.tpm},
		Log: log, SaveLog: func(log []byte) error { return writeFile(name, log) }, Logger: n.log,
	})
	if err == nil {
		n.modules.Store(inventory)
	}
	return err
}

// collectModules lets the modules prove themselves for the cloud's nonce.
func (n *node) collectModules(ctx context.Context, nonce []byte) (string, []byte, error) {
	inventory := n.modules.Load()
	if inventory == nil {
		return "", nil, errors.New("the modules could not be asked: see the link modules")
	}
	return inventory.Collect(ctx, nonce)
}

// watchModules keeps the inventory in step with what is plugged in: every few
// seconds each connector is asked whether its module is still there, and each
// module proves itself anew before its lease ends. The cloud is told of a
// change at once, and asks for evidence.
func (n *node) watchModules(ctx context.Context) {
	if len(n.cfg.Modules) == 0 {
		return
	}
	every := n.cfg.ModuleCheck.duration()
	if every <= 0 {
		every = 5 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var before moduleid.Snapshot
	why := "" // of the last refusals, as shown
	if inventory := n.modules.Load(); inventory != nil {
		before = inventory.Snapshot()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-n.recheckModules: // by a new list
		}
		if n.modules.Load() == nil {
			if err := n.openModules(); err != nil {
				_ = n.lost("modules", err)
				continue
			}
		}
		_, err := n.modules.Load().AdmitAll(ctx)
		if ctx.Err() != nil {
			return
		}
		after := n.modules.Load().Snapshot()
		if changed := !slices.Equal(before, after); changed || errText(err) != why {
			// A proof that the cloud asked for may have overtaken this one; the
			// next says why.
			n.showModules(after, err)
			before, why = after, errText(err)
			if !changed {
				continue
			}
			select {
			case n.changed <- struct{}{}:
			default:
			}
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// showModules records what is in the connectors.
func (n *node) showModules(inventory moduleid.Snapshot, err error) {
	var wrong, empty []string
	for _, e := range inventory {
		switch {
		case e.Admitted() || e.Refused():
		case n.cfg.optional(e.Connector):
			empty = append(empty, e.Connector)
		default:
			wrong = append(wrong, e.Connector+": empty")
		}
	}
	if len(wrong) > 0 {
		err = errors.Join(err, errors.New(strings.Join(wrong, "; ")))
	}
	if err != nil {
		// A refused module is reported and left unused; the verifier decides
		// whether the node may do without it.
		_ = n.lost("modules", err)
		return
	}
	detail := "every connector holds its admitted module"
	if len(empty) > 0 {
		detail = "admitted; empty, as they may be: " + strings.Join(empty, ", ")
	}
	n.prove("modules", fmt.Sprintf("%s; measured into PCR 13, by revocation list %d of %s", detail, n.revoked.Sequence(), n.revoked.Issued().UTC().Format(time.DateOnly)))
}

// tellChanges tells the cloud when a module came or went, so that it asks for
// evidence now and not at the next deadline.
func (n *node) tellChanges(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		}
		if _, err := n.ask(ctx, "/v1/changed", nil); err != nil && ctx.Err() == nil { // the next tunnel starts with evidence anyway
			n.log.Info("the cloud was not told of the change", "event", "modules.untold", "error", err.Error())
		}
	}
}

// runDir is where what belongs to this boot is kept; a reboot must clear it.
func (n *node) runDir() string { return n.cfg.Run }

// opener returns how to reach the chip of a module.
func opener(m module) (func(context.Context) (moduleid.Chip, error), error) {
	kind, addr, _ := strings.Cut(m.Address, ":")
	if m.Chip == "spdm" {
		return func(ctx context.Context) (moduleid.Chip, error) { return openSPDM(ctx, kind, addr) }, nil
	}
	if kind == "tcp" {
		return func(ctx context.Context) (moduleid.Chip, error) {
			bus, err := atecc.OpenTCP(ctx, addr)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", moduleid.ErrAbsent, err)
			}
			return chipOn(bus, 0)
		}, nil
	}
	path, hexAddr := m.Address, "0x60"
	if i := strings.LastIndexByte(m.Address, ':'); i > 0 {
		path, hexAddr = m.Address[:i], m.Address[i+1:]
	}
	address, err := strconv.ParseUint(hexAddr, 0, 7)
	if err != nil {
		return nil, fmt.Errorf("modules: bay %s: address %q: give the 7-bit I2C address, such as /dev/i2c-1:0x60", m.Bay, m.Address)
	}
	return func(context.Context) (moduleid.Chip, error) {
		bus, err := atecc.OpenI2C(path)
		if err != nil {
			return nil, err
		}
		return chipOn(bus, uint8(address))
	}, nil
}

// busChip is a chip that closes its bus with it.
type busChip struct {
	moduleid.Chip
	bus atecc.Bus
}

func (c busChip) Close() error { return errors.Join(c.Chip.Close(), c.bus.Close()) }

func chipOn(bus atecc.Bus, address uint8) (moduleid.Chip, error) {
	chip, err := atecc.NewHost(bus).Chip(atecc.Config{Address: address})
	if err != nil {
		return nil, errors.Join(err, bus.Close())
	}
	return busChip{chip, bus}, nil
}

// openSPDM reaches an SPDM responder over DSP0287 TCP ("tcp") or the framing
// of the reference emulator ("emu").
func openSPDM(ctx context.Context, kind, address string) (moduleid.Chip, error) {
	dial := spdm.DialTCP
	if kind == "emu" {
		dial = spdm.DialEmulator
	} else if kind != "tcp" {
		return nil, fmt.Errorf("SPDM address %q: say tcp:HOST:PORT or emu:HOST:PORT", kind+":"+address)
	}
	t, err := dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", moduleid.ErrAbsent, err)
	}
	return spdm.NewRequester(t, spdm.Config{})
}
