package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/tlsconn"
)

// bootAppraiser judges the boot: it is affirming when one of the reference
// policies in force affirms it. With several releases in the field, each has
// its own.
func bootAppraiser(policies func(context.Context) ([]*secureboot.Policy, error)) attest.Appraiser {
	return func(ctx context.Context, in attest.Input) attest.Opinion {
		all, err := policies(ctx)
		if err != nil {
			return attest.Opinion{Status: attest.StatusNone, Reasons: []attest.Reason{{Code: "boot.no-policy", Detail: err.Error()}}}
		}
		ev := secureboot.Evidence{Bank: in.Bank, PCRs: in.PCRs, EventLog: in.Bodies[wire.TypeEventLog], IMALog: in.Bodies[wire.TypeIMALog]}
		best := attest.Opinion{Status: attest.StatusNone, Reasons: []attest.Reason{{Code: "boot.no-policy", Detail: "no reference values are in force"}}}
		for i, p := range all {
			r := p.Appraise(ev, in.Now)
			op := bootOpinion(r)
			if op.Status == attest.StatusAffirming {
				op.Reasons = append(op.Reasons, attest.Reason{Code: "boot.reference", Detail: fmt.Sprintf("reference values %s, serial %d", p.Name, p.Serial)})
				return op
			}
			if i == 0 || len(op.Reasons) < len(best.Reasons) { // the policy that comes closest explains best
				best = op
			}
		}
		return best
	}
}

func bootOpinion(r *secureboot.Result) attest.Opinion {
	op := attest.Opinion{Status: attest.StatusContraindicated}
	switch r.Status {
	case secureboot.Affirming:
		op.Status = attest.StatusAffirming
	case secureboot.Warning:
		op.Status = attest.StatusWarning
	case secureboot.None:
		op.Status = attest.StatusNone
	}
	for _, f := range r.Findings {
		detail := f.Detail
		if f.PCR >= 0 {
			detail = fmt.Sprintf("PCR %d: %s", f.PCR, f.Detail)
		}
		op.Reasons = append(op.Reasons, attest.Reason{Code: "boot." + string(f.Code), Detail: detail})
	}
	return op
}

// modulePCR is where nodes measure their modules.
const modulePCR = 13

// moduleAppraiser judges the modules: each proves itself again for the
// verifier's nonce, and the log explains PCR 13.
func moduleAppraiser(v *moduleid.Verifier) attest.Appraiser {
	return func(_ context.Context, in attest.Input) attest.Opinion {
		body, ok := in.Bodies[moduleid.MediaType]
		if !ok && len(v.Connectors) == 0 && len(bytes.Trim(in.PCRs[modulePCR], "\x00")) == 0 && len(in.PCRs[modulePCR]) > 0 {
			return attest.Opinion{Status: attest.StatusAffirming, Reasons: []attest.Reason{{Code: "modules.none", Detail: "this fleet's nodes have no connectors, and nothing was measured as a module"}}}
		}
		if !ok {
			return attest.Opinion{Status: attest.StatusContraindicated, Reasons: []attest.Reason{{Code: "modules.absent", Detail: "the evidence has no module report"}}}
		}
		verdict, err := v.VerifyReport(moduleid.ReportInput{
			Node: in.Device.String(), Nonce: in.Nonce, Body: body,
			Bank: in.Bank, PCRs: in.PCRs,
		})
		if err == nil {
			op := attest.Opinion{Status: attest.StatusAffirming}
			for _, id := range verdict.Admitted() {
				op.Reasons = append(op.Reasons, attest.Reason{Code: "modules.admitted", Detail: fmt.Sprintf("%s: %s %s %s", id.Connector(), id.Class(), id.Model(), clip(id.ID(), 40))})
			}
			op.Reasons = append(op.Reasons, refusedModules(verdict)...) // of connectors that may be empty
			return op
		}
		op := attest.Opinion{Status: attest.StatusContraindicated}
		if verdict != nil { // why each module was refused says more than what is missing then
			op.Reasons = refusedModules(verdict)
		}
		if len(op.Reasons) == 0 {
			op.Reasons = []attest.Reason{{Code: "modules.refused", Detail: err.Error()}}
		}
		return op
	}
}

func refusedModules(v *moduleid.Verdict) (out []attest.Reason) {
	for _, m := range v.Refused() {
		for _, f := range m.Findings {
			out = append(out, attest.Reason{Code: "modules." + string(f.Reason), Detail: m.Connector + " refused: " + f.Detail})
		}
	}
	return out
}

// deviceOf reads the device ID from a node's SPIFFE ID: spiffe://domain/node/ID.
func deviceOf(p tlsconn.Peer) (registry.DeviceID, error) {
	return registry.ParseDeviceID(path.Base(p.ID.Path))
}

// verifyFunc is what the gateway calls on a tunnel's first stream. bind gives
// the channel binding for the verifier's nonce.
type verifyFunc = func(ctx context.Context, peer tlsconn.Peer, stream io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error)

