package quote

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"

	"github.com/trusttree/trusttree/attest/reason"
)

const algHMAC = 0x0005

// VerifyImported verifies that the TPM which could import an HMAC key holds an
// attestation key too: the imported key (32 bytes, for SHA-256) certified the
// one whose TPMT_PUBLIC is given (TPM2_Certify). The signature comes first,
// then the qualifying data, the name and the key's attributes, as for ParseKey.
// primary says that the attestation key is a primary key of the endorsement
// hierarchy. Errors are ErrSignature, ErrMalformed, ErrNonce and ErrKey.
func VerifyImported(key, tpmsAttest, tpmtSignature, tpmtPublic, qualifying []byte) (ak *Key, primary bool, err error) {
	return verifyImported(key, tpmsAttest, tpmtSignature, tpmtPublic, func(extra []byte) error { return checkNonce(extra, qualifying, reason.CertifyNonce) })
}

// InsecureVerifyImportedAnyNonce is VerifyImported for protocols that sign no
// qualifying data and count on the HMAC key being used once.
func InsecureVerifyImportedAnyNonce(key, tpmsAttest, tpmtSignature, tpmtPublic []byte) (ak *Key, primary bool, err error) {
	return verifyImported(key, tpmsAttest, tpmtSignature, tpmtPublic, func([]byte) error { return nil })
}

func verifyImported(key, tpmsAttest, tpmtSignature, tpmtPublic []byte, nonce func([]byte) error) (*Key, bool, error) {
	if len(key) != sha256.Size {
		return nil, false, reason.Because(reason.HMACKey, fmt.Errorf("%w: HMAC key of %d bytes, want %d", ErrKey, len(key), sha256.Size))
	}
	if len(tpmsAttest) > maxAttested || len(tpmtSignature) > maxSignature {
		return nil, false, reason.Because(reason.TooLarge, fmt.Errorf("%w: %d bytes attested, signature of %d", ErrMalformed, len(tpmsAttest), len(tpmtSignature)))
	}
	c := cursor{b: tpmtSignature}
	alg, hash, got := c.u16(), c.u16(), c.bytes(sha256.Size)
	if !c.bad && (alg != algHMAC || hash != algSHA256) {
		return nil, false, reason.Because(reason.SignatureScheme, fmt.Errorf("%w: scheme %04x with hash %04x is not the HMAC key's", ErrSignature, alg, hash))
	}
	if err := c.whole("signature"); err != nil {
		return nil, false, err
	}
	digest := sha256.Sum256(tpmsAttest)
	h := hmac.New(sha256.New, key)
	h.Write(digest[:])
	if !hmac.Equal(h.Sum(nil), got) {
		return nil, false, reason.Because(reason.BadSignature, ErrSignature)
	}
	a, err := parseAttested(tpmsAttest, attestCertify)
	if err != nil {
		return nil, false, err
	}
	if err := nonce(a.extraData); err != nil {
		return nil, false, err
	}
	ak, err := ParseKey(tpmtPublic)
	if err != nil {
		return nil, false, err
	}
	if err := ak.p.named(a); err != nil {
		return nil, false, err
	}
	return ak, string(a.qualified) == string(ak.p.qualified), nil
}

// named checks that it is this key which was certified, and that the TPM knew
// it as one of a hierarchy: the qualified name of a public key that was only
// loaded from outside is its name.
func (p *public) named(a attested) error {
	if string(p.name) != string(a.name) {
		return reason.Because(reason.OtherKey, fmt.Errorf("%w: another key was certified", ErrKey))
	}
	if string(a.qualified) == string(a.name) {
		return reason.Because(reason.LoadedKey, fmt.Errorf("%w: the key was loaded from outside, not made in the TPM", ErrKey))
	}
	return nil
}
