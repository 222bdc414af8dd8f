package softtpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rsa"
)

// sensitive is a TPMT_SENSITIVE.
type sensitive struct {
	typ              uint16
	auth, seed, bits []byte
}

// object is a loaded key or data object, or a hash sequence.
type object struct {
	pub   *public
	sens  *sensitive // nil where only the public area is loaded
	name  []byte
	qname []byte
	hier  uint32
	// external objects came by LoadExternal; primary ones by CreatePrimary.
	external, primary bool
	// stClear objects do not survive a TPM restart.
	stClear bool

	ec  *ecdsa.PrivateKey // parsed from sens when first needed
	rsa *rsa.PrivateKey

	seq    *sequence
	client uint64 // who loaded it
}

// setNames computes name and qualified name; parent is the qualified name of
// the parent, or the handle of the hierarchy.
func (o *object) setNames(parentQN []byte) {
	o.name = o.pub.name()
	o.qname = nil
	if o.name != nil {
		o.qname = append(be16(o.pub.nameAlg), digest(o.pub.nameAlg, parentQN, o.name)...)
	}
}

// isParent says whether objects can be stored below o.
func (o *object) isParent() bool { return o.seq == nil && o.pub.parent() }

// ecKey returns the private ECC key.
func (o *object) ecKey() *ecdsa.PrivateKey {
	if o.ec == nil && o.sens != nil && o.pub.typ == algECC {
		c := curveOf(o.pub.curve)
		if len(o.sens.bits) > c.size {
			return nil
		}
		d := make([]byte, c.size)
		copy(d[c.size-len(o.sens.bits):], o.sens.bits)
		if k, err := ecdsa.ParseRawPrivateKey(c.ec, d); err == nil {
			o.ec = k
		}
	}
	return o.ec
}

// rsaKey returns the private RSA key.
func (o *object) rsaKey() *rsa.PrivateKey {
	if o.rsa == nil && o.sens != nil && o.pub.typ == algRSA {
		if k, ok := rsaFromPrime(o.pub.unique, o.sens.bits, o.pub.exponent); ok {
			o.rsa = k
		}
	}
	return o.rsa
}

// consistent says whether the sensitive area belongs to the public one.
func (o *object) consistent() bool {
	if o.sens.typ != o.pub.typ {
		return false
	}
	switch o.pub.typ {
	case algECC:
		k := o.ecKey()
		if k == nil {
			return false
		}
		c := curveOf(o.pub.curve)
		x, y := c.coordinates(&k.PublicKey)
		p := c.point(o.pub.x, o.pub.y)
		return p != nil && bytes.Equal(p[1:], append(x[:len(x):len(x)], y...))
	case algRSA:
		return o.rsaKey() != nil
	}
	return bytes.Equal(o.pub.unique, digest(o.pub.nameAlg, o.sens.seed, o.sens.bits))
}

// bytes returns the TPMT_SENSITIVE with the authorisation value padded to
// size, which hides its length.
func (s *sensitive) bytes(size int) []byte {
	auth := s.auth
	if len(auth) < size {
		auth = append(bytes.Clone(auth), make([]byte, size-len(auth))...)
	}
	var w writer
	w.u16(s.typ)
	w.b2(auth)
	w.b2(s.seed)
	w.b2(s.bits)
	return w.b
}

// sensitive reads a TPMT_SENSITIVE.
func (r *reader) sensitive() *sensitive {
	s := &sensitive{typ: r.u16()}
	limit := 0
	switch s.typ {
	case algRSA:
		limit = maxRSABytes / 2
	case algECC:
		limit = maxECCBytes
	case algKeyedHash:
		limit = maxSensitive
	case algSymCipher:
		limit = 32
	default:
		r.fail(rcType)
	}
	s.auth, s.seed, s.bits = trim(r.b2(maxDigest)), r.b2(maxDigest), r.b2(limit)
	return s
}

// protect makes a TPM2B_PRIVATE or the outer part of a duplicate (part 1,
// section 23.3): data encrypted and authenticated with keys from seed. iv may
// be nil, then there is none in the blob.
func protect(alg uint16, sym symDef, seed, name, iv, data []byte) []byte {
	data = bytes.Clone(data)
	cfb(kdfa(alg, seed, "STORAGE", name, nil, int(sym.bits)), iv, data, true)
	var inner writer
	if iv != nil {
		inner.b2(iv)
	}
	inner.raw(data)
	var w writer
	w.b2(mac(alg, kdfa(alg, seed, "INTEGRITY", nil, nil, hashSize(alg)*8), inner.b, name))
	w.raw(inner.b)
	return w.b
}

// unprotect is the inverse of protect.
func unprotect(alg uint16, sym symDef, seed, name, blob []byte, withIV bool) ([]byte, rc) {
	sum, inner, ok := lengthPrefixed(blob)
	if !ok || len(sum) > maxDigest {
		return nil, rcSize
	}
	if !hmac.Equal(sum, mac(alg, kdfa(alg, seed, "INTEGRITY", nil, nil, hashSize(alg)*8), inner, name)) {
		return nil, rcIntegrity
	}
	var iv []byte
	if withIV {
		if iv, inner, ok = lengthPrefixed(inner); !ok || len(iv) != 16 {
			return nil, rcSize
		}
	}
	data := bytes.Clone(inner)
	cfb(kdfa(alg, seed, "STORAGE", name, nil, int(sym.bits)), iv, data, false)
	return data, 0
}

// wrap makes the private blob of o under its parent p.
func (t *TPM) wrap(p *object, o *object) []byte {
	var inner writer
	inner.b2(o.sens.bytes(hashSize(o.pub.nameAlg)))
	return protect(p.pub.nameAlg, p.pub.sym, p.sens.seed, o.name, t.random(16), inner.b)
}

// unwrap reads the private blob of the object named name under p.
func unwrap(p *object, name, blob []byte) (*sensitive, rc) {
	data, e := unprotect(p.pub.nameAlg, p.pub.sym, p.sens.seed, name, blob, true)
	if e != 0 {
		return nil, e
	}
	return sensitive2B(data)
}

// sensitive2B reads a TPM2B_SENSITIVE that fills all of data.
func sensitive2B(data []byte) (*sensitive, rc) {
	r := &reader{b: data}
	var s *sensitive
	r.sized(func() { s = r.sensitive() })
	if r.err == 0 && len(r.b) != 0 {
		return nil, rcSize
	}
	return s, r.err
}

// maxObjects is how many transient objects fit.
const maxObjects = 3

// alloc gives o the lowest free transient handle. The command's persistent
// objects hold the lowest ones while it runs.
func (t *TPM) alloc(o *object) (uint32, rc) {
	if !t.room() {
		return 0, rcObjectMemory
	}
	h := uint32(htTransient) << 24
	for lent := t.borrowed; t.objs[h] != nil || lent > 0; h++ {
		if t.objs[h] == nil {
			lent--
		}
	}
	o.client = t.client
	t.objs[h] = o
	return h, 0
}

func (t *TPM) room() bool { return len(t.objs)+t.borrowed < maxObjects }

// object returns a transient or persistent object, or nil.
func (t *TPM) object(h uint32) *object {
	switch handleType(h) {
	case htTransient:
		return t.objs[h]
	case htPersistent:
		return t.persistent[h]
	}
	return nil
}
