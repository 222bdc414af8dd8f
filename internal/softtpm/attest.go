package softtpm

import (
	"crypto/hmac"
	"encoding/binary"
)

const (
	attestMagic     = 0xFF544347
	firmwareVersion = 0x2026_0001_0000_0001
)

// clockInfo writes a TPMS_CLOCK_INFO, obfuscated by what a signer's hierarchy
// demands.
func (t *TPM) clockInfo(w *writer, addReset, addRestart uint32) {
	w.u64(t.clock())
	w.u32(t.resetCount + addReset)
	w.u32(t.restartCount + addRestart)
	w.flag(t.clockSafe)
}

// timeInfo writes a TPMS_TIME_INFO.
func (t *TPM) timeInfo(w *writer) {
	w.u64(t.uptime())
	t.clockInfo(w, 0, 0)
}

// attest builds and signs an attestation (part 3, section 18). Outside the
// endorsement and platform hierarchies firmware version and counts are
// obfuscated, so that two keys can't be told to live in one TPM.
func (t *TPM) attest(c *call, o *object, s scheme, typ uint16, extra, body []byte) rc {
	var a writer
	a.u32(attestMagic)
	a.u16(typ)
	qname := be32(rhNull)
	if o != nil {
		qname = o.qname
	}
	a.b2(qname)
	a.b2(extra)
	version := uint64(firmwareVersion)
	var addReset, addRestart uint32
	if o == nil || o.hier != rhEndorsement && o.hier != rhPlatform {
		m := kdfa(algSHA512, t.proofs[rhOwner], "OBFUSCATE", qname, nil, 128)
		version += binary.BigEndian.Uint64(m)
		addReset, addRestart = binary.BigEndian.Uint32(m[8:]), binary.BigEndian.Uint32(m[12:])
	}
	t.clockInfo(&a, addReset, addRestart)
	a.u64(version)
	a.raw(body)
	sig := signature{alg: algNull}
	if o != nil {
		var e rc
		if sig, e = o.sign(s, digest(s.hash, a.b)); e != 0 {
			return e
		}
	}
	c.out.b2(a.b)
	c.out.signature(sig)
	return 0
}

// signer returns the key and the scheme to sign with. The null handle gives no
// key: the attestation is then not signed. n is the handle's position and p
// the scheme parameter's.
func (t *TPM) signer(h uint32, s scheme, n, p int) (*object, scheme, rc) {
	if h == rhNull {
		return nil, scheme{alg: algNull, hash: algNull}, 0
	}
	o := t.object(h)
	if !o.canSign() {
		return nil, s, rcKey.handle(n)
	}
	s, ok := o.signScheme(s)
	if !ok {
		return nil, s, rcScheme.param(p)
	}
	return o, s, 0
}

func quote(t *TPM, c *call) rc {
	extra := c.p.next().b2(2 + maxDigest)
	s := c.p.next().sigScheme()
	sels := c.p.next().pcrSels()
	if e := c.end(); e != 0 {
		return e
	}
	o, s, e := t.signer(c.h[0], s, 1, 2)
	if e != 0 {
		return e
	}
	if o == nil {
		return rcScheme.param(2) // there is no hash for the PCRs
	}
	sels, values := t.selected(sels, -1)
	var b writer
	b.pcrSels(sels)
	b.b2(digest(s.hash, values...))
	return t.attest(c, o, s, stAttestQuote, extra, b.b).param(2)
}

func certify(t *TPM, c *call) rc {
	extra := c.p.next().b2(2 + maxDigest)
	s := c.p.next().sigScheme()
	if e := c.end(); e != 0 {
		return e
	}
	o, s, e := t.signer(c.h[1], s, 2, 2)
	if e != 0 {
		return e
	}
	subject := t.object(c.h[0])
	var b writer
	b.b2(subject.name)
	b.b2(subject.qname)
	return t.attest(c, o, s, stAttestCertify, extra, b.b).param(2)
}

func certifyCreation(t *TPM, c *call) rc {
	extra := c.p.next().b2(2 + maxDigest)
	sum := c.p.next().b2(maxDigest)
	s := c.p.next().sigScheme()
	tk := c.p.next().ticket(stCreation)
	if e := c.end(); e != 0 {
		return e
	}
	o, s, e := t.signer(c.h[0], s, 1, 3)
	if e != 0 {
		return e
	}
	subject := t.object(c.h[1])
	if !hmac.Equal(tk.digest, t.creationTicket(tk.hier, subject.name, sum).digest) {
		return rcTicket.param(4)
	}
	var b writer
	b.b2(subject.name)
	b.b2(sum)
	return t.attest(c, o, s, stAttestCreation, extra, b.b).param(3)
}

func getTime(t *TPM, c *call) rc {
	extra := c.p.next().b2(2 + maxDigest)
	s := c.p.next().sigScheme()
	if e := c.end(); e != 0 {
		return e
	}
	o, s, e := t.signer(c.h[1], s, 2, 2)
	if e != 0 {
		return e
	}
	var b writer
	t.timeInfo(&b)
	b.u64(firmwareVersion)
	return t.attest(c, o, s, stAttestTime, extra, b.b).param(2)
}

func nvCertify(t *TPM, c *call) rc {
	extra := c.p.next().b2(2 + maxDigest)
	s := c.p.next().sigScheme()
	size := int(c.p.next().u16())
	offset := int(c.p.next().u16())
	if e := c.end(); e != 0 {
		return e
	}
	o, s, e := t.signer(c.h[0], s, 1, 2)
	if e != 0 {
		return e
	}
	if e := t.readable(c.h[1], c.h[2]); e != 0 {
		return e
	}
	n := t.nv[c.h[2]]
	var b writer
	b.b2(n.name())
	if size == 0 && offset == 0 {
		alg := s.hash
		if o == nil {
			alg = n.nameAlg
		}
		b.b2(digest(alg, n.data))
		return t.attest(c, o, s, stAttestNVDigest, extra, b.b).param(2)
	}
	if offset+size > n.size {
		return rcNVRange
	}
	if size > maxNVBuffer {
		return rcValue.param(3)
	}
	b.u16(uint16(offset))
	b.b2(n.data[offset : offset+size])
	return t.attest(c, o, s, stAttestNV, extra, b.b).param(2)
}

func getSessionAuditDigest(t *TPM, c *call) rc {
	extra := c.p.next().b2(2 + maxDigest)
	s := c.p.next().sigScheme()
	if e := c.end(); e != 0 {
		return e
	}
	o, s, e := t.signer(c.h[1], s, 2, 2)
	if e != 0 {
		return e
	}
	audited := t.sessions[c.h[2]]
	if audited.audit == nil {
		return rcType.handle(3)
	}
	var b writer
	b.flag(t.exclusive == c.h[2])
	b.b2(audited.audit)
	return t.attest(c, o, s, stAttestAudit, extra, b.b).param(2)
}
