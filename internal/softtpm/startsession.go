package softtpm

import "bytes"

// symSession reads a TPMT_SYM_DEF+.
func (r *reader) symSession() (s symDef) {
	s.alg = r.u16()
	switch {
	case r.err != 0, s.alg == algNull:
	case s.alg == algXOR:
		s.bits = r.hash(false)
	case s.alg == algAES:
		if s.bits = r.u16(); r.err == 0 && s.bits != 128 && s.bits != 256 {
			r.fail(rcValue)
		}
		switch s.mode = r.u16(); s.mode {
		case algCTR, algOFB, algCBC, algCFB, algECB:
		default:
			r.fail(rcMode)
		}
	default:
		r.fail(rcSymmetric)
	}
	return s
}

func startAuthSession(t *TPM, c *call) rc {
	s := &session{}
	nonce := c.p.next().b2(maxNonce)
	salt := c.p.next().b2(maxRSABytes)
	if s.kind = c.p.next().u8(); c.p.err == 0 && s.kind != seHMAC && s.kind != sePolicy && s.kind != seTrial {
		c.p.fail(rcValue)
	}
	s.sym = c.p.next().symSession()
	s.alg = c.p.next().hash(false)
	if e := c.end(); e != 0 {
		return e
	}
	if len(nonce) < 16 || len(nonce) > hashSize(s.alg) {
		return rcSize.param(1)
	}
	var secret []byte
	if c.h[0] == rhNull {
		if len(salt) != 0 {
			return rcValue.param(2)
		}
	} else {
		o := t.object(c.h[0])
		if o.seq == nil && o.sens == nil {
			return rcHandle.handle(1)
		}
		if o.pub.typ != algRSA && o.pub.typ != algECC {
			return rcKey.handle(1)
		}
		if len(salt) == 0 {
			return rcValue.param(2)
		}
		if !o.pub.is(attrDecrypt) {
			return rcAttributes.handle(1)
		}
		plain, e := o.decryptSecret("SECRET", salt)
		if e != 0 {
			return e.param(2)
		}
		secret = plain
	}
	if s.sym.alg == algAES && s.sym.mode != algCFB {
		return rcMode.param(4)
	}
	bind := c.h[1]
	if bind != rhNull {
		if o := t.object(bind); o != nil && o.seq == nil && o.sens == nil {
			return rcHandle.handle(2)
		}
		if n := t.nv[bind]; n != nil && n.pin() {
			return rcHandle.handle(2)
		}
		auth := t.authValue(bind)
		secret = append(bytes.Clone(auth), secret...)
		if s.kind == seHMAC {
			s.bound, s.bind = true, bindTo(t.name(bind), auth)
		}
		s.daBound = !t.exempt(bind)
		s.lockoutBound = bind == rhLockout
	}
	if e := t.sessionRoom(); e != 0 {
		return e
	}
	s.nonceTPM = t.random(len(nonce))
	if bind != rhNull || c.h[0] != rhNull {
		s.key = kdfa(s.alg, secret, "ATH", s.nonceTPM, nonce, hashSize(s.alg)*8)
	}
	if s.kind != seHMAC {
		s.policy.digest = make([]byte, hashSize(s.alg))
	}
	s.started, s.epoch = t.uptime(), t.epoch
	kind := uint32(htHMAC)
	if s.kind != seHMAC {
		kind = htPolicy
	}
	s.client = t.client
	s.handle = kind<<24 | t.freeSession()
	t.sessions[s.handle] = s
	c.hOut = s.handle
	c.out.b2(s.nonceTPM)
	return 0
}

// sessionRoom says whether one more session can be loaded.
func (t *TPM) sessionRoom() rc {
	if len(t.sessions) >= maxLoadedSessions {
		return rcSessionMemory
	}
	if len(t.sessions)+len(t.volatile.saved) >= maxSessions {
		return rcSessionHandles
	}
	return 0
}

