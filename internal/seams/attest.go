package seams

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/tlsconn"
)

// CollectModules adds the modules to a node's evidence: a module inventory is a
// collector as it is.
func CollectModules(inv *moduleid.Inventory) attest.Collector { return inv.Collect }

// tiers translates secureboot's verdict into AR4SI's numbers.
var tiers = map[secureboot.Status]attest.Status{
	secureboot.None: attest.StatusNone, secureboot.Affirming: attest.StatusAffirming,
	secureboot.Warning: attest.StatusWarning, secureboot.Contraindicated: attest.StatusContraindicated,
}

// BootAppraiser makes secureboot's verdict part of the Attestation Result. The
// types are the media types of the bodies with the logs; a body that is not
// there is an absent log.
func BootAppraiser(p *secureboot.Policy, eventLog, imaLog, userspaceLog string) attest.Appraiser {
	return func(_ context.Context, in attest.Input) attest.Opinion {
		r := p.Appraise(secureboot.Evidence{Bank: in.Bank, PCRs: in.PCRs, EventLog: in.Bodies[eventLog], IMALog: in.Bodies[imaLog], UserspaceLog: in.Bodies[userspaceLog]}, in.Now)
		op := attest.Opinion{Status: tiers[r.Status]}
		for _, f := range r.Findings {
			op.Reasons = append(op.Reasons, attest.Reason{Code: "boot." + string(f.Code), Detail: f.Detail})
		}
		return op
	}
}

// ModuleAppraiser makes moduleid's verdict part of it.
func ModuleAppraiser(v *moduleid.Verifier) attest.Appraiser {
	return func(_ context.Context, in attest.Input) attest.Opinion {
		_, err := v.VerifyReport(moduleid.ReportInput{Body: in.Bodies[moduleid.MediaType], Node: in.Device.String(), Nonce: in.Nonce, Bank: in.Bank, PCRs: in.PCRs})
		if err == nil {
			return attest.Opinion{Status: attest.StatusAffirming}
		}
		return attest.Opinion{Status: attest.StatusContraindicated, Reasons: []attest.Reason{{Code: "modules.refused", Detail: err.Error()}}}
	}
}

// Gate lets attest decide about tlsconn's tunnels. ask carries the challenge to
// the node and brings its evidence.
func Gate(v *attest.Verifier, session func(tlsconn.Peer) attest.Session, ask func(io.ReadWriter, *attest.Challenge) (*attest.Evidence, error)) func(context.Context, tlsconn.Peer, io.ReadWriter, func([]byte) ([]byte, error)) (time.Time, error) {
	return func(ctx context.Context, peer tlsconn.Peer, stream io.ReadWriter, bind func([]byte) ([]byte, error)) (until time.Time, err error) {
		s := session(peer)
		c, err := v.Challenge(ctx, s)
		if err != nil {
			return until, err
		}
		binding, berr := bind(c.Nonce)
		copy(s.Binding[:], binding)
		e, err := ask(stream, c)
		if err = errors.Join(berr, err); err != nil {
			return until, err
		}
		r, err := v.Appraise(ctx, s, e)
		if err != nil {
			return until, err
		}
		return r.Expires(), nil
	}
}

// Answer lets an attest node answer the gate.
func Answer(n *attest.Node, session attest.Session, read func(io.Reader) (*attest.Challenge, error), write func(io.Writer, *attest.Evidence) error) func(context.Context, io.ReadWriter, func([]byte) ([]byte, error)) error {
	return func(ctx context.Context, stream io.ReadWriter, bind func([]byte) ([]byte, error)) error {
		c, err := read(stream)
		if err != nil {
			return err
		}
		binding, err := bind(c.Nonce)
		if err != nil {
			return err
		}
		copy(session.Binding[:], binding)
		e, err := n.Evidence(ctx, session, c)
		if err != nil {
			return err
		}
		return write(stream, e)
	}
}

// Hooks are where the two halves go.
func Hooks(g tlsconn.GatewayConfig, c tlsconn.ClientConfig, v *attest.Verifier, n *attest.Node) (tlsconn.GatewayConfig, tlsconn.ClientConfig) {
	g.Verify = Gate(v, nil, nil)
	c.Attest = Answer(n, attest.Session{}, nil, nil)
	return g, c
}
