package quote

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/reason"
)

// Key is an attestation key's public part, checked: a restricted signing key
// that was made in its TPM and can't leave it. A Key is immutable and safe for
// concurrent use; parse it once for each device and keep it.
type Key struct {
	p *public
}

// ParseKey parses the TPMT_PUBLIC of an attestation key. Errors are
// ErrMalformed and ErrKey. A key is refused unless it is fixedTPM, fixedParent,
// sensitiveDataOrigin, restricted and sign but not decrypt, with a scheme of
// its own (RSASSA, RSAPSS or ECDSA with SHA-256 or stronger).
func ParseKey(tpmtPublic []byte) (*Key, error) {
	p, err := parsePublic(tpmtPublic)
	if err != nil {
		return nil, err
	}
	if p.attrs&^attrFree != attrResident|attrRestricted|attrSign {
		return nil, reason.Because(reason.KeyAttributes, fmt.Errorf("%w: attributes %08x are not those of an attestation key", ErrKey, p.attrs))
	}
	if p.scheme == algNull {
		return nil, reason.Because(reason.NullScheme, fmt.Errorf("%w: an attestation key needs a scheme of its own", ErrKey))
	}
	if hashOf(p.schemeHash) == 0 {
		return nil, reason.Because(reason.SchemeHash, fmt.Errorf("%w: scheme %04x with hash %04x: an attestation key needs a scheme with SHA-256 or stronger", ErrKey, p.scheme, p.schemeHash))
	}
	_, isRSA := p.key.(*rsa.PublicKey)
	if isRSA != (p.scheme == algRSASSA || p.scheme == algRSAPSS) || !isRSA && p.scheme != algECDSA {
		return nil, reason.Because(reason.SchemeType, fmt.Errorf("%w: scheme %04x does not fit the key's type", ErrKey, p.scheme))
	}
	return &Key{p}, nil
}

// Name returns the key's TPM name: name algorithm and digest of its public
// area (TPM 2.0 Library, part 1, section 16).
func (k *Key) Name() []byte {
	if k.made() != nil {
		return nil
	}
	return bytes.Clone(k.p.name)
}

// Public returns the key as *rsa.PublicKey or *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey {
	if k.made() != nil {
		return nil
	}
	return k.p.key
}

// made refuses the zero value, which is no key.
func (k *Key) made() error {
	if k == nil || k.p == nil {
		return reason.Because(reason.KeyType, fmt.Errorf("%w: there is none", ErrKey))
	}
	return nil
}

// Values is what a quote proved: the values of exactly the PCRs asked for, and
// the TPM's clock and firmware at that moment. Only VerifyQuote makes one.
type Values struct {
	sel      []Selection
	values   []byte
	clock    tpm2.TPMSClockInfo
	firmware uint64
	plain    bool
}

// PCR returns one value, or nil for a PCR that was not selected. The slice is
// the caller's to read, not to write.
func (v Values) PCR(bank crypto.Hash, pcr int) []byte {
	off := 0
	for _, s := range v.sel {
		for _, p := range s.PCRs {
			if s.Bank == bank && p == pcr {
				return v.values[off : off+bank.Size() : off+bank.Size()]
			}
			off += s.Bank.Size()
		}
	}
	return nil
}

// Bank returns the values of one bank by PCR.
func (v Values) Bank(bank crypto.Hash) map[int][]byte {
	m := map[int][]byte{}
	for _, s := range v.sel {
		if s.Bank == bank {
			for _, p := range s.PCRs {
				m[p] = bytes.Clone(v.PCR(bank, p))
			}
		}
	}
	return m
}

// Clock returns the TPM's clock, reset and restart counts.
func (v Values) Clock() tpm2.TPMSClockInfo { return v.clock }

// Firmware returns the TPM's firmware version, as signed. It is the true one
// only when Plain says so.
func (v Values) Firmware() uint64 { return v.firmware }

// Plain reports whether counts and firmware version are the true ones: the key
// is a primary of the endorsement hierarchy, as what the TPM signed shows. For
// keys in other places the TPM adds secret numbers to them, constant for one
// key (TPM 2.0 Library, part 1, section 36.7).
func (v Values) Plain() bool { return v.plain }

