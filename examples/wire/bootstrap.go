package wire

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"
)

// BootstrapVersion is the version of bootstrap.json that this code writes.
// Version 1, without more_gateways and more_enroll_urls, is read too.
const BootstrapVersion = 2

// MaxBootstrap bounds bootstrap.json, in bytes.
const MaxBootstrap = 256 << 10

// Bootstrap is what a node must know of its cloud before it has ever spoken to
// it. `cloud init` writes it; it goes onto the node's image or is handed over
// in provisioning. The token in it is a secret until it has been used.
type Bootstrap struct {
	Version     int    `json:"version"`
	TrustDomain string `json:"trust_domain"` // SPIFFE trust domain of the fleet
	Roots       string `json:"roots"`        // PEM; the only authorities the node trusts
	EnrollURL   string `json:"enroll_url"`   // https://host:port
	Gateway     string `json:"gateway"`      // host:port of the tunnel gateway
	GatewayID   string `json:"gateway_id"`   // its SPIFFE ID
	// MoreGateways and MoreEnrollURLs are those of the cloud's other instances.
	MoreGateways   []string `json:"more_gateways,omitempty"`
	MoreEnrollURLs []string `json:"more_enroll_urls,omitempty"`
	TUFRoot        []byte   `json:"tuf_root"`   // the first root.json
	PolicyKey      []byte   `json:"policy_key"` // SPKI DER of who signs boot policies
	OwnerKey       []byte   `json:"owner_key"`  // SPKI DER of who signs module revocations
	SpoolTo        string   `json:"spool_to"`   // age recipient of telemetry, which the node can't read back
	RecoverTo      string   `json:"recover_to"` // age recipient of the volumes' recovery slots
	// ModuleRevocations is the signed list of modules that are revoked.
	ModuleRevocations []byte    `json:"module_revocations"`
	Token             string    `json:"token"` // single use
	TokenExpiry       time.Time `json:"token_expires"`
}

// ParseBootstrap parses bootstrap.json.
func ParseBootstrap(data []byte) (*Bootstrap, error) {
	var b Bootstrap
	if err := Decode(data, MaxBootstrap, &b); err != nil {
		return nil, fmt.Errorf("bootstrap.json: %w", err)
	}
	if b.Version < 1 || b.Version > BootstrapVersion || (b.Version == 1 && len(b.MoreGateways)+len(b.MoreEnrollURLs) > 0) {
		return nil, fmt.Errorf("bootstrap.json: version %d with these fields, this program reads 1 and %d", b.Version, BootstrapVersion)
	}
	if _, err := b.RootPool(); err != nil {
		return nil, fmt.Errorf("bootstrap.json: %w", err)
	}
	for _, e := range b.EnrollURLs() {
		if u, err := url.Parse(e); err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("bootstrap.json: enroll_url %q is not an https URL", e)
		}
	}
	for name, v := range map[string]string{"trust_domain": b.TrustDomain, "gateway": b.Gateway, "gateway_id": b.GatewayID, "spool_to": b.SpoolTo, "recover_to": b.RecoverTo} {
		if v == "" {
			return nil, fmt.Errorf("bootstrap.json: %s is missing", name)
		}
	}
	if len(b.TUFRoot) == 0 || len(b.PolicyKey) == 0 || len(b.OwnerKey) == 0 || len(b.ModuleRevocations) == 0 {
		return nil, errors.New("bootstrap.json: tuf_root, policy_key, owner_key or module_revocations is missing")
	}
	return &b, nil
}

// LoadBootstrap reads a file.
func LoadBootstrap(name string) (*Bootstrap, error) {
	data, err := ReadCapped(name, MaxBootstrap)
	if err != nil {
		return nil, err
	}
	return ParseBootstrap(data)
}

// Gateways returns the tunnel gateways of all instances.
func (b *Bootstrap) Gateways() []string { return append([]string{b.Gateway}, b.MoreGateways...) }

// EnrollURLs returns the enrolment services of all instances.
func (b *Bootstrap) EnrollURLs() []string { return append([]string{b.EnrollURL}, b.MoreEnrollURLs...) }

// RootCerts returns the cloud's root certificates.
func (b *Bootstrap) RootCerts() ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := []byte(b.Roots); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("roots: %w", err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("roots: no certificate")
	}
	return certs, nil
}

// RootPool returns the cloud's roots as a pool.
func (b *Bootstrap) RootPool() (*x509.CertPool, error) {
	certs, err := b.RootCerts()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

// ReadCapped reads a regular file of at most limit bytes.
func ReadCapped(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadAll(f, limit, name)
}
