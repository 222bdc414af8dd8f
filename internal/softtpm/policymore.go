package softtpm

import (
	"bytes"
	"encoding/binary"
)

func policyAuthValue(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	s.extend(ccPolicyAuthValue)
	s.policy.needAuth, s.policy.needPassword = true, false
	return 0
}

func policyPassword(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	s.extend(ccPolicyAuthValue)
	s.policy.needAuth, s.policy.needPassword = false, true
	return 0
}

func policyCommandCode(t *TPM, c *call) rc {
	code := c.p.next().u32()
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	if s.policy.cc != 0 && s.policy.cc != code {
		return rcValue.param(1)
	}
	if table[code] == nil {
		return rcPolicyCC.param(1)
	}
	s.extend(ccPolicyCommandCode, be32(code))
	s.policy.cc = code
	return 0
}

func policyLocality(t *TPM, c *call) rc {
	loc := c.p.next().u8()
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	if loc == 0 {
		return rcRange.param(1)
	}
	old := s.policy.locality
	switch {
	case old == 0:
	case old >= 32 && loc != old, old < 32 && loc >= 32:
		return rcRange.param(1)
	case old < 32:
		if old&loc == 0 {
			return rcRange.param(1)
		}
	}
	s.extend(ccPolicyLocality, []byte{loc})
	if old != 0 && old < 32 {
		loc &= old
	}
	s.policy.locality = loc
	return 0
}

func policyPhysicalPresence(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	s.extend(ccPolicyPhysicalPresence)
	s.policy.pp = true
	return 0
}

func policyCpHash(t *TPM, c *call) rc {
	return t.policyHash(c, ccPolicyCpHash, func(p *policyState, h []byte) rc {
		if p.nameHash != nil || p.templateHash != nil || p.cpHash != nil && !bytes.Equal(p.cpHash, h) {
			return rcCpHash
		}
		p.cpHash = h
		return 0
	})
}

func policyNameHash(t *TPM, c *call) rc {
	return t.policyHash(c, ccPolicyNameHash, func(p *policyState, h []byte) rc {
		if p.cpHash != nil || p.templateHash != nil || p.nameHash != nil {
			return rcCpHash
		}
		p.nameHash = h
		return 0
	})
}

func policyTemplate(t *TPM, c *call) rc {
	return t.policyHash(c, ccPolicyTemplate, func(p *policyState, h []byte) rc {
		if p.templateHash != nil && !bytes.Equal(p.templateHash, h) {
			return rcValue.param(1)
		}
		if p.cpHash != nil || p.nameHash != nil {
			return rcCpHash
		}
		p.templateHash = h
		return 0
	})
}

// policyHash serves the three commands that pin a digest of the command.
func (t *TPM) policyHash(c *call, cc uint32, set func(*policyState, []byte) rc) rc {
	h := c.p.next().b2(maxDigest)
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	if len(h) != hashSize(s.alg) {
		if cc == ccPolicyTemplate && s.policy.templateHash == nil && (s.policy.cpHash != nil || s.policy.nameHash != nil) {
			return rcCpHash
		}
		if s.policy.templateHash != nil && cc == ccPolicyTemplate {
			return rcValue.param(1)
		}
		return rcSize.param(1)
	}
	if e := set(&s.policy, h); e != 0 {
		return e
	}
	s.extend(cc, h)
	return 0
}

func policyDuplicationSelect(t *TPM, c *call) rc {
	object := c.p.next().b2(2 + maxDigest)
	parent := c.p.next().b2(2 + maxDigest)
	include := c.p.next().yesNo()
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	if s.policy.cpHash != nil || s.policy.nameHash != nil || s.policy.templateHash != nil {
		return rcCpHash
	}
	if s.policy.cc != 0 && s.policy.cc != ccDuplicate {
		return rcCommandCode
	}
	s.policy.nameHash = digest(s.alg, object, parent)
	if include {
		s.extend(ccPolicyDuplicationSelect, object, parent, []byte{1})
	} else {
		s.extend(ccPolicyDuplicationSelect, parent, []byte{0})
	}
	s.policy.cc = ccDuplicate
	return 0
}