// VerifyQuote verifies a quote: the signature first, then that the TPM made
// it over exactly the PCRs sel with the qualifying data given, then that
// values, the digests of those PCRs one after the other in the selection's
// order, are what was quoted. Errors are ErrSignature, ErrMalformed, ErrNonce,
// ErrSelection and ErrPCRMismatch. The result refers to sel and values: leave
// them unchanged.
func (k *Key) VerifyQuote(tpmsAttest, tpmtSignature, values []byte, sel []Selection, qualifying []byte) (Values, error) {
	if err := k.made(); err != nil {
		return Values{}, err
	}
	if err := CheckSelection(sel); err != nil {
		return Values{}, err
	}
	if want := ValuesSize(sel); len(values) != want {
		code := reason.TooManyValues
		if len(values) < want {
			code = reason.TooFewValues
		}
		return Values{}, reason.Because(code, fmt.Errorf("%w: %d bytes of PCR values, want %d", ErrPCRMismatch, len(values), want))
	}
	if err := k.verify(tpmsAttest, tpmtSignature); err != nil {
		return Values{}, err
	}
	a, err := parseAttested(tpmsAttest, attestQuote)
	if err != nil {
		return Values{}, err
	}
	if err := checkNonce(a.extraData, qualifying, reason.QuoteNonce); err != nil {
		return Values{}, err
	}
	var buf [4 + 6*maxBanks]byte
	if want := appendSelection(buf[:0], sel); !bytes.Equal(a.selection, want) {
		return Values{}, reason.Because(differs(a.selection, want), fmt.Errorf("%w: quoted %x, asked for %x", ErrSelection, a.selection, want))
	}
	if !matches(hashOf(k.p.schemeHash), values, a.digest) {
		return Values{}, reason.Because(reason.OtherValues, fmt.Errorf("%w: the values given are not those that were quoted", ErrPCRMismatch))
	}
	return Values{sel, values, a.clock, a.firmware, bytes.Equal(a.signer, k.p.qualified)}, nil
}

// VerifyCertify verifies that this key's TPM holds the key whose TPMT_PUBLIC
// is given (TPM2_Certify): the signature first, then the qualifying data, the
// name, and that the certified key is an unrestricted signing key which was
// made in that TPM and can't leave it. It returns the certified key. Errors
// are ErrSignature, ErrMalformed, ErrNonce and ErrKey.
func (k *Key) VerifyCertify(tpmsAttest, tpmtSignature, tpmtPublic, qualifying []byte) (crypto.PublicKey, error) {
	return k.verifyCertify(tpmsAttest, tpmtSignature, tpmtPublic, func(extra []byte) error { return checkNonce(extra, qualifying, reason.CertifyNonce) })
}

// InsecureVerifyCertifyAnyNonce is VerifyCertify for formats that bring no
// nonce, such as TCG-CSR-IDEVID: what it verifies may be old. Use it only
// where a fresh challenge follows.
func (k *Key) InsecureVerifyCertifyAnyNonce(tpmsAttest, tpmtSignature, tpmtPublic []byte) (crypto.PublicKey, error) {
	return k.verifyCertify(tpmsAttest, tpmtSignature, tpmtPublic, func([]byte) error { return nil })
}

func (k *Key) verifyCertify(tpmsAttest, tpmtSignature, tpmtPublic []byte, nonce func(extra []byte) error) (crypto.PublicKey, error) {
	if err := k.made(); err != nil {
		return nil, err
	}
	if err := k.verify(tpmsAttest, tpmtSignature); err != nil {
		return nil, err
	}
	a, err := parseAttested(tpmsAttest, attestCertify)
	if err != nil {
		return nil, err
	}
	if err := nonce(a.extraData); err != nil {
		return nil, err
	}
	p, err := parsePublic(tpmtPublic)
	if err != nil {
		return nil, err
	}
	if err := p.named(a); err != nil {
		return nil, err
	}
	if p.attrs&^attrFree != attrResident|attrSign {
		code := reason.CertifiedKeyUsage
		if p.attrs&attrResident != attrResident {
			code = reason.SoftwareKey
		}
		return nil, reason.Because(code, fmt.Errorf("%w: attributes %08x are not those of a key that signs and stays in its TPM", ErrKey, p.attrs))
	}
	return p.key, nil
}