// attestation is the gateway's half of the evidence exchange on a tunnel's
// first stream: challenge, evidence, verdict.
func (c *cloud) attestation() verifyFunc {
	return func(ctx context.Context, peer tlsconn.Peer, stream io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error) {
		device, err := deviceOf(peer)
		if err != nil {
			return time.Time{}, err
		}
		start := time.Now()
		result, err := exchange(ctx, c.verifier, device, peer, stream, bind)
		verdict := wire.Verdict{Version: 1, OK: err == nil}
		if cut := new(unfinished); errors.As(err, &cut) {
			// The node or its network went away: that says nothing about the node.
			c.log.Warn("attestation unfinished", "event", "attest.unfinished", "node", device.String(), "error", err.Error())
			c.fleet.setLink(device.String(), "tunnel", false, "cut: the exchange of evidence did not finish: "+err.Error())
			return time.Time{}, err
		}
		if err != nil {
			c.mon.attested.WithLabelValues("refused").Observe(time.Since(start).Seconds())
			c.log.Warn("attestation refused", "event", "attest.refused", "node", device.String(), "reason", err.Error())
			verdict.Reason = c.showRefusal(device, peer, err)
			d, derr := devices{t: c.store.System()}.Get(ctx, device)
			verdict.Enroll = errors.Is(derr, registry.ErrNotFound) || (derr == nil && d.State == registry.Released)
		} else {
			c.mon.attested.WithLabelValues("affirming").Observe(time.Since(start).Seconds())
			verdict.Until = result.Expires()
			c.log.Info("node attested", "event", "attest.affirming", "node", device.String(), "until", verdict.Until)
			c.showResult(device, peer, result)
		}
		msg, merr := json.Marshal(verdict)
		if merr == nil {
			merr = wire.WriteFrame(stream, msg)
		}
		if err != nil {
			return time.Time{}, err
		}
		return verdict.Until, merr
	}
}

// showRefusal puts a refusal into the operator's picture, and returns what the
// node is told: what is wrong, not what would be right.
func (c *cloud) showRefusal(device registry.DeviceID, peer tlsconn.Peer, err error) string {
	id, state := device.String(), "contraindicated"
	if errors.Is(err, attest.ErrRevoked) {
		state = "revoked"
	}
	reasons, told := []string{err.Error()}, "refused; the cloud's log says why"
	broken := map[string][]string{"boot": nil, "modules": nil}
	var refused *attest.AppraisalError
	if errors.As(err, &refused) {
		reasons = reasons[:0]
		var codes []string
		for _, r := range refused.Reasons {
			reasons = append(reasons, r.Code+": "+r.Detail)
			codes = append(codes, r.Code)
			link := "boot"
			if strings.HasPrefix(r.Code, "modules.") {
				link = "modules"
			}
			broken[link] = append(broken[link], r.Detail)
		}
		told = strings.Join(slices.Compact(codes), ", ")
	}
	c.fleet.setState(id, peer.ID.Path, state, reasons...)
	for link, why := range broken {
		if len(why) > 0 {
			c.fleet.setLink(id, link, false, strings.Join(why[:min(len(why), maxReasons)], "; "))
		}
	}
	c.fleet.setLink(id, "tunnel", false, "cut: not attested")
	return told
}

// showResult puts a verdict into the operator's picture, with its evidence.
func (c *cloud) showResult(device registry.DeviceID, peer tlsconn.Peer, r *attest.Result) {
	id := device.String()
	notes := map[string][]string{}
	for _, reason := range r.Reasons() {
		link, _, _ := strings.Cut(reason.Code, ".")
		notes[link] = append(notes[link], reason.Detail)
	}
	values := r.Values()
	c.fleet.setState(id, peer.ID.Path, "affirming")
	c.fleet.setLink(id, "boot", true, fmt.Sprintf("quote and event log verified: %s; boot %d of this TPM", strings.Join(notes["boot"], "; "), values.Clock().ResetCount))
	c.fleet.setLink(id, "modules", true, "measured and proven for this nonce: "+strings.Join(notes["modules"], "; "))
	c.fleet.setLink(id, "tunnel", true, peer.KeyExchange.String()+", attested until "+r.Expires().UTC().Format(time.TimeOnly))
}

// unfinished is an exchange of evidence whose stream or tunnel ended before
// there was a verdict.
type unfinished struct{ error }

func (u *unfinished) Unwrap() error { return u.error }

func exchange(ctx context.Context, v *attest.Verifier, device registry.DeviceID, peer tlsconn.Peer, stream io.ReadWriter, bind func([]byte) ([]byte, error)) (*attest.Result, error) {
	session := attest.Session{Device: device, Purpose: attest.PurposeAttest, LeafSPKI: peer.SPKI}
	challenge, err := v.Challenge(ctx, session)
	if err != nil {
		return nil, err
	}
	msg, err := attest.Marshal(challenge)
	if err != nil {
		return nil, err
	}
	if err := wire.WriteFrame(stream, msg); err != nil {
		return nil, &unfinished{fmt.Errorf("send challenge: %w", err)}
	}
	binding, err := bind(challenge.Nonce)
	if err != nil {
		return nil, &unfinished{err}
	}
	if copy(session.Binding[:], binding) != len(session.Binding) {
		return nil, errors.New("channel binding is too short")
	}
	if msg, err = wire.ReadFrame(stream, wire.MaxFrame); err != nil {
		return nil, &unfinished{fmt.Errorf("read evidence: %w", err)}
	}
	evidence, err := attest.Parse[attest.Evidence](msg)
	if err != nil {
		return nil, err
	}
	return v.Appraise(ctx, session, evidence)
}