// freeSession returns the lowest number that no session has.
func (t *TPM) freeSession() uint32 {
	used := map[uint32]bool{}
	for h := range t.sessions {
		used[h&0xFFFFFF] = true
	}
	for h := range t.volatile.saved {
		used[h&0xFFFFFF] = true
	}
	n := uint32(0)
	for used[n] {
		n++
	}
	return n
}

func policyRestart(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	s.policy = policyState{digest: make([]byte, hashSize(s.alg))}
	s.started, s.epoch = t.uptime(), t.epoch
	return 0
}

func flushContext(t *TPM, c *call) rc {
	h := c.p.next().u32()
	switch handleType(h) {
	case htHMAC, htPolicy, htTransient:
	default:
		c.p.fail(rcValue)
	}
	if e := c.end(); e != 0 {
		return e
	}
	if handleType(h) == htTransient {
		if t.objs[h] == nil {
			return rcHandle.param(1)
		}
		delete(t.objs, h)
		return 0
	}
	h2 := h ^ (htHMAC^htPolicy)<<24 // libtpms takes either type for a session's number
	for _, k := range []uint32{h, h2} {
		if t.sessions[k] != nil {
			t.dropSession(k)
			return 0
		}
		if t.volatile.saved[k] != nil {
			delete(t.volatile.saved, k)
			return 0
		}
	}
	return rcHandle.param(1)
}

// decryptSecret recovers a secret that was encrypted to o: with OAEP for an RSA
// key, with ephemeral ECDH for an ECC key (part 1, annexes B.10 and C.6).
func (o *object) decryptSecret(label string, secret []byte) ([]byte, rc) {
	switch o.pub.typ {
	case algRSA:
		k := o.rsaKey()
		if k == nil {
			return nil, rcKey
		}
		alg := o.pub.nameAlg
		if o.pub.scheme.alg == algOAEP {
			alg = o.pub.scheme.hash
		}
		if len(secret) != k.Size() {
			return nil, rcSize
		}
		plain, ok := decryptOAEP(k, alg, label, secret)
		if !ok {
			return nil, rcValue
		}
		if len(plain) > hashSize(o.pub.nameAlg) {
			return nil, rcSize
		}
		return plain, 0
	case algECC:
		k := o.ecKey()
		if k == nil {
			return nil, rcKey
		}
		r := &reader{b: secret}
		x, y := r.b2(maxECCBytes), r.b2(maxECCBytes)
		if r.err != 0 {
			return nil, r.err
		}
		if len(r.b) != 0 {
			return nil, rcSize
		}
		c := curveOf(o.pub.curve)
		z, ok := c.shared(k, x, y)
		if !ok {
			return nil, rcECCPoint
		}
		point := c.point(x, y)
		return kdfe(o.pub.nameAlg, z, label, point[1:1+c.size], c.pad(o.pub.x), hashSize(o.pub.nameAlg)*8), 0
	}
	return nil, rcKey
}

// encryptSecret is the inverse: it makes a secret and encrypts it to o.
func (t *TPM) encryptSecret(o *object, label string) (plain, secret []byte, e rc) {
	size := hashSize(o.pub.nameAlg)
	switch o.pub.typ {
	case algRSA:
		pub, ok := o.pub.rsaPublic()
		if !ok {
			return nil, nil, rcKey
		}
		alg := o.pub.nameAlg
		if o.pub.scheme.alg == algOAEP {
			alg = o.pub.scheme.hash
		}
		plain = t.random(size)
		if secret, ok = encryptOAEP(pub, alg, append([]byte(label), 0), plain); !ok {
			return nil, nil, rcKey
		}
		return plain, secret, 0
	case algECC:
		c := curveOf(o.pub.curve)
		k, err := c.generate(t.stream())
		if err != nil {
			return nil, nil, rcFailure
		}
		z, ok := c.shared(k, o.pub.x, o.pub.y)
		if !ok {
			return nil, nil, rcECCPoint
		}
		x, y := c.coordinates(&k.PublicKey)
		var w writer
		w.b2(x)
		w.b2(y)
		return kdfe(o.pub.nameAlg, z, label, x, c.pad(o.pub.x), size*8), w.b, 0
	}
	return nil, nil, rcKey
}
