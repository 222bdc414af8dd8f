package moduleidtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"
)

// CA is a test CA for module certificates.
type CA struct {
	Certificate *x509.Certificate
	key         crypto.Signer
}

// NewCA makes a self-signed CA with a P-256 key, valid for 20 years.
func NewCA(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(20, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{cert, key}, nil
}

// Pool returns a pool with the CA alone.
func (ca *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.Certificate)
	return p
}

// Issue certifies a module's key. Change may alter the template before it is
// signed; nil alters nothing. The certificate is kept so small that it fits an
// ATECC608's slot 8.
func (ca *CA) Issue(name string, key crypto.PublicKey, change func(*x509.Certificate)) (*x509.Certificate, error) {
	serial := make([]byte, 8)
	rand.Read(serial)
	serial[0] = serial[0]&0x3f | 0x40
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(t)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.Certificate, key, ca.key)
	if err != nil {
		return nil, fmt.Errorf("moduleidtest: issue %s: %w", name, err)
	}
	return x509.ParseCertificate(der)
}

// IssueCA certifies another test CA.
func (ca *CA) IssueCA(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(name, key.Public(), func(t *x509.Certificate) {
		t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign
	})
	return &CA{cert, key}, err
}
