package moduleid

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/trusttree/trusttree/moduleid/internal/strict"
)

// MediaType is the media type of a report.
const MediaType = "application/vnd.trusttree.moduleid+json"

// maxReport bounds a report in bytes.
const maxReport = 16 << 20

type report struct {
	Version int            `json:"version"`
	Node    string         `json:"node"`
	Salt    []byte         `json:"salt"` // the node's own nonce, so that it trusts the proofs too
	PCR     int            `json:"pcr"`
	Log     []record       `json:"log"`
	Modules []reportModule `json:"modules"`
}

type reportModule struct {
	Connector string         `json:"connector"`
	Evidence  *Evidence      `json:"evidence,omitempty"`
	Refusal   *reportRefusal `json:"refusal,omitempty"` // since version 2: why the node refused it
}

// reportRefusal is the node's own word about a module that it refused. The
// measured inventory holds its first reason; the rest nothing proves.
type reportRefusal struct {
	ID       string    `json:"id,omitempty"`
	Findings []Finding `json:"findings"`
	Read     []byte    `json:"read,omitempty"`
}

// Limits of a refusal.
const (
	reportVersion = 2
	maxFindings   = 16
	maxDetail     = 1024     // bytes
	maxRead       = 16 << 10 // bytes; what was read beyond is left out
)

// refusalOf puts a bay's refusal into a report, if it is the one that was
// measured.
func refusalOf(err error, measured Entry) *reportRefusal {
	var refused *RefusedError
	if !errors.As(err, &refused) || !measured.Refused() || refused.Reason() != measured.Reason {
		return nil
	}
	r := &reportRefusal{ID: refused.ID, Read: refused.Read[:min(len(refused.Read), maxRead)]}
	for _, f := range refused.Findings[:min(len(refused.Findings), maxFindings)] {
		r.Findings = append(r.Findings, Finding{f.Reason, cut(f.Detail, maxDetail)})
	}
	return r
}

// cut returns at most n bytes of a text, in whole characters: what JSON would
// put in place of others is longer than they are.
func cut(s string, n int) string {
	return strings.ToValidUTF8(s[:min(len(s), n)], "")
}

func (r *reportRefusal) check(measured Entry) error {
	if len(r.Findings) == 0 || len(r.Findings) > maxFindings || len(r.Read) > maxRead || len(r.ID) > maxName {
		return errors.New("a refusal is empty or larger than its limits")
	}
	for _, f := range r.Findings {
		if f.Reason == "" || len(f.Reason) > maxName || len(f.Detail) > 2*maxDetail {
			return errors.New("a refusal's finding is empty or larger than its limits")
		}
	}
	if r.Findings[0].Reason != measured.Reason {
		return fmt.Errorf("it says %.40q about connector %s, and measured %q", r.Findings[0].Reason, measured.Connector, measured.Reason)
	}
	return nil
}

// Collect answers a verifier's nonce of 16 to 64 bytes: every module proves
// itself for it, the inventory is measured if that changed it, and the report
// holds the evidence, also of modules that were refused, why those were, with
// what was read of them, and the log of the PCR. Take the TPM's quote after
// it. The report is strict JSON, version 2.
func (inv *Inventory) Collect(ctx context.Context, nonce []byte) (mediaType string, body []byte, err error) {
	if len(nonce) < minNonce || len(nonce) > maxNonce {
		return "", nil, fmt.Errorf("moduleid: the verifier's nonce has %d bytes; it needs %d to %d", len(nonce), minNonce, maxNonce)
	}
	r := report{Version: reportVersion, Node: inv.cfg.Node, Salt: make([]byte, 32), PCR: inv.cfg.PCR, Modules: []reportModule{}}
	rand.Read(r.Salt)
	// Refusals are in the inventory and the report; they don't keep the node
	// from reporting.
	evidence, errs := inv.each(ctx, func(b *Bay) Challenge { return reportChallenge(nonce, r.Salt, r.Node, b.cfg.Connector) })
	if err := ctx.Err(); err != nil {
		return "", nil, fmt.Errorf("moduleid: collect evidence: %w", err)
	}
	if err := inv.measureOrDrop(ctx); err != nil {
		return "", nil, err
	}
	inv.mu.Lock()
	r.Log = slices.Clone(inv.cel.records)
	measured := inv.cel.last()
	inv.mu.Unlock()
	for i, b := range inv.bays {
		m := reportModule{b.cfg.Connector, evidence[i], nil}
		if i < len(measured) {
			m.Refusal = refusalOf(errs[i], measured[i])
		}
		if m.Evidence != nil || m.Refusal != nil {
			r.Modules = append(r.Modules, m)
		}
	}
	if body, err = json.Marshal(r); err != nil {
		return "", nil, fmt.Errorf("moduleid: %w", err)
	}
	if len(body) > maxReport {
		return "", nil, fmt.Errorf("moduleid: the report has %d bytes; the limit is %d", len(body), maxReport)
	}
	return MediaType, body, nil
}

