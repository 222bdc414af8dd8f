package softtpm

import (
	"cmp"
	"maps"
	"math/big"
	"slices"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// Capabilities (TPM_CAP).
const (
	capAlgs          = 0
	capHandles       = 1
	capCommands      = 2
	capPPCommands    = 3
	capAuditCommands = 4
	capPCRs          = 5
	capProperties    = 6
	capPCRProperties = 7
	capCurves        = 8
	capAuthPolicies  = 9
	capACT           = 10
)

// page writes the entries from first on, at most count of them: the list's
// header, then each entry.
func page[T any](c *call, capability uint32, list []T, key func(T) uint32, first, count uint32, limit int, write func(T)) {
	start := 0
	for start < len(list) && key(list[start]) < first {
		start++
	}
	list = list[start:]
	n := min(len(list), int(min(count, uint32(limit))))
	c.out.flag(n < len(list))
	c.out.u32(capability)
	c.out.u32(uint32(n))
	for _, e := range list[:n] {
		write(e)
	}
}

func getCapability(t *TPM, c *call) rc {
	capability, first, count := c.p.next().u32(), c.p.next().u32(), c.p.next().u32()
	if e := c.end(); e != 0 {
		return e
	}
	self := func(v uint32) uint32 { return v }
	switch capability {
	case capAlgs:
		page(c, capability, algorithms, func(p [2]uint32) uint32 { return p[0] }, first&0xFFFF, count, 127, func(p [2]uint32) {
			c.out.u16(uint16(p[0]))
			c.out.u32(p[1])
		})
	case capHandles:
		list, ok := t.handleList(first)
		if !ok {
			return rcHandle.param(2)
		}
		if handleType(first) == htPolicy {
			first -= (htPolicy - htHMAC) << 24
		}
		page(c, capability, list, self, first, count, 254, c.out.u32)
	case capCommands:
		page(c, capability, sortedKeys(table), self, first, count, 254, func(cc uint32) { c.out.u32(table[cc].attributes()) })
	case capPPCommands, capAuditCommands:
		page(c, capability, nil, self, first, count, 1, c.out.u32)
	case capPCRs:
		if first != 0 {
			return rcValue.param(2)
		}
		if count > 0 { // all of them or none
			count = pcrCount
		}
		page(c, capability, banks[:], func(uint16) uint32 { return 0 }, 0, count, len(banks), func(a uint16) {
			c.out.u16(a)
			c.out.u8(pcrCount / 8)
			c.out.raw([]byte{0xFF, 0xFF, 0xFF})
		})
	case capProperties:
		var list [][2]uint32 // of the group that first lies in
		switch {
		case first < 0x200:
			list = fixedProperties()
		case first < 0x300:
			list = t.variableProperties()
		}
		page(c, capability, list, func(p [2]uint32) uint32 { return p[0] }, first, count, 127, func(p [2]uint32) {
			c.out.u32(p[0])
			c.out.u32(p[1])
		})
	case capPCRProperties:
		page(c, capability, pcrProperties(), func(p pcrProperty) uint32 { return p.tag }, first, count, 64, func(p pcrProperty) {
			c.out.u32(p.tag)
			c.out.u8(3)
			c.out.raw(p.pcrs[:])
		})
	case capCurves:
		page(c, capability, []uint32{3, 4, 5}, self, first&0xFFFF, count, 64, func(v uint32) { c.out.u16(uint16(v)) })
	case capAuthPolicies:
		if handleType(first) != htPermanent {
			return rcValue.param(2)
		}
		page(c, capability, []uint32{rhOwner, rhLockout, rhEndorsement, rhPlatform}, self, first, count, 14, func(h uint32) {
			c.out.u32(h)
			if p, ok := t.policies[h]; ok {
				c.out.u16(p.alg)
				c.out.raw(p.digest)
			} else {
				c.out.u16(algNull)
			}
		})
	case capACT: // there are no authenticated countdown timers
		if first < rhACT || first > rhACT+0xF {
			return rcValue.param(2)
		}
		page(c, capability, nil, self, first, count, 1, c.out.u32)
	default:
		return rcValue.param(1)
	}
	return 0
}

// handleList lists the handles of one type.
func (t *TPM) handleList(first uint32) (list []uint32, ok bool) {
	switch handleType(first) {
	case htPCR:
		for i := range uint32(pcrCount) {
			list = append(list, i)
		}
	case htNV:
		list = sortedKeys(t.nv)
	case htHMAC: // loaded sessions of both types
		list = sortedKeys(t.sessions)
		slices.SortFunc(list, func(a, b uint32) int { return cmp.Compare(a&0xFFFFFF, b&0xFFFFFF) })
	case htPolicy: // saved sessions of both types, as libtpms names them
		for _, h := range sortedKeys(t.volatile.saved) {
			list = append(list, htHMAC<<24|h&0xFFFFFF)
		}
		slices.Sort(list)
	case htPermanent:
		list = []uint32{rhOwner, rhNull, rhPassword, rhLockout, rhEndorsement, rhPlatform, rhPlatformNV}
	case htTransient:
		list = sortedKeys(t.objs)
	case htPersistent:
		list = sortedKeys(t.persistent)
	default:
		return nil, false
	}
	return list, true
}

// Attributes of algorithms (TPMA_ALGORITHM).
const (
	aAsymmetric = 1
	aSymmetric  = 2
	aHash       = 4
	aObject     = 8
	aSigning    = 0x100
	aEncrypting = 0x200
	aMethod     = 0x400
)

// algorithms lists what is implemented, by number.
var algorithms = [][2]uint32{
	{uint32(algRSA), aAsymmetric | aObject}, {uint32(algSHA1), aHash}, {uint32(algHMAC), aHash | aSigning}, {uint32(algAES), aSymmetric},
	{uint32(algMGF1), aHash | aMethod}, {uint32(algKeyedHash), aHash | aObject | aSigning | aEncrypting},
	{uint32(algXOR), aSymmetric | aHash}, {uint32(algSHA256), aHash}, {uint32(algSHA384), aHash}, {uint32(algSHA512), aHash},
	{uint32(algRSASSA), aAsymmetric | aSigning}, {uint32(algRSAES), aAsymmetric | aEncrypting},
	{uint32(algRSAPSS), aAsymmetric | aSigning}, {uint32(algOAEP), aAsymmetric | aEncrypting},
	{uint32(algECDSA), aAsymmetric | aSigning}, {uint32(algECDH), aAsymmetric | aMethod}, {uint32(algKDF1_56A), aHash | aMethod},
	{uint32(algKDF1_108), aHash | aMethod}, {uint32(algECC), aAsymmetric | aObject}, {uint32(algSymCipher), aObject},
	{uint32(algCTR), aSymmetric | aEncrypting}, {uint32(algOFB), aSymmetric | aEncrypting}, {uint32(algCBC), aSymmetric | aEncrypting},
	{uint32(algCFB), aSymmetric | aEncrypting}, {uint32(algECB), aSymmetric | aEncrypting},
}

// Manufacturer is TPM_PT_MANUFACTURER of this TPM: no registered vendor's.
const Manufacturer = "SOFT"

func word(s string) uint32 {
	var b [4]byte
	copy(b[:], s)
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// fixedProperties are the properties of group PT_FIXED (part 2, section 6.13).
func fixedProperties() [][2]uint32 {
	version := uint64(firmwareVersion)
	return [][2]uint32{
		{0x100, word("2.0\x00")}, {0x101, 0}, {0x102, 164}, {0x103, 75}, {0x104, 2021}, {0x105, word(Manufacturer)},
		{0x106, word("trus")}, {0x107, word("ttre")}, {0x108, word("e so")}, {0x109, word("ft")}, {0x10A, 1},
		{0x10B, uint32(version >> 32)}, {0x10C, uint32(version)}, {0x10D, maxBuffer}, {0x10E, maxObjects}, {0x10F, 7},
		{0x110, maxLoadedSessions}, {0x111, maxSessions}, {0x112, pcrCount}, {0x113, 3}, {0x114, 0xFFFFFFFF}, {0x116, 0},
		{0x117, maxNVIndex}, {0x118, 6}, {0x119, 4096}, {0x11A, uint32(algSHA256)}, {0x11B, uint32(algAES)}, {0x11C, 256}, {0x11D, maxOrderlyCount},
		{0x11E, maxCommand}, {0x11F, maxCommand}, {0x120, maxDigest}, {0x121, maxContext}, {0x122, maxSessionContext}, {0x123, word("2.0\x00")}, {0x124, 0},
		{0x125, 164}, {0x126, 75}, {0x127, 2021}, {0x128, 128}, {0x129, uint32(len(table))}, {0x12A, uint32(len(table))}, {0x12B, 0},
		{0x12C, maxNVBuffer}, {0x12D, 0}, {0x12E, 1024},
	}
}

// variableProperties are the properties of group PT_VAR.
func (t *TPM) variableProperties() [][2]uint32 {
	t.heal()
	permanent, startup := uint32(0x400), uint32(0) // EPS was made by the TPM
	set := func(p *uint32, on bool, bit uint32) {
		if on {
			*p |= 1 << bit
		}
	}
	set(&permanent, len(t.auths[rhOwner]) > 0, 0)
	set(&permanent, len(t.auths[rhEndorsement]) > 0, 1)
	set(&permanent, len(t.auths[rhLockout]) > 0, 2)
	set(&permanent, t.disableClear, 8)
	set(&permanent, t.da.failed >= t.da.maxTries, 9)
	set(&startup, t.enabled[rhPlatform], 0)
	set(&startup, t.enabled[rhOwner], 1)
	set(&startup, t.enabled[rhEndorsement], 2)
	set(&startup, t.enabled[rhPlatformNV], 3)
	set(&startup, t.clockSafe, 31)
	counters := uint32(0)
	for _, n := range t.nv {
		if n.typ() == ntCounter {
			counters++
		}
	}
	return [][2]uint32{
		{0x200, permanent}, {0x201, startup}, {0x202, uint32(len(t.nv))}, {0x203, uint32(len(t.sessions))},
		{0x204, uint32(maxLoadedSessions - len(t.sessions))}, {0x205, uint32(len(t.sessions) + len(t.volatile.saved))},
		{0x206, uint32(maxSessions - len(t.sessions) - len(t.volatile.saved))}, {0x207, uint32(maxObjects - len(t.objs))},
		{0x208, uint32(len(t.persistent))}, {0x209, uint32(maxPersistent - len(t.persistent))}, {0x20A, counters},
		{0x20B, uint32(maxNVIndices - len(t.nv))}, {0x20C, 0}, {0x20D, 3}, {0x20E, t.da.failed}, {0x20F, t.da.maxTries},
		{0x210, t.da.recovery}, {0x211, t.da.lockoutRecovery}, {0x212, 0}, {0x213, 0}, {0x214, 0},
	}
}

type pcrProperty struct {
	tag  uint32
	pcrs [3]byte
}

// pcrProperties lists TPM_PT_PCR values with the PCRs that have them.
func pcrProperties() []pcrProperty {
	list := []pcrProperty{{tag: 0}}
	for l := range uint32(5) {
		list = append(list, pcrProperty{tag: 1 + 2*l}, pcrProperty{tag: 2 + 2*l})
	}
	list = append(list, pcrProperty{tag: 0x11}, pcrProperty{tag: 0x12}, pcrProperty{tag: 0x13}, pcrProperty{tag: 0x14})
	for i := range list {
		p := &list[i]
		for pcr := range pcrCount {
			r := pcrRuleOf(pcr)
			on := false
			switch {
			case p.tag == 0:
				on = r.saved
			case p.tag == 0x11:
				on = pcr == 16 || pcr >= 21
			case p.tag == 0x12:
				on = pcr >= 17 && pcr <= 22
			case p.tag == 0x0A: // by an H-CRTM sequence, which no command is
				on = pcr >= 17 && pcr <= 22
			case p.tag > 0x12: // PCRs that may have a policy or authorisation value
				on = pcr >= 20 && pcr <= 22
			case p.tag%2 == 1:
				on = r.extend>>((p.tag-1)/2)&1 == 1
			default:
				on = r.reset>>((p.tag-2)/2)&1 == 1
			}
			if on {
				p.pcrs[pcr/8] |= 1 << (pcr % 8)
			}
		}
	}
	return list
}

func testParms(t *TPM, c *call) rc {
	r := c.p.next()
	p := &public{typ: r.u16()}
	switch p.typ {
	case algRSA, algECC, algKeyedHash, algSymCipher:
		r.publicParams(p)
	default:
		r.fail(rcType)
	}
	return c.end()
}

func eccParameters(t *TPM, c *call) rc {
	id := c.p.next().u16()
	cv := curveOf(id)
	if c.p.err == 0 && cv == nil {
		c.p.fail(rcCurve)
	}
	if e := c.end(); e != 0 {
		return e
	}
	p := cv.ec.Params()
	full := func(b []byte) []byte { return cv.pad(b) }
	c.out.u16(id)
	c.out.u16(uint16(p.BitSize))
	c.out.u16(algKDF1_56A)
	c.out.u16(map[uint16]uint16{3: algSHA256, 4: algSHA384, 5: algSHA512}[id])
	c.out.u16(algNull)
	a := new(big.Int).Sub(p.P, big.NewInt(3))
	for _, v := range [][]byte{full(p.P.Bytes()), full(a.Bytes()), full(p.B.Bytes()), full(p.Gx.Bytes()), full(p.Gy.Bytes()), full(p.N.Bytes()), {1}} {
		c.out.b2(v)
	}
	return 0
}
