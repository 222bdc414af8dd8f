package tlsconn

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
)

// PlainServer runs a server's handshake over raw in plain mode: one TLS
// connection per flow, without multiplexing, as other TLS programs speak it.
// The connection has CloseWrite, gathers records for bulk, and fits Relay. The
// handshake is bounded by Limits; raw is closed when it fails. The caller
// applies policy, and Trust.Check to what lives on. Policy may be nil.
func (c Config) PlainServer(ctx context.Context, raw net.Conn) (net.Conn, Peer, error) {
	return c.plain(ctx, raw, x509.ExtKeyUsageClientAuth)
}

// PlainClient is PlainServer for the client. The server is known by its SPIFFE
// ID (Authorize), not by its host name.
func (c Config) PlainClient(ctx context.Context, raw net.Conn) (net.Conn, Peer, error) {
	return c.plain(ctx, raw, x509.ExtKeyUsageServerAuth)
}

func (c Config) plain(ctx context.Context, raw net.Conn, usage x509.ExtKeyUsage) (net.Conn, Peer, error) {
	l, err := c.Limits.complete()
	if err != nil {
		return nil, Peer{}, err
	}
	c.Limits = l
	t, err := c.plainTLS(usage)
	if err != nil {
		return nil, Peer{}, err
	}
	var peer Peer
	t.VerifyConnection = func(cs tls.ConnectionState) error {
		p, err := c.authenticate(ctx, cs, usage)
		if err == nil {
			peer = p
		}
		return err
	}
	sc, err := c.shake(ctx, raw, t, usage == x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, Peer{}, fmt.Errorf("tlsconn: handshake with %s: %w", raw.RemoteAddr(), err)
	}
	return sc, peer, nil
}

// Verify checks a chain that a peer presented in a handshake of another
// library, leaf first, for client or server authentication.
func (t *TrustStore) Verify(certs []*x509.Certificate, usage x509.ExtKeyUsage) (Peer, error) {
	chains, err := t.verify(certs, usage)
	if err != nil {
		return Peer{}, fmt.Errorf("tlsconn: %w", err)
	}
	id, err := idFromCertificate(certs[0])
	if err != nil {
		return Peer{}, fmt.Errorf("tlsconn: %w: %w", ErrUntrusted, err)
	}
	return Peer{ID: id, Leaf: certs[0], SPKI: sha256.Sum256(certs[0].RawSubjectPublicKeyInfo), chains: chains}, nil
}

// Check tells whether a peer is still trusted: roots, validity, revocation and
// CRL freshness. It is cheap, for connections that live on. The error matches
// ErrRevoked, ErrExpired or ErrUntrusted.
func (t *TrustStore) Check(p Peer) error {
	if err := t.check(p.chains); err != nil {
		return fmt.Errorf("tlsconn: %w", err)
	}
	return nil
}
