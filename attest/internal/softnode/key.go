// Package softnode makes what a TPM would sign, with keys in memory, so that
// tests can say anything: honest nodes by the thousand, and forgeries that no
// TPM makes. It encodes TPM structures by itself, apart from the code it tests.
package softnode

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Kind is a type of key with its scheme.
type Kind struct {
	RSABits int            // 0 for ECC
	Curve   elliptic.Curve // nil for RSA
	PSS     bool
	Hash    crypto.Hash
}

// Kinds of keys that TPMs have.
func P256() Kind   { return Kind{Curve: elliptic.P256(), Hash: crypto.SHA256} }
func P384() Kind   { return Kind{Curve: elliptic.P384(), Hash: crypto.SHA384} }
func RSA() Kind    { return Kind{RSABits: 2048, Hash: crypto.SHA256} }
func RSAPSS() Kind { return Kind{RSABits: 2048, PSS: true, Hash: crypto.SHA256} }

// Attributes (TPMA_OBJECT).
const (
	AKAttributes  = 0x00050072 // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign
	KeyAttributes = 0x00040072 // the same, not restricted
)

// Key is a signing key with the TPMT_PUBLIC that a TPM would show.
type Key struct {
	Kind   Kind
	Signer crypto.Signer
	Public []byte
}

func alg(h crypto.Hash) uint16 {
	switch h {
	case crypto.SHA1:
		return 4
	case crypto.SHA384:
		return 0x0C
	case crypto.SHA512:
		return 0x0D
	}
	return 0x0B
}

func u16(b []byte, v int) []byte      { return binary.BigEndian.AppendUint16(b, uint16(v)) }
func u32(b []byte, v uint32) []byte   { return binary.BigEndian.AppendUint32(b, v) }
func u64(b []byte, v uint64) []byte   { return binary.BigEndian.AppendUint64(b, v) }
func sized(b []byte, v []byte) []byte { return append(u16(b, len(v)), v...) }
func must[T any](v T, err error) T    { check(err); return v }
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// NewKey makes a key with the attributes given.
func NewKey(kind Kind, attributes uint32) *Key {
	k := &Key{Kind: kind}
	if kind.RSABits > 0 {
		k.Signer = must(rsa.GenerateKey(rand.Reader, kind.RSABits))
	} else {
		k.Signer = must(ecdsa.GenerateKey(kind.Curve, rand.Reader))
	}
	k.Public = k.Encode(attributes, k.scheme(), int(alg(kind.Hash)))
	return k
}

func (k *Key) scheme() int {
	switch {
	case k.Kind.RSABits == 0:
		return 0x18
	case k.Kind.PSS:
		return 0x16
	}
	return 0x14
}

// Encode encodes the key's TPMT_PUBLIC with any attributes and scheme.
func (k *Key) Encode(attributes uint32, scheme, hash int) []byte {
	kind := 0x23
	if k.Kind.RSABits > 0 {
		kind = 1
	}
	b := u16(nil, kind)
	b = u16(b, 0x0B)
	b = u32(b, attributes)
	b = sized(b, nil)
	b = u16(b, 0x10) // no symmetric algorithm
	b = u16(b, scheme)
	if scheme != 0x10 {
		b = u16(b, hash)
	}
	switch pub := k.Signer.Public().(type) {
	case *rsa.PublicKey:
		b = u16(b, k.Kind.RSABits)
		b = u32(b, 0)
		return sized(b, pub.N.Bytes())
	case *ecdsa.PublicKey:
		point := must(pub.Bytes())[1:]
		curve := 3
		if len(point) == 96 {
			curve = 4
		}
		b = u16(b, curve)
		b = u16(b, 0x10)
		b = sized(b, point[:len(point)/2])
		return sized(b, point[len(point)/2:])
	}
	panic("softnode: kind of key")
}

// Name returns the TPM name of a TPMT_PUBLIC with name algorithm SHA-256.
func Name(public []byte) []byte {
	d := sha256.Sum256(public)
	return append([]byte{0, 0x0B}, d[:]...)
}

// Qualified returns the qualified name of a primary key of a hierarchy.
func Qualified(hierarchy uint32, public []byte) []byte {
	return Name(append(u32(nil, hierarchy), Name(public)...))
}

