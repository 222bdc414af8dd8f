package softtpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"
)

// Maker is a TPM manufacturer for tests: a certificate authority whose root
// and intermediate issue the endorsement certificates of its TPMs. It vouches
// for nothing. It is safe for concurrent use.
type Maker struct {
	Root          *x509.Certificate
	Intermediates []*x509.Certificate

	key *ecdsa.PrivateKey // the intermediate's
}

var (
	oidEKCertificate   = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
	oidTPMManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidTPMModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidTPMVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
	oidSubjectAltName  = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// NewMaker makes a manufacturer with new keys.
func NewMaker() (*Maker, error) {
	m := &Maker{}
	rootKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("softtpm: root key: %w", err)
	}
	if m.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("softtpm: issuer key: %w", err)
	}
	start := time.Now().Add(-time.Hour)
	ca := func(name string, pathLen int) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: serial(), Subject: pkix.Name{CommonName: name, Organization: []string{"trusttree test"}},
			NotBefore: start, NotAfter: start.AddDate(20, 0, 0), IsCA: true, BasicConstraintsValid: true,
			MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	if m.Root, err = issue(ca("Test TPM maker root (protects nothing)", 1), nil, &rootKey.PublicKey, rootKey); err != nil {
		return nil, err
	}
	issuer, err := issue(ca("Test TPM maker EK issuer (protects nothing)", 0), m.Root, &m.key.PublicKey, rootKey)
	if err != nil {
		return nil, err
	}
	m.Intermediates = []*x509.Certificate{issuer}
	return m, nil
}

func issue(template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("softtpm: certificate of %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] = b[0]&0x7F | 0x40
	return new(big.Int).SetBytes(b[:])
}

// ekCertificate issues an endorsement certificate (TCG EK Credential Profile
// 2.5, section 3.2): empty subject, the TPM's manufacturer, model and version
// in a critical subject alternative name.
func (m *Maker) ekCertificate(pub crypto.PublicKey) ([]byte, error) {
	name := pkix.RDNSequence{}
	for _, e := range []struct {
		oid   asn1.ObjectIdentifier
		value string
	}{{oidTPMManufacturer, fmt.Sprintf("id:%X", Manufacturer)}, {oidTPMModel, "softtpm"}, {oidTPMVersion, "id:20260001"}} {
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: e.oid, Value: e.value}})
	}
	rdn, err := asn1.Marshal(name)
	if err != nil {
		return nil, fmt.Errorf("softtpm: EK certificate: %w", err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: rdn}})
	if err != nil {
		return nil, fmt.Errorf("softtpm: EK certificate: %w", err)
	}
	start := time.Now().Add(-time.Hour)
	template := &x509.Certificate{
		SerialNumber: serial(), NotBefore: start, NotAfter: start.AddDate(20, 0, 0), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate},
		ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: san}},
	}
	if _, ok := pub.(*rsa.PublicKey); ok {
		template.KeyUsage = x509.KeyUsageKeyEncipherment
	}
	cert, err := issue(template, m.Intermediates[0], pub, m.key)
	if err != nil {
		return nil, err
	}
	return cert.Raw, nil
}

// ekSlot names one of the endorsement keys that have certificates.
type ekSlot int

const (
	ekNone    ekSlot = iota
	ekRSA2048        // template L-1
	ekP256           // template L-2
	ekP384           // template H-3
)

// ekIndices are the NV indices of the certificates (TCG EK Credential Profile
// 2.5, section 2.2.1.4).
var ekIndices = []struct {
	slot  ekSlot
	index uint32
}{{ekRSA2048, 0x01C00002}, {ekP256, 0x01C0000A}, {ekP384, 0x01C00016}}

// ekCertAttributes: written and locked by the platform, readable by anybody.
const ekCertAttributes = nvPPWrite | nvWriteDefine | nvPPRead | nvOwnerRead | nvAuthRead | nvNoDA | nvWritten | nvWriteLocked | nvPlatformCreate

// Policies of the endorsement keys: PolicySecret of the endorsement hierarchy
// (template group L), and PolicyOR of that and PolicyAuthorizeNV (group H).
var (
	policyA256 = unhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
	policyB384 = unhex("b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12")
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err) // constants
	}
	return b
}

// ekTemplate returns the template of an endorsement key (TCG EK Credential
// Profile 2.5, annex B).
func ekTemplate(slot ekSlot) *public {
	const l = attrFixedTPM | attrFixedParent | attrDataOrigin | attrAdminPolicy | attrRestricted | attrDecrypt
	null := scheme{alg: algNull}
	switch slot {
	case ekRSA2048:
		return &public{typ: algRSA, nameAlg: algSHA256, attrs: l, policy: policyA256, sym: symDef{algAES, 128, algCFB}, scheme: null,
			bits: 2048, unique: make([]byte, 256)}
	case ekP256:
		return &public{typ: algECC, nameAlg: algSHA256, attrs: l, policy: policyA256, sym: symDef{algAES, 128, algCFB}, scheme: null,
			curve: 3, kdf: null, x: make([]byte, 32), y: make([]byte, 32)}
	default:
		return &public{typ: algECC, nameAlg: algSHA384, attrs: l | attrUserWithAuth, policy: policyB384, sym: symDef{algAES, 256, algCFB},
			scheme: null, curve: 4, kdf: null}
	}
}

// provision defines the certificates' indices. The certificate of the P-256
// key is made at once, the others when they are first asked for.
func (t *TPM) provision() error {
	if t.cfg.Maker == nil {
		return nil
	}
	for _, e := range ekIndices {
		n := &nvIndex{handle: e.index, nameAlg: algSHA256, attrs: ekCertAttributes, slot: e.slot}
		t.nv[e.index] = n
		if e.slot == ekP256 && !t.materialize(n) {
			return fmt.Errorf("softtpm: endorsement certificate 0x%08x can't be made", e.index)
		}
	}
	return nil
}

// forgetFactory removes the certificates that can't be made any more.
func (t *TPM) forgetFactory() {
	for h, n := range t.nv {
		if n.slot != ekNone && n.data == nil {
			delete(t.nv, h)
			t.dirty = true
		}
	}
}

// materialize makes the content of an endorsement certificate's index.
func (t *TPM) materialize(n *nvIndex) bool {
	if n.slot == ekNone || n.data != nil {
		return true
	}
	if t.cfg.Maker == nil {
		return false
	}
	template := ekTemplate(n.slot)
	o, e := t.newPrimary(rhEndorsement, template.bytes(), template, nil, nil)
	if e != 0 {
		return false
	}
	var pub crypto.PublicKey
	if k := o.ecKey(); k != nil {
		pub = &k.PublicKey
	} else {
		pub = &o.rsaKey().PublicKey
	}
	cert, err := t.cfg.Maker.ekCertificate(pub)
	if err != nil {
		return false
	}
	n.data, n.size, t.dirty = cert, len(cert), true
	return true
}
