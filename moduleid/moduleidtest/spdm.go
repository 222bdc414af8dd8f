package moduleidtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

// NewSPDM returns an SPDM responder with a fresh P-256 key that the CA
// certifies, and its certificate. Its one measurement, index 1 of kind
// "firmware", is the SHA-256 of the firmware. spdm.Loopback reaches it, and
// [NewSPDMPort] with faults.
func NewSPDM(ca *CA, name string, firmware []byte) (*spdm.Responder, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	cert, err := ca.Issue(name, key.Public(), nil)
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(firmware)
	r, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate},
		Measurements: []moduleid.Measurement{{Index: 1, Kind: "firmware", Value: sum[:]}}})
	return r, cert, err
}