func reportChallenge(nonce, salt []byte, node, connector string) Challenge {
	c := ChallengeFor(nonce, node, connector)
	c.Context = salt
	return c
}

// ReportInput is what a verifier checks a report against.
type ReportInput struct {
	Body  []byte // the report
	Node  string // the node's name, as its attestation proved it
	Nonce []byte // what the verifier sent; used once

	// Bank and PCRs are values that a verified quote proved. PCR is the
	// register of the inventory; zero means 13.
	Bank crypto.Hash
	PCRs map[int][]byte
	PCR  int

	// UnsafeUnbound accepts a report without a PCR value, from a node without
	// a TPM: it can then hide modules, though not invent them.
	UnsafeUnbound bool
}

// Verdict is what a verifier found in a report. Only [Verifier.VerifyReport]
// makes one.
type Verdict struct {
	inventory Snapshot
	admitted  []*Identity
	refused   []*RefusedError
	pcr       map[crypto.Hash][]byte
}

// Inventory returns what the node measured last.
func (v *Verdict) Inventory() Snapshot { return slices.Clone(v.inventory) }

// Admitted returns the modules that proved themselves to this verifier.
func (v *Verdict) Admitted() []*Identity { return slices.Clone(v.admitted) }

// Refused returns what speaks against modules, including those that the node
// refused by itself and does not use.
func (v *Verdict) Refused() []*RefusedError { return slices.Clone(v.refused) }

// PCR returns the value that the report's log gives the PCR of a bank, or nil.
func (v *Verdict) PCR(bank crypto.Hash) []byte { return bytes.Clone(v.pcr[bank]) }

// ErrReport is the class of errors about a report that can't be read or is not
// the one that the nonce and the PCR are about.
var ErrReport = errors.New("moduleid: report refused")

// VerifyReport checks a report of [Inventory.Collect]: that its log explains
// the PCR, that every module which the node says it admitted proved itself
// again for this nonce and passes this verifier's policy, that no identity is
// there twice, and that no required connector lacks its module.
//
// The error is nil only if all of that holds. It is [ErrReport] with a nil
// verdict, or a [RefusedError] (several are joined) with a verdict that says
// what was found about each module. A module that the node itself refused is
// in the verdict and no error, unless its connector is required.
func (v *Verifier) VerifyReport(in ReportInput) (*Verdict, error) {
	if v == nil {
		return nil, fmt.Errorf("%w: there is no verifier", ErrReport)
	}
	r, cel, err := v.readReport(in)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReport, err)
	}
	verdict := &Verdict{inventory: cel.last(), pcr: map[crypto.Hash][]byte{}}
	for _, b := range banks {
		if value, err := cel.replay(b.hash, len(cel.records)); err == nil {
			verdict.pcr[b.hash] = value
		}
	}
	var errs []error
	places := map[string]string{} // connector by identity
	evidence, told := map[string]*Evidence{}, map[string]*reportRefusal{}
	for _, m := range r.Modules {
		evidence[m.Connector], told[m.Connector] = m.Evidence, m.Refusal
	}
	for _, entry := range verdict.inventory {
		refused := &RefusedError{Node: in.Node, Connector: entry.Connector}
		e := evidence[entry.Connector]
		delete(evidence, entry.Connector)
		if e == nil {
			if !entry.Admitted() && !entry.Refused() {
				continue
			}
			if t := told[entry.Connector]; t != nil {
				// The node's own word: only the first reason was measured.
				refused.ID, refused.Findings, refused.Read = t.ID, t.Findings, t.Read
			} else {
				refused.add(entry.Reason, "the node refused it, and sent no evidence")
			}
			if entry.Admitted() {
				refused.Findings = []Finding{{ReasonInventory, "the node admitted a module, but sent no evidence of it"}}
				errs = append(errs, refused)
			}
			verdict.refused = append(verdict.refused, refused)
			continue
		}
		id, err := v.Verify(reportChallenge(in.Nonce, r.Salt, in.Node, entry.Connector), e)
		switch {
		case err != nil:
			if !errors.As(err, &refused) {
				refused.add(ReasonMalformed, err.Error())
			}
			if !entry.Refused() {
				errs = append(errs, refused)
			}
		case entry.Refused():
			refused.ID = id.id
			refused.add(entry.Reason, "the node refused it; its evidence would pass here")
		case entry.ID != id.id || entry.Class != id.class:
			refused.ID = id.id
			refused.add(ReasonInventory, fmt.Sprintf("the node measured %q of class %q; the module proved to be %s of class %q", entry.ID, entry.Class, id.id, id.class))
			errs = append(errs, refused)
		case places[id.id] != "":
			refused.ID = id.id
			refused.add(ReasonDuplicate, "connector "+places[id.id]+" holds the same identity")
			errs = append(errs, refused)
		default:
			places[id.id] = entry.Connector
			verdict.admitted = append(verdict.admitted, id)
			continue
		}
		verdict.refused = append(verdict.refused, refused)
	}
	errs = append(errs, v.missing(verdict, in.Node)...)
	return verdict, errors.Join(errs...)
}

