package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
func bootAppraiser(policies func() ([]*secureboot.Policy, error)) attest.Appraiser {
	return func(_ context.Context, in attest.Input) attest.Opinion {
		all, err := policies()
		if err != nil {
			return attest.Opinion{Status: attest.StatusNone, Reasons: []attest.Reason{{Code: "boot.no-policy", Detail: err.Error()}}}
		}
		ev := secureboot.Evidence{Bank: in.Bank, PCRs: in.PCRs, EventLog: in.Bodies[wire.TypeEventLog], IMALog: in.Bodies[wire.TypeIMALog]}
		best := attest.Opinion{Status: attest.StatusNone, Reasons: []attest.Reason{{Code: "boot.no-policy", Detail: "no reference values are in force"}}}
		for i, p := range all {
			r := p.Appraise(ev, in.Now)
			op := bootOpinion(r)
			if op.Status == attest.StatusAffirming {
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

// moduleAppraiser judges the modules: each proves itself again for the
// verifier's nonce, and the log explains PCR 13.
func moduleAppraiser(v *moduleid.Verifier) attest.Appraiser {
	return func(_ context.Context, in attest.Input) attest.Opinion {
		body, ok := in.Bodies[moduleid.MediaType]
		if !ok {
			return attest.Opinion{Status: attest.StatusContraindicated, Reasons: []attest.Reason{{Code: "modules.absent", Detail: "the evidence has no module report"}}}
		}
		verdict, err := v.VerifyReport(moduleid.ReportInput{
			Node: in.Device.String(), Nonce: in.Nonce, Body: body,
			Bank: in.Bank, PCRs: in.PCRs,
		})
		if err == nil {
			return attest.Opinion{Status: attest.StatusAffirming}
		}
		op := attest.Opinion{Status: attest.StatusContraindicated}
		if verdict != nil { // why each module was refused says more than what is missing then
			for _, m := range verdict.Refused() {
				for _, f := range m.Findings {
					op.Reasons = append(op.Reasons, attest.Reason{Code: "modules." + string(f.Reason), Detail: m.Connector + ": " + f.Detail})
				}
			}
		}
		if len(op.Reasons) == 0 {
			op.Reasons = []attest.Reason{{Code: "modules.refused", Detail: err.Error()}}
		}
		return op
	}
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
func attestation(v *attest.Verifier, f *fleet, log *slog.Logger) verifyFunc {
	return func(ctx context.Context, peer tlsconn.Peer, stream io.ReadWriter, bind func([]byte) ([]byte, error)) (time.Time, error) {
		device, err := deviceOf(peer)
		if err != nil {
			return time.Time{}, err
		}
		result, err := exchange(ctx, v, device, peer, stream, bind)
		verdict := wire.Verdict{Version: 1, OK: err == nil}
		if err != nil {
			verdict.Reason = "refused; the cloud's log says why"
			log.Warn("attestation refused", "event", "attest.refused", "node", device.String(), "reason", err.Error())
			state, reasons := "contraindicated", []string{err.Error()}
			var refused *attest.AppraisalError
			if errors.As(err, &refused) {
				reasons = reasons[:0]
				var codes []string // the node learns what is wrong, not what would be right
				for _, r := range refused.Reasons {
					reasons = append(reasons, r.Code+": "+r.Detail)
					codes = append(codes, r.Code)
				}
				verdict.Reason = strings.Join(slices.Compact(codes), ", ")
			}
			if errors.Is(err, attest.ErrRevoked) {
				state = "revoked"
			}
			f.setState(device.String(), peer.ID.Path, state, reasons...)
			f.setLink(device.String(), "boot and modules", false, strings.Join(reasons, "; "))
		} else {
			verdict.Until = result.Expires()
			log.Info("node attested", "event", "attest.affirming", "node", device.String(), "until", verdict.Until)
			f.setState(device.String(), peer.ID.Path, "affirming")
			f.setLink(device.String(), "boot and modules", true, "quote, event log and module proofs affirmed")
			f.setLink(device.String(), "tunnel", true, peer.KeyExchange.String()+", attested until "+verdict.Until.UTC().Format(time.TimeOnly))
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
		return nil, err
	}
	binding, err := bind(challenge.Nonce)
	if err != nil {
		return nil, err
	}
	if copy(session.Binding[:], binding) != len(session.Binding) {
		return nil, errors.New("channel binding is too short")
	}
	if msg, err = wire.ReadFrame(stream, wire.MaxFrame); err != nil {
		return nil, fmt.Errorf("read evidence: %w", err)
	}
	evidence, err := attest.Parse[attest.Evidence](msg)
	if err != nil {
		return nil, err
	}
	return v.Appraise(ctx, session, evidence)
}
