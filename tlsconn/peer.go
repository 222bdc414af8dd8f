package tlsconn

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Peer is the authenticated far end of a tunnel. Only a handshake that passed
// the trust store and the authoriser makes one.
type Peer struct {
	ID          ID
	Leaf        *x509.Certificate
	SPKI        [32]byte    // SHA-256 of the leaf's SubjectPublicKeyInfo
	KeyExchange tls.CurveID // what the session's key was agreed with
	// AttestedUntil is when the Attestation Result ends; zero without one.
	AttestedUntil time.Time

	chains [][]*x509.Certificate
}

// Chain returns a verified chain, leaf first, root last.
func (p Peer) Chain() []*x509.Certificate {
	if len(p.chains) == 0 {
		return nil
	}
	return append([]*x509.Certificate(nil), p.chains[0]...)
}

// Authorizer decides whether an authenticated peer may have a tunnel. It is
// called once per handshake, with the handshake's context; an error refuses.
type Authorizer func(ctx context.Context, p Peer) error

// AllowIDs admits the peers whose SPIFFE ID matches one of the patterns: an
// exact ID, "spiffe://td/node/*" (a star for one segment) or
// "spiffe://td/node/**" (one or more segments at the end).
func AllowIDs(patterns ...string) (Authorizer, error) {
	if len(patterns) == 0 {
		return nil, errors.New("tlsconn: AllowIDs: no pattern given")
	}
	var ps []idPattern
	for _, s := range patterns {
		p, err := parseIDPattern(s)
		if err != nil {
			return nil, fmt.Errorf("tlsconn: %w", err)
		}
		ps = append(ps, p)
	}
	return func(_ context.Context, peer Peer) error {
		for _, p := range ps {
			if p.match(peer.ID) {
				return nil
			}
		}
		return fmt.Errorf("%w: %s is not among the admitted identities", ErrUntrusted, peer.ID)
	}, nil
}

type peerKey struct{}

// PeerFromContext returns the tunnel's peer inside a handler that a Gateway or
// a Client serves with Handle. Connections of Listen have a method Peer instead.
func PeerFromContext(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

func withPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// authenticate turns a finished TLS handshake into a Peer, or refuses it. It runs
// in VerifyConnection, which resumed sessions cannot go round.
func (c *Config) authenticate(ctx context.Context, cs tls.ConnectionState, usage x509.ExtKeyUsage) (Peer, error) {
	if cs.DidResume {
		return Peer{}, fmt.Errorf("%w: resumed session", ErrUntrusted)
	}
	if cs.Version < tls.VersionTLS13 && !c.InsecureTLS12 {
		return Peer{}, fmt.Errorf("%w: %s", ErrUntrusted, tls.VersionName(cs.Version))
	}
	if c.RequirePQ && !isHybrid(cs.CurveID) {
		return Peer{}, fmt.Errorf("%w: key exchange %s is not post-quantum", ErrUntrusted, cs.CurveID)
	}
	chains, err := c.Trust.verify(cs.PeerCertificates, usage)
	if err != nil {
		return Peer{}, err
	}
	leaf := cs.PeerCertificates[0]
	id, err := idFromCertificate(leaf)
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	p := Peer{ID: id, Leaf: leaf, SPKI: sha256.Sum256(leaf.RawSubjectPublicKeyInfo), KeyExchange: cs.CurveID, chains: chains}
	if err := c.Authorize(ctx, p); err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return p, nil
}

func isHybrid(id tls.CurveID) bool {
	return id == tls.X25519MLKEM768 || id == tls.SecP256r1MLKEM768 || id == tls.SecP384r1MLKEM1024
}
