package seams

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"time"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/fscrypt/release"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tlsconn"
	"github.com/trusttree/trusttree/update"
)

// Identity makes an attest node's TPM key and certificate the tunnel's.
func Identity(ctx context.Context, n *attest.Node) (*tlsconn.Identity, error) {
	cert, err := n.Certificate(ctx)
	if err != nil {
		return nil, err
	}
	return tlsconn.NewIdentity(cert)
}

// TenantOf finds the tenant of a stream that came through a tunnel: by the
// node's certificate and the owner's assignments, never by what the node says.
func TenantOf(r *http.Request, s *tenantstore.Store, stream string) (*tenantstore.Tenant, error) {
	peer, ok := tlsconn.PeerFromContext(r.Context())
	if !ok {
		return nil, errors.New("the request did not come through a tunnel")
	}
	p, err := s.Authenticate(r.Context(), peer.Chain(), stream)
	if err != nil {
		return nil, err
	}
	return s.Tenant(r.Context(), p)
}

// UpdatesThrough fetches releases through a tunnel.
func UpdatesThrough(c *tlsconn.Client, service string) (update.Source, error) {
	return update.HTTPSource(update.HTTPConfig{URLs: []string{"http://" + service + "/"}, Transport: c.Transport()})
}

// ShareFrom asks a service of the cloud for the data volume's share; exchange
// carries one request through the tunnel.
func ShareFrom(service string, exchange func(context.Context, []byte) ([]byte, error)) *fscrypt.Remote {
	return &fscrypt.Remote{Service: service, Exchange: exchange}
}

// ShareWhileAttested releases shares only to a node whose Attestation Result
// still counts in the tunnel it asks through.
func ShareWhileAttested(s *release.Service, device func(tlsconn.Peer) string, r *http.Request, request []byte) ([]byte, error) {
	peer, ok := tlsconn.PeerFromContext(r.Context())
	if !ok || !peer.AttestedUntil.After(time.Now()) {
		return nil, errors.New("not attested")
	}
	return s.Handle(r.Context(), device(peer), request)
}

// ModuleRoots lets one pool of certificates serve moduleid and the standard
// library alike.
func ModuleRoots(pool *x509.CertPool) (*moduleid.Verifier, *tls.Config) {
	return &moduleid.Verifier{Roots: pool}, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
}
