package softtpm

import (
	"bytes"
	"crypto/rsa"
	"io"
)

// creation are the parameters that Create and CreatePrimary share.
type creation struct {
	auth, data []byte
	pub        *public
	outside    []byte
	sels       []pcrSel
}

// sensitiveCreate reads a TPM2B_SENSITIVE_CREATE.
func (c *call) sensitiveCreate(in *creation) {
	r := c.p.next()
	r.sized(func() { in.auth, in.data = trim(r.b2(maxDigest)), r.b2(maxSymData) })
}

func (c *call) creation() (in creation, e rc) {
	c.sensitiveCreate(&in)
	in.pub = c.p.next().public2B(false)
	in.outside = c.p.next().b2(2 + maxDigest)
	in.sels = c.p.next().pcrSels()
	return in, c.end()
}

// checkTemplate holds the rules for a new object (part 2, sections 8.3 and 12;
// part 3, section 12.1). parent is nil for a primary object.
func checkTemplate(p *public, parent *object, dataSize int) rc {
	origin := p.is(attrDataOrigin)
	if !origin && dataSize == 0 || origin && dataSize != 0 {
		return rcAttributes
	}
	switch p.typ {
	case algKeyedHash:
		if origin && p.attrs&(attrSign|attrDecrypt) == 0 {
			return rcAttributes
		}
		fallthrough
	case algSymCipher:
		if p.is(attrRestricted) && !origin && p.attrs&(attrFixedParent|attrFixedTPM) != 0 {
			return rcAttributes
		}
	default:
		if !origin {
			return rcAttributes
		}
	}
	if e := checkAttributes(p, parent); e != 0 {
		return e
	}
	return checkScheme(p, parent)
}

func checkAttributes(p *public, parent *object) rc {
	if len(p.policy) != 0 && len(p.policy) != hashSize(p.nameAlg) {
		return rcSize
	}
	if parent == nil || parent.pub.is(attrFixedTPM) {
		if p.is(attrFixedTPM) != p.is(attrFixedParent) {
			return rcAttributes
		}
	} else {
		if p.is(attrFixedTPM) {
			return rcAttributes
		}
	}
	if p.is(attrSign) == p.is(attrDecrypt) {
		if p.is(attrRestricted) {
			return rcAttributes
		}
		if p.typ != algKeyedHash && !p.is(attrSign) {
			return rcAttributes
		}
	}
	if p.is(attrFixedTPM | attrEncryptedDup) {
		return rcAttributes
	}
	if parent != nil && !parent.pub.is(attrFixedTPM) && p.is(attrEncryptedDup) != parent.pub.is(attrEncryptedDup) {
		return rcAttributes
	}
	return 0
}

func checkScheme(p *public, parent *object) rc {
	both := p.is(attrSign) == p.is(attrDecrypt)
	switch p.typ {
	case algSymCipher:
		if p.sym.mode == algNull && p.is(attrRestricted) {
			return rcScheme
		}
	case algKeyedHash:
		switch {
		case both && p.scheme.alg != algNull, !both && p.is(attrSign) && p.scheme.alg != algHMAC,
			!both && p.is(attrDecrypt) && p.scheme.alg != algXOR:
			return rcScheme
		}
	default:
		storage := p.is(attrRestricted | attrDecrypt)
		switch {
		case both:
			if p.scheme.alg != algNull {
				return rcScheme
			}
		case p.is(attrSign):
			if p.scheme.alg == algOAEP || p.scheme.alg == algRSAES || p.scheme.alg == algECDH ||
				p.is(attrRestricted) && p.scheme.alg == algNull {
				return rcScheme
			}
		default:
			if signs(p.scheme.alg) || storage && p.scheme.alg != algNull {
				return rcScheme
			}
		}
		if storage && p.sym.alg == algNull || !storage && p.sym.alg != algNull {
			return rcSymmetric
		}
		if p.typ == algECC && p.kdf.alg != algNull {
			return rcKDF
		}
	}
	if parent != nil && p.parent() && p.is(attrFixedParent) {
		if p.nameAlg != parent.pub.nameAlg {
			return rcHash
		}
		if p.sym != parent.pub.sym {
			return rcSymmetric
		}
	}
	return 0
}

func signs(alg uint16) bool {
	switch alg {
	case algRSASSA, algRSAPSS, algECDSA, algHMAC:
		return true
	}
	return false
}

