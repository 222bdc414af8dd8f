package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/tlsconn"
)

// loaded is what the files say.
type loaded struct {
	cert   tls.Certificate
	roots  []*x509.Certificate
	crls   [][]byte
	policy *tlsconn.Policy
}

// maxFile bounds a file of certificates, CRLs or rules, in bytes.
const maxFile = 64 << 20

// read reads every file, and changes nothing.
func (t *tunnel) read() (*loaded, error) {
	l := &loaded{}
	cert, err := wire.ReadCapped(t.o.cert, maxFile)
	if err != nil {
		return nil, err
	}
	key, err := wire.ReadCapped(t.o.key, maxFile)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if l.cert, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", t.o.cert, t.o.key, err)
	}
	data, err := wire.ReadCapped(t.o.cacert, maxFile)
	if err != nil {
		return nil, err
	}
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.o.cacert, err)
		}
		l.roots = append(l.roots, c)
	}
	if len(l.roots) == 0 {
		return nil, fmt.Errorf("%s: no PEM certificate in it", t.o.cacert)
	}
	if t.o.crl != "" {
		if data, err = wire.ReadCapped(t.o.crl, maxFile); err != nil {
			return nil, err
		}
		for rest := data; ; {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil {
				break
			}
			l.crls = append(l.crls, b.Bytes)
		}
		if len(l.crls) == 0 {
			l.crls = [][]byte{data}
		}
	}
	if t.o.policy != "" {
		if data, err = wire.ReadCapped(t.o.policy, maxFile); err != nil {
			return nil, err
		}
		if l.policy, err = tlsconn.ParsePolicy(data); err != nil {
			return nil, fmt.Errorf("%s: %w", t.o.policy, err)
		}
	}
	return l, nil
}

// load reads the files for the first time.
func (t *tunnel) load() error {
	l, err := t.read()
	if err != nil {
		return err
	}
	id, err := tlsconn.NewIdentity(l.cert)
	if err != nil {
		return fmt.Errorf("%s: %w", t.o.cert, err)
	}
	o := tlsconn.TrustOptions{Roots: l.roots, RequireCRL: t.o.crl != ""}
	if t.o.crlState != "" {
		if err := os.MkdirAll(t.o.crlState, 0o700); err != nil {
			return err
		}
		o.CRLs = crlDir(t.o.crlState)
	}
	trust, err := tlsconn.NewTrustStore(o)
	if err != nil {
		return fmt.Errorf("%s: %w", t.o.cacert, err)
	}
	t.roots = l.roots
	authorize, err := tlsconn.AllowIDs(t.o.allow...)
	if err != nil {
		return err
	}
	if l.policy == nil {
		// The node is the client, at either end.
		node := []string{id.ID().String()}
		if t.o.server {
			node = t.o.allow
		}
		l.policy = &tlsconn.Policy{Version: 1, Rules: []tlsconn.Rule{{Name: "admitted peers", Action: tlsconn.Allow, Peers: node,
			Direction: tlsconn.ToCloud, Proto: tlsconn.TCP, Services: []string{service}}}}
	}
	policy, err := tlsconn.NewPolicyStore(l.policy)
	if err != nil {
		return err
	}
	t.cfg = tlsconn.Config{Identity: id, Trust: trust, Authorize: authorize, Policy: policy, RequirePQ: t.o.requirePQ, InsecureTLS12: t.o.tls12,
		Audit: t.m.audit, Events: t.m.event, Logger: t.log,
		Limits: tlsconn.Limits{MaxHandshakes: 1024, HandshakesPerIP: t.o.handshakes, MaxStreams: 1024, StreamWindow: 1 << 20, TunnelMemory: 1 << 30,
			FlowsPerSecond: tlsconn.Unlimited, BytesPerSecond: tlsconn.Unlimited, BytesPerDay: tlsconn.Unlimited}}
	for _, c := range l.crls {
		if err := trust.AddCRL(c); err != nil {
			return fmt.Errorf("%s: %w", t.o.crl, err)
		}
	}
	return nil
}

// reload reads the files again. Nothing changes when any of them cannot be used;
// live flows that the new content no longer allows are cut.
func (t *tunnel) reload() error {
	l, err := t.read()
	if err != nil {
		return err
	}
	next, err := tlsconn.NewIdentity(l.cert)
	if err != nil {
		return fmt.Errorf("%s: %w", t.o.cert, err)
	}
	if now := t.cfg.Identity.ID(); next.ID() != now {
		return fmt.Errorf("%s: names %s instead of %s: that takes a restart", t.o.cert, next.ID(), now)
	}
	trial, err := tlsconn.NewTrustStore(tlsconn.TrustOptions{Roots: l.roots})
	if err != nil {
		return fmt.Errorf("%s: %w", t.o.cacert, err)
	}
	for _, c := range l.crls {
		if err := trial.AddCRL(c); err != nil {
			return fmt.Errorf("%s: %w", t.o.crl, err)
		}
	}
	if l.policy != nil {
		if now := t.cfg.Policy.Policy().Serial; l.policy.Serial < now {
			return fmt.Errorf("%s: serial %d is older than %d, which is in force; raise it to go back", t.o.policy, l.policy.Serial, now)
		}
	}
	if err := t.cfg.Trust.SetRoots(l.roots); err != nil {
		return err
	}
	for _, c := range l.crls {
		if err := t.cfg.Trust.AddCRL(c); err != nil { // a number that went back
			return errors.Join(fmt.Errorf("%s: %w", t.o.crl, err), t.cfg.Trust.SetRoots(t.roots))
		}
	}
	t.roots = l.roots
	if l.policy != nil {
		if err := t.cfg.Policy.Set(l.policy); err != nil {
			return err
		}
	}
	return t.cfg.Identity.Set(l.cert)
}

// crlDir keeps the newest CRL of each issuer in a directory.
type crlDir string

func (d crlDir) LoadCRLs() ([][]byte, error) {
	names, err := filepath.Glob(filepath.Join(string(d), "*.crl"))
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, n := range names {
		b, err := wire.ReadCapped(n, maxFile)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// SaveCRL replaces the issuer's file so that a power cut leaves the old one or
// the new one.
func (d crlDir) SaveCRL(issuer string, der []byte) error {
	f, err := os.CreateTemp(string(d), "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(der)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(string(d), issuer+".crl"))
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
