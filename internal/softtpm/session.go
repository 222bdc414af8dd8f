package softtpm

import (
	"bytes"
	"crypto/hmac"
)

// Kinds of session (TPM_SE).
const (
	seHMAC   = 0
	sePolicy = 1
	seTrial  = 3
)

// Attributes of a session (TPMA_SESSION).
const (
	saContinue       = 1 << 0
	saAuditExclusive = 1 << 1
	saAuditReset     = 1 << 2
	saDecrypt        = 1 << 5
	saEncrypt        = 1 << 6
	saAudit          = 1 << 7
	saReserved       = 0x18
)

const (
	maxLoadedSessions = 3
	maxSessions       = 64 // loaded and saved ones
)

// session is a loaded session.
type session struct {
	handle   uint32
	kind     byte
	alg      uint16
	sym      symDef
	key      []byte
	nonceTPM []byte
	// bind is the name and authorisation value of what the session is bound to.
	bind         []byte
	bound        bool
	daBound      bool
	lockoutBound bool
	started      uint64 // milliseconds since the power came
	epoch        uint64 // of the time

	audit       []byte // digest of an audit session, or nil
	auditedHash []byte

	policy policyState
	client uint64 // who loaded it
}

// use is one session's part in one command.
type use struct {
	h         uint32
	s         *session // nil for a password
	attrs     byte
	nonce     []byte
	mac       []byte
	assoc     int // index of the handle that it authorises, or -1
	emptyHMAC bool

	// For a trace: the authorisation values behind the HMACs of command and
	// response, whether they are in the key, whether the HMAC was wrong, and
	// whether a password stood in its place.
	auth, authOut   []byte
	included, wrong bool
	password        bool
}

func (u *use) is(attr byte) bool { return u.attrs&attr != 0 }

// bindTo identifies an entity and its authorisation value.
func bindTo(name, auth []byte) []byte {
	var w writer
	w.b2(name)
	w.b2(auth)
	return w.b
}

// authorize reads the authorisation area and checks every session in it
// (part 1, sections 17 to 19), then decrypts the first parameter.
func (t *TPM) authorize(c *call, area []byte) rc {
	if e := t.readSessions(c, area); e != 0 {
		return e
	}
	c.parsed = true
	for i, spec := range c.d.handles {
		if spec.role == roleNone {
			continue
		}
		if i >= len(c.uses) {
			return rcAuthMissing
		}
		c.uses[i].assoc = i
	}
	for i, u := range c.uses {
		if e := t.checkUse(c, u, i); e != 0 {
			return e
		}
	}
	for i, u := range c.uses {
		if u.is(saAudit) {
			u.s.auditedHash = c.cpHash(u.s.alg)
		}
		if !u.is(saDecrypt) {
			continue
		}
		size, _, ok := lengthPrefixed(c.params)
		if !ok {
			if len(c.params) < 2 {
				return rcInsufficient.sess(i + 1)
			}
			return rcSize.sess(i + 1)
		}
		t.crypt(u, c, size, u.nonce, u.s.nonceTPM, false)
	}
	return 0
}

// readSessions reads the sessions and checks what needs no key.
func (t *TPM) readSessions(c *call, area []byte) rc {
	r := &reader{b: area}
	var decrypts, encrypts, audits int
	for i := 0; len(r.b) > 0; i++ {
		if i == 3 {
			return rcSize.sess(4)
		}
		fail := func(e rc) rc { return e.sess(i + 1) }
		u := &use{assoc: -1}
		u.h = r.u32()
		if r.err == 0 && u.h != rhPassword && !hkHMAC.allows(u.h) && !hkPolicy.allows(u.h) {
			r.fail(rcValue)
		}
		u.nonce = r.b2(maxNonce)
		if u.attrs = r.u8(); r.err == 0 && u.attrs&saReserved != 0 {
			r.fail(rcReservedBits)
		}
		u.mac = r.b2(maxDigest)
		if r.err != 0 {
			return fail(r.err)
		}
		c.uses = append(c.uses, u)
		if u.h == rhPassword {
			if len(u.nonce) != 0 {
				return fail(rcNonce)
			}
			if u.is(saAudit | saDecrypt | saEncrypt | saAuditExclusive | saAuditReset) {
				return fail(rcAttributes)
			}
			continue
		}
		if u.s = t.sessions[u.h]; u.s == nil {
			if t.sessions[u.h^(htHMAC^htPolicy)<<24] != nil {
				return fail(rcHandle)
			}
			return rcReferenceS0 + rc(i)
		}
		for _, v := range c.uses[:i] {
			if v.h == u.h {
				return fail(rcHandle)
			}
		}
		if u.is(saDecrypt) {
			if decrypts++; !c.d.dec || decrypts > 1 {
				return fail(rcAttributes)
			}
			if u.s.sym.alg == algNull {
				return fail(rcSymmetric)
			}
		}
		if u.is(saEncrypt) {
			if encrypts++; !c.d.enc || encrypts > 1 {
				return fail(rcAttributes)
			}
			if u.s.sym.alg == algNull {
				return fail(rcSymmetric)
			}
		}
		if u.is(saAudit) {
			if audits++; audits > 1 || u.s.kind != seHMAC {
				return fail(rcAttributes)
			}
			if u.is(saAuditExclusive) && t.exclusive != u.h && u.s.audit != nil && !u.is(saAuditReset) {
				return rcExclusive
			}
		} else if u.is(saAuditExclusive | saAuditReset) {
			return fail(rcAttributes)
		}
	}
	return 0
}

