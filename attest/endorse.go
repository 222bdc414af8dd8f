package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trusttree/trusttree/attest/internal/roca"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

// Endorsers is whose word about TPMs is taken. There are no built-in roots:
// the zero value trusts nobody. It is read-only once used.
type Endorsers struct {
	// Anchors are certificates of TPM makers, roots or intermediates: a chain
	// that reaches one of them is good. An intermediate listed here needs no
	// signature that Go accepts, which is how chains with SHA-1 above it are
	// taken.
	Anchors []*x509.Certificate
	// Intermediates help to build chains and are not trusted by themselves.
	Intermediates []*x509.Certificate
	// Allowed, when not empty, lists the only endorsement keys accepted.
	Allowed []registry.DeviceID
	// MinFirmware gives the lowest firmware version accepted by manufacturer
	// ("id:494E5443"), as signed in quotes. Where it is not empty, a
	// manufacturer not listed is refused, and so is an attestation key outside
	// the endorsement hierarchy, for which a TPM shows no true version.
	MinFirmware map[string]uint64
}

// Endorsement is a TPM maker's word about an endorsement key, verified. Only
// Endorsers.Verify makes one.
type Endorsement struct {
	device       registry.DeviceID
	cert         *x509.Certificate
	manufacturer string
	model        string
	version      string
}

// Device returns the DeviceID that follows from the key.
func (e *Endorsement) Device() registry.DeviceID { return e.device }

// Certificate returns the EK certificate.
func (e *Endorsement) Certificate() *x509.Certificate { return e.cert }

// Manufacturer returns the TPM's manufacturer as in the certificate, such as
// "id:494E5443".
func (e *Endorsement) Manufacturer() string { return e.manufacturer }

// Model returns the TPM's model as in the certificate.
func (e *Endorsement) Model() string { return e.model }

// Version returns the TPM's version as in the certificate.
func (e *Endorsement) Version() string { return e.version }

// Verify checks an EK certificate (DER, as found in NV) against the anchors,
// with the help of further certificates: chain, validity at now, extended key
// usage 2.23.133.8.1, key usage where there is one, not a CA, TPM manufacturer, model and version in the
// subject alternative name, key type. Every error is ErrUntrustedEK.
func (e Endorsers) Verify(chain [][]byte, now time.Time) (*Endorsement, error) {
	en, err := e.verify(chain, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUntrustedEK, err)
	}
	return en, nil
}

func (e Endorsers) verify(chain [][]byte, now time.Time) (*Endorsement, error) {
	if len(e.Anchors) == 0 {
		return nil, reason.Because(reason.NoAnchors, errors.New("no anchors are configured: give the TPM maker's certificates"))
	}
	if slices.Contains(e.Anchors, nil) || slices.Contains(e.Intermediates, nil) {
		return nil, reason.Because(reason.NoAnchors, errors.New("an anchor or intermediate that is configured is nil"))
	}
	if len(chain) == 0 || len(chain) > maxCertificates {
		return nil, reason.Because(reason.CertificateCount, fmt.Errorf("%d certificates, want 1 to %d", len(chain), maxCertificates))
	}
	leaf, err := parseEKCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range e.Anchors {
		roots.AddCert(c)
	}
	for _, c := range e.Intermediates {
		inter.AddCert(c)
	}
	for _, der := range chain[1:] {
		c, err := parseCertificate(der)
		if err != nil {
			return nil, reason.Because(reason.NoCertificate, fmt.Errorf("issuer certificate: %w", err))
		}
		if err := checkKeySize(c.PublicKey); err != nil {
			return nil, reason.Because(reason.TooLarge, fmt.Errorf("issuer certificate: %w", err))
		}
		inter.AddCert(c)
	}
	if _, err := templateOf(leaf.PublicKey); err != nil {
		return nil, err
	}
	if k, ok := leaf.PublicKey.(*rsa.PublicKey); ok && roca.Weak(k.N) {
		return nil, reason.Because(reason.ROCA, errors.New("key has the fingerprint of ROCA (CVE-2017-15361): its private key can be computed"))
	}
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		return nil, reason.Because(reason.IsCA, errors.New("certificate is a CA's"))
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement) == 0 {
		return nil, reason.Because(reason.KeyUsage, errors.New("certificate's key usage is not that of an endorsement key, which deciphers or agrees on keys"))
	}
	if !slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return nil, reason.Because(reason.ExtendedKeyUsage, errors.New("certificate lacks the extended key usage 2.23.133.8.1 of an endorsement key"))
	}
	en := &Endorsement{cert: leaf}
	if err := en.readSAN(leaf); err != nil {
		return nil, err
	}
	check := *leaf // the critical SAN is read now
	check.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(leaf.UnhandledCriticalExtensions), oidSAN.Equal)
	if _, err := check.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return nil, reason.Because(reason.Chain, err)
	}
	if en.device, err = registry.IDOf(leaf.PublicKey); err != nil {
		return nil, err
	}
	if len(e.Allowed) > 0 && !slices.Contains(e.Allowed, en.device) {
		return nil, reason.Because(reason.NotAllowed, fmt.Errorf("device %s is not on the list of allowed ones", en.device))
	}
	return en, nil
}

// maxRSABits is the largest RSA key with which a signature is checked, as in
// crypto/tls: the time it takes grows with the square, and no maker has larger
// ones.
const maxRSABits = 8192

func checkKeySize(key crypto.PublicKey) error {
	if k, ok := key.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSABits {
		return fmt.Errorf("RSA key of %d bits, limit %d", k.N.BitLen(), maxRSABits)
	}
	return nil
}

func parseCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > maxCertificate {
		return nil, reason.Because(reason.TooLarge, fmt.Errorf("certificate of %d bytes, limit %d", len(der), maxCertificate))
	}
	return x509.ParseCertificate(der)
}

// firmwareFloor returns ErrFirmware for a TPM whose signed firmware version is
// too low, or not shown.
func (e Endorsers) firmwareFloor(manufacturer string, v quote.Values) error {
	if len(e.MinFirmware) == 0 {
		return nil
	}
	floor, ok := e.MinFirmware[manufacturer]
	switch {
	case !ok:
		return reason.Because(reason.NoFloor, fmt.Errorf("%w: no floor is set for manufacturer %q", ErrFirmware, manufacturer))
	case !v.Plain():
		return reason.Because(reason.ObscuredFirmware, fmt.Errorf("%w: the attestation key is not a primary key of the endorsement hierarchy, so the TPM obscures its firmware version: enrol the node with such a key", ErrFirmware))
	case v.Firmware() < floor:
		return reason.Because(reason.Firmware, fmt.Errorf("%w: %016x of manufacturer %s, want at least %016x: update the TPM", ErrFirmware, v.Firmware(), manufacturer, floor))
	}
	return nil
}

// templateOf returns the TCG template whose key a certificate certifies. Key
// type and size name it up to what credential activation depends on, so
// nothing that the node says about its public area is needed (T7).
func templateOf(key crypto.PublicKey) (ekTemplate, error) {
	for _, t := range ekTemplates() {
		switch k := key.(type) {
		case *rsa.PublicKey:
			if t.rsaBits == k.N.BitLen() && k.E == 65537 {
				return t, nil
			}
		case *ecdsa.PublicKey:
			if t.curve != nil && t.curve == k.Curve {
				return t, nil
			}
		}
	}
	return ekTemplate{}, reason.Because(reason.UnknownTemplate, fmt.Errorf("no TCG template has an endorsement key like this %T", key))
}
