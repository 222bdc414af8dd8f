package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/trusttree/trusttree/tlsconn"
)

// loaded is what the files say.
type loaded struct {
	cert   tls.Certificate
	roots  []*x509.Certificate
	crls   [][]byte
	policy *tlsconn.Policy
}

// read reads every file, and changes nothing.
func (t *tunnel) read() (*loaded, error) {
	l := &loaded{}
	var err error
	if l.cert, err = tls.LoadX509KeyPair(t.o.cert, t.o.key); err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", t.o.cert, t.o.key, err)
	}
	data, err := os.ReadFile(t.o.cacert)
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
		if data, err = os.ReadFile(t.o.crl); err != nil {
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
		if data, err = os.ReadFile(t.o.policy); err != nil {
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
	trust, err := tlsconn.NewTrustStore(tlsconn.TrustOptions{Roots: l.roots, RequireCRL: t.o.crl != ""})
	if err != nil {
		return fmt.Errorf("%s: %w", t.o.cacert, err)
	}
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

// reload reads the files again. Nothing changes when one cannot be read; live
// flows that the new content no longer allows are cut.
func (t *tunnel) reload() error {
	l, err := t.read()
	if err != nil {
		return err
	}
	if err := t.cfg.Identity.Set(l.cert); err != nil {
		return err
	}
	if err := t.cfg.Trust.SetRoots(l.roots); err != nil {
		return err
	}
	for _, c := range l.crls {
		if err := t.cfg.Trust.AddCRL(c); err != nil {
			return err
		}
	}
	if l.policy != nil {
		return t.cfg.Policy.Set(l.policy)
	}
	return nil
}
