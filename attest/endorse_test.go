package attest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

func TestEndorsementChains(t *testing.T) {
	m, now := softnode.NewMaker(), time.Now()
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	leaf := m.Sign(m.EKTemplate(ek.Public()), ek.Public())
	root := attest.Endorsers{Anchors: []*x509.Certificate{m.Root}}

	en, err := root.Verify([][]byte{leaf, m.Issuer.Raw}, now)
	require.NoError(t, err, "the node brings the intermediate")
	id, err := registry.IDOf(ek.Public())
	require.NoError(t, err)
	assert.Equal(t, id, en.Device())
	assert.Equal(t, [3]string{"id:54524553", "soft", "id:00010000"}, [3]string{en.Manufacturer(), en.Model(), en.Version()})

	_, err = root.Verify([][]byte{leaf}, now)
	require.ErrorIs(t, err, attest.ErrUntrustedEK, "intermediate missing")
	_, err = attest.Endorsers{Anchors: root.Anchors, Intermediates: []*x509.Certificate{m.Issuer}}.Verify([][]byte{leaf}, now)
	require.NoError(t, err, "the owner has the intermediate")
	_, err = attest.Endorsers{Anchors: []*x509.Certificate{m.Issuer}}.Verify([][]byte{leaf}, now)
	require.NoError(t, err, "T15: an intermediate is the anchor")
	_, err = attest.Endorsers{Intermediates: []*x509.Certificate{m.Root, m.Issuer}}.Verify([][]byte{leaf}, now)
	require.ErrorIs(t, err, attest.ErrUntrustedEK, "an intermediate is no anchor by itself")
	other := softnode.NewMaker()
	_, err = attest.Endorsers{Anchors: []*x509.Certificate{other.Root}}.Verify([][]byte{leaf, m.Issuer.Raw, m.Root.Raw}, now)
	require.ErrorIs(t, err, attest.ErrUntrustedEK, "the node brings its own root")
	_, err = root.Verify([][]byte{leaf, m.Issuer.Raw}, now.Add(10000*time.Hour))
	require.ErrorIs(t, err, attest.ErrUntrustedEK, "expired")
	_, err = root.Verify([][]byte{m.Issuer.Raw, m.Root.Raw}, now)
	require.ErrorIs(t, err, attest.ErrUntrustedEK, "a CA poses as an endorsement key")
	_, err = attest.Endorsers{Anchors: root.Anchors, Allowed: []registry.DeviceID{id}}.Verify([][]byte{leaf, m.Issuer.Raw}, now)
	require.NoError(t, err, "on the list")
	_, err = attest.Endorsers{Anchors: root.Anchors, Allowed: []registry.DeviceID{{1}}}.Verify([][]byte{leaf, m.Issuer.Raw}, now)
	require.ErrorIs(t, err, attest.ErrUntrustedEK, "not on the list")
}

// T15: makers still have intermediates that a root signed with SHA-1, which Go
// does not check. As an anchor such an intermediate needs nobody's signature.
func TestT15IntermediateSignedWithSHA1(t *testing.T) {
	m, now := softnode.NewMaker(), time.Now()
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	leaf := m.Sign(m.EKTemplate(ek.Public()), ek.Public())
	issuer, err := x509.ParseCertificate(m.IssuerSHA1())
	require.NoError(t, err)
	require.Equal(t, x509.ECDSAWithSHA1, issuer.SignatureAlgorithm)
	_, err = attest.Endorsers{Anchors: []*x509.Certificate{m.Root}, Intermediates: []*x509.Certificate{issuer}}.Verify([][]byte{leaf}, now)
	require.ErrorIs(t, err, attest.ErrUntrustedEK, "a SHA-1 signature vouches for nothing")
	require.ErrorIs(t, err, reason.Chain)
	_, err = attest.Endorsers{Anchors: []*x509.Certificate{issuer}}.Verify([][]byte{leaf}, now)
	require.NoError(t, err)
}

