package softtpm

import (
	"bytes"
	"crypto/hmac"
)

// policyState is what the policy commands have established in a session
// (part 1, section 19.7).
type policyState struct {
	digest       []byte
	timeout      uint64 // milliseconds since the power came, or 0
	cc           uint32
	pcrSet       bool
	pcrUpdates   uint32
	locality     byte
	cpHash       []byte
	nameHash     []byte
	templateHash []byte
	needAuth     bool
	needPassword bool
	pp           bool
	nvWritten    *bool
}

// extend folds a policy command into the digest.
func (s *session) extend(cc uint32, parts ...[]byte) {
	s.policy.digest = digest(s.alg, append([][]byte{s.policy.digest, be32(cc)}, parts...)...)
}

// update is PolicyUpdate of part 3, section 23.2.3: name and reference are
// folded in by two steps.
func (s *session) update(cc uint32, name, ref []byte) {
	s.extend(cc, name)
	s.policy.digest = digest(s.alg, s.policy.digest, ref)
}

// checkPolicy says whether a policy session authorises the use of handle h.
func (t *TPM) checkPolicy(c *call, u *use, h uint32, role authRole) rc {
	p := &u.s.policy
	if c.d.cc == ccPolicySecret && !p.needAuth && !p.needPassword {
		return rcMode
	}
	if p.pcrSet && p.pcrUpdates != t.pcrUpdates {
		return rcPCRChanged
	}
	want := t.policyOf(h)
	if want.alg != u.s.alg || !bytes.Equal(want.digest, p.digest) {
		return rcPolicyFail
	}
	if p.timeout != 0 && (p.timeout < t.uptime() || u.s.epoch != t.epoch) {
		return rcExpired
	}
	if p.cc != 0 {
		if p.cc != c.d.cc {
			return rcPolicyCC
		}
	} else if role == roleAdmin || role == roleDup {
		return rcPolicyFail
	}
	if p.locality != 0 && !localityAllowed(p.locality, t.volatile.locality) {
		return rcLocality
	}
	if p.pp {
		return rcPP
	}
	if p.cpHash != nil && !hmac.Equal(p.cpHash, c.cpHash(u.s.alg)) ||
		p.nameHash != nil && !hmac.Equal(p.nameHash, digest(u.s.alg, c.names...)) ||
		p.templateHash != nil && !c.templateIs(u.s.alg, p.templateHash) {
		return rcPolicyFail
	}
	if p.nvWritten != nil {
		n := t.nv[h]
		if n == nil || (n.attrs&nvWritten != 0) != *p.nvWritten {
			return rcPolicyFail
		}
	}
	return 0
}

// localityAllowed reads a TPMA_LOCALITY.
func localityAllowed(allowed byte, locality int) bool {
	if allowed >= 32 {
		return int(allowed) == locality
	}
	return allowed>>locality&1 == 1
}

// templateIs says whether the template parameter of a creating command has a
// digest. It stands second, behind the sensitive parameter.
func (c *call) templateIs(alg uint16, want []byte) bool {
	switch c.d.cc {
	case ccCreate, ccCreatePrimary, ccCreateLoaded:
	default:
		return false
	}
	_, rest, ok := lengthPrefixed(c.params)
	if !ok {
		return false
	}
	template, _, ok := lengthPrefixed(rest)
	return ok && hmac.Equal(want, digest(alg, template))
}

// checkParams holds the checks that PolicySigned, PolicySecret and PolicyTicket
// share (part 3, section 23.2.2).
func (t *TPM) checkParams(s *session, timeout uint64, cpHash []byte, nonceParam, cpParam, expParam int) rc {
	if len(cpHash) > 0 {
		if len(cpHash) != hashSize(s.alg) {
			return rcSize.param(cpParam)
		}
		if s.policy.nameHash != nil || s.policy.templateHash != nil || s.policy.cpHash != nil && !bytes.Equal(s.policy.cpHash, cpHash) {
			return rcCpHash
		}
	}
	if timeout != 0 && (timeout < t.uptime() || s.epoch != t.epoch) {
		return rcExpired.param(expParam)
	}
	return 0
}

