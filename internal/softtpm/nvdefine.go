package softtpm

import "encoding/binary"

// nvPublic2B reads a TPM2B_NV_PUBLIC.
func (r *reader) nvPublic2B() *nvIndex {
	n := &nvIndex{}
	r.sized(func() {
		if n.handle = r.u32(); r.err == 0 && handleType(n.handle) != htNV {
			r.fail(rcValue)
		}
		n.nameAlg = r.hash(false)
		if n.attrs = r.u32(); n.attrs&nvReserved != 0 {
			r.fail(rcReservedBits)
		}
		n.policy = r.b2(maxDigest)
		if n.size = int(r.u16()); n.size > maxNVIndex {
			r.fail(rcSize)
		}
	})
	return n
}

func nvDefineSpace(t *TPM, c *call) rc {
	auth := trim(c.p.next().b2(maxDigest))
	n := c.p.next().nvPublic2B()
	if e := c.end(); e != 0 {
		return e
	}
	if len(n.policy) != 0 && len(n.policy) != hashSize(n.nameAlg) {
		return rcSize.param(2)
	}
	if len(auth) > hashSize(n.nameAlg) {
		return rcSize.param(1)
	}
	if c.h[0] == rhPlatform && !t.enabled[rhPlatformNV] {
		return rcHierarchy.handle(1)
	}
	if e := checkNVPublic(n); e != 0 {
		return e.param(2)
	}
	if (n.attrs&nvPlatformCreate != 0) != (c.h[0] == rhPlatform) {
		return rcAttributes.handle(1)
	}
	if n.attrs&nvPolicyDelete != 0 && c.h[0] != rhPlatform {
		return rcAttributes.param(2)
	}
	if n.size > maxNVBuffer && n.attrs&nvWriteAll != 0 {
		return rcSize.param(2)
	}
	if t.nv[n.handle] != nil {
		return rcNVDefined
	}
	if len(t.nv) >= maxNVIndices {
		return rcNVSpace
	}
	n.auth = auth
	t.nv[n.handle] = n
	t.dirty = true
	return 0
}

// checkNVPublic checks type, size and attributes of a new index.
func checkNVPublic(n *nvIndex) rc {
	has := func(a uint32) bool { return n.attrs&a != 0 }
	switch n.typ() {
	case ntOrdinary:
	case ntExtend:
		if n.size != hashSize(n.nameAlg) {
			return rcSize
		}
	case ntCounter, ntBits, ntPINFail, ntPINPass:
		if n.size != 8 {
			return rcSize
		}
	default:
		return rcAttributes
	}
	switch n.typ() {
	case ntCounter:
		if has(nvClearSTClear) {
			return rcAttributes
		}
	case ntPINFail:
		if !has(nvNoDA) || has(nvAuthWrite|nvGlobalLock|nvWriteDefine) {
			return rcAttributes
		}
	case ntPINPass:
		if has(nvAuthWrite | nvGlobalLock | nvWriteDefine) {
			return rcAttributes
		}
	}
	switch {
	case has(nvWritten | nvWriteLocked | nvReadLocked),
		!has(nvOwnerRead | nvPPRead | nvAuthRead | nvPolicyRead),
		!has(nvOwnerWrite | nvPPWrite | nvAuthWrite | nvPolicyWrite),
		has(nvClearSTClear) && has(nvWriteDefine):
		return rcAttributes
	}
	return 0
}

func nvUndefineSpace(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[1]]
	if n.attrs&nvPolicyDelete != 0 {
		return rcAttributes.handle(2)
	}
	if c.h[0] == rhOwner && n.attrs&nvPlatformCreate != 0 {
		return rcNVAuth
	}
	t.undefine(n)
	return 0
}

// nvUndefineSpaceSpecial deletes an index that only a policy may delete.
func nvUndefineSpaceSpecial(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[0]]
	if n.attrs&nvPolicyDelete == 0 {
		return rcAttributes.handle(1)
	}
	t.undefine(n)
	return 0
}

func (t *TPM) undefine(n *nvIndex) {
	if n.typ() == ntCounter && n.attrs&nvWritten != 0 {
		t.maxCount = max(t.maxCount, binary.BigEndian.Uint64(n.data))
	}
	delete(t.nv, n.handle)
	t.dirty = true
}