// T15, T16: certificates that are not an endorsement key's.
func TestT15CertificatesRefused(t *testing.T) {
	m, now := softnode.NewMaker(), time.Now()
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)
	e := attest.Endorsers{Anchors: []*x509.Certificate{m.Issuer}}
	codes := map[string]reason.Code{
		"no extended key usage":      reason.ExtendedKeyUsage,
		"another key usage":          reason.ExtendedKeyUsage,
		"a CA":                       reason.IsCA,
		"may sign certificates":      reason.IsCA,
		"key that only signs":        reason.KeyUsage,
		"no alternative name":        reason.TPMName,
		"manufacturer left out":      reason.TPMName,
		"control characters":         reason.TPMName,
		"alternative name garbled":   reason.NoCertificate,
		"unknown critical extension": reason.Chain,
		"P-224":                      reason.UnknownTemplate,
		"nothing":                    reason.CertificateCount, "empty": reason.NoCertificate, "garbage": reason.NoCertificate, "too many": reason.CertificateCount,
		"huge": reason.TooLarge, "garbage behind": reason.NoCertificate, "cut short": reason.NoCertificate,
	}
	for name, change := range map[string]func(*x509.Certificate) crypto.PublicKey{
		"no extended key usage": func(c *x509.Certificate) crypto.PublicKey { c.UnknownExtKeyUsage = nil; return nil },
		"another key usage": func(c *x509.Certificate) crypto.PublicKey {
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}}
			return nil
		},
		"a CA":                  func(c *x509.Certificate) crypto.PublicKey { c.IsCA = true; return nil },
		"may sign certificates": func(c *x509.Certificate) crypto.PublicKey { c.KeyUsage |= x509.KeyUsageCertSign; return nil },
		"key that only signs":   func(c *x509.Certificate) crypto.PublicKey { c.KeyUsage = x509.KeyUsageDigitalSignature; return nil },
		"no alternative name":   func(c *x509.Certificate) crypto.PublicKey { c.ExtraExtensions = nil; return nil },
		"manufacturer left out": func(c *x509.Certificate) crypto.PublicKey {
			c.ExtraExtensions[0].Value = softnode.SAN("", "m", "v")
			return nil
		},
		"control characters": func(c *x509.Certificate) crypto.PublicKey {
			c.ExtraExtensions[0].Value = softnode.SAN("id:1\n", "m", "v")
			return nil
		},
		"alternative name garbled": func(c *x509.Certificate) crypto.PublicKey {
			c.ExtraExtensions[0].Value = []byte{0x30, 5, 1}
			return nil
		},
		"unknown critical extension": func(c *x509.Certificate) crypto.PublicKey {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
			return nil
		},
		"P-224": func(*x509.Certificate) crypto.PublicKey { return p224.Public() },
	} {
		c := m.EKTemplate(ek.Public())
		key := change(c)
		if key == nil {
			key = ek.Public()
		}
		_, err := e.Verify([][]byte{m.Sign(c, key)}, now)
		require.ErrorIs(t, err, attest.ErrUntrustedEK, name)
		require.Equal(t, codes[name], reason.Of(err), name)
	}
	good := m.Sign(m.EKTemplate(ek.Public()), ek.Public())
	for name, chain := range map[string][][]byte{
		"nothing": {}, "empty": {{}}, "garbage": {{1, 2, 3}}, "too many": {good, good, good, good, good, good, good, good, good},
		"huge": {make([]byte, 9000)}, "garbage behind": {good, {1}}, "cut short": {good[:len(good)-1]},
	} {
		_, err := e.Verify(chain, now)
		require.ErrorIs(t, err, attest.ErrUntrustedEK, name)
		require.Equal(t, codes[name], reason.Of(err), name)
	}
}

