package softtpm

import "bytes"

func load(t *TPM, c *call) rc {
	blob := c.p.next().b2(maxPrivate)
	pub := c.p.next().public2B(false)
	if e := c.end(); e != 0 {
		return e
	}
	if len(blob) == 0 {
		return rcSize.param(1)
	}
	if !t.room() {
		return rcObjectMemory
	}
	p := t.object(c.h[0])
	if !p.isParent() || p.sens == nil {
		return rcType.handle(1)
	}
	o := &object{pub: pub, hier: p.hier, stClear: pub.is(attrSTClear) || p.stClear}
	o.setNames(p.qname)
	var e rc
	if o.sens, e = unwrap(p, o.name, blob); e != 0 {
		return e.param(1)
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
	if c.hOut, e = t.alloc(o); e != 0 {
		return e
	}
	c.out.b2(o.name)
	return 0
}

func loadExternal(t *TPM, c *call) rc {
	var sens *sensitive
	r := c.p.next()
	if size, _, ok := lengthPrefixed(r.b); ok && len(size) == 0 {
		r.u16()
	} else {
		r.sized(func() { sens = r.sensitive() })
	}
	pub := c.p.next().public2B(true)
	hier := c.p.next().u32()
	if c.p.err == 0 && !hkHierarchyNull.allows(hier) {
		c.p.fail(rcValue)
	}
	if e := c.end(); e != 0 {
		return e
	}
	if !t.room() {
		return rcObjectMemory
	}
	if !t.hierarchyOn(hier) {
		return rcHierarchy.param(3)
	}
	if sens != nil {
		if hier != rhNull {
			return rcHierarchy.param(3)
		}
		if pub.attrs&(attrFixedTPM|attrFixedParent|attrRestricted) != 0 {
			return rcAttributes.param(2)
		}
	}
	if len(pub.policy) != 0 && len(pub.policy) != hashSize(pub.nameAlg) {
		return rcSize.param(2)
	}
	if e := checkExternal(pub, sens); e != 0 {
		if e == rcKeySize {
			return e
		}
		return e.param(2)
	}
	o := &object{pub: pub, sens: sens, hier: hier, external: true, stClear: pub.is(attrSTClear)}
	o.name = o.pub.name()
	o.qname = o.name // it has no parent, whatever hierarchy was named
	if sens != nil && !o.consistent() {
		return rcBinding
	}
	var e rc
	if c.hOut, e = t.alloc(o); e != 0 {
		return e
	}
	c.out.b2(o.name)
	return 0
}

// checkExternal checks a public area that comes from outside.
func checkExternal(p *public, sens *sensitive) rc {
	if sens != nil && p.nameAlg != algNull {
		if e := checkAttributes(p, nil); e != 0 {
			return e
		}
	}
	if e := checkScheme(p, nil); e != 0 || p.nameAlg == algNull {
		return e
	}
	switch p.typ {
	case algECC:
		c := curveOf(p.curve)
		if sens != nil && sens.typ == algECC && (len(sens.bits) != c.size || len(trim(sens.bits)) == 0) {
			return rcKeySize
		}
		if len(p.x) != c.size || len(p.y) != c.size {
			return rcKey
		}
		if _, err := c.public(p.x, p.y); err != nil && sens == nil {
			return rcECCPoint
		}
	case algRSA:
		if _, ok := p.rsaPublic(); !ok {
			return rcKey
		}
	}
	return 0
}

func readPublic(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq != nil {
		return rcSequence
	}
	c.out.b2(o.pub.bytes())
	c.out.b2(o.name)
	c.out.b2(o.qname)
	return 0
}

func unseal(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.pub == nil || o.pub.typ != algKeyedHash {
		return rcType.handle(1)
	}
	if o.pub.attrs&(attrDecrypt|attrSign|attrRestricted) != 0 {
		return rcAttributes.handle(1)
	}
	c.out.b2(o.sens.bits)
	return 0
}

func objectChangeAuth(t *TPM, c *call) rc {
	auth := trim(c.p.next().b2(maxDigest))
	if e := c.end(); e != 0 {
		return e
	}
	o, p := t.object(c.h[0]), t.object(c.h[1])
	if o.seq != nil {
		return rcType.handle(1)
	}
	if len(auth) > hashSize(o.pub.nameAlg) {
		return rcSize.param(1)
	}
	if o.primary || o.external || !p.isParent() || p.sens == nil ||
		!bytes.Equal(o.qname, append(be16(o.pub.nameAlg), digest(o.pub.nameAlg, p.qname, o.name)...)) {
		return rcType.handle(2)
	}
	changed := *o
	sens := *o.sens
	sens.auth = auth
	changed.sens = &sens
	c.out.b2(t.wrap(p, &changed))
	return 0
}

// persistentRange says whether the owner or the platform may use a handle.
func persistentRange(auth, h uint32) bool {
	if auth == rhOwner {
		return h >= 0x81000000 && h <= 0x817FFFFF
	}
	return h >= 0x81800000 && h <= 0x81FFFFFF
}

const maxPersistent = 64

func evictControl(t *TPM, c *call) rc {
	h := c.p.next().u32()
	if c.p.err == 0 && handleType(h) != htPersistent {
		c.p.fail(rcValue)
	}
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[1])
	if o.external || o.stClear || o.hier == rhNull || o.seq != nil || o.sens == nil {
		return rcAttributes.handle(2)
	}
	kept := handleType(c.h[1]) == htPersistent
	if kept && h != c.h[1] {
		return rcHandle.handle(2)
	}
	switch {
	case c.h[0] == rhOwner && o.hier == rhPlatform, c.h[0] == rhPlatform && o.hier != rhPlatform && !kept:
		return rcHierarchy.handle(2)
	case kept: // the platform may delete any
		delete(t.persistent, h)
		t.dirty = true
		return 0
	}
	if !persistentRange(c.h[0], h) {
		return rcRange.param(1)
	}
	if t.persistent[h] != nil {
		return rcNVDefined
	}
	if len(t.persistent) >= maxPersistent {
		return rcNVSpace
	}
	copied := *o
	t.persistent[h] = &copied
	t.dirty = true
	return 0
}
