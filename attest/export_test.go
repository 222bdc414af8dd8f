package attest

import (
	"crypto"
	"crypto/x509"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/internal/tpm"
)

// AKTemplate and EnrollBinding let tests forge what a thief's own code could
// make.
func AKTemplate() tpm2.TPMTPublic { return akTemplate("") }

func EnrollBinding(id registry.DeviceID, nonce []byte, spki [32]byte) []byte {
	return enrollBinding(purposeEnroll, id, nonce, spki)
}

// Binding gives the vectors' test the formula.
func Binding(s Session, nonce, binding []byte, bodies []Body) (digest [32]byte, qualifying []byte) {
	digest = bodiesDigest(bodies)
	return digest, s.qualifyingData(nonce, binding, digest)
}

// ParseEKCertificate is for the fuzz test, which has no certificate that
// anybody vouches for.
func ParseEKCertificate(der []byte) (*x509.Certificate, error) { return parseEKCertificate(der) }

// EKTemplates returns name, NV index and TPM2_CreatePrimary template of each
// endorsement key.
func EKTemplates(f func(name string, index tpm2.TPMHandle, template tpm2.TPMTPublic)) {
	for _, t := range ekTemplates() {
		pub, err := t.public(nil)
		if err != nil {
			panic(err)
		}
		f(t.name, t.cert, pub)
	}
}

// SetDevice gives an open node another line to its TPM.
func SetDevice(n *Node, t transport.TPM) { n.dev = tpm.Wrap(t) }

// EKPublic returns the public area of an endorsement key of a template.
func EKPublic(name string, key crypto.PublicKey) (tpm2.TPMTPublic, error) {
	for _, t := range ekTemplates() {
		if t.name == name {
			return t.public(key)
		}
	}
	return tpm2.TPMTPublic{}, ErrNoKey
}

// CertificatesIn finds certificates in the contents of NV indices.
func CertificatesIn(contents [][]byte) []*x509.Certificate {
	certs, _ := certificatesIn(contents)
	return certs
}

// VerifyKeys is for the fuzz test.
func VerifyKeys(ak *quote.Key, s Session, nonce []byte, bodies []Body) ([]crypto.PublicKey, error) {
	return verifyKeys(ak, s, nonce, bodies)
}

// KeysType is the media type of key attestations.
const KeysType = keysType
