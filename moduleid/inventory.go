package moduleid

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// defaultPCR is where inventories are measured by default.
const defaultPCR = 13

// PCRs is the part of a TPM that an inventory is measured with.
type PCRs interface {
	ExtendPCR(ctx context.Context, pcr int, digests map[crypto.Hash][]byte) error
	ReadPCR(ctx context.Context, pcr int, bank crypto.Hash) ([]byte, error)
}

// InventoryConfig describes the connectors of a node.
type InventoryConfig struct {
	Node     string      // the node's name, bound into every proof
	Verifier *Verifier   // required
	Bays     []BayConfig // at most 256

	// PCRs measures every change of the inventory. Nil measures nothing; a
	// verifier then refuses the node's reports, unless it is told not to.
	PCRs PCRs

	// PCR is the register; zero means 13. Banks are its hash
	// algorithms; nil means SHA-256 and SHA-384.
	PCR   int
	Banks []crypto.Hash

	// Log is the log of this boot so far, if the process starts again without
	// a reboot, and SaveLog keeps it before each extend. Keep it in memory
	// that a reboot clears (/run). Nil SaveLog keeps nothing: after a restart
	// of the process without a reboot the PCR can't be explained.
	Log     []byte
	SaveLog func(log []byte) error

	Now    func() time.Time // clock of the leases; nil means time.Now
	Logger *slog.Logger     // nil logs nothing
}

func (c *InventoryConfig) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// Inventory keeps all connectors of a node. Safe for concurrent use.
type Inventory struct {
	cfg  InventoryConfig
	bays []*Bay // sorted by connector
	log  *slog.Logger

	perBay int // changes that each bay may make: their sum fits the log

	dup    sync.Mutex               // one duplicate check at a time
	places map[string]map[*Bay]bool // where each duplicated identity was seen

	mu      sync.Mutex // guards what follows, and serialises measuring
	cel     *celLog
	settled bool // the log explains the PCR
}

