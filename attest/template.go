package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/tpm"
)

// ekTemplate is one endorsement key of the TCG EK Credential Profile 2.5,
// annex B.
type ekTemplate struct {
	name    string // as in the profile
	cert    tpm2.TPMHandle
	handle  tpm2.TPMHandle // where the profile has it persistent
	rsaBits int
	curve   elliptic.Curve
	high    bool // high range: user auth works, no nonce and template in NV
}

// ekTemplates lists the templates in the order in which a node prefers them:
// elliptic curves first, because they are quick on every TPM.
func ekTemplates() []ekTemplate {
	return []ekTemplate{
		{"L-2", tpm.NVEKCertP256, 0x8101000A, 0, elliptic.P256(), false},
		{"H-2", tpm.NVEKCertHP256, 0x81010014, 0, elliptic.P256(), true},
		{"H-3", tpm.NVEKCertHP384, 0x81010016, 0, elliptic.P384(), true},
		{"L-1", tpm.NVEKCertRSA2048, tpm.HandleEKRSA2048, 2048, nil, false},
		{"H-1", tpm.NVEKCertHRSA2048, 0x81010012, 2048, nil, true},
		{"H-6", tpm.NVEKCertHRSA3072, 0x8101001C, 3072, nil, true},
		{"H-7", tpm.NVEKCertHRSA4096, 0x8101001E, 4096, nil, true},
	}
}

// Policies of the templates (annex B.6): PolicyA is PolicySecret(endorsement)
// in SHA-256, PolicyB is PolicyOR of that and an NV policy of the owner.
const (
	policyA256 = "\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24\xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa"
	policyB256 = "\xca\x3d\x0a\x99\xa2\xb9\x39\x06\xf7\xa3\x34\x24\x14\xef\xcf\xb3\xa3\x85\xd4\x4c\xd1\xfd\x45\x90\x89\xd1\x9b\x50\x71\xc0\xb7\xa0"
	policyB384 = "\xb2\x6e\x7d\x28\xd1\x1a\x50\xbc\x53\xd8\x82\xbc\xf5\xfd\x3a\x1a\x07\x41\x48\xbb\x35\xd3\xb4\xe4\xcb\x1c\x0a\xd9\xbd\xe4\x19\xca\xcb\x47\xba\x09\x69\x96\x46\x15\x0f\x9f\xc0\x00\xf3\xf8\x0e\x12"
)

// public builds the TPMT_PUBLIC of a template, with key as its unique field,
// or empty as for TPM2_CreatePrimary when key is nil.
func (t ekTemplate) public(key crypto.PublicKey) (tpm2.TPMTPublic, error) {
	pub := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, AdminWithPolicy: true,
			UserWithAuth: t.high, Restricted: true, Decrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: []byte(policyA256)},
	}
	aes := tpm2.TPMKeyBits(128)
	strong := t.rsaBits > 2048 || t.curve == elliptic.P384()
	switch {
	case strong:
		pub.NameAlg, pub.AuthPolicy.Buffer, aes = tpm2.TPMAlgSHA384, []byte(policyB384), 256
	case t.high:
		pub.AuthPolicy.Buffer = []byte(policyB256)
	}
	sym := tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, aes),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
	if t.rsaBits > 0 {
		var n []byte
		if k, ok := key.(*rsa.PublicKey); ok {
			n = k.N.FillBytes(make([]byte, t.rsaBits/8))
		} else if key != nil {
			return pub, fmt.Errorf("template %s is of an RSA key, the key is %T", t.name, key)
		} else if !t.high {
			n = make([]byte, t.rsaBits/8)
		}
		pub.Type = tpm2.TPMAlgRSA
		pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: sym, KeyBits: tpm2.TPMKeyBits(t.rsaBits)})
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: n})
		return pub, nil
	}
	size := (t.curve.Params().BitSize + 7) / 8
	var x, y []byte
	if k, ok := key.(*ecdsa.PublicKey); ok {
		point, err := k.Bytes()
		if err != nil {
			return pub, err
		}
		x, y = point[1:1+size], point[1+size:]
	} else if key != nil {
		return pub, fmt.Errorf("template %s is of an elliptic curve key, the key is %T", t.name, key)
	} else if !t.high {
		x, y = make([]byte, size), make([]byte, size)
	}
	curve := tpm2.TPMECCNistP256
	if t.curve == elliptic.P384() {
		curve = tpm2.TPMECCNistP384
	}
	pub.Type = tpm2.TPMAlgECC
	pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: sym, CurveID: curve})
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y}})
	return pub, nil
}

// primary returns the template for TPM2_CreatePrimary: with the nonce that the
// TPM's maker left beside the certificate, where there is one (low range only;
// TCG EK Credential Profile 2.5, section 2.2.1.4).
func (t ekTemplate) primary(d *tpm.Device) (tpm2.TPMTPublic, error) {
	pub, err := t.public(nil)
	if err != nil || t.high {
		return pub, err
	}
	nonce, err := readNV(d, t.cert+1)
	if errors.Is(err, ErrNoKey) {
		return pub, nil
	}
	if err != nil {
		return pub, err
	}
	if t.rsaBits > 0 {
		unique := make([]byte, t.rsaBits/8)
		if len(nonce) > len(unique) {
			return pub, fmt.Errorf("%w: nonce of %d bytes for template %s", ErrNoKey, len(nonce), t.name)
		}
		copy(unique, nonce)
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: unique})
		return pub, nil
	}
	x := make([]byte, (t.curve.Params().BitSize+7)/8)
	if len(nonce) > len(x) {
		return pub, fmt.Errorf("%w: nonce of %d bytes for template %s", ErrNoKey, len(nonce), t.name)
	}
	copy(x, nonce)
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, len(x))}})
	return pub, nil
}

// akTemplate is the attestation key: a primary of the endorsement hierarchy,
// so that it needs no file, outlives a wiped disk and TPM2_Clear, and its
// quotes show clock counters and firmware version in the clear. It has the
// attributes of the IAK template for P-256 (TCG TPM 2.0 Keys for Device
// Identity and Attestation 1.0, section 7.3), except that the owner's empty
// auth value is enough for credential activation and failures do not lock it.
func akTemplate(label string) tpm2.TPMTPublic {
	if label == "" {
		label = "IAK"
	}
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme:  ecdsaScheme(tpm2.TPMAlgSHA256),
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte(label)}}),
	}
}

// Algorithms of the TLS key.
const (
	keyP256    = "P-256"
	keyP384    = "P-384"
	keyRSA2048 = "RSA-2048"
)

// deviceKeyTemplate is the TLS key (LDevID): a signing key below the storage
// root key that can't leave the TPM. It leaves the scheme to each signature,
// because TLS negotiates hash and padding.
func deviceKeyTemplate(algorithm string) (tpm2.TPMTPublic, error) {
	pub := tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true,
		},
	}
	curve := tpm2.TPMECCNistP256
	switch algorithm {
	case "", keyP256:
	case keyP384:
		curve = tpm2.TPMECCNistP384
	case keyRSA2048:
		pub.Type = tpm2.TPMAlgRSA
		pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048})
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
		return pub, nil
	default:
		return pub, fmt.Errorf("attest: NodeConfig.KeyAlgorithm %q: want P-256, P-384 or RSA-2048", algorithm)
	}
	pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve})
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return pub, nil
}

func ecdsaScheme(hash tpm2.TPMAlgID) tpm2.TPMTECCScheme {
	return tpm2.TPMTECCScheme{
		Scheme:  tpm2.TPMAlgECDSA,
		Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
	}
}
