package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/tpm"
)

// DeviceKey is the node's TLS key (LDevID), P-256, persistent in the TPM: it
// takes no transient slot and no session, so it serves a daemon for as long as
// that runs. It is a crypto.Signer for TLS 1.2 and 1.3, safe for concurrent
// use.
type DeviceKey struct {
	dev    *tpm.Device
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	pub    tpm2.TPMTPublic
	key    *ecdsa.PublicKey
}

// DeviceKey returns the node's TLS key and makes it when there is none. A key
// of another kind at its handle is an error, never replaced.
func (n *Node) DeviceKey(ctx context.Context) (*DeviceKey, error) {
	var key *DeviceKey
	err := n.dev.Do(ctx, func(d *tpm.Device) (err error) {
		if key, err = n.loadDeviceKey(d); !errors.Is(err, ErrNoKey) {
			return err
		}
		if err := n.makeDeviceKey(d); err != nil {
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

func (n *Node) loadDeviceKey(d *tpm.Device) (*DeviceKey, error) {
	k, err := tpm.ReadKey(d, tpm.HandleLDevID)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("%w: TLS key at 0x%08x", ErrNoKey, uint32(tpm.HandleLDevID))
	}
	if err != nil {
		return nil, err
	}
	key, err := tpm2.Pub(k.Public)
	if err != nil {
		return nil, fmt.Errorf("attest: TLS key: %w", err)
	}
	ec, ok := key.(*ecdsa.PublicKey)
	want := deviceKeyTemplate()
	if !ok || k.Public.ObjectAttributes != want.ObjectAttributes {
		return nil, fmt.Errorf("attest: handle 0x%08x holds a key of another kind: it was not made by this package; evict it if it is not needed", uint32(tpm.HandleLDevID))
	}
	return &DeviceKey{dev: n.dev, handle: k.Handle, name: k.Name, pub: k.Public, key: ec}, nil
}

// makeDeviceKey makes the key below the storage root key and has the TPM keep
// it. Nothing is stored elsewhere.
func (n *Node) makeDeviceKey(d *tpm.Device) error {
	return n.withOwner(d, func(owner tpm2.AuthHandle) (err error) {
		srk, err := tpm.ReadKey(d, tpm.HandleSRK)
		if err != nil {
			if srk, err = tpm.CreatePrimaryAs(d, owner, tpm2.ECCSRKTemplate); err != nil {
				return fmt.Errorf("attest: storage root key: %w", err)
			}
		}
		defer func() { err = errors.Join(err, srk.Flush()) }()
		made, err := tpm2.Create{ParentHandle: srk.Auth(nil), InPublic: tpm2.New2B(deviceKeyTemplate())}.Execute(d)
		if err != nil {
			return fmt.Errorf("attest: make TLS key: %w", err)
		}
		key, err := tpm.Load(d, srk, nil, made.OutPrivate, made.OutPublic)
		if err != nil {
			return fmt.Errorf("attest: make TLS key: %w", err)
		}
		defer func() { err = errors.Join(err, key.Flush()) }()
		_, err = tpm2.EvictControl{Auth: owner, ObjectHandle: key.Named(), PersistentHandle: tpm.HandleLDevID}.Execute(d)
		if err != nil {
			return fmt.Errorf("attest: keep TLS key at 0x%08x: %w", uint32(tpm.HandleLDevID), err)
		}
		return nil
	})
}

// Public implements crypto.Signer; the key is a *ecdsa.PublicKey.
func (k *DeviceKey) Public() crypto.PublicKey { return k.key }

// Sign implements crypto.Signer for SHA-256. rand is not used: the TPM has its
// own. It waits for the TPM while others use it.
func (k *DeviceKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, errors.New("attest: the TLS key signs SHA-256 digests only")
	}
	r, err := tpm2.Sign{
		KeyHandle: tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)},
		Digest:    tpm2.TPM2BDigest{Buffer: digest},
		InScheme: tpm2.TPMTSigScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
		},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(k.dev)
	if err != nil {
		return nil, fmt.Errorf("attest: sign with the TLS key: %w", err)
	}
	sig, err := r.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("attest: sign with the TLS key: %w", err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer),
	})
}

func (k *DeviceKey) spki() (d [32]byte, err error) {
	der, err := x509.MarshalPKIXPublicKey(k.key)
	if err != nil {
		return d, fmt.Errorf("attest: TLS key: %w", err)
	}
	return sha256.Sum256(der), nil
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
		return fmt.Errorf("%w: the certificate is for device %s, this is %s", ErrKeyMismatch, e.Device, n.device)
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
			return fmt.Errorf("%w: certificate %d: %w", ErrMalformed, i, err)
		}
		certs[i] = c
		inter.AddCert(c)
		chain = append(chain, der...)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: n.c.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("attest: owner certificate: %w", err)
	}
	return n.dev.Do(ctx, func(d *tpm.Device) error {
		key, err := n.loadDeviceKey(d)
		if err != nil {
			return err
		}
		if !key.key.Equal(certs[0].PublicKey) {
			return fmt.Errorf("%w: the certificate is for another key than the TPM's", ErrKeyMismatch)
		}
		return n.withOwner(d, func(owner tpm2.AuthHandle) error { return writeNV(d, owner, tpm.NVLDevIDCert, chain) })
	})
}

// Certificate returns what StoreCertificate wrote, with the TLS key as private
// key, for tls.Config. ErrNoKey says that the node has to enrol first; an
// expired certificate is returned as it is.
func (n *Node) Certificate(ctx context.Context) (tls.Certificate, error) {
	var cert tls.Certificate
	err := n.dev.Do(ctx, func(d *tpm.Device) error {
		key, err := n.loadDeviceKey(d)
		if err != nil {
			return err
		}
		der, err := readNV(d, tpm.NVLDevIDCert)
		if err != nil {
			return err
		}
		certs, err := x509.ParseCertificates(der)
		if err != nil || len(certs) == 0 {
			return fmt.Errorf("attest: owner certificate in NV: %w", errors.Join(err, ErrNoKey))
		}
		if !key.key.Equal(certs[0].PublicKey) {
			return fmt.Errorf("%w: the certificate in NV is for another key than the TPM's", ErrKeyMismatch)
		}
		cert = tls.Certificate{PrivateKey: key, Leaf: certs[0]}
		for _, c := range certs {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		return nil
	})
	return cert, err
}
