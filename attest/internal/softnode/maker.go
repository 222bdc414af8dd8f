package softnode

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // old roots sign with it
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Maker is a TPM maker: root, intermediate, EK certificates.
type Maker struct {
	Root, Issuer *x509.Certificate
	rootKey, key *ecdsa.PrivateKey
	serial       atomic.Int64
}

// NewMaker makes one.
func NewMaker() *Maker {
	m := &Maker{rootKey: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	m.Root = m.ca("maker root", nil, m.rootKey, m.rootKey)
	m.Issuer = m.ca("maker issuer", m.Root, m.key, m.rootKey)
	return m
}

func (m *Maker) ca(name string, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(m.serial.Add(1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour * 1000),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent = t
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer))))
}

// SAN encodes a TPM's subject alternative name.
func SAN(manufacturer, model, version string) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(4).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for i, v := range []string{manufacturer, model, version} {
					b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 23, 133, 2, 1 + i})
							b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(v)) })
						})
					})
				}
			})
		})
	})
	return must(b.Bytes())
}

// EKTemplate is an EK certificate as it should be.
func (m *Maker) EKTemplate(ek crypto.PublicKey) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(m.serial.Add(1)), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour * 1000),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: SAN("id:54524553", "soft", "id:00010000")}},
	}
	if _, ok := ek.(*rsa.PublicKey); ok {
		t.KeyUsage = x509.KeyUsageKeyEncipherment
	}
	return t
}

// Sign signs an EK certificate with the intermediate.
func (m *Maker) Sign(t *x509.Certificate, ek crypto.PublicKey) []byte {
	return must(x509.CreateCertificate(rand.Reader, t, m.Issuer, ek, m.key))
}

// IssuerSHA1 is the intermediate as a root signed it that still uses SHA-1.
func (m *Maker) IssuerSHA1() []byte {
	sha256 := []byte{0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2} // ecdsa-with-SHA256
	sha1 := []byte{0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1}      // ecdsa-with-SHA1
	in := cryptobyte.String(m.Issuer.RawTBSCertificate)
	var tbs, version, serial, alg cryptobyte.String
	if !in.ReadASN1(&tbs, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&version, cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!tbs.ReadASN1Element(&serial, cbasn1.INTEGER) || !tbs.ReadASN1(&alg, cbasn1.SEQUENCE) || string(alg) != string(sha256) {
		panic("softnode: intermediate")
	}
	oid := func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(sha1) })
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(version); b.AddBytes(serial); oid(b); b.AddBytes(tbs) })
	changed := must(b.Bytes())
	h := crypto.SHA1.New()
	h.Write(changed)
	sig := must(m.rootKey.Sign(rand.Reader, h.Sum(nil), crypto.SHA1))
	var out cryptobyte.Builder
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(changed); oid(b); b.AddASN1BitString(sig) })
	return must(out.Bytes())
}

// Resign signs a changed TBSCertificate with the intermediate's key.
func (m *Maker) Resign(tbs []byte) []byte {
	h := crypto.SHA256.New()
	h.Write(tbs)
	sig := must(m.key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256))
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2})
		})
		b.AddASN1BitString(sig)
	})
	return must(b.Bytes())
}