// NewInventory checks the configuration and returns an inventory in which
// every connector is empty. Nothing is asked yet: call AdmitAll.
func NewInventory(cfg InventoryConfig) (*Inventory, error) {
	if err := checkName("node", cfg.Node); err != nil {
		return nil, err
	}
	if cfg.Verifier == nil {
		return nil, errors.New("moduleid: an inventory needs a Verifier")
	}
	if len(cfg.Bays) == 0 || len(cfg.Bays) > maxConnectors {
		return nil, fmt.Errorf("moduleid: an inventory has 1 to %d bays, not %d", maxConnectors, len(cfg.Bays))
	}
	if cfg.PCR == 0 {
		cfg.PCR = defaultPCR
	}
	if cfg.PCR < 0 || cfg.PCR == 16 || cfg.PCR >= 23 {
		return nil, fmt.Errorf("moduleid: PCR %d can be reset by software or does not exist; use %d", cfg.PCR, defaultPCR)
	}
	if cfg.Banks == nil {
		cfg.Banks = []crypto.Hash{crypto.SHA256, crypto.SHA384}
	}
	for _, h := range cfg.Banks {
		if bankName(h) == "" {
			return nil, fmt.Errorf("moduleid: PCR banks of %v are not supported", h)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cel, err := parseLog(cfg.Log, cfg.Node, cfg.PCR)
	if err != nil {
		return nil, fmt.Errorf("moduleid: %w", err)
	}
	inv := &Inventory{cfg: cfg, log: cfg.Logger, cel: cel, places: map[string]map[*Bay]bool{}}
	inv.perBay = (maxRecords - len(cel.records)) / len(cfg.Bays)
	for _, bc := range cfg.Bays {
		if err := checkName("connector", bc.Connector); err != nil {
			return nil, err
		}
		if bc.Open == nil {
			return nil, fmt.Errorf("moduleid: connector %s has no Open", bc.Connector)
		}
		if slices.ContainsFunc(inv.bays, func(b *Bay) bool { return b.cfg.Connector == bc.Connector }) {
			return nil, fmt.Errorf("moduleid: connector %s is configured twice", bc.Connector)
		}
		if bc.Lease == 0 {
			bc.Lease = 10 * time.Minute
		}
		if bc.Timeout == 0 {
			bc.Timeout = 5 * time.Second
		}
		inv.bays = append(inv.bays, &Bay{cfg: bc, inv: inv, log: cfg.Logger, proving: make(chan struct{}, 1),
			entry: Entry{Connector: bc.Connector}})
	}
	slices.SortFunc(inv.bays, func(a, b *Bay) int { return bytes.Compare([]byte(a.cfg.Connector), []byte(b.cfg.Connector)) })
	return inv, nil
}

// Bay returns the bay of a connector, or nil.
func (inv *Inventory) Bay(connector string) *Bay {
	for _, b := range inv.bays {
		if b.cfg.Connector == connector {
			return b
		}
	}
	return nil
}

// Snapshot returns the inventory now.
func (inv *Inventory) Snapshot() Snapshot {
	s := make(Snapshot, len(inv.bays))
	for i, b := range inv.bays {
		s[i] = b.Entry()
	}
	return s
}

// AdmitAll asks the modules of all connectors at the same time, so that a
// silent one delays nobody, and measures the result once. The error joins the
// refusals; an empty connector is none. A failure to measure ends every
// session: what is not measured is not used.
func (inv *Inventory) AdmitAll(ctx context.Context) (Snapshot, error) {
	_, errs := inv.each(ctx, func(b *Bay) Challenge { return NewChallenge(inv.cfg.Node, b.cfg.Connector) })
	if merr := inv.measureOrDrop(ctx); merr != nil {
		return inv.Snapshot(), merr
	}
	return inv.Snapshot(), errors.Join(errs...)
}

// each runs one proof per bay, concurrently. What it returns is by bay.
func (inv *Inventory) each(ctx context.Context, challenge func(*Bay) Challenge) ([]*Evidence, []error) {
	evidence, errs := make([]*Evidence, len(inv.bays)), make([]error, len(inv.bays))
	var wg sync.WaitGroup
	for i, b := range inv.bays {
		wg.Go(func() {
			_, e, err := b.admit(ctx, challenge(b))
			evidence[i] = e
			if !errors.Is(err, ErrAbsent) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	for i, b := range inv.bays {
		// The first of two duplicates was admitted before the second came.
		if e := b.Entry(); errs[i] == nil && e.Refused() {
			r := &RefusedError{Node: inv.cfg.Node, Connector: e.Connector}
			r.add(e.Reason, "found while another connector proved itself")
			errs[i] = r
		}
	}
	return evidence, errs
}

// unique refuses every bay that holds the same identity as another one, until
// one of them was seen empty: which of them is genuine, nobody can tell.
func (inv *Inventory) unique(ctx context.Context, b *Bay, id string) error {
	inv.dup.Lock()
	defer inv.dup.Unlock()
	places := inv.places[id]
	for _, other := range inv.bays {
		if e := other.Entry(); other == b || !places[other] && (e.ID != id) {
			continue
		}
		refusal := func(x, y *Bay) error {
			r := &RefusedError{Node: inv.cfg.Node, Connector: x.cfg.Connector, ID: id}
			r.add(ReasonDuplicate, "connector "+y.cfg.Connector+" holds the same identity: one of the two is a clone or a relay")
			return x.refuse(ctx, r)
		}
		if places == nil {
			places = map[*Bay]bool{}
			inv.places[id] = places
		}
		if !places[other] {
			_ = refusal(other, b) // reported by its own entry and log
		}
		places[b], places[other] = true, true
		return refusal(b, other)
	}
	return nil
}

// vacated notes that a bay was seen empty, which settles its duplicates.
func (inv *Inventory) vacated(b *Bay) {
	inv.dup.Lock()
	defer inv.dup.Unlock()
	for id, places := range inv.places {
		if delete(places, b); len(places) < 2 {
			delete(inv.places, id)
		}
	}
}

// measureOrDrop measures, or ends every session.
func (inv *Inventory) measureOrDrop(ctx context.Context) error {
	err := inv.measure(ctx)
	if err != nil {
		for _, b := range inv.bays {
			b.doubt(Entry{Connector: b.cfg.Connector})
		}
	}
	return err
}

// measure extends the PCR with the inventory, if it differs from the last one
// measured: first the log is kept, then the PCR extended.
func (inv *Inventory) measure(ctx context.Context) error {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	if err := inv.settle(ctx); err != nil {
		return err
	}
	s := inv.Snapshot()
	if slices.Equal(s, inv.cel.last()) {
		return nil
	}
	digests, err := inv.cel.append(s, inv.cfg.Banks)
	if err != nil {
		return err
	}
	drop := func(err error) error {
		inv.cel.records = inv.cel.records[:len(inv.cel.records)-1]
		return err
	}
	if inv.cfg.SaveLog != nil {
		data, err := inv.cel.marshal()
		if err == nil {
			err = inv.cfg.SaveLog(data)
		}
		if err != nil {
			return drop(fmt.Errorf("moduleid: keep the inventory's log: %w", err))
		}
	}
	if inv.cfg.PCRs != nil {
		if err := inv.cfg.PCRs.ExtendPCR(ctx, inv.cfg.PCR, digests); err != nil {
			inv.settled = false // the TPM may have done it all the same
			return fmt.Errorf("moduleid: measure the inventory into PCR %d: %w", inv.cfg.PCR, err)
		}
	}
	inv.log.InfoContext(ctx, "inventory measured", "event", "moduleid.measured", "pcr", inv.cfg.PCR, "record", len(inv.cel.records)-1)
	return nil
}

// settle makes sure that the log explains the PCR. A last record that was kept
// but not extended, because of a crash in between, is dropped.
func (inv *Inventory) settle(ctx context.Context) error {
	if inv.settled || inv.cfg.PCRs == nil {
		return nil
	}
	bank := inv.cfg.Banks[0]
	value, err := inv.cfg.PCRs.ReadPCR(ctx, inv.cfg.PCR, bank)
	if err != nil {
		return fmt.Errorf("moduleid: read PCR %d: %w", inv.cfg.PCR, err)
	}
	for _, n := range []int{len(inv.cel.records), len(inv.cel.records) - 1} {
		if n < 0 {
			continue
		}
		want, err := inv.cel.replay(bank, n)
		if err != nil {
			return fmt.Errorf("moduleid: %w", err)
		}
		if bytes.Equal(want, value) {
			inv.cel.records, inv.settled = inv.cel.records[:n], true
			return nil
		}
	}
	return fmt.Errorf("moduleid: PCR %d has the value %x, which the inventory's log of %d records does not explain: something else extended it, or the log is of another boot; reboot the node", inv.cfg.PCR, value, len(inv.cel.records))
}
