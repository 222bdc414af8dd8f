package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/trusttree/trusttree/examples/wire"
)

// Lifetimes of what `cloud init` makes. Node certificates live a day and are
// renewed through fresh attestation; see enroll.go.
const (
	caLifetime      = 10 * 365 * 24 * time.Hour
	serviceLifetime = 365 * 24 * time.Hour
	clockSkew       = 5 * time.Minute
)

// authority is a certificate authority whose key is any crypto.Signer: the
// file under the state directory here, an HSM or a KMS where several instances
// share one CA.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(domain string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: domain + " fleet CA"},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, err
}

// issue makes a certificate and its key for one of the cloud's own parties.
// hosts are DNS names or addresses; spiffe is the path of its SPIFFE ID.
func (a *authority) issue(domain, spiffe string, usage x509.ExtKeyUsage, hosts []string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: spiffe},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(serviceLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: domain, Path: "/" + spiffe}},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func newSerial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] &= 0x7f
	b[15] |= 1
	return new(big.Int).SetBytes(b)
}

func certPEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func keyPEM(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func loadKey(name string) (crypto.Signer, error) {
	block, err := loadPEM(name, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(block)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: %T cannot sign", name, key)
	}
	return signer, nil
}

// loadPublic reads the public half of a key that is kept offline.
func loadPublic(name string) (crypto.PublicKey, error) {
	der, err := loadPEM(name, "PUBLIC KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

func loadCert(name string) (*x509.Certificate, error) {
	der, err := loadPEM(name, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}

func loadPEM(name, want string) ([]byte, error) {
	data, err := wire.ReadCapped(name, maxBundle)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != want {
		return nil, fmt.Errorf("%s: no %s in PEM", name, want)
	}
	return block.Bytes, nil
}

func loadAuthority(cfg *config, state string) (*authority, error) {
	cert, err := loadCert(cfg.file(state, "ca.crt"))
	if err != nil {
		return nil, err
	}
	key, err := loadKey(cfg.file(state, "ca.key"))
	return &authority{cert, key}, err
}

func loadIdentity(certFile, keyFile string) ([][]byte, crypto.Signer, error) {
	cert, err := loadCert(certFile)
	if err != nil {
		return nil, nil, err
	}
	key, err := loadKey(keyFile)
	return [][]byte{cert.Raw}, key, err
}

func loadAge(name string) (age.Identity, error) {
	data, err := wire.ReadCapped(name, maxBundle)
	if err != nil {
		return nil, err
	}
	id, err := age.ParseHybridIdentity(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, fmt.Errorf("%s: not an age identity", name) // the cause would quote it
	}
	return id, nil
}

const maxBundle = 1 << 20 // bytes of a file of certificates

// loadCerts reads every certificate in every PEM file of a directory.
func loadCerts(dir string) ([]*x509.Certificate, error) {
	names, err := fs.Glob(os.DirFS(dir), "*.pem")
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, n := range names {
		name := filepath.Join(dir, n)
		data, err := wire.ReadCapped(name, maxBundle)
		if err != nil {
			return nil, err
		}
		all, err := (&wire.Bootstrap{Roots: string(data)}).RootCerts() // every one of a bundle
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		certs = append(certs, all...)
	}
	return certs, nil
}