// policyTimeout is when an expiration given in seconds comes: since the
// session's start when its nonce is given, else since the power came. Zero means
// never.
func (t *TPM) policyTimeout(s *session, b binding) uint64 {
	if b.expiration == 0 {
		return 0
	}
	ms := int64(b.expiration) * 1000
	if ms < 0 {
		ms = -ms
	}
	if len(b.nonce) == 0 {
		return uint64(ms) + t.uptime()%1000
	}
	return s.started + uint64(ms)
}

// restrict applies timeout and cpHash to a session.
func (s *session) restrict(timeout uint64, cpHash []byte) {
	if timeout != 0 && (s.policy.timeout == 0 || timeout < s.policy.timeout) {
		s.policy.timeout = timeout
	}
	if len(cpHash) > 0 {
		s.policy.cpHash = bytes.Clone(cpHash)
	}
}

// authTicket makes the ticket of PolicySecret or PolicySigned.
func (t *TPM) authTicket(tag uint16, hier uint32, timeout uint64, cpHash, ref, name []byte) ticket {
	return ticket{tag, hier, mac(algSHA512, t.proof(hier), be16(tag), be64(timeout), be64(t.epochOf(timeout)), be16(uint16(len(cpHash))), cpHash,
		be16(uint16(len(ref))), ref, name)}
}

// epochOf is what ties a ticket that expires to the time that it was made in:
// that stops when the power goes.
func (t *TPM) epochOf(timeout uint64) uint64 {
	if timeout == 0 {
		return 0
	}
	return t.epoch
}

// binding are the parameters that PolicySecret and PolicySigned share.
type binding struct {
	nonce, cpHash, ref []byte
	expiration         int32
}

func (c *call) binding() (b binding) {
	b.nonce = c.p.next().b2(maxNonce)
	b.cpHash = c.p.next().b2(maxDigest)
	b.ref = c.p.next().b2(maxNonce)
	b.expiration = int32(c.p.next().u32())
	return b
}

func policySecret(t *TPM, c *call) rc {
	b := c.binding()
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[1]]
	timeout := uint64(0)
	if s.kind != seTrial {
		if len(b.nonce) > 0 && !bytes.Equal(b.nonce, s.nonceTPM) {
			return rcNonce.param(1)
		}
		timeout = t.policyTimeout(s, b)
		if e := t.checkParams(s, timeout, b.cpHash, 1, 2, 4); e != 0 {
			return e
		}
	}
	s.update(ccPolicySecret, c.names[0], b.ref)
	s.restrict(timeout, b.cpHash)
	t.writeTicket(c, stAuthSecret, t.hierarchyOf(c.h[0]), b, timeout, c.names[0], s)
	return 0
}

// writeTicket writes timeout and ticket, which are empty unless the expiration
// is negative.
func (t *TPM) writeTicket(c *call, tag uint16, hier uint32, b binding, timeout uint64, name []byte, s *session) {
	if b.expiration >= 0 || s.kind == seTrial {
		c.out.b2(nil)
		c.out.ticket(ticket{tag, rhNull, nil})
		return
	}
	c.out.b2(be64(timeout))
	c.out.ticket(t.authTicket(tag, hier, timeout, b.cpHash, b.ref, name))
}

func policySigned(t *TPM, c *call) rc {
	b := c.binding()
	sig := c.p.next().signature()
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[1]]
	o := t.object(c.h[0])
	timeout := uint64(0)
	if s.kind != seTrial {
		if len(b.nonce) > 0 && !bytes.Equal(b.nonce, s.nonceTPM) {
			return rcNonce.param(1)
		}
		timeout = t.policyTimeout(s, b)
		if e := t.checkParams(s, timeout, b.cpHash, 1, 2, 4); e != 0 {
			return e
		}
		aHash := digest(sig.hash, b.nonce, be32(uint32(b.expiration)), b.cpHash, b.ref)
		if aHash == nil {
			return rcScheme.param(5)
		}
		if e := o.verify(sig, aHash); e != 0 {
			return e.param(5)
		}
	}
	s.update(ccPolicySigned, o.name, b.ref)
	s.restrict(timeout, b.cpHash)
	t.writeTicket(c, stAuthSigned, t.hierarchyOf(c.h[0]), b, timeout, o.name, s)
	return 0
}

