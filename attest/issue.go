package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/trusttree/trusttree/attest/registry"
)

// Issuer signs certificates for nodes: package ca has one over any
// crypto.Signer. It is called only after the node has proven everything.
type Issuer interface {
	// Issue returns the chain, leaf first, without the root. It signs the
	// request's template as it is: the Registrar refuses a leaf with another
	// key, name or a longer validity.
	Issue(ctx context.Context, r IssueRequest) ([]*x509.Certificate, error)
}

// IssueRequest is one certificate to be signed.
type IssueRequest struct {
	Device registry.DeviceID
	// Template has subject, names (SPIFFE URI and 802.1AR HardwareModuleName),
	// key usages and validity; the issuer chooses the serial number.
	Template *x509.Certificate
	// Key is the node's public key, proven to be resident in its TPM.
	Key crypto.PublicKey
}

var (
	oidHardwareModuleName = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4} // RFC 4108
	oidTPM20              = asn1.ObjectIdentifier{2, 23, 133, 1, 2}          // hwType of a TPM 2.0
)

// nodeURI is the SPIFFE ID of a node: spiffe://DOMAIN/node/DEVICE.
func nodeURI(domain string, id registry.DeviceID) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: domain, Path: "/node/" + id.String()}
}

// checkTrustDomain accepts what a SPIFFE trust domain may be.
func checkTrustDomain(d string) error {
	if d == "" || len(d) > 255 {
		return errors.New("no trust domain, or one longer than 255 characters")
	}
	if strings.ContainsFunc(d, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	}) {
		return fmt.Errorf("trust domain %q: only a-z, 0-9, dot, dash and underscore are allowed", d)
	}
	return nil
}

// leafTemplate is the certificate of a node's TLS key (IEEE 802.1AR LDevID).
func leafTemplate(domain string, id registry.DeviceID, from, to time.Time) (*x509.Certificate, error) {
	san, err := sanExtension(nodeURI(domain, id), id)
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: "node " + id.String()[:16], SerialNumber: id.String()},
		NotBefore:             from,
		NotAfter:              to,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		ExtraExtensions:       []pkix.Extension{san},
	}, nil
}

// sanExtension encodes a subject alternative name with the URI and the
// HardwareModuleName (type: TPM 2.0, serial number: the DeviceID).
func sanExtension(uri *url.URL, id registry.DeviceID) (pkix.Extension, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(uri.String())) })
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidHardwareModuleName)
			b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidTPM20)
					b.AddASN1OctetString(id[:])
				})
			})
		})
	})
	der, err := b.Bytes()
	return pkix.Extension{Id: oidSAN, Value: der}, err
}

// checkIssued refuses what an issuer signed beyond what it was asked for.
func checkIssued(r IssueRequest, chain []*x509.Certificate) error {
	if len(chain) == 0 || len(chain) > maxCertificates {
		return fmt.Errorf("issuer returned %d certificates", len(chain))
	}
	leaf := chain[0]
	key, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !key.Equal(r.Key):
		return errors.New("issuer certified another key")
	case leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0:
		return errors.New("issuer made the node a CA")
	case leaf.NotAfter.After(r.Template.NotAfter):
		return fmt.Errorf("issuer made the certificate valid until %v, asked for %v", leaf.NotAfter, r.Template.NotAfter)
	}
	for _, ext := range leaf.Extensions {
		if ext.Id.Equal(oidSAN) && bytes.Equal(ext.Value, r.Template.ExtraExtensions[0].Value) {
			return nil
		}
	}
	return errors.New("issuer changed the subject alternative name")
}
