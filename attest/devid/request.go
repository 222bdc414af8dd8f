package devid

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // the request's hash
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/quote"
)

// Errors; test with errors.Is. Those of packages attest and quote come
// through.
var (
	ErrMalformed = errors.New("devid: malformed request")
	ErrSignature = errors.New("devid: request is not signed by the key to be certified")
)

// Limits of a request.
const (
	MaxSize  = 1 << 20 // of the whole, in bytes
	maxField = 512 << 10
	maxText  = 256
	version  = 0x00000100 // TCG_CSR_IDEVID.structVer
)

// Request is a parsed TCG-CSR-IDEVID. Nothing in it has been verified.
type Request struct {
	Model, Serial string // of the product
	CAData        []byte // whatever the CA asked for
	EventLog      []byte
	EKCertificate []byte // DER
	AttestPublic  []byte // TPMT_PUBLIC of the attestation key
	CreateTicket  []byte // of the attestation key; three fields that may be empty
	CreateInfo    []byte
	CreateSig     []byte
	KeyPublic     []byte // TPMT_PUBLIC of the key to be certified
	Certify       []byte // TPMS_ATTEST of that key by the attestation key
	CertifySig    []byte // TPMT_SIGNATURE over Certify

	contents  []byte
	signature []byte // TPMT_SIGNATURE over contents by the key to be certified
}

// New makes the request for a node's key from the messages of its enrolment,
// and signs it with that key (attest.DeviceKey is one).
func New(model, serial string, begin *attest.EnrollmentRequest, answer *attest.ActivationResponse, key crypto.Signer) ([]byte, error) {
	if begin == nil || answer == nil || len(begin.EKCertificates) == 0 {
		return nil, errors.New("devid: the enrolment's messages are required")
	}
	r := &Request{
		Model: model, Serial: serial, EKCertificate: begin.EKCertificates[0], AttestPublic: begin.AKPublic,
		KeyPublic: answer.KeyPublic, Certify: answer.Certify, CertifySig: answer.Signature,
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	r.contents = r.encode()
	h := crypto.SHA256.New()
	h.Write(r.contents)
	sig, err := key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("devid: sign: %w", err)
	}
	if r.signature, err = tpmtSignature(key.Public(), sig); err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(nil, version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.contents)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.signature)))
	return append(append(b, r.contents...), r.signature...), nil
}

// tpmtSignature turns a crypto.Signer's signature over SHA-256 into a
// TPMT_SIGNATURE.
func tpmtSignature(key crypto.PublicKey, sig []byte) ([]byte, error) {
	if _, ok := key.(*rsa.PublicKey); ok {
		return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
			&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}})}), nil
	}
	var in, r, s cryptobyte.String
	in = sig
	if !in.ReadASN1(&in, asn1.SEQUENCE) || !in.ReadASN1(&r, asn1.INTEGER) || !in.ReadASN1(&s, asn1.INTEGER) || !in.Empty() {
		return nil, errors.New("devid: signature is not an ECDSA one")
	}
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA,
		&tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: bytes.TrimLeft(r, "\x00")}, SignatureS: tpm2.TPM2BECCParameter{Buffer: bytes.TrimLeft(s, "\x00")}})}), nil
}

// fields are TCG_CSR_IDEVID_CONTENT's variable parts in order.
func (r *Request) fields() []*[]byte {
	return []*[]byte{&r.CAData, &r.EventLog, &r.EKCertificate, &r.AttestPublic, &r.CreateTicket, &r.CreateInfo, &r.CreateSig, &r.KeyPublic, &r.Certify, &r.CertifySig}
}

func (r *Request) check() error {
	if len(r.Model) == 0 || len(r.Model) > maxText || len(r.Serial) == 0 || len(r.Serial) > maxText {
		return fmt.Errorf("%w: model and serial number have 1 to %d bytes", ErrMalformed, maxText)
	}
	for _, f := range r.fields() {
		if len(*f) > maxField {
			return fmt.Errorf("%w: field of %d bytes, limit %d", ErrMalformed, len(*f), maxField)
		}
	}
	for _, f := range [][]byte{r.EKCertificate, r.AttestPublic, r.KeyPublic, r.Certify, r.CertifySig} {
		if len(f) == 0 {
			return fmt.Errorf("%w: a required field is empty", ErrMalformed)
		}
	}
	return nil
}