func policyNvWritten(t *TPM, c *call) rc {
	set := c.p.next().yesNo()
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	if s.policy.nvWritten != nil && *s.policy.nvWritten != set {
		return rcValue.param(1)
	}
	flag := []byte{0}
	if set {
		flag[0] = 1
	}
	s.extend(ccPolicyNvWritten, flag)
	s.policy.nvWritten = &set
	return 0
}

func policyGetDigest(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	c.out.b2(t.sessions[c.h[0]].policy.digest)
	return 0
}

// Operations of PolicyNV and PolicyCounterTimer (TPM_EO).
func compare(op uint16, a, b []byte) bool {
	c := bytes.Compare(a, b)
	signed := func() int {
		if len(a) > 0 && (a[0]^b[0])&0x80 != 0 {
			if a[0]&0x80 != 0 {
				return -1
			}
			return 1
		}
		if len(a) > 0 && a[0]&0x80 != 0 {
			return -c // two negative values compare the other way round
		}
		return c
	}
	bits := func(f func(x, y byte) bool) bool {
		for i := range b {
			if !f(a[i], b[i]) {
				return false
			}
		}
		return true
	}
	switch op {
	case 0:
		return c == 0
	case 1:
		return c != 0
	case 2:
		return signed() > 0
	case 3:
		return c > 0
	case 4:
		return signed() < 0
	case 5:
		return c < 0
	case 6:
		return signed() >= 0
	case 7:
		return c >= 0
	case 8:
		return signed() <= 0
	case 9:
		return c <= 0
	case 10:
		return bits(func(x, y byte) bool { return x&y == y })
	case 11:
		return bits(func(x, y byte) bool { return x&y == 0 })
	}
	return false
}

// comparison reads the parameters that PolicyNV and PolicyCounterTimer share.
func (c *call) comparison() (operand []byte, offset, op uint16) {
	operand = c.p.next().b2(maxDigest)
	offset = c.p.next().u16()
	if op = c.p.next().u16(); c.p.err == 0 && op > 11 {
		c.p.fail(rcValue)
	}
	return operand, offset, op
}

func policyNV(t *TPM, c *call) rc {
	operand, offset, op := c.comparison()
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[2]]
	n := t.nv[c.h[1]]
	if s.kind != seTrial {
		if e := t.readable(c.h[0], c.h[1]); e != 0 {
			return e
		}
		if int(offset) > len(n.data) {
			return rcValue.param(2)
		}
		if int(offset)+len(operand) > len(n.data) {
			return rcSize.param(1)
		}
		if !compare(op, n.data[offset:int(offset)+len(operand)], operand) {
			return rcPolicy
		}
	}
	args := digest(s.alg, operand, be16(offset), be16(op))
	s.extend(ccPolicyNV, args, n.name())
	return 0
}

func policyCounterTimer(t *TPM, c *call) rc {
	operand, offset, op := c.comparison()
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[0]]
	var w writer
	t.timeInfo(&w)
	if int(offset) > len(w.b) {
		return rcValue.param(2)
	}
	if int(offset)+len(operand) > len(w.b) {
		return rcRange
	}
	if s.kind != seTrial {
		if !compare(op, w.b[offset:int(offset)+len(operand)], operand) {
			return rcPolicy
		}
	}
	args := digest(s.alg, operand, be16(offset), be16(op))
	s.extend(ccPolicyCounterTimer, args)
	return 0
}

func policyAuthorizeNV(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	s := t.sessions[c.h[2]]
	n := t.nv[c.h[1]]
	if s.kind != seTrial {
		if e := t.readable(c.h[0], c.h[1]); e != 0 {
			return e
		}
		if len(n.data) < 2 {
			return rcInsufficient.handle(2)
		}
		alg := binary.BigEndian.Uint16(n.data)
		if hashSize(alg) == 0 {
			return rcHash
		}
		if len(n.data) < 2+hashSize(alg) {
			return rcInsufficient.handle(2)
		}
		if alg != s.alg {
			return rcHash.handle(2)
		}
		if !bytes.Equal(n.data[2:2+hashSize(alg)], s.policy.digest) {
			return rcValue
		}
	}
	s.policy.digest = make([]byte, hashSize(s.alg))
	s.extend(ccPolicyAuthorizeNV, n.name())
	return 0
}