// generate makes the keys of o from r and fills in its public area.
func (o *object) generate(r io.Reader, data []byte) rc {
	p := o.pub
	fill := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil
		}
		return b
	}
	o.sens.typ = p.typ
	switch p.typ {
	case algECC:
		c := curveOf(p.curve)
		k, err := c.generate(r)
		if err != nil {
			return rcNoResult
		}
		o.ec = k
		p.x, p.y = c.coordinates(&k.PublicKey)
		if o.sens.bits, err = k.Bytes(); err != nil {
			return rcNoResult
		}
	case algRSA:
		e := p.exponent
		if e != 0 && (e < 3 || e%2 == 0 || e != defaultExponent && e < 1<<16) {
			return rcRange
		}
		k, err := generateRSA(r, int(p.bits), e)
		if err != nil {
			return rcNoResult
		}
		o.setRSA(k)
	case algKeyedHash:
		if o.sens.bits = bytes.Clone(data); len(data) == 0 {
			alg := p.nameAlg
			if p.scheme.hash != 0 {
				alg = p.scheme.hash
			}
			o.sens.bits = fill(hashSize(alg))
		}
	case algSymCipher:
		size := int(p.sym.bits) / 8
		if o.sens.bits = bytes.Clone(data); len(data) == 0 {
			o.sens.bits = fill(size)
		} else if len(data) != size {
			return rcKeySize
		}
	}
	if p.typ == algKeyedHash || p.typ == algSymCipher || p.parent() {
		o.sens.seed = fill(hashSize(p.nameAlg))
	}
	if p.typ == algKeyedHash || p.typ == algSymCipher {
		p.unique = digest(p.nameAlg, o.sens.seed, o.sens.bits)
	}
	return 0
}

func (o *object) setRSA(k *rsa.PrivateKey) {
	o.rsa = k
	o.pub.unique = k.N.FillBytes(make([]byte, k.Size()))
	o.sens.bits = k.Primes[0].FillBytes(make([]byte, k.Size()/2))
}

// rsaCache remembers the RSA primary keys made last, because they are slow to
// make and the same template gives the same key.
type rsaCache struct {
	keys  map[string]*rsa.PrivateKey
	order []string
}

const rsaCacheSize = 4

func (rc *rsaCache) get(context []byte) *rsa.PrivateKey { return rc.keys[string(context)] }

func (rc *rsaCache) put(context []byte, k *rsa.PrivateKey) {
	if rc.keys == nil {
		rc.keys = map[string]*rsa.PrivateKey{}
	}
	if len(rc.order) == rsaCacheSize {
		delete(rc.keys, rc.order[0])
		rc.order = rc.order[1:]
	}
	rc.keys[string(context)] = k
	rc.order = append(rc.order, string(context))
}

// newPrimary derives the primary object of a template.
func (t *TPM) newPrimary(hier uint32, template []byte, pub *public, auth, data []byte) (*object, rc) {
	o := &object{pub: pub, hier: hier, primary: true, sens: &sensitive{auth: auth}}
	secret := kdfa(algSHA512, t.seed(hier), "PRIMARY", digest(algSHA512, template), data, 512)
	if k := t.rsa.get(secret); k != nil && pub.typ == algRSA {
		o.sens.typ = algRSA
		o.setRSA(k)
		if pub.parent() {
			o.sens.seed = kdfa(algSHA512, secret, "SEED", nil, nil, hashSize(pub.nameAlg)*8)
		}
	} else {
		if e := o.generate(newStream(secret), data); e != 0 {
			return nil, e
		}
		if pub.typ == algRSA {
			t.rsa.put(secret, o.rsa)
			if pub.parent() {
				o.sens.seed = kdfa(algSHA512, secret, "SEED", nil, nil, hashSize(pub.nameAlg)*8)
			}
		}
	}
	o.stClear = pub.is(attrSTClear)
	o.setNames(be32(hier))
	return o, 0
}

// seed returns the primary seed of a hierarchy.
func (t *TPM) seed(hier uint32) []byte {
	if hier == rhNull {
		return t.nullSeed
	}
	return t.seeds[hier]
}

// proof returns the secret with which a hierarchy's tickets are made.
func (t *TPM) proof(hier uint32) []byte {
	if hier == rhNull {
		return t.nullProof
	}
	return t.proofs[hier]
}

