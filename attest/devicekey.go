package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/internal/tpm"
)

// DeviceKey is the node's TLS key (LDevID), persistent in the TPM: it takes no
// transient slot and no session, so it serves a daemon for as long as that
// runs. It is a crypto.Signer for TLS 1.2 and 1.3, safe for concurrent use.
type DeviceKey struct {
	dev    *tpm.Device
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	pub    tpm2.TPMTPublic
	key    crypto.PublicKey // *ecdsa.PublicKey or *rsa.PublicKey
	noPSS  bool             // the TPM's RSA-PSS salt is not what TLS wants
}

// DeviceKey returns the node's TLS key and makes it when there is none. A key
// of another kind at its handle is an error, never replaced.
func (n *Node) DeviceKey(ctx context.Context) (*DeviceKey, error) {
	var key *DeviceKey
	err := n.do(ctx, func(d *tpm.Device) (err error) {
		if key, err = n.loadDeviceKey(d); !errors.Is(err, ErrNoKey) {
			return err
		}
		if err := n.makeDeviceKey(d, tpm.HandleLDevID); err != nil {
			return err
		}
		key, err = n.loadDeviceKey(d)
		return err
	})
	if err != nil {
		return nil, err
	}
	return key, nil
}

// deviceKeyAt returns the TLS key at a handle; any algorithm that this package
// makes will do.
func (n *Node) deviceKeyAt(d *tpm.Device, at tpm2.TPMHandle) (*DeviceKey, error) {
	k, err := tpm.ReadKey(d, at)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("%w: TLS key at 0x%08x", ErrNoKey, uint32(at))
	}
	if err != nil {
		return nil, err
	}
	key, err := tpm2.Pub(k.Public)
	if err != nil {
		return nil, fmt.Errorf("attest: TLS key: %w", err)
	}
	want, err := deviceKeyTemplate("")
	if err != nil {
		return nil, err
	}
	if k.Public.ObjectAttributes != want.ObjectAttributes || algorithmOf(key) == "" {
		return nil, fmt.Errorf("attest: handle 0x%08x holds a key of another kind: it was not made by this package; evict it if it is not needed", uint32(at))
	}
	dk := &DeviceKey{dev: n.dev, handle: k.Handle, name: k.Name, pub: k.Public, key: key}
	if _, ok := key.(*rsa.PublicKey); ok {
		dk.noPSS = !dk.probePSS(d)
	}
	return dk, nil
}

func algorithmOf(key crypto.PublicKey) string {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return keyP256
		case elliptic.P384():
			return keyP384
		}
	case *rsa.PublicKey:
		if k.N.BitLen() == 2048 {
			return keyRSA2048
		}
	}
	return ""
}

// probePSS reports whether the TPM's RSA-PSS signatures have a salt as long as
// the hash, which TLS 1.3 demands (RFC 8446, section 4.2.3). Older TPMs take
// the longest salt that fits.
func (k *DeviceKey) probePSS(d *tpm.Device) bool {
	digest := sha256.Sum256([]byte("trusttree RSA-PSS probe"))
	sig, err := k.sign(d, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	if err != nil {
		return false
	}
	return rsa.VerifyPSS(k.key.(*rsa.PublicKey), crypto.SHA256, digest[:], sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
}

// Handle returns the persistent handle of the key, whose auth value is empty.
func (k *DeviceKey) Handle() tpm2.TPMHandle { return k.handle }

// Public implements crypto.Signer; the key is a *ecdsa.PublicKey or a
// *rsa.PublicKey.
func (k *DeviceKey) Public() crypto.PublicKey { return k.key }

// SignatureAlgorithms returns what the key can sign in TLS, for
// tls.Certificate.SupportedSignatureAlgorithms. An RSA key in a TPM whose PSS
// salt is not the one that TLS demands signs PKCS #1 v1.5 only, which means
// TLS 1.2.
func (k *DeviceKey) SignatureAlgorithms() []tls.SignatureScheme {
	pkcs1 := []tls.SignatureScheme{tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512}
	switch algorithmOf(k.key) {
	case keyP256:
		return []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}
	case keyP384:
		return []tls.SignatureScheme{tls.ECDSAWithP384AndSHA384}
	}
	if k.noPSS {
		return pkcs1
	}
	return append([]tls.SignatureScheme{tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512}, pkcs1...)
}

// Sign implements crypto.Signer for SHA-256, SHA-384 and SHA-512. rand is not
// used: the TPM has its own. It waits for the TPM while others use it.
func (k *DeviceKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.sign(k.dev, digest, opts)
	if errors.Is(err, tpm2.TPMRCHandle) {
		err = fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	return sig, classified(err)
}

func (k *DeviceKey) sign(t transport.TPM, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	var hash crypto.Hash
	if opts != nil {
		hash = opts.HashFunc()
	}
	alg, err := tpm.Alg(hash)
	if err != nil || hash == crypto.SHA1 || len(digest) != hash.Size() {
		return nil, errors.New("attest: the TLS key signs SHA-256, SHA-384 and SHA-512 digests only")
	}
	scheme := tpm2.TPMAlgECDSA
	if _, ok := k.key.(*rsa.PublicKey); ok {
		scheme = tpm2.TPMAlgRSASSA
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != rsa.PSSSaltLengthAuto && pss.SaltLength != hash.Size() {
				return nil, fmt.Errorf("attest: the TLS key signs RSA-PSS with a salt as long as the hash only, not %d", pss.SaltLength)
			}
			scheme = tpm2.TPMAlgRSAPSS
		}
	}
	r, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)},
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   tpm2.TPMTSigScheme{Scheme: scheme, Details: tpm2.NewTPMUSigScheme(scheme, &tpm2.TPMSSchemeHash{HashAlg: alg})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("attest: sign with the TLS key: %w", err)
	}
	switch scheme {
	case tpm2.TPMAlgRSASSA:
		sig, err := r.Signature.Signature.RSASSA()
		if err != nil {
			return nil, fmt.Errorf("attest: sign with the TLS key: %w", err)
		}
		return sig.Sig.Buffer, nil
	case tpm2.TPMAlgRSAPSS:
		sig, err := r.Signature.Signature.RSAPSS()
		if err != nil {
			return nil, fmt.Errorf("attest: sign with the TLS key: %w", err)
		}
		return sig.Sig.Buffer, nil
	}
	sig, err := r.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("attest: sign with the TLS key: %w", err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer),
	})
}