// missing names the required connectors without an admitted module.
func (v *Verifier) missing(verdict *Verdict, node string) (errs []error) {
	names := make([]string, 0, len(v.Connectors))
	for name, c := range v.Connectors {
		if c.Required && !slices.ContainsFunc(verdict.admitted, func(id *Identity) bool { return id.connector == name }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		refused := &RefusedError{Node: node, Connector: name}
		refused.add(ReasonMissing, "the connector is required to hold an admitted module")
		errs = append(errs, refused)
		verdict.refused = append(verdict.refused, refused)
	}
	return errs
}

// readReport parses a report and binds it to the node, the nonce's length and
// the PCR.
func (v *Verifier) readReport(in ReportInput) (*report, *celLog, error) {
	var r report
	if err := strict.Decode(in.Body, strict.Limits{Bytes: maxReport, Members: maxRecords}, reportVersion, &r); err != nil {
		return nil, nil, err
	}
	if in.PCR == 0 {
		in.PCR = defaultPCR
	}
	switch {
	case len(in.Nonce) < minNonce || len(in.Nonce) > maxNonce:
		return nil, nil, fmt.Errorf("the nonce has %d bytes; it needs %d to %d", len(in.Nonce), minNonce, maxNonce)
	case in.Node == "" || r.Node != in.Node:
		return nil, nil, fmt.Errorf("it is of node %.128q, not %q", r.Node, in.Node)
	case len(r.Salt) != 32:
		return nil, nil, fmt.Errorf("its salt has %d bytes, not 32", len(r.Salt))
	case r.PCR != in.PCR:
		return nil, nil, fmt.Errorf("it is about PCR %d, not %d", r.PCR, in.PCR)
	case len(r.Log) == 0:
		return nil, nil, errors.New("it has no inventory")
	}
	cel := &celLog{node: in.Node, pcr: in.PCR, records: r.Log}
	if err := cel.check(); err != nil {
		return nil, nil, err
	}
	last := cel.last()
	for i, m := range r.Modules {
		at := slices.IndexFunc(last, func(e Entry) bool { return e.Connector == m.Connector })
		if m.Evidence == nil && m.Refusal == nil || m.Refusal != nil && r.Version < 2 || at < 0 ||
			slices.ContainsFunc(r.Modules[:i], func(o reportModule) bool { return o.Connector == m.Connector }) {
			return nil, nil, fmt.Errorf("its evidence for connector %.128q is missing, repeated, or of no connector of the inventory", m.Connector)
		}
		if m.Refusal != nil {
			if err := m.Refusal.check(last[at]); err != nil {
				return nil, nil, err
			}
		}
	}
	value, ok := in.PCRs[in.PCR]
	if !ok {
		if in.UnsafeUnbound {
			return &r, cel, nil
		}
		return nil, nil, fmt.Errorf("no verified value of PCR %d binds it to the node's TPM; let the quote cover that PCR", in.PCR)
	}
	if bankName(in.Bank) == "" {
		return nil, nil, fmt.Errorf("PCR banks of %v are not supported", in.Bank)
	}
	want, err := cel.replay(in.Bank, len(cel.records))
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(want, value) {
		return nil, nil, fmt.Errorf("its log gives PCR %d the value %x, the quote says %x", in.PCR, want, value)
	}
	return &r, cel, nil
}
