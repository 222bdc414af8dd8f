package moduleid

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// oidSPDMResponder and oidSPDMRequester are the extended key usages of DSP0274.
var (
	oidSPDMResponder = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 3}
	oidSPDMRequester = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 412, 274, 4}
)

const minRSABits = 2048

// checkLeaf says what keeps the leaf from being a module's certificate.
func checkLeaf(p *Proof) (f []Finding) {
	leaf := p.Chain[0]
	bad := func(format string, a ...any) {
		f = append(f, Finding{ReasonCertificate, fmt.Sprintf(format, a...)})
	}
	switch {
	case !leaf.BasicConstraintsValid:
		bad("the leaf has no basic constraints")
	case leaf.IsCA:
		bad("the leaf is a CA certificate")
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		bad("the leaf's key usage excludes signatures")
	}
	responder := slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidSPDMResponder.Equal)
	if !responder && slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidSPDMRequester.Equal) {
		bad("the leaf is an SPDM requester's")
	}
	tls := slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) ||
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
	if p.AnyDigest && tls {
		bad("the leaf's key is also a TLS key, and this chip signs any digest")
	}
	for i, c := range p.Chain {
		if err := checkKey(c); err != nil {
			bad("certificate %d of the chain: %v", i, err)
		}
	}
	return f
}

func checkKey(c *x509.Certificate) error {
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("the curve %s is too small", k.Curve.Params().Name)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("the RSA key has %d bits; %d are needed", k.N.BitLen(), minRSABits)
		}
		return nil
	}
	return fmt.Errorf("a key of algorithm %s is not supported", c.PublicKeyAlgorithm)
}

// membership decides which class the module is of. It returns the verified
// chains for the revocation check even when it refuses.
func (v *Verifier) membership(p *Proof, rec Record, known bool, connector string, now time.Time) (string, [][]*x509.Certificate, *Finding) {
	if known {
		cl, ok := v.Classes[rec.Class]
		chains, err := verifyChain(p, now, v.Roots, cl.Members)
		switch {
		case err != nil:
			return "", nil, chainFinding(err)
		case !ok:
			return "", chains, &Finding{ReasonClass, fmt.Sprintf("registered in class %q, which the policy does not know", rec.Class)}
		}
		return rec.Class, chains, nil
	}
	names := make([]string, 0, len(v.Classes))
	for name := range v.Classes {
		names = append(names, name)
	}
	// Classes that the connector takes come first; then order by name.
	allowed := v.Connectors[connector].Classes
	slices.SortFunc(names, func(a, b string) int {
		if x, y := slices.Contains(allowed, a), slices.Contains(allowed, b); x != y {
			if x {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	var issued *Finding // why a CA of the owner that issued it is not enough
	for _, name := range names {
		if m := v.Classes[name].Members; m != nil {
			chains, err := verifyChain(p, now, m)
			if err == nil {
				return name, chains, nil
			}
			if f := chainFinding(err); f.Reason != ReasonUntrusted && issued == nil {
				issued = f
			}
		}
	}
	if issued != nil {
		return "", nil, issued
	}
	chains, err := verifyChain(p, now, v.Roots)
	if err != nil {
		return "", nil, chainFinding(err)
	}
	return "", chains, &Finding{ReasonForeign, "its maker is trusted, but the module is neither in the registry nor certified by a CA of the owner"}
}

func chainFinding(err error) *Finding {
	var inv x509.CertificateInvalidError
	if errors.As(err, &inv) && inv.Reason == x509.Expired {
		return &Finding{ReasonExpired, err.Error()}
	}
	var critical x509.UnhandledCriticalExtension
	if errors.As(err, &critical) || errors.As(err, &inv) {
		return &Finding{ReasonCertificate, err.Error()}
	}
	return &Finding{ReasonUntrusted, err.Error()}
}

// verifyChain verifies the leaf under the first of the pools that it chains
// to. Every chain it returns passes through the device certificate.
func verifyChain(p *Proof, now time.Time, pools ...*x509.CertPool) ([][]*x509.Certificate, error) {
	certs := handled(p)
	inter := x509.NewCertPool()
	for _, c := range certs[1:] {
		inter.AddCert(c)
	}
	err := errors.New("no root is trusted")
	for _, pool := range pools {
		if pool == nil {
			continue // Verify would take the system's roots
		}
		chains, verr := certs[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if verr != nil {
			err = verr
			continue
		}
		chains = slices.DeleteFunc(chains, func(ch []*x509.Certificate) bool {
			return len(ch) <= p.Device || !ch[p.Device].Equal(p.Chain[p.Device])
		})
		if len(chains) > 0 {
			return chains, nil
		}
		err = errors.New("the chain does not pass through the device certificate")
	}
	return nil, err
}

// handled returns the proof's chain without the critical extensions that the
// scheme judged, in copies.
func handled(p *Proof) []*x509.Certificate {
	if len(p.Handled) == 0 {
		return p.Chain
	}
	out := make([]*x509.Certificate, len(p.Chain))
	for i, c := range p.Chain {
		d := *c
		d.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(c.UnhandledCriticalExtensions), func(o asn1.ObjectIdentifier) bool {
			return slices.ContainsFunc(p.Handled, o.Equal)
		})
		out[i] = &d
	}
	return out
}
