package softtpm

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"io"
	"math/big"
)

// curve is one of the NIST curves.
type curve struct {
	id   uint16
	ec   elliptic.Curve
	dh   ecdh.Curve
	size int // bytes of a coordinate
}

var curves = [...]curve{
	{3, elliptic.P256(), ecdh.P256(), 32},
	{4, elliptic.P384(), ecdh.P384(), 48},
	{5, elliptic.P521(), ecdh.P521(), 66},
}

func curveOf(id uint16) *curve {
	for i := range curves {
		if curves[i].id == id {
			return &curves[i]
		}
	}
	return nil
}

// generate makes a private scalar from r by rejection sampling.
func (c *curve) generate(r io.Reader) (*ecdsa.PrivateKey, error) {
	d := make([]byte, c.size)
	for {
		if _, err := io.ReadFull(r, d); err != nil {
			return nil, err
		}
		if c.size == 66 {
			d[0] &= 1
		}
		if k, err := ecdsa.ParseRawPrivateKey(c.ec, d); err == nil {
			return k, nil
		}
	}
}

// point returns the uncompressed encoding of a point, or nil when a coordinate
// is too long.
func (c *curve) point(x, y []byte) []byte {
	x, y = bytes.TrimLeft(x, "\x00"), bytes.TrimLeft(y, "\x00")
	if len(x) > c.size || len(y) > c.size {
		return nil
	}
	p := make([]byte, 1+2*c.size)
	p[0] = 4
	copy(p[1+c.size-len(x):], x)
	copy(p[1+2*c.size-len(y):], y)
	return p
}

// public checks that a point lies on the curve.
func (c *curve) public(x, y []byte) (*ecdsa.PublicKey, error) {
	return ecdsa.ParseUncompressedPublicKey(c.ec, c.point(x, y))
}

func (c *curve) coordinates(pub *ecdsa.PublicKey) (x, y []byte) {
	raw, err := pub.Bytes()
	if err != nil || len(raw) != 1+2*c.size {
		return nil, nil
	}
	return raw[1 : 1+c.size], raw[1+c.size:]
}

// shared returns the x coordinate of k times the point (x, y).
func (c *curve) shared(k *ecdsa.PrivateKey, x, y []byte) ([]byte, bool) {
	pub, err := c.dh.NewPublicKey(c.point(x, y))
	if err != nil {
		return nil, false
	}
	d, err := k.ECDH()
	if err != nil {
		return nil, false
	}
	z, err := d.ECDH(pub)
	return z, err == nil
}

// multiply returns both coordinates of k times the point p. The standard
// library yields only x, so y is one of the two roots of the curve's equation,
// and x of (k+1)·p, which is the sum of the result and p, says which.
func (c *curve) multiply(k *ecdsa.PrivateKey, px, py []byte) (x, y []byte, ok bool) {
	x, ok = c.shared(k, px, py)
	if !ok {
		return nil, nil, false
	}
	raw, err := k.Bytes()
	if err != nil {
		return nil, nil, false
	}
	params := c.ec.Params()
	next := new(big.Int).Add(new(big.Int).SetBytes(raw), big.NewInt(1))
	k1, err := ecdsa.ParseRawPrivateKey(c.ec, next.FillBytes(make([]byte, c.size)))
	if err != nil { // k is the group's order minus one, so the result is -p
		neg := new(big.Int).Sub(params.P, new(big.Int).SetBytes(py))
		return x, neg.FillBytes(make([]byte, c.size)), true
	}
	want, ok := c.shared(k1, px, py)
	if !ok {
		return nil, nil, false
	}
	X := new(big.Int).SetBytes(x)
	root := new(big.Int).Exp(X, big.NewInt(3), params.P)
	root.Sub(root, new(big.Int).Mul(X, big.NewInt(3))).Add(root, params.B).Mod(root, params.P)
	if root.ModSqrt(root, params.P) == nil {
		return nil, nil, false
	}
	PX, PY := new(big.Int).SetBytes(px), new(big.Int).SetBytes(py)
	if X.Cmp(PX) == 0 { // k is one, or the order minus one, which was met above
		return x, py, true
	}
	for range 2 {
		inv := new(big.Int).Sub(X, PX)
		inv.Mod(inv, params.P).ModInverse(inv, params.P)
		l := new(big.Int).Sub(root, PY)
		l.Mul(l, inv).Mod(l, params.P)
		sum := l.Mul(l, l)
		sum.Sub(sum, X).Sub(sum, PX).Mod(sum, params.P)
		if bytes.Equal(sum.FillBytes(make([]byte, c.size)), want) {
			return x, root.FillBytes(make([]byte, c.size)), true
		}
		root.Sub(params.P, root)
	}
	return nil, nil, false
}

// sign returns r and s at full length.
func (c *curve) sign(k *ecdsa.PrivateKey, hashed []byte) (r, s []byte, ok bool) {
	der, err := ecdsa.SignASN1(rand.Reader, k, hashed)
	if err != nil {
		return nil, nil, false
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		return nil, nil, false
	}
	return sig.R.FillBytes(make([]byte, c.size)), sig.S.FillBytes(make([]byte, c.size)), true
}

func verifyECDSA(pub *ecdsa.PublicKey, hashed, r, s []byte) bool {
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)})
	return err == nil && ecdsa.VerifyASN1(pub, hashed, der)
}

// pad returns a coordinate at full length.
func (c *curve) pad(v []byte) []byte {
	if len(v) >= c.size {
		return v
	}
	return append(make([]byte, c.size-len(v)), v...)
}