func checkNonce(got, want []byte, other reason.Code) error {
	switch {
	case len(got) == 0 || len(want) < 32:
		return reason.Because(reason.NoNonce, ErrNonce)
	case subtle.ConstantTimeCompare(got, want) != 1:
		return reason.Because(other, ErrNonce)
	}
	return nil
}

func matches(hash crypto.Hash, values, digest []byte) bool {
	switch hash {
	case crypto.SHA256:
		d := sha256.Sum256(values)
		return bytes.Equal(d[:], digest)
	case crypto.SHA384:
		d := sha512.Sum384(values)
		return bytes.Equal(d[:], digest)
	case crypto.SHA512:
		d := sha512.Sum512(values)
		return bytes.Equal(d[:], digest)
	}
	return false
}

// verify checks a TPMT_SIGNATURE over data. The signature must use the scheme
// and the hash that the key itself prescribes.
func (k *Key) verify(data, sig []byte) error {
	if len(data) > maxAttested || len(sig) > maxSignature {
		return reason.Because(reason.TooLarge, fmt.Errorf("%w: %d bytes attested, signature of %d", ErrMalformed, len(data), len(sig)))
	}
	c := cursor{b: sig}
	if scheme, hash := c.u16(), c.u16(); !c.bad && (scheme != k.p.scheme || hash != k.p.schemeHash) {
		return reason.Because(reason.SignatureScheme, fmt.Errorf("%w: scheme %04x with hash %04x is not the key's", ErrSignature, scheme, hash))
	}
	var buf [64]byte
	var digest []byte
	hash := hashOf(k.p.schemeHash)
	switch hash {
	case crypto.SHA256:
		d := sha256.Sum256(data)
		digest = append(buf[:0], d[:]...)
	case crypto.SHA384:
		d := sha512.Sum384(data)
		digest = append(buf[:0], d[:]...)
	default:
		d := sha512.Sum512(data)
		digest = append(buf[:0], d[:]...)
	}
	ok := false
	switch key := k.p.key.(type) {
	case *rsa.PublicKey:
		s := c.sized(512)
		if err := c.whole("signature"); err != nil {
			return err
		}
		if k.p.scheme == algRSASSA {
			ok = rsa.VerifyPKCS1v15(key, hash, digest, s) == nil
		} else {
			ok = rsa.VerifyPSS(key, hash, digest, s, nil) == nil
		}
	case *ecdsa.PublicKey:
		r, s := c.sized(66), c.sized(66)
		if err := c.whole("signature"); err != nil {
			return err
		}
		var der [160]byte
		ok = ecdsa.VerifyASN1(key, digest, appendSignature(der[:0], r, s))
	}
	if !ok {
		return reason.Because(reason.BadSignature, ErrSignature)
	}
	return nil
}

// appendSignature appends ASN.1 SEQUENCE { INTEGER r, INTEGER s }.
func appendSignature(b, r, s []byte) []byte {
	r, s = trim(r), trim(s)
	n := 4 + len(r) + len(s) + pad(r) + pad(s)
	b = append(b, 0x30)
	if n > 127 {
		b = append(b, 0x81)
	}
	b = append(b, byte(n))
	for _, v := range [...][]byte{r, s} {
		b = append(b, 2, byte(len(v)+pad(v)))
		if pad(v) == 1 {
			b = append(b, 0)
		}
		b = append(b, v...)
	}
	return b
}

func trim(v []byte) []byte {
	for len(v) > 1 && v[0] == 0 {
		v = v[1:]
	}
	return v
}

func pad(v []byte) int {
	if len(v) == 0 || v[0] >= 0x80 {
		return 1
	}
	return 0
}
