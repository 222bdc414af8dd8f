package tlsconn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// alpn is the protocol name of the multiplexed tunnel.
const alpn = "trusttree-tunnel/1"

// Config holds what both ends of a tunnel need. Identity, Trust, Authorize and
// Policy are required; nothing that is left out is ever taken as "allow".
type Config struct {
	Identity  *Identity
	Trust     *TrustStore
	Authorize Authorizer
	// Policy is evaluated here for every flow, whatever the far end decided.
	Policy *PolicyStore
	// RequirePQ refuses sessions whose key exchange is not a post-quantum
	// hybrid. Hybrids are preferred in any case.
	RequirePQ bool
	// InsecureTLS12 lets plain-mode peers (PlainServer, PlainClient, ServePlain) use TLS 1.2.
	// Tunnels are always TLS 1.3.
	InsecureTLS12 bool
	// Limits bound what the far end can make this end do. Zero fields mean the
	// defaults of Limits.
	Limits Limits
	// Audit gets one record for each flow, after its end. It is called
	// synchronously: a sink that blocks holds flows' last bytes back, and none
	// is ever dropped. Nil sends records to the Logger only.
	Audit func(FlowRecord)
	// Events gets the tunnels' life: up, refused, cut, drained, attested.
	// Called synchronously; nil is allowed.
	Events func(TunnelEvent)
	// Inspectors see the first bytes of flows, besides the built-in TLS and HTTP.
	Inspectors []Inspector
	// Resolver resolves the names of dialled destinations, once per flow; nil
	// is net.DefaultResolver.
	Resolver interface {
		LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	}
	// Dial reaches destinations by literal address; nil is a net.Dialer that
	// checks the address again in the socket's control hook. It is never given
	// a name.
	Dial func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error)
	// Fleet takes a place for a flow to a destination among all gateways, by
	// leases in a shared store for example; release is called at the flow's end.
	// An error refuses the flow. Nil means that Limits of this end are all.
	Fleet func(ctx context.Context, network string, addr netip.AddrPort) (release func(), err error)
	// SourceAddr is the fixed source of dialled destinations (BCP 38); the zero
	// value leaves the choice to the kernel.
	SourceAddr netip.Addr
	// Logger gets security events (attribute "event"); nil discards them.
	Logger *slog.Logger
}

func (c Config) complete() (Config, error) {
	for _, m := range []struct {
		missing bool
		name    string
	}{{c.Identity == nil, "Identity"}, {c.Trust == nil, "Trust"}, {c.Authorize == nil, "Authorize"}, {c.Policy == nil, "Policy"}} {
		if m.missing {
			return c, fmt.Errorf("tlsconn: config: %s is required", m.name)
		}
	}
	var err error
	if c.Limits, err = c.Limits.complete(); err != nil {
		return c, err
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = literalDialer(c.SourceAddr)
	}
	return c, nil
}

// ServerTLS returns a server's tls.Config for plain mode: one TLS connection
// per flow, as stunnel, curl and nginx speak it. Every handshake passes the
// trust store and the authoriser. Policy may be nil.
func (c Config) ServerTLS() (*tls.Config, error) { return c.plainTLS(x509.ExtKeyUsageClientAuth) }

// ClientTLS is ServerTLS for a client. The server is known by its SPIFFE ID
// (Authorize), not by its host name.
func (c Config) ClientTLS() (*tls.Config, error) { return c.plainTLS(x509.ExtKeyUsageServerAuth) }

func (c Config) plainTLS(usage x509.ExtKeyUsage) (*tls.Config, error) {
	if c.Identity == nil || c.Trust == nil || c.Authorize == nil {
		return nil, errors.New("tlsconn: config: Identity, Trust and Authorize are required")
	}
	t := c.baseTLS()
	t.VerifyConnection = func(cs tls.ConnectionState) error {
		ctx, cancel := context.WithTimeout(context.Background(), defaultHandshakeTimeout)
		defer cancel()
		_, err := c.authenticate(ctx, cs, usage)
		return err
	}
	return t, nil
}

// tunnelTLS returns the tls.Config of one tunnel handshake; the peer is stored
// in *peer when the handshake succeeds.
func (c *Config) tunnelTLS(ctx context.Context, usage x509.ExtKeyUsage, peer *Peer) *tls.Config {
	t := c.baseTLS()
	t.MinVersion = tls.VersionTLS13
	t.NextProtos = []string{alpn}
	t.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != alpn {
			return fmt.Errorf("%w: peer does not speak %s over TLS 1.3", ErrProtocol, alpn)
		}
		p, err := c.authenticate(ctx, cs, usage)
		if err == nil {
			*peer = p
		}
		return err
	}
	return t
}

func (c *Config) baseTLS() *tls.Config {
	t := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAnyClientCert, // chains are checked in VerifyConnection
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, _ := c.Identity.current()
			return cert, nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, _ := c.Identity.current()
			return cert, nil
		},
		// The name is checked by SPIFFE ID and the chain by the trust store, both
		// in VerifyConnection, which is never nil.
		InsecureSkipVerify:          true,
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
		Time:                        time.Now,
	}
	if c.InsecureTLS12 {
		t.MinVersion = tls.VersionTLS12
	}
	if c.RequirePQ {
		t.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024}
	}
	return t
}

// handshake makes a tunnel's connection over raw within the deadline.
func (c *Config) handshake(ctx context.Context, raw net.Conn, server bool) (*secureConn, Peer, error) {
	usage := x509.ExtKeyUsageServerAuth
	if server {
		usage = x509.ExtKeyUsageClientAuth
	}
	var peer Peer
	sc, err := c.shake(ctx, raw, c.tunnelTLS(ctx, usage, &peer), server)
	return sc, peer, err
}

// shake runs a TLS handshake over raw, bounded in time and size; raw is closed
// when it fails.
func (c *Config) shake(ctx context.Context, raw net.Conn, t *tls.Config, server bool) (*secureConn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Limits.HandshakeTimeout)
	defer cancel()
	bc := newBatchConn(raw)
	sc := &secureConn{under: bc}
	if server {
		sc.Conn = tls.Server(bc, t)
	} else {
		sc.Conn = tls.Client(bc, t)
	}
	if err := sc.HandshakeContext(ctx); err != nil {
		abortConn(raw)
		return nil, err
	}
	bc.pre.Store(false)
	return sc, nil
}