// encode encodes TCG_CSR_IDEVID_CONTENT, padded to a multiple of 16 bytes.
func (r *Request) encode() []byte {
	u32 := binary.BigEndian.AppendUint32
	sizes := u32(u32(nil, uint32(len(r.Model))), uint32(len(r.Serial)))
	data := append([]byte(r.Model), r.Serial...)
	for _, f := range r.fields() {
		sizes = u32(sizes, uint32(len(*f)))
		data = append(data, *f...)
	}
	head := 12 + crypto.SHA256.Size()
	pad := (16 - (head+len(sizes)+4+len(data))%16) % 16
	rest := append(u32(sizes, uint32(pad)), data...)
	rest = append(rest, make([]byte, pad)...)
	h := crypto.SHA256.New()
	h.Write(rest)
	b := u32(u32(u32(nil, version), uint32(tpm2.TPMAlgSHA256)), uint32(crypto.SHA256.Size()))
	return append(h.Sum(b), rest...)
}

// Parse parses a TCG-CSR-IDEVID whole. Every error is ErrMalformed.
func Parse(b []byte) (*Request, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrMalformed, len(b), MaxSize)
	}
	bad := fmt.Errorf("%w: it is cut short or has bytes too many", ErrMalformed)
	s := cryptobyte.String(b)
	var v, contentsSize, signatureSize uint32
	if !s.ReadUint32(&v) || !s.ReadUint32(&contentsSize) || !s.ReadUint32(&signatureSize) || uint64(contentsSize)+uint64(signatureSize) != uint64(len(s)) {
		return nil, bad
	}
	if v != version {
		return nil, fmt.Errorf("%w: version %08x, this program reads %08x", ErrMalformed, v, version)
	}
	r := &Request{contents: s[:contentsSize], signature: s[contentsSize:]}
	c := cryptobyte.String(r.contents)
	var alg, hashSize uint32
	if !c.ReadUint32(&v) || !c.ReadUint32(&alg) || !c.ReadUint32(&hashSize) {
		return nil, bad
	}
	hash := map[uint32]crypto.Hash{uint32(tpm2.TPMAlgSHA256): crypto.SHA256, uint32(tpm2.TPMAlgSHA384): crypto.SHA384, uint32(tpm2.TPMAlgSHA512): crypto.SHA512}[alg]
	var digest []byte
	if v != version || hash == 0 || hashSize != uint32(hash.Size()) || !c.ReadBytes(&digest, int(hashSize)) {
		return nil, fmt.Errorf("%w: version %08x with hash algorithm %04x", ErrMalformed, v, alg)
	}
	h := hash.New()
	h.Write(c)
	if !bytes.Equal(h.Sum(nil), digest) {
		return nil, fmt.Errorf("%w: its hash is of other contents", ErrMalformed)
	}
	fields := r.fields()
	sizes := make([]uint32, 3+len(fields))
	for i := range sizes {
		if !c.ReadUint32(&sizes[i]) || sizes[i] > maxField {
			return nil, bad
		}
	}
	var model, serial, pad []byte
	ok := c.ReadBytes(&model, int(sizes[0])) && c.ReadBytes(&serial, int(sizes[1]))
	for i, f := range fields {
		ok = ok && c.ReadBytes(f, int(sizes[2+i]))
	}
	if !ok || sizes[len(sizes)-1] > 15 || !c.ReadBytes(&pad, int(sizes[len(sizes)-1])) || !c.Empty() {
		return nil, bad
	}
	r.Model, r.Serial = string(model), string(serial)
	return r, r.check()
}

// Verified is a request whose signatures and endorsement hold. Only
// Request.Verify makes one; the zero value is of nobody.
type Verified struct {
	request     *Request
	endorsement *attest.Endorsement
	key         crypto.PublicKey
}

