package softtpm

import (
	"bytes"
	"crypto/hmac"
	"hash"
)

// sequence is a hash, HMAC or event sequence object.
type sequence struct {
	auth   []byte
	alg    uint16 // algNull for an event sequence
	isHMAC bool
	sums   []hash.Hash // one, or one for each bank of an event sequence
	head   []byte      // first bytes of a hash sequence
}

func (s *sequence) write(b []byte) {
	if s.head == nil {
		s.head = append([]byte{}, b[:min(4, len(b))]...)
	}
	for _, h := range s.sums {
		h.Write(b)
	}
}

// safe says whether what was hashed can't be taken for an attestation.
func safe(head []byte) bool { return !bytes.HasPrefix(head, be32(attestMagic)) }

func hashCommand(t *TPM, c *call) rc {
	data := c.p.next().b2(maxBuffer)
	alg := c.p.next().hash(false)
	hier := c.p.next().u32()
	if c.p.err == 0 && !hkHierarchyNull.allows(hier) {
		c.p.fail(rcValue)
	}
	if e := c.end(); e != 0 {
		return e
	}
	sum := digest(alg, data)
	c.out.b2(sum)
	c.out.ticket(t.safeTicket(hier, alg, sum, data))
	return 0
}

func (t *TPM) safeTicket(hier uint32, alg uint16, sum, head []byte) ticket {
	if hier == rhNull || !safe(head) {
		return ticket{stHashCheck, rhNull, nil}
	}
	return t.hashTicket(hier, alg, sum)
}

// hmacKeyed returns the HMAC key and hash of o.
func (o *object) hmacKeyed(want uint16) ([]byte, uint16, rc) {
	if o.seq == nil && o.pub.typ == algSymCipher { // as TPM2_MAC, which has the same code
		if (o.pub.sym.mode == algNull) == (want == algNull) {
			return nil, 0, rcValue.param(2)
		}
		return nil, 0, rcScheme.param(2)
	}
	if o.seq != nil || o.pub.typ != algKeyedHash {
		return nil, 0, rcType.handle(1)
	}
	if o.pub.is(attrRestricted) {
		return nil, 0, rcAttributes.handle(1)
	}
	own := o.pub.scheme.hash
	if o.pub.scheme.alg == algNull {
		own = want
	}
	if own == algNull || own == 0 || want != algNull && want != own {
		return nil, 0, rcValue.param(2)
	}
	if !o.pub.is(attrSign) {
		return nil, 0, rcKey.handle(1)
	}
	return o.sens.bits, own, 0
}

// macScheme reads the TPMI_ALG_MAC_SCHEME+ that TPM2_HMAC and TPM2_MAC share.
func (r *reader) macScheme() uint16 {
	a := r.u16()
	if r.err == 0 && hashOf(a) == 0 && a != algNull {
		r.fail(rcSymmetric)
	}
	return a
}

func hmacCommand(t *TPM, c *call) rc {
	data := c.p.next().b2(maxBuffer)
	alg := c.p.next().macScheme()
	if e := c.end(); e != 0 {
		return e
	}
	key, alg, e := t.object(c.h[0]).hmacKeyed(alg)
	if e != 0 {
		return e
	}
	c.out.b2(mac(alg, key, data))
	return 0
}

func (t *TPM) startSequence(c *call, s *sequence) rc {
	var e rc
	c.hOut, e = t.alloc(&object{pub: &public{typ: algNull, attrs: attrUserWithAuth}, hier: rhNull, seq: s, stClear: true})
	return e
}

func hmacStart(t *TPM, c *call) rc {
	auth := trim(c.p.next().b2(maxDigest))
	alg := c.p.next().macScheme()
	if e := c.end(); e != 0 {
		return e
	}
	key, alg, e := t.object(c.h[0]).hmacKeyed(alg)
	if e != 0 {
		return e
	}
	return t.startSequence(c, &sequence{auth: auth, alg: alg, isHMAC: true, sums: []hash.Hash{hmac.New(hashOf(alg).New, key)}})
}