func policyTicket(t *TPM, c *call) rc {
	when := c.p.next().b2(8)
	cpHash := c.p.next().b2(maxDigest)
	ref := c.p.next().b2(maxNonce)
	name := c.p.next().b2(2 + maxDigest)
	tk := c.p.next().ticket(stAuthSecret, stAuthSigned)
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	if s.kind == seTrial {
		return rcAttributes.handle(1)
	}
	if len(when) != 8 {
		return rcValue.param(1)
	}
	timeout := (&reader{b: when}).u64()
	if e := t.checkParams(s, timeout, cpHash, 0, 2, 1); e != 0 {
		return e
	}
	if !hmac.Equal(t.authTicket(tk.tag, tk.hier, timeout, cpHash, ref, name).digest, tk.digest) {
		return rcTicket.param(5)
	}
	cc := ccPolicySecret
	if tk.tag == stAuthSigned {
		cc = ccPolicySigned
	}
	s.update(cc, name, ref)
	s.restrict(timeout, cpHash)
	return 0
}

func policyOR(t *TPM, c *call) rc {
	n := c.p.next().u32()
	if c.p.err == 0 && (n < 2 || n > 8) {
		c.p.fail(rcSize)
	}
	var list [][]byte
	for ; n > 0 && c.p.err == 0; n-- {
		list = append(list, c.p.b2(maxDigest))
	}
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	match := s.kind == seTrial
	for _, d := range list {
		match = match || bytes.Equal(d, s.policy.digest)
	}
	if !match {
		return rcValue.param(1)
	}
	s.policy.digest = make([]byte, hashSize(s.alg))
	s.extend(ccPolicyOR, list...)
	return 0
}

func policyPCR(t *TPM, c *call) rc {
	want := c.p.next().b2(maxDigest)
	sels := c.p.next().pcrSels()
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	sels, values := t.selected(sels, -1)
	now := digest(s.alg, values...)
	if s.kind != seTrial {
		if s.policy.pcrSet && s.policy.pcrUpdates != t.pcrUpdates {
			return rcPCRChanged
		}
		if len(want) > 0 && !bytes.Equal(want, now) {
			return rcValue.param(1)
		}
		s.policy.pcrSet, s.policy.pcrUpdates = true, t.pcrUpdates
	} else if len(want) > 0 {
		now = want
	}
	var w writer
	w.pcrSels(sels)
	s.extend(ccPolicyPCR, w.b, now)
	return 0
}

func policyAuthorize(t *TPM, c *call) rc {
	approved := c.p.next().b2(maxDigest)
	ref := c.p.next().b2(maxNonce)
	name := c.p.next().b2(2 + maxDigest)
	tk := c.p.next().ticket(stVerified)
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	if len(name) < 2 || hashSize(uint16(name[0])<<8|uint16(name[1])) == 0 {
		return rcHash.param(3)
	}
	alg := uint16(name[0])<<8 | uint16(name[1])
	if len(name) != 2+hashSize(alg) {
		return rcSize.param(3)
	}
	if s.kind != seTrial {
		if !bytes.Equal(approved, s.policy.digest) {
			return rcValue.param(1)
		}
		aHash := digest(alg, approved, ref)
		if !hmac.Equal(t.verifiedTicket(tk.hier, aHash, name).digest, tk.digest) {
			return rcValue.param(4)
		}
	}
	s.policy.digest = make([]byte, hashSize(s.alg))
	s.update(ccPolicyAuthorize, name, ref)
	return 0
}