// What makers really put into NV.
func TestOddEKCertificates(t *testing.T) {
	m, now := softnode.NewMaker(), time.Now()
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	e := attest.Endorsers{Anchors: []*x509.Certificate{m.Issuer}}
	template := m.EKTemplate(ek.Public())
	template.SerialNumber = big.NewInt(0x11223344)
	good := m.Sign(template, ek.Public())
	header := binary.BigEndian.AppendUint16([]byte{0x10, 1, 0}, uint16(len(good)))
	parsed, err := x509.ParseCertificate(good)
	require.NoError(t, err)
	serial := func(bytesOf ...byte) []byte {
		tbs := bytes.Replace(parsed.RawTBSCertificate, []byte{2, 4, 0x11, 0x22, 0x33, 0x44}, append([]byte{2, byte(len(bytesOf))}, bytesOf...), 1)
		require.Len(t, tbs, len(parsed.RawTBSCertificate))
		return m.Resign(tbs)
	}
	for name, der := range map[string][]byte{
		"padded with 0xff":          append(bytes.Clone(good), bytes.Repeat([]byte{0xff}, 200)...),
		"padded with zeros":         append(bytes.Clone(good), make([]byte, 100)...),
		"TCG header":                append(bytes.Clone(header), good...),
		"TCG header and padding":    append(append(bytes.Clone(header), good...), 0xff, 0xff),
		"serial with leading zeros": serial(0, 0, 0x33, 0x44),
		"negative serial":           serial(0x91, 0x22, 0x33, 0x44),
		"negative serial, padded":   append(serial(0x91, 0x22, 0x33, 0x44), 0xff, 0xff),
		"serial zero":               serial(0, 0, 0, 0),
	} {
		en, err := e.Verify([][]byte{der}, now)
		require.NoError(t, err, name)
		assert.Equal(t, "id:54524553", en.Manufacturer(), name)
	}
	bad := serial(0x91, 0x22, 0x33, 0x44)
	bad[len(bad)-1] ^= 1
	_, err = e.Verify([][]byte{bad}, now)
	require.ErrorIs(t, err, attest.ErrUntrustedEK, "a repaired serial is still signed")
	forged := bytes.Replace(serial(0x91, 0x22, 0x33, 0x44), []byte{2, 4, 0x91, 0x22, 0x33, 0x44}, []byte{2, 4, 0x91, 0x22, 0x33, 0x45}, 1)
	_, err = e.Verify([][]byte{forged}, now)
	require.ErrorIs(t, err, attest.ErrUntrustedEK, "the signature covers the original serial")
}

// rocaModulus is made as the broken library made its primes' product: a power
// of 65537 modulo the product of the small primes.
func rocaModulus(t *testing.T) *big.Int {
	m := big.NewInt(1)
	for p := int64(2); p <= 167; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(p))
		}
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(1234567), m)
	n.Add(n, new(big.Int).Mul(m, new(big.Int).Lsh(big.NewInt(1), uint(2047-m.BitLen()))))
	for n.BitLen() < 2048 {
		n.Add(n, new(big.Int).Lsh(m, uint(2047-m.BitLen())))
	}
	require.Equal(t, 2048, n.BitLen())
	return n
}

// T13: a modulus made like ROCA's is refused, others are not: in an endorsement
// certificate, as an attestation key and as a TLS key.
func TestT13ROCA(t *testing.T) {
	weak := &rsa.PublicKey{N: rocaModulus(t), E: 65537}
	ak := softnode.NewKey(softnode.RSA(), softnode.AKAttributes)
	_, err := quote.ParseKey(append(ak.Public[:len(ak.Public)-256], weak.N.Bytes()...))
	require.ErrorIs(t, err, quote.ErrKey)
	require.ErrorIs(t, err, reason.ROCA)
	maker := softnode.NewMaker()
	e := attest.Endorsers{Anchors: []*x509.Certificate{maker.Issuer}}
	_, err = e.Verify([][]byte{maker.Sign(maker.EKTemplate(weak), weak)}, time.Now())
	require.ErrorIs(t, err, attest.ErrUntrustedEK)
	require.ErrorIs(t, err, reason.ROCA)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	_, err = e.Verify([][]byte{maker.Sign(maker.EKTemplate(key.Public()), key.Public())}, time.Now())
	require.NoError(t, err)
}

func FuzzEKCertificate(f *testing.F) {
	m := softnode.NewMaker()
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f, err)
	f.Add(m.Sign(m.EKTemplate(ek.Public()), ek.Public()))
	e := attest.Endorsers{Anchors: []*x509.Certificate{softnode.NewMaker().Root}}
	f.Fuzz(func(t *testing.T, der []byte) {
		_, err := e.Verify([][]byte{der}, time.Now())
		require.ErrorIs(t, err, attest.ErrUntrustedEK)
		_, _ = attest.ParseEKCertificate(der)
		attest.CertificatesIn([][]byte{der, der})
	})
}