func hashSequenceStart(t *TPM, c *call) rc {
	auth := trim(c.p.next().b2(maxDigest))
	alg := c.p.next().hash(true)
	if e := c.end(); e != 0 {
		return e
	}
	s := &sequence{auth: auth, alg: alg}
	if alg == algNull {
		for _, b := range banks {
			s.sums = append(s.sums, hashOf(b).New())
		}
	} else {
		s.sums = []hash.Hash{hashOf(alg).New()}
	}
	return t.startSequence(c, s)
}

func sequenceUpdate(t *TPM, c *call) rc {
	data := c.p.next().b2(maxBuffer)
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq == nil {
		return rcMode.param(1) // as libtpms says
	}
	o.seq.write(data)
	return 0
}

func sequenceComplete(t *TPM, c *call) rc {
	data := c.p.next().b2(maxBuffer)
	hier := c.p.next().u32()
	if c.p.err == 0 && !hkHierarchyNull.allows(hier) {
		c.p.fail(rcValue)
	}
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq == nil || o.seq.alg == algNull {
		return rcMode.handle(1)
	}
	o.seq.write(data)
	sum := o.seq.sums[0].Sum(nil)
	c.out.b2(sum)
	if o.seq.isHMAC || len(o.seq.head) < 4 { // a first block too short to tell, libtpms says
		c.out.ticket(ticket{stHashCheck, rhNull, nil})
	} else {
		c.out.ticket(t.safeTicket(hier, o.seq.alg, sum, o.seq.head))
	}
	t.finishSequence(c, 0)
	return 0
}

// finishSequence removes a sequence object once the response is made: its
// authorisation value goes into the response's HMAC.
func (t *TPM) finishSequence(c *call, i int) { c.flush = append(c.flush, c.h[i]) }

func eventSequenceComplete(t *TPM, c *call) rc {
	data := c.p.next().b2(maxBuffer)
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[1])
	if o.seq == nil || o.seq.alg != algNull {
		return rcMode.handle(2)
	}
	if c.h[0] != rhNull && pcrRuleOf(int(c.h[0])).extend&t.localityBits() == 0 {
		return rcLocality
	}
	o.seq.write(data)
	c.out.u32(uint32(len(banks)))
	for i, alg := range banks {
		d := o.seq.sums[i].Sum(nil)
		if c.h[0] != rhNull {
			t.extend(alg, int(c.h[0]), d)
		}
		c.out.u16(alg)
		c.out.raw(d)
	}
	t.finishSequence(c, 1)
	return 0
}

func ecdhKeyGen(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq != nil || o.pub.typ != algECC {
		return rcKey.handle(1)
	}
	cv := curveOf(o.pub.curve)
	k, err := cv.generate(t.stream())
	if err != nil {
		return rcNoResult
	}
	zx, zy, ok := cv.multiply(k, cv.pad(o.pub.x), cv.pad(o.pub.y))
	if !ok {
		return rcNoResult
	}
	x, y := cv.coordinates(&k.PublicKey)
	c.out.point(zx, zy)
	c.out.point(x, y)
	return 0
}

func ecdhZGen(t *TPM, c *call) rc {
	var x, y []byte
	r := c.p.next()
	r.sized(func() { x, y = r.b2(maxECCBytes), r.b2(maxECCBytes) })
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq != nil || o.pub.typ != algECC {
		return rcKey.handle(1)
	}
	if o.pub.is(attrRestricted) || !o.pub.is(attrDecrypt) {
		return rcAttributes.handle(1)
	}
	if o.pub.scheme.alg != algECDH && o.pub.scheme.alg != algNull {
		return rcScheme.handle(1)
	}
	cv, k := curveOf(o.pub.curve), o.ecKey()
	if k == nil {
		return rcKey.handle(1)
	}
	if _, err := cv.public(x, y); err != nil {
		return rcECCPoint.param(1)
	}
	zx, zy, ok := cv.multiply(k, cv.pad(x), cv.pad(y))
	if !ok {
		return rcNoResult
	}
	c.out.point(zx, zy)
	return 0
}

// point writes a TPM2B_ECC_POINT.
func (w *writer) point(x, y []byte) {
	var p writer
	p.b2(x)
	p.b2(y)
	w.b2(p.b)
}