// creationData writes creation data, its digest and the ticket.
func (t *TPM) creationData(w *writer, o *object, in creation, parentAlg uint16, parentName, parentQN []byte) {
	sels, values := t.selected(in.sels, -1)
	var d writer
	d.pcrSels(sels)
	d.b2(digest(o.pub.nameAlg, values...))
	d.u8(t.localityBits())
	d.u16(parentAlg)
	d.b2(parentName)
	d.b2(parentQN)
	d.b2(in.outside)
	sum := digest(o.pub.nameAlg, d.b)
	w.b2(d.b)
	w.b2(sum)
	w.ticket(t.creationTicket(o.hier, o.name, sum))
}

// localityBits is the locality of the command as a TPMA_LOCALITY.
func (t *TPM) localityBits() byte { return 1 << t.volatile.locality }

func (t *TPM) creationTicket(hier uint32, name, sum []byte) ticket {
	return ticket{stCreation, hier, mac(algSHA512, t.proof(hier), be16(stCreation), name, sum)}
}

func createPrimary(t *TPM, c *call) rc {
	in, e := c.creation()
	if e != 0 {
		return e
	}
	if !t.room() {
		return rcObjectMemory
	}
	if e := checkTemplate(in.pub, nil, len(in.data)); e != 0 {
		return e.param(2)
	}
	if len(in.auth) > hashSize(in.pub.nameAlg) {
		return rcSize.param(1)
	}
	o, e := t.newPrimary(c.h[0], in.pub.bytes(), in.pub, in.auth, in.data)
	if e != 0 {
		return e
	}
	if c.hOut, e = t.alloc(o); e != 0 {
		return e
	}
	c.out.b2(o.pub.bytes())
	hier := be32(c.h[0])
	t.creationData(&c.out, o, in, algNull, hier, hier)
	c.out.b2(o.name)
	return 0
}

// newChild makes an object below a parent.
func (t *TPM) newChild(p *object, in creation) (*object, rc) {
	o := &object{pub: in.pub, hier: p.hier, sens: &sensitive{auth: in.auth}}
	if e := o.generate(t.stream(), in.data); e != 0 {
		return nil, e
	}
	o.stClear = in.pub.is(attrSTClear) || p.stClear
	o.setNames(p.qname)
	return o, 0
}

func create(t *TPM, c *call) rc {
	in, e := c.creation()
	if e != 0 {
		return e
	}
	p := t.object(c.h[0])
	if !p.isParent() || p.sens == nil {
		return rcType.handle(1)
	}
	if !t.room() {
		return rcObjectMemory
	}
	if e := checkTemplate(in.pub, p, len(in.data)); e != 0 {
		return e.param(2)
	}
	if len(in.auth) > hashSize(in.pub.nameAlg) {
		return rcSize.param(1)
	}
	o, e := t.newChild(p, in)
	if e != 0 {
		return e
	}
	c.out.b2(t.wrap(p, o))
	c.out.b2(o.pub.bytes())
	t.creationData(&c.out, o, in, p.pub.nameAlg, p.name, p.qname)
	return 0
}

func createLoaded(t *TPM, c *call) rc {
	var in creation
	c.sensitiveCreate(&in)
	template := c.p.next().b2(1024)
	if e := c.end(); e != 0 {
		return e
	}
	if !t.room() {
		return rcObjectMemory
	}
	r := &reader{b: template, n: 2}
	in.pub = r.public(false)
	if r.err == 0 && len(r.b) != 0 {
		r.fail(rcSize)
	}
	if r.err != 0 {
		return r.err
	}
	p := t.object(c.h[0])
	if p != nil && (!p.isParent() || p.sens == nil) {
		return rcType.handle(1)
	}
	if len(in.auth) > hashSize(in.pub.nameAlg) {
		return rcSize.param(1)
	}
	if e := checkTemplate(in.pub, p, len(in.data)); e != 0 {
		return e.param(2)
	}
	var o *object
	var e rc
	var private []byte
	if p == nil {
		o, e = t.newPrimary(c.h[0], in.pub.bytes(), in.pub, in.auth, in.data)
	} else if o, e = t.newChild(p, in); e == 0 {
		private = t.wrap(p, o)
	}
	if e != 0 {
		return e
	}
	if c.hOut, e = t.alloc(o); e != 0 {
		return e
	}
	c.out.b2(private)
	c.out.b2(o.pub.bytes())
	c.out.b2(o.name)
	return 0
}
