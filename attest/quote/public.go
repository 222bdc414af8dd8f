package quote

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"math/big"

	"github.com/trusttree/trusttree/attest/internal/roca"
	"github.com/trusttree/trusttree/attest/reason"
)

// TPM algorithm identifiers (TCG Algorithm Registry).
const (
	algRSA    = 0x0001
	algSHA256 = 0x000B
	algSHA384 = 0x000C
	algSHA512 = 0x000D
	algNull   = 0x0010
	algRSASSA = 0x0014
	algRSAPSS = 0x0016
	algECDSA  = 0x0018
	algECC    = 0x0023
)

// TPMA_OBJECT bits (TPM 2.0 Library, part 2, section 8.3).
const (
	attrFixedTPM            = 1 << 1
	attrFixedParent         = 1 << 4
	attrSensitiveDataOrigin = 1 << 5
	attrUserWithAuth        = 1 << 6
	attrAdminWithPolicy     = 1 << 7
	attrNoDA                = 1 << 10
	attrRestricted          = 1 << 16
	attrDecrypt             = 1 << 17
	attrSign                = 1 << 18

	attrResident = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin
	attrFree     = attrUserWithAuth | attrAdminWithPolicy | attrNoDA // how a use is authorised: the owner's business
)

// public is a parsed TPMT_PUBLIC of a signing key.
type public struct {
	attrs      uint32
	nameAlg    uint16
	scheme     uint16 // algNull in a key that leaves it to the caller
	schemeHash uint16
	key        crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey, checked
	name       []byte
	qualified  []byte // qualified name of a primary key of the endorsement hierarchy
}

// parsePublic parses the TPMT_PUBLIC of an RSA or ECC signing key, whole.
func parsePublic(b []byte) (*public, error) {
	if len(b) > maxPublic {
		return nil, reason.Because(reason.TooLarge, fmt.Errorf("%w: public area of %d bytes, limit %d", ErrMalformed, len(b), maxPublic))
	}
	c := cursor{b: b}
	p := &public{}
	kind := c.u16()
	p.nameAlg = c.u16()
	p.attrs = c.u32()
	c.sized(maxDigest) // authPolicy
	if sym := c.u16(); sym != algNull && !c.bad {
		return nil, reason.Because(reason.NotSigning, fmt.Errorf("%w: key has symmetric parameters: it is not a signing key", ErrKey))
	}
	p.scheme = c.u16()
	if p.scheme != algNull {
		p.schemeHash = c.u16()
	}
	var err error
	switch kind {
	case algRSA:
		bits, exponent := c.u16(), c.u32()
		modulus := c.sized(512)
		if c.done() {
			p.key, err = rsaKey(bits, exponent, modulus)
		}
	case algECC:
		curve, kdf := c.u16(), c.u16()
		if kdf != algNull && !c.bad {
			return nil, reason.Because(reason.NotSigning, fmt.Errorf("%w: key has a KDF: it is not a signing key", ErrKey))
		}
		x, y := c.sized(66), c.sized(66)
		if c.done() {
			p.key, err = eccKey(curve, x, y)
		}
	default:
		return nil, reason.Because(reason.KeyType, fmt.Errorf("%w: key type %04x", ErrKey, kind))
	}
	if err != nil {
		return nil, err
	}
	if err := c.whole("public area"); err != nil {
		return nil, err
	}
	hash := hashOf(p.nameAlg)
	if hash == 0 {
		return nil, reason.Because(reason.NameAlgorithm, fmt.Errorf("%w: name algorithm %04x: want SHA-256 or stronger", ErrKey, p.nameAlg))
	}
	h := hash.New()
	h.Write(b)
	alg := []byte{byte(p.nameAlg >> 8), byte(p.nameAlg)}
	p.name = h.Sum(alg[:2:2])
	h.Reset()
	h.Write([]byte{0x40, 0, 0, 0x0B}) // TPM_RH_ENDORSEMENT (TPM 2.0 Library, part 1, section 16)
	h.Write(p.name)
	p.qualified = h.Sum(alg[:2:2])
	return p, nil
}

func hashOf(alg uint16) crypto.Hash {
	switch alg {
	case algSHA256:
		return crypto.SHA256
	case algSHA384:
		return crypto.SHA384
	case algSHA512:
		return crypto.SHA512
	}
	return 0
}

func rsaKey(bits uint16, exponent uint32, modulus []byte) (*rsa.PublicKey, error) {
	if exponent == 0 {
		exponent = 65537
	}
	n := new(big.Int).SetBytes(modulus)
	switch {
	case bits != 2048 && bits != 3072 && bits != 4096, n.BitLen() != int(bits), n.Bit(0) == 0:
		return nil, reason.Because(reason.RSASize, fmt.Errorf("%w: RSA modulus of %d bits, declared %d: want 2048, 3072 or 4096", ErrKey, n.BitLen(), bits))
	case exponent != 65537:
		return nil, reason.Because(reason.RSAExponent, fmt.Errorf("%w: RSA exponent %d: want 65537", ErrKey, exponent))
	case roca.Weak(n):
		return nil, reason.Because(reason.ROCA, fmt.Errorf("%w: RSA modulus has the fingerprint of ROCA (CVE-2017-15361): its private key can be computed", ErrKey))
	}
	return &rsa.PublicKey{N: n, E: int(exponent)}, nil
}

func eccKey(curveID uint16, x, y []byte) (*ecdsa.PublicKey, error) {
	var curve elliptic.Curve
	switch curveID {
	case 3:
		curve = elliptic.P256()
	case 4:
		curve = elliptic.P384()
	case 5:
		curve = elliptic.P521()
	default:
		return nil, reason.Because(reason.Curve, fmt.Errorf("%w: curve %04x: want P-256, P-384 or P-521", ErrKey, curveID))
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(x) > size || len(y) > size {
		return nil, reason.Because(reason.OffCurve, fmt.Errorf("%w: coordinates longer than the curve's", ErrKey))
	}
	point := make([]byte, 1+2*size)
	point[0] = 4
	copy(point[1+size-len(x):], x)
	copy(point[1+2*size-len(y):], y)
	k, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, reason.Because(reason.OffCurve, fmt.Errorf("%w: point is not on the curve", ErrKey))
	}
	return k, nil
}