// Endorsement returns the TPM maker's word about the endorsement key.
func (v *Verified) Endorsement() *attest.Endorsement { return v.endorsement }

// Key returns the key to be certified.
func (v *Verified) Key() crypto.PublicKey { return v.key }

// Model returns the product's model, as the requester says.
func (v *Verified) Model() string { return v.parsed().Model }

// Serial returns the product's serial number, as the requester says.
func (v *Verified) Serial() string { return v.parsed().Serial }

// AttestPublic returns the TPMT_PUBLIC of the attestation key, for the
// credential that proves its TPM.
func (v *Verified) AttestPublic() []byte { return bytes.Clone(v.parsed().AttestPublic) }

// parsed is the request, an empty one in the zero value.
func (v *Verified) parsed() *Request {
	if v.request == nil {
		return &Request{}
	}
	return v.request
}

// Verify checks a request: the endorsement key's certificate, the attestation
// key's attributes, that it certified the key to be certified as a signing key
// of its TPM, and that this key signed the request. Errors are
// attest.ErrUntrustedEK, ErrSignature and those of package quote.
func (r *Request) Verify(e attest.Endorsers, now time.Time) (*Verified, error) {
	en, err := e.Verify([][]byte{r.EKCertificate}, now)
	if err != nil {
		return nil, err
	}
	ak, err := quote.ParseKey(r.AttestPublic)
	if err != nil {
		return nil, err
	}
	key, err := ak.InsecureVerifyCertifyAnyNonce(r.Certify, r.CertifySig, r.KeyPublic)
	if err != nil {
		return nil, err
	}
	if !verify(key, r.contents, r.signature) {
		return nil, ErrSignature
	}
	return &Verified{r, en, key}, nil
}

// verify checks a TPMT_SIGNATURE by the key to be certified.
func verify(key crypto.PublicKey, contents, signature []byte) bool {
	s := cryptobyte.String(signature)
	var scheme, alg uint16
	if !s.ReadUint16(&scheme) || !s.ReadUint16(&alg) {
		return false
	}
	hash := map[uint16]crypto.Hash{uint16(tpm2.TPMAlgSHA256): crypto.SHA256, uint16(tpm2.TPMAlgSHA384): crypto.SHA384, uint16(tpm2.TPMAlgSHA512): crypto.SHA512}[alg]
	if hash == 0 {
		return false
	}
	h := hash.New()
	h.Write(contents)
	digest := h.Sum(nil)
	var a, b cryptobyte.String
	switch k := key.(type) {
	case *rsa.PublicKey:
		if !s.ReadUint16LengthPrefixed(&a) || !s.Empty() {
			return false
		}
		switch tpm2.TPMAlgID(scheme) {
		case tpm2.TPMAlgRSASSA:
			return rsa.VerifyPKCS1v15(k, hash, digest, a) == nil
		case tpm2.TPMAlgRSAPSS:
			return rsa.VerifyPSS(k, hash, digest, a, nil) == nil
		}
	case *ecdsa.PublicKey:
		if tpm2.TPMAlgID(scheme) != tpm2.TPMAlgECDSA || !s.ReadUint16LengthPrefixed(&a) || !s.ReadUint16LengthPrefixed(&b) || !s.Empty() || len(a) > 66 || len(b) > 66 {
			return false
		}
		var der cryptobyte.Builder
		der.AddASN1(asn1.SEQUENCE, func(der *cryptobyte.Builder) {
			for _, v := range []cryptobyte.String{a, b} {
				der.AddASN1(asn1.INTEGER, func(der *cryptobyte.Builder) { der.AddBytes(positive(v)) })
			}
		})
		sig, err := der.Bytes()
		return err == nil && ecdsa.VerifyASN1(k, digest, sig)
	}
	return false
}

// positive is the shortest two's complement of an unsigned number.
func positive(v []byte) []byte {
	v = bytes.TrimLeft(v, "\x00")
	if len(v) == 0 || v[0] >= 0x80 {
		return append([]byte{0}, v...)
	}
	return v
}
