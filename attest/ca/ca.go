// Package ca issues the owner's certificates for nodes with any crypto.Signer:
// a key in a file, in a TPM or HSM, or behind a service. It implements
// attest.Issuer.
//
// Start with NewEphemeral in tests and demonstrations, and with SelfSign and
// New where the CA lasts. It checks nothing about nodes: attest.Registrar does,
// before it asks.
package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/trusttree/trusttree/attest"
)

// CA signs certificates. It is safe for concurrent use when its key is.
type CA struct {
	cert  *x509.Certificate
	chain []*x509.Certificate
	key   crypto.Signer
}

var _ attest.Issuer = (*CA)(nil)

// New returns a CA of a certificate and its key. chain holds the issuers
// between cert and the root, without the root, where cert is not the root
// itself.
func New(cert *x509.Certificate, key crypto.Signer, chain ...*x509.Certificate) (*CA, error) {
	switch {
	case cert == nil || key == nil:
		return nil, errors.New("ca: certificate and key are required")
	case !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("ca: certificate is not a CA's")
	}
	if k, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(cert.PublicKey) {
		return nil, errors.New("ca: the certificate is for another key")
	}
	return &CA{cert: cert, chain: chain, key: key}, nil
}

// SelfSign makes the certificate of a root that may sign leaves only, valid
// from a minute before now for the time given.
func SelfSign(name string, key crypto.Signer, now time.Time, validity time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	return x509.ParseCertificate(der)
}

// NewEphemeral returns a root CA with a new P-256 key that exists in memory
// only, valid for ten years.
func NewEphemeral(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := SelfSign(name, key, time.Now(), 10*365*24*time.Hour)
	if err != nil {
		return nil, err
	}
	return New(cert, key)
}

// Certificate returns the CA's certificate; for a root, what relying parties
// pin.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// Issue implements attest.Issuer.
func (c *CA) Issue(ctx context.Context, r attest.IssueRequest) ([]*x509.Certificate, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.cert == nil || r.Template == nil || r.Key == nil {
		return nil, errors.New("ca: no CA, or a request without template or key")
	}
	if r.Template.NotAfter.After(c.cert.NotAfter) {
		return nil, fmt.Errorf("ca: certificate would outlive the CA's, which ends %v", c.cert.NotAfter)
	}
	t := *r.Template
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, &t, c.cert, r.Key, c.key)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	chain := []*x509.Certificate{leaf}
	if len(c.chain) > 0 || !c.selfSigned() {
		chain = append(append(chain, c.cert), c.chain...)
	}
	return chain, nil
}

func (c *CA) selfSigned() bool { return string(c.cert.RawIssuer) == string(c.cert.RawSubject) }

// newSerial returns a positive serial number of 127 random bits (RFC 5280,
// section 4.1.2.2).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
