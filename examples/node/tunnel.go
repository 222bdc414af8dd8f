package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tlsconn"
)

// startTunnel sets the tunnel up: the TLS key is the TPM's, the gateway is
// known by its SPIFFE ID, and nothing passes that this node's own policy does
// not name.
func (n *node) startTunnel(ctx context.Context) error {
	cert, err := n.attest.Certificate(ctx)
	if err != nil {
		return err
	}
	if n.identity, err = tlsconn.NewIdentity(cert); err != nil {
		return err
	}
	roots, err := n.boot.RootCerts()
	if err != nil {
		return err
	}
	trust, err := tlsconn.NewTrustStore(tlsconn.TrustOptions{Roots: roots, NotBefore: n.knownTime()})
	if err != nil {
		return err
	}
	authorize, err := tlsconn.AllowIDs(n.boot.GatewayID)
	if err != nil {
		return err
	}
	text, err := wire.ReadCapped(n.cfg.Flows, maxConfig)
	if err != nil {
		return err
	}
	policy, err := tlsconn.ParsePolicy(text)
	if err != nil {
		return fmt.Errorf("%s: %w", n.cfg.Flows, err)
	}
	flows, err := tlsconn.NewPolicyStore(policy)
	if err != nil {
		return err
	}
	n.tunnel, err = tlsconn.NewClient(tlsconn.ClientConfig{
		Config: tlsconn.Config{
			Identity: n.identity, Trust: trust, Authorize: authorize, Policy: flows, RequirePQ: true, Logger: n.log,
			Audit: n.auditFlow, Events: n.tunnelEvent,
		},
		Gateways: n.boot.Gateways(),
		Attest:   n.giveEvidence,
	})
	if err == nil {
		n.transport = n.tunnel.Transport()
	}
	return err
}

// knownTime is a time that is known to have passed: that of the node's own
// certificate. A node without a battery starts in 1970.
func (n *node) knownTime() time.Time { return n.identity.Leaf().NotBefore }

// giveEvidence is the node's half of the attestation stream: it answers the
// gateway's challenge with evidence that is bound to this TLS session.
func (n *node) giveEvidence(ctx context.Context, stream io.ReadWriter, bind func([]byte) ([]byte, error)) error {
	msg, err := wire.ReadFrame(stream, attest.MaxMessage)
	if err != nil {
		return fmt.Errorf("read challenge: %w", err)
	}
	if refused := new(wire.Verdict); wire.Decode(msg, attest.MaxMessage, refused) == nil && !refused.OK {
		return n.refusedBy(refused)
	}
	challenge, err := attest.Parse[attest.Challenge](msg)
	if err != nil {
		return err
	}
	binding, err := bind(challenge.Nonce)
	if err != nil {
		return err
	}
	session := attest.Session{Device: n.attest.Device(), Purpose: attest.PurposeAttest, LeafSPKI: sha256.Sum256(n.identity.Leaf().RawSubjectPublicKeyInfo)}
	if copy(session.Binding[:], binding) != len(session.Binding) {
		return errors.New("channel binding is too short")
	}
	evidence, err := n.attest.Evidence(ctx, session, challenge)
	if err != nil {
		return err
	}
	if msg, err = attest.Marshal(evidence); err != nil {
		return err
	}
	if err := wire.WriteFrame(stream, msg); err != nil {
		return err
	}
	if msg, err = wire.ReadFrame(stream, attest.MaxMessage); err != nil {
		return fmt.Errorf("read verdict: %w", err)
	}
	select {
	case n.judged <- struct{}{}:
	default:
	}
	var verdict wire.Verdict
	if err := wire.Decode(msg, attest.MaxMessage, &verdict); err != nil {
		return err
	}
	if !verdict.OK {
		return n.refusedBy(&verdict)
	}
	n.prove("attested", "the cloud affirms boot and modules until "+verdict.Until.UTC().Format(time.RFC3339))
	return nil
}

// refusedBy takes the cloud's no, and enrols again where the cloud says so.
func (n *node) refusedBy(v *wire.Verdict) error {
	if v.Enroll {
		select {
		case n.enrolAgain <- struct{}{}:
		default:
		}
	}
	return n.lost("attested", errors.New(v.Reason))
}

// nextTunnel returns a channel that is closed when the next tunnel comes up.
func (n *node) nextTunnel() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.up
}

func (n *node) tunnelEvent(e tlsconn.TunnelEvent) {
	switch e.Type {
	case "up":
		n.connected.Store(true)
		n.mu.Lock()
		close(n.up)
		n.up = make(chan struct{})
		n.mu.Unlock()
		n.prove("tunnel", "mutual TLS 1.3 to "+e.Peer.String()+" with the TPM's key")
	case "refused", "cut", "down":
		n.connected.Store(false)
		if e.Code == tlsconn.CodeRevoked {
			select {
			case n.shutOut <- struct{}{}:
			default:
			}
		}
		_ = n.lost("tunnel", fmt.Errorf("%s: %s", e.Type, e.Reason))
	}
}

func (n *node) auditFlow(r tlsconn.FlowRecord) {
	if r.Verdict != tlsconn.VerdictAllowed {
		n.log.Warn("flow refused", "event", "flow.refused", "target", r.Target, "rule", r.Rule, "decided_by", string(r.DecidedBy), "reason", r.Reason)
	}
}

// forward relays a local port into the tunnel.
func (n *node) forward(ctx context.Context, f forward) {
	ln, err := net.Listen("tcp", f.Listen)
	if err != nil {
		_ = n.lost("forward "+f.Target, err)
		return
	}
	if err := n.tunnel.Forward(ctx, ln, "tcp", f.Target); err != nil && ctx.Err() == nil {
		_ = n.lost("forward "+f.Target, err)
	}
}

// renew keeps the node's certificate from expiring: it enrols anew an hour
// before, or when the cloud says that it must, and hands the tunnel the new
// certificate without dropping a byte.
func (n *node) renew(ctx context.Context) {
	for {
		wait := max(time.Until(n.identity.Leaf().NotAfter)-time.Hour, time.Second)
		enrol := n.enroll
		select {
		case <-ctx.Done():
			return
		case <-n.enrolAgain:
			enrol = n.enrollAnew
		case <-time.After(wait):
		}
		n.retry(ctx, "identity", func(ctx context.Context) error {
			if err := enrol(ctx); err != nil {
				return err
			}
			cert, err := n.attest.Certificate(ctx)
			if err != nil {
				return err
			}
			return n.identity.Set(cert)
		})
	}
}
