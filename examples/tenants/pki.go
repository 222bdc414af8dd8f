package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tenantstore"
)

// pki is the owner's key and the issuer of certificates, in two files.
type pki struct {
	owner ed25519.PrivateKey
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
}

const (
	operator = "operator"
	lifetime = 10 * 365 * 24 * time.Hour
	maxPEM   = 64 << 10
)

func service(id string) string { return "service-" + id }

func makePKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	_, owner, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	p := &pki{owner: owner, key: key}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tenants example CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(lifetime), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if p.ca, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	for name, k := range map[string]any{"owner.pem": owner, "ca.pem": key} {
		der8, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, err
		}
		b := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der8})
		if name == "ca.pem" {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		if _, err := f.Write(b); err != nil {
			return nil, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func loadPKI(dir string) (*pki, error) {
	p := &pki{}
	for _, name := range []string{"owner.pem", "ca.pem"} {
		b, err := wire.ReadCapped(filepath.Join(dir, name), maxPEM)
		if err != nil {
			return nil, err
		}
		for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" {
				if p.ca, err = x509.ParseCertificate(block.Bytes); err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				continue
			}
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			switch k := k.(type) {
			case ed25519.PrivateKey:
				p.owner = k
			case *ecdsa.PrivateKey:
				p.key = k
			}
		}
	}
	if p.owner == nil || p.key == nil || p.ca == nil {
		return nil, fmt.Errorf("%s: a key or the certificate is missing", dir)
	}
	return p, nil
}

func (p *pki) config(dir string, k tenantstore.KeyProvider) tenantstore.Config {
	roots := x509.NewCertPool()
	roots.AddCert(p.ca)
	return tenantstore.Config{Name: "tenants", Dir: dir, Keys: k, Owners: []crypto.PublicKey{p.owner.Public()}, Roots: roots}
}

// certificate issues the client certificate of who. In a deployment it comes
// from a TLS handshake; here the process is its own peer.
func (p *pki) certificate(who string) ([]*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: who},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, p.ca, key.Public(), p.key)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	return []*x509.Certificate{c}, err
}

// assign signs assignments for the operator and for each tenant's service.
func (p *pki) assign(ctx context.Context, s *tenantstore.Store, tenants ...tenantstore.ID) error {
	a := tenantstore.Assignments{Store: "tenants", Serial: uint64(time.Now().UnixNano()), Expires: time.Now().Add(lifetime),
		Grants: []tenantstore.Grant{{Subject: operator, Roles: []tenantstore.Role{tenantstore.RoleControl}}}}
	for _, id := range tenants {
		a.Grants = append(a.Grants, tenantstore.Grant{Subject: service(string(id)), Tenant: id,
			Roles: []tenantstore.Role{tenantstore.RoleRead, tenantstore.RoleWrite, tenantstore.RoleAdmin}})
	}
	signed, err := tenantstore.SignAssignments(a, p.owner)
	if err != nil {
		return err
	}
	return s.Assign(ctx, signed)
}
