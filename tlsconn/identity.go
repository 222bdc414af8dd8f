package tlsconn

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
)

// Identity is this end's certificate chain and key. The key may live in a TPM:
// only crypto.Signer is used, and key bytes are never asked for. An Identity
// may be shared by several clients and gateways and is safe for concurrent use.
type Identity struct {
	mu      sync.Mutex
	cert    *tls.Certificate
	id      ID
	changed chan struct{} // closed and replaced when Set succeeds
}

// NewIdentity checks the chain and lets the key sign once for each signature
// scheme that TLS could ask of it; schemes whose signatures do not verify are
// not offered, and a key that is left with none is refused. cert.Certificate
// holds the leaf first, then intermediates; the leaf has one SPIFFE URI name.
func NewIdentity(cert tls.Certificate) (*Identity, error) {
	i := &Identity{changed: make(chan struct{})}
	if err := i.Set(cert); err != nil {
		return nil, err
	}
	return i, nil
}

// Set rotates to a new certificate, after the same checks as NewIdentity. When
// they fail, the old one stays. New handshakes use the new certificate at once;
// managed clients replace their tunnels, making the new one before breaking the
// old one. The SPIFFE ID may not change.
func (i *Identity) Set(cert tls.Certificate) error {
	if len(cert.Certificate) == 0 {
		return errors.New("tlsconn: identity: no certificate given")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return fmt.Errorf("tlsconn: identity: leaf certificate: %w", err)
	}
	id, err := idFromCertificate(leaf)
	if err != nil {
		return fmt.Errorf("tlsconn: identity: %w", err)
	}
	schemes, err := selfTest(cert.PrivateKey, leaf)
	if err != nil {
		return fmt.Errorf("tlsconn: identity %s: %w", id, err)
	}
	cert.Leaf = leaf
	cert.SupportedSignatureAlgorithms = schemes
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.id.IsZero() && i.id != id {
		return fmt.Errorf("tlsconn: identity: rotation from %s to %s changes the name; make a new Identity", i.id, id)
	}
	i.cert, i.id = &cert, id
	close(i.changed)
	i.changed = make(chan struct{})
	return nil
}

// ID returns the identity's name.
func (i *Identity) ID() ID {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.id
}

// Leaf returns the current leaf certificate.
func (i *Identity) Leaf() *x509.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert.Leaf
}

func (i *Identity) current() (*tls.Certificate, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cert, i.changed
}

// selfTest signs and verifies with every scheme that the key's type allows in
// TLS 1.3 and returns those that work. Hardware that salts PSS differently than
// TLS asks (RFC 8446 4.2.3: salt as long as the digest) is found here, not in
// the first handshake on a street.
func selfTest(key crypto.PrivateKey, leaf *x509.Certificate) ([]tls.SignatureScheme, error) {
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("private key is not a crypto.Signer")
	}
	pub, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	if !bytes.Equal(pub, leaf.RawSubjectPublicKeyInfo) {
		return nil, errors.New("private key is not the certificate's")
	}
	var msg [64]byte
	if _, err := rand.Read(msg[:]); err != nil {
		return nil, err
	}
	try := func(h crypto.Hash, opts crypto.SignerOpts, verify func(digest, sig []byte) bool) error {
		digest := msg[:]
		if h != 0 {
			w := h.New()
			w.Write(msg[:])
			digest = w.Sum(nil)
		}
		sig, err := signer.Sign(rand.Reader, digest, opts)
		if err != nil {
			return err
		}
		if !verify(digest, sig) {
			return errors.New("signature does not verify")
		}
		return nil
	}
	switch pub := signer.Public().(type) {
	case *ecdsa.PublicKey:
		scheme, h := tls.ECDSAWithP256AndSHA256, crypto.SHA256
		switch pub.Curve {
		case elliptic.P256():
		case elliptic.P384():
			scheme, h = tls.ECDSAWithP384AndSHA384, crypto.SHA384
		case elliptic.P521():
			scheme, h = tls.ECDSAWithP521AndSHA512, crypto.SHA512
		default:
			return nil, fmt.Errorf("curve %s is not usable in TLS 1.3", pub.Curve.Params().Name)
		}
		if err := try(h, h, func(d, s []byte) bool { return ecdsa.VerifyASN1(pub, d, s) }); err != nil {
			return nil, fmt.Errorf("key failed its self-test: %w", err)
		}
		return []tls.SignatureScheme{scheme}, nil
	case ed25519.PublicKey:
		if err := try(0, crypto.Hash(0), func(d, s []byte) bool { return ed25519.Verify(pub, d, s) }); err != nil {
			return nil, fmt.Errorf("key failed its self-test: %w", err)
		}
		return []tls.SignatureScheme{tls.Ed25519}, nil
	case *rsa.PublicKey:
		if pub.N.BitLen() < 2048 {
			return nil, fmt.Errorf("RSA key of %d bits, at least 2048 are needed", pub.N.BitLen())
		}
		var schemes []tls.SignatureScheme
		var last error
		for _, s := range []struct {
			scheme tls.SignatureScheme
			hash   crypto.Hash
		}{{tls.PSSWithSHA256, crypto.SHA256}, {tls.PSSWithSHA384, crypto.SHA384}, {tls.PSSWithSHA512, crypto.SHA512}} {
			opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.hash}
			err := try(s.hash, opts, func(d, sig []byte) bool { return rsa.VerifyPSS(pub, s.hash, d, sig, opts) == nil })
			if err != nil {
				last = err
				continue
			}
			schemes = append(schemes, s.scheme)
		}
		if len(schemes) == 0 {
			return nil, fmt.Errorf("key failed its self-test with every RSA-PSS scheme: %w", last)
		}
		return schemes, nil
	}
	return nil, fmt.Errorf("key type %T is not usable in TLS 1.3", signer.Public())
}