// Sign returns a TPMT_SIGNATURE.
func (k *Key) Sign(data []byte) []byte {
	h := k.Kind.Hash.New()
	h.Write(data)
	digest := h.Sum(nil)
	b := u16(nil, k.scheme())
	b = u16(b, int(alg(k.Kind.Hash)))
	if key, ok := k.Signer.(*ecdsa.PrivateKey); ok {
		r, s, err := ecdsa.Sign(rand.Reader, key, digest)
		check(err)
		size := (key.Curve.Params().BitSize + 7) / 8
		b = sized(b, r.FillBytes(make([]byte, size)))
		return sized(b, s.FillBytes(make([]byte, size)))
	}
	var opts crypto.SignerOpts = k.Kind.Hash
	if k.Kind.PSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: k.Kind.Hash}
	}
	return sized(b, must(k.Signer.Sign(rand.Reader, digest, opts)))
}

// HMAC returns a TPMT_SIGNATURE by an HMAC key for SHA-256.
func HMAC(key, data []byte) []byte {
	digest := sha256.Sum256(data)
	h := hmac.New(sha256.New, key)
	h.Write(digest[:])
	return h.Sum([]byte{0, 5, 0, 0x0B})
}

// PCR selects one PCR of a bank with a value.
type PCR struct {
	Bank  crypto.Hash
	Index int
	Value []byte
}

// Attested is a TPMS_ATTEST to be encoded; zero fields take honest values.
type Attested struct {
	Magic     uint32
	Kind      int    // 0x8018 quote when zero
	Signer    []byte // qualified name of the signing key
	ExtraData []byte
	Clock     uint64
	Reset     uint32
	Restart   uint32
	Safe      byte
	Firmware  uint64
	PCRs      []PCR       // quote, in order
	Hash      crypto.Hash // of the PCR digest, SHA-256 when zero
	Selection []byte      // replaces the TPML_PCR_SELECTION
	Name      []byte      // certify
	Qualified []byte      // certify; as in the owner's hierarchy when nil
	Trailing  []byte
}

// Values returns the PCR values one after the other.
func Values(pcrs []PCR) (v []byte) {
	for _, p := range pcrs {
		v = append(v, p.Value...)
	}
	return v
}

// Encode encodes the structure.
func (a Attested) Encode() []byte {
	if a.Magic == 0 {
		a.Magic = 0xFF544347
	}
	if a.Kind == 0 {
		a.Kind = 0x8018
	}
	if a.Hash == 0 {
		a.Hash = crypto.SHA256
	}
	b := u32(nil, a.Magic)
	b = u16(b, a.Kind)
	if a.Signer == nil {
		a.Signer = append([]byte{0, 0x0B}, make([]byte, 32)...)
	}
	b = sized(b, a.Signer)
	b = sized(b, a.ExtraData)
	b = u64(b, a.Clock)
	b = u32(b, a.Reset)
	b = u32(b, a.Restart)
	b = append(b, a.Safe)
	b = u64(b, a.Firmware)
	if a.Kind != 0x8018 {
		if a.Qualified == nil {
			a.Qualified = Name(append(u32(nil, 0x40000001), a.Name...))
		}
		b = sized(b, a.Name)
		b = sized(b, a.Qualified)
		return append(b, a.Trailing...)
	}
	sel := a.Selection
	if sel == nil {
		sel = selection(a.PCRs)
	}
	b = append(b, sel...)
	h := a.Hash.New()
	h.Write(Values(a.PCRs))
	b = sized(b, h.Sum(nil))
	return append(b, a.Trailing...)
}

func selection(pcrs []PCR) []byte {
	var banks []crypto.Hash
	bits := map[crypto.Hash]*[3]byte{}
	for _, p := range pcrs {
		if bits[p.Bank] == nil {
			bits[p.Bank] = &[3]byte{}
			banks = append(banks, p.Bank)
		}
		bits[p.Bank][p.Index/8] |= 1 << (p.Index % 8)
	}
	b := u32(nil, uint32(len(banks)))
	for _, h := range banks {
		b = u16(b, int(alg(h)))
		b = append(append(b, 3), bits[h][:]...)
	}
	return b
}

// String names a kind of key.
func (k Kind) String() string {
	switch {
	case k.PSS:
		return fmt.Sprintf("RSA-%d-PSS", k.RSABits)
	case k.RSABits > 0:
		return fmt.Sprintf("RSA-%d", k.RSABits)
	}
	return k.Curve.Params().Name
}
