package softtpm

// respondSessions rolls the nonces, encrypts the first response parameter, and
// appends the response's authorisation area.
func (t *TPM) respondSessions(c *call, w *writer) {
	params := c.out.b
	for _, u := range c.uses {
		if u.s != nil {
			t.audit(c, u, params)
		}
	}
	if t.exclusive != 0 && !c.d.keepsExclusive {
		audited := false
		for _, u := range c.uses {
			audited = audited || u.h == t.exclusive && u.is(saAudit)
		}
		if !audited {
			t.exclusive = 0
		}
	}
	for _, u := range c.uses {
		if u.assoc >= 0 {
			u.authOut = t.authValue(c.h[u.assoc])
		}
		if u.s != nil {
			u.s.nonceTPM = t.random(len(u.s.nonceTPM))
		}
	}
	for _, u := range c.uses {
		if u.is(saEncrypt) {
			if data, _, ok := lengthPrefixed(params); ok {
				t.crypt(u, c, data, u.s.nonceTPM, u.nonce, true)
			}
		}
	}
	w.u32(uint32(len(params)))
	w.raw(params)
	for _, u := range c.uses {
		if u.s == nil {
			w.b2(nil)
			w.u8(u.attrs | saContinue)
			w.b2(nil)
			continue
		}
		attrs := u.attrs
		if u.is(saAudit) && t.exclusive == u.h {
			attrs |= saAuditExclusive
		}
		w.b2(u.s.nonceTPM)
		w.u8(attrs)
		switch {
		case u.emptyHMAC, u.s.kind == sePolicy && u.s.policy.needPassword:
			w.b2(nil)
		default:
			rp := digest(u.s.alg, be32(0), be32(c.d.cc), params)
			w.b2(mac(u.s.alg, t.hmacKey(c, u), rp, u.s.nonceTPM, u.nonce, []byte{attrs}))
		}
		if !u.is(saContinue) {
			t.dropSession(u.h)
		} else if u.s.kind == sePolicy {
			u.s.policy = policyState{digest: make([]byte, hashSize(u.s.alg))}
			u.s.started, u.s.epoch = t.uptime(), t.epoch
		}
	}
}

// audit extends the digest of an audit session.
func (t *TPM) audit(c *call, u *use, params []byte) {
	if !u.is(saAudit) {
		return
	}
	if u.s.audit == nil || u.is(saAuditReset) {
		u.s.bound = false // an audit session is bound to nothing any more
		u.s.audit = make([]byte, hashSize(u.s.alg))
		t.exclusive = u.h
	}
	rp := digest(u.s.alg, be32(0), be32(c.d.cc), params)
	u.s.audit = digest(u.s.alg, u.s.audit, u.s.auditedHash, rp)
}

func (t *TPM) dropSession(h uint32) {
	if s := t.sessions[h]; s != nil {
		clear(s.key)
	}
	delete(t.sessions, h)
	if t.exclusive == h {
		t.exclusive = 0
	}
}