// checkUse checks one session of a command.
func (t *TPM) checkUse(c *call, u *use, i int) rc {
	if u.s == nil && u.assoc < 0 {
		return rcHandle.sess(i + 1)
	}
	if u.s != nil {
		if u.s.kind == seTrial {
			return rcAttributes.sess(i + 1)
		}
		if u.s.daBound {
			if e := t.lockedOut(u.s.lockoutBound); e != 0 {
				return e
			}
		}
	}
	if u.assoc < 0 {
		if !u.is(saDecrypt | saEncrypt | saAudit) {
			return rcAttributes.sess(i + 1)
		}
		return t.checkHMAC(c, u, i).sess(i + 1)
	}
	return t.checkAuth(c, u, i).sess(i + 1)
}

// checkAuth checks a session that authorises the use of a handle.
func (t *TPM) checkAuth(c *call, u *use, i int) rc {
	h := c.h[u.assoc]
	isPolicy := u.s != nil && u.s.kind == sePolicy
	authUsed := u.s == nil || isPolicy && (u.s.policy.needAuth || u.s.policy.needPassword) || !isPolicy && t.includesAuth(c, u)
	if authUsed {
		if !t.exempt(h) {
			if e := t.lockedOut(h == rhLockout); e != 0 {
				return e
			}
			if h != rhLockout {
				t.daTouched()
			}
		}
	}
	role := c.d.handles[u.assoc].role
	if !isPolicy {
		if t.policyRequired(h, role) {
			return rcAuthType
		}
		if !t.authAvailable(h, role, c.d) {
			return rcAuthUnavailable
		}
	} else {
		if !t.policyAvailable(h, c.d) {
			return rcAuthUnavailable
		}
		if e := t.checkPolicy(c, u, h, role); e != 0 {
			return e
		}
	}
	var e rc
	u.auth = t.authValue(h)
	if u.s == nil || isPolicy && u.s.policy.needPassword {
		u.password = true
		if !hmac.Equal(trim(u.mac), t.authValue(h)) {
			e = t.authFailed(h)
		}
	} else {
		e = t.checkHMAC(c, u, i)
	}
	if n := t.nv[h]; n != nil && n.pin() && (!isPolicy || u.s.policy.needAuth || u.s.policy.needPassword) {
		t.countPIN(n, e == 0)
	}
	return e
}

// includesAuth says whether the authorisation value of the entity that a
// session authorises goes into the HMAC's key.
func (t *TPM) includesAuth(c *call, u *use) bool {
	if u.assoc < 0 {
		return false
	}
	if u.s.kind == sePolicy {
		return u.s.policy.needAuth
	}
	h := c.h[u.assoc]
	return !u.s.bound || !hmac.Equal(u.s.bind, bindTo(t.name(h), t.authValue(h)))
}

// hmacKey is the key of a session's HMAC in this command.
func (t *TPM) hmacKey(c *call, u *use) []byte {
	k := bytes.Clone(u.s.key)
	if u.included {
		k = append(k, t.authValue(c.h[u.assoc])...)
	}
	return k
}

// cpHash is the digest of the command for a session's hash.
func (c *call) cpHash(alg uint16) []byte {
	parts := [][]byte{be32(c.d.cc)}
	parts = append(parts, c.names...)
	return digest(alg, append(parts, c.params)...)
}

func (t *TPM) checkHMAC(c *call, u *use, i int) rc {
	u.included = t.includesAuth(c, u)
	key := t.hmacKey(c, u)
	if len(key) == 0 && len(u.mac) == 0 {
		u.emptyHMAC = true
		return 0
	}
	var extra []byte
	if i == 0 && u.assoc >= 0 {
		for _, bit := range []byte{saDecrypt, saEncrypt} {
			for j, v := range c.uses {
				if j > 0 && v.is(bit) && (bit == saDecrypt || !v.is(saDecrypt)) {
					extra = append(extra, v.s.nonceTPM...)
				}
			}
		}
	}
	want := mac(u.s.alg, key, c.cpHash(u.s.alg), u.nonce, u.s.nonceTPM, extra, []byte{u.attrs})
	if hmac.Equal(want, u.mac) {
		return 0
	}
	u.wrong = true
	return t.hmacFailed(c, u)
}

// hmacFailed says what a wrong HMAC means: it counts as a failed try only where
// a protected authorisation value went into it.
func (t *TPM) hmacFailed(c *call, u *use) rc {
	h := rhNull
	if u.assoc >= 0 {
		h = c.h[u.assoc]
	}
	if u.s.lockoutBound {
		h = rhLockout
	}
	if !u.s.daBound && (t.exempt(h) || !t.includesAuth(c, u)) {
		return rcBadAuth
	}
	return t.registerFailure(h)
}

// crypt encrypts or decrypts the first parameter in place (part 1, section 19).
func (t *TPM) crypt(u *use, c *call, data, newer, older []byte, encrypt bool) {
	key := bytes.Clone(u.s.key)
	if u.assoc >= 0 {
		key = append(key, t.authValue(c.h[u.assoc])...)
	}
	if u.s.sym.alg == algXOR {
		xorMask(u.s.alg, key, newer, older, data)
		return
	}
	n := int(u.s.sym.bits) / 8
	kiv := kdfa(u.s.alg, key, "CFB", newer, older, (n+16)*8)
	cfb(kiv[:n], kiv[n:], data, encrypt)
}
