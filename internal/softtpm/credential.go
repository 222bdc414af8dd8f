package softtpm

import "bytes"

func makeCredential(t *TPM, c *call) rc {
	credential := c.p.next().b2(maxDigest)
	name := c.p.next().b2(2 + maxDigest)
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq != nil || (o.pub.typ != algRSA && o.pub.typ != algECC) || !o.isParent() {
		return rcType.handle(1)
	}
	if len(credential) > hashSize(o.pub.nameAlg) {
		return rcSize.param(1)
	}
	seed, secret, e := t.encryptSecret(o, "IDENTITY")
	if e != 0 {
		return e
	}
	var inner writer
	inner.b2(credential)
	c.out.b2(protect(o.pub.nameAlg, o.pub.sym, seed, name, nil, inner.b))
	c.out.b2(secret)
	return 0
}

func activateCredential(t *TPM, c *call) rc {
	blob := c.p.next().b2(2 + maxDigest + 2 + maxDigest)
	secret := c.p.next().b2(maxRSABytes)
	if e := c.end(); e != 0 {
		return e
	}
	o, key := t.object(c.h[0]), t.object(c.h[1])
	if key.seq != nil || key.sens == nil || (key.pub.typ != algRSA && key.pub.typ != algECC) || !key.isParent() {
		return rcType.handle(2)
	}
	seed, e := key.decryptSecret("IDENTITY", secret)
	if e != 0 {
		return e.param(2)
	}
	data, e := unprotect(key.pub.nameAlg, key.pub.sym, seed, o.name, blob, false)
	if e != 0 {
		return e.param(1)
	}
	credential, rest, ok := lengthPrefixed(data)
	if !ok || len(rest) != 0 {
		return rcSize.param(1)
	}
	c.out.b2(credential)
	return 0
}

func duplicate(t *TPM, c *call) rc {
	innerKey := c.p.next().b2(32)
	sym := c.p.next().sym(true)
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq != nil || o.pub.is(attrFixedParent) || o.pub.nameAlg == algNull {
		return rcAttributes.handle(1)
	}
	newParent := t.object(c.h[1])
	if newParent != nil && !newParent.isParent() {
		return rcType.handle(2)
	}
	if o.pub.is(attrEncryptedDup) {
		if sym.alg == algNull {
			return rcSymmetric.param(2)
		}
		if newParent == nil {
			return rcHierarchy.handle(2)
		}
	}
	if sym.alg == algNull {
		if len(innerKey) != 0 {
			return rcSize.param(1)
		}
	} else if len(innerKey) != 0 && len(innerKey) != int(sym.bits)/8 {
		return rcSize.param(1)
	}
	var body writer
	body.b2(o.sens.bytes(hashSize(o.pub.nameAlg)))
	data := body.b
	var keyOut []byte
	if sym.alg != algNull {
		if len(innerKey) == 0 {
			innerKey = t.random(int(sym.bits) / 8)
			keyOut = innerKey
		}
		var inner writer
		inner.b2(digest(o.pub.nameAlg, data, o.name))
		inner.raw(data)
		data = inner.b
		cfb(innerKey, nil, data, true)
	}
	var secret []byte
	if newParent != nil {
		seed, s, e := t.encryptSecret(newParent, "DUPLICATE")
		if e != 0 {
			return e
		}
		secret = s
		data = protect(newParent.pub.nameAlg, newParent.pub.sym, seed, o.name, nil, data)
	}
	c.out.b2(keyOut)
	c.out.b2(data)
	c.out.b2(secret)
	return 0
}

func importObject(t *TPM, c *call) rc {
	innerKey := c.p.next().b2(32)
	pub := c.p.next().public2B(false)
	dup := c.p.next().b2(maxPrivate)
	secret := c.p.next().b2(maxRSABytes)
	sym := c.p.next().sym(true)
	if e := c.end(); e != 0 {
		return e
	}
	if pub.attrs&(attrFixedTPM|attrFixedParent) != 0 {
		return rcAttributes.param(2)
	}
	p := t.object(c.h[0])
	if !p.isParent() || p.sens == nil {
		return rcType.handle(1)
	}
	if sym.alg == algNull {
		if len(innerKey) != 0 {
			return rcSize.param(1)
		}
	} else if len(innerKey) != int(sym.bits)/8 {
		return rcSize.param(1)
	}
	o := &object{pub: pub, hier: p.hier}
	o.setNames(p.qname)
	data := dup
	if len(secret) != 0 {
		seed, e := p.decryptSecret("DUPLICATE", secret)
		if e != 0 {
			return e.param(4)
		}
		if data, e = unprotect(p.pub.nameAlg, p.pub.sym, seed, o.name, dup, false); e != 0 {
			return e.param(3)
		}
	} else if pub.is(attrEncryptedDup) {
		return rcAttributes.param(2)
	}
	if sym.alg != algNull {
		data = bytes.Clone(data)
		cfb(innerKey, nil, data, false)
		sum, rest, ok := lengthPrefixed(data)
		if !ok || !bytes.Equal(sum, digest(pub.nameAlg, rest, o.name)) {
			return rcIntegrity.param(3)
		}
		data = rest
	} else if pub.is(attrEncryptedDup) {
		return rcAttributes.param(2)
	}
	var e rc
	if o.sens, e = sensitive2B(data); e != 0 {
		return e.param(3)
	}
	if e := checkAttributes(pub, p); e != 0 {
		return e.param(2)
	}
	if e := checkScheme(pub, p); e != 0 {
		return e.param(2)
	}
	if !o.consistent() {
		return rcBinding.param(2)
	}
	c.out.b2(t.wrap(p, o))
	return 0
}