// CSR returns a certificate request (PKCS #10, DER) for the key, without names:
// the registrar gives those. Registrar.Renew takes it.
func (k *DeviceKey) CSR() ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, fmt.Errorf("attest: certificate request: %w", err)
	}
	return csr, nil
}

func (k *DeviceKey) spki() (d [32]byte, err error) {
	if k == nil || k.key == nil {
		return d, fmt.Errorf("%w: no TLS key was given: take Node.DeviceKey", ErrNoKey)
	}
	der, err := x509.MarshalPKIXPublicKey(k.key)
	if err != nil {
		return d, fmt.Errorf("attest: TLS key: %w", err)
	}
	return spkiOf(der), nil
}

func spkiOf(der []byte) [32]byte { return sha256.Sum256(der) }

func (k *DeviceKey) is(key crypto.PublicKey) bool {
	own, ok := k.key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(key)
}

// StoreCertificate checks that an Enrollment is this node's, for its TLS key
// and issued under one of the roots given, and writes it to the TPM's NV,
// where it survives a wiped disk. Errors are ErrMalformed, ErrKeyMismatch,
// x509's and those of the TPM.
func (n *Node) StoreCertificate(ctx context.Context, e *Enrollment, roots *x509.CertPool) error {
	if err := check(e); err != nil {
		return err
	}
	if e.Device != n.device {
		return reason.Because(reason.OtherDevice, fmt.Errorf("%w: the certificate is for device %s, this is %s", ErrKeyMismatch, e.Device, n.device))
	}
	if roots == nil {
		return errors.New("attest: no roots to check the certificate against")
	}
	var chain []byte
	inter := x509.NewCertPool()
	certs := make([]*x509.Certificate, len(e.Chain))
	for i, der := range e.Chain {
		c, err := parseCertificate(der)
		if err != nil {
			return reason.Because(reason.NoCertificate, fmt.Errorf("%w: certificate %d: %w", ErrMalformed, i, err))
		}
		if err := checkKeySize(c.PublicKey); err != nil {
			return reason.Because(reason.TooLarge, fmt.Errorf("%w: certificate %d: %w", ErrMalformed, i, err))
		}
		certs[i] = c
		inter.AddCert(c)
		chain = append(chain, der...)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: n.c.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("attest: owner certificate: %w", err)
	}
	return n.do(ctx, func(d *tpm.Device) error { return n.storeChain(d, certs[0], chain) })
}

// stored is a certificate chain in NV.
type stored struct {
	index  tpm2.TPMHandle
	chain  []*x509.Certificate
	failed bool // the TPM did, so that nothing is known
}

// readCertificate returns the owner's certificate for a key: the one that
// lasts longer, when a power cut left two.
func (n *Node) readCertificate(d *tpm.Device, key *DeviceKey) (best stored, err error) {
	for _, index := range []tpm2.TPMHandle{tpm.NVLDevIDCert, tpm.NVLDevIDCertOther} {
		der, rerr := readNV(d, index)
		if rerr != nil {
			if !errors.Is(rerr, ErrNoKey) {
				return stored{failed: true}, rerr
			}
			err = errors.Join(err, rerr)
			continue
		}
		certs, perr := x509.ParseCertificates(der)
		switch {
		case perr != nil || len(certs) == 0:
			err = errors.Join(err, fmt.Errorf("%w: NV index 0x%08x holds no whole certificate: %w", ErrNoKey, uint32(index), perr))
		case !key.is(certs[0].PublicKey):
			err = errors.Join(err, reason.Because(reason.OtherKey, fmt.Errorf("%w: the certificate at NV index 0x%08x is for another key than the TPM's", ErrKeyMismatch, uint32(index))))
		case best.chain == nil || certs[0].NotAfter.After(best.chain[0].NotAfter):
			best = stored{index: index, chain: certs}
		}
	}
	if best.chain == nil {
		return stored{}, err
	}
	return best, nil
}

// Certificate returns what StoreCertificate wrote, with the TLS key as private
// key, for tls.Config. ErrNoKey says that the node has to enrol first; an
// expired certificate is returned as it is.
func (n *Node) Certificate(ctx context.Context) (tls.Certificate, error) {
	var cert tls.Certificate
	err := n.do(ctx, func(d *tpm.Device) error {
		key, err := n.loadDeviceKey(d)
		if err != nil {
			return err
		}
		found, err := n.readCertificate(d, key)
		if err != nil {
			return err
		}
		certs := found.chain
		cert = tls.Certificate{PrivateKey: key, Leaf: certs[0], SupportedSignatureAlgorithms: key.SignatureAlgorithms()}
		for _, c := range certs {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		return nil
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	return cert, nil
}
