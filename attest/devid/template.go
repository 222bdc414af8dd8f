package devid

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Policies of the templates (section 7.3.6 of the TCG's specification), by
// name algorithm.
const (
	iakPolicy256    = "\x54\x37\x18\x23\x26\xe4\x14\xfc\xa7\x97\xd5\xf1\x74\x61\x5a\x16\x41\xf6\x12\x55\x79\x7c\x3a\x2b\x22\xc2\x1d\x12\x0b\x2d\x1e\x07"
	iakPolicy384    = "\x12\x9d\x94\xeb\xf8\x45\x56\x65\x2c\x6e\xef\x43\xbb\xb7\x57\x51\x2a\xc8\x7e\x52\xbe\x7b\x34\x9c\xa6\xce\x4d\x82\x6f\x74\x9f\xcf\x67\x2f\x51\x71\x6c\x5c\xbb\x60\x5f\x31\x3b\xf3\x45\xaa\xb3\x12"
	idevidPolicy256 = "\xad\x6b\x3a\x22\x84\xfd\x69\x8a\x07\x10\xbf\x5c\xc1\xb9\xbd\xf1\x5e\x25\x32\xe3\xf6\x01\xfa\x4b\x93\xa6\xa8\xfa\x8d\xe5\x79\xea"
	idevidPolicy384 = "\x4d\xb1\xaa\x83\x6d\x0b\x56\x15\xdf\x6e\xe5\x3a\x40\xef\x70\xc6\x1c\x21\x7f\x43\x03\xd4\x46\x95\x92\x59\x72\xbc\x92\x70\x06\xcf\xa5\xcb\xdf\x6d\xc1\x8c\x4d\xbe\x32\x9b\x2f\x15\x42\xc3\xdd\x33"
)

// IAK returns the template of the initial attestation key for a curve, P-256
// or P-384: a primary of the endorsement hierarchy.
func IAK(curve tpm2.TPMECCCurve) (tpm2.TPMTPublic, error) {
	return template(curve, "IAK", true, iakPolicy256, iakPolicy384)
}

// IDevID returns the template of the initial device identity key for a curve,
// P-256 or P-384: a primary of the endorsement hierarchy.
func IDevID(curve tpm2.TPMECCCurve) (tpm2.TPMTPublic, error) {
	return template(curve, "IDEVID", false, idevidPolicy256, idevidPolicy384)
}

func template(curve tpm2.TPMECCCurve, unique string, restricted bool, policy256, policy384 string) (tpm2.TPMTPublic, error) {
	hash, policy := tpm2.TPMAlgSHA256, policy256
	switch curve {
	case tpm2.TPMECCNistP256:
	case tpm2.TPMECCNistP384:
		hash, policy = tpm2.TPMAlgSHA384, policy384
	default:
		return tpm2.TPMTPublic{}, fmt.Errorf("devid: curve %v: want P-256 or P-384", curve)
	}
	param := tpm2.TPM2BECCParameter{Buffer: []byte(unique)}
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: hash, AuthPolicy: tpm2.TPM2BDigest{Buffer: []byte(policy)},
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, AdminWithPolicy: true,
			Restricted: restricted, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: curve,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
			},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: param, Y: param}),
	}, nil
}
