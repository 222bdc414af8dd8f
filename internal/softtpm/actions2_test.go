package softtpm_test

import (
	"bytes"
	"maps"
	"slices"

	"github.com/trusttree/trusttree/internal/softtpm"
)

func (g *generator) sortedIndices() []uint32 {
	list := slices.Sorted(maps.Keys(g.indices))
	if len(list) > 0 {
		n := g.n(len(list))
		list = append(list[n:], list[:n]...)
	}
	return list
}

func (g *generator) defineIndex() {
	index := 0x01800000 + uint32(g.n(6))
	attrs := uint32(0)
	for _, bit := range []uint32{1, 2, 17, 18, 25} { // owner and auth, write and read, noDA
		if g.one(75) {
			attrs |= 1 << bit
		}
	}
	for _, bit := range []uint32{3, 12, 13, 14, 15, 19, 26, 27, 31, 10} {
		if g.one(10) {
			attrs |= 1 << bit
		}
	}
	typ := g.pick(0, 0, 1, 2, 4, 8, 9, 3)
	attrs |= typ << 4
	if typ == 8 {
		attrs = attrs&^(1<<2) | 1<<25
	}
	auth := g.hierarchy(owner)
	if g.one(15) {
		auth = g.hierarchy(platform)
		attrs |= 1<<30 | 1<<16 | 1
	}
	size := uint16(8)
	switch typ {
	case 0:
		size = uint16(g.n(40))
	case 4:
		size = 32
	}
	if g.one(3) {
		size++
	}
	var policy []byte
	if g.one(30) {
		policy = make([]byte, 32)
	}
	pw := g.pw()
	public := bytes.Join([][]byte{u32(index), u16(0xB), u32(attrs), b2(policy), u16(size)}, nil)
	if a := g.do(0x12A, []*genObject{auth}, nil, b2(pw), b2(public)); a.rc == 0 {
		g.indices[index] = &genObject{h: index, auth: trimmed(pw), typ: 1}
	}
}

// indexAuth chooses who authorises the use of an index.
func (g *generator) indexAuth(n *genObject, write bool) *genObject {
	switch {
	case g.one(50):
		return n
	case n.attr&(1<<30) != 0:
		return g.hierarchy(platform)
	}
	return g.hierarchy(owner)
}

func (g *generator) useIndex() {
	if len(g.indices) == 0 {
		g.defineIndex()
		return
	}
	n := g.indices[g.sortedIndices()[0]]
	g.refreshIndex(n)
	typ := n.attr >> 4 & 0xF
	write := func(cc uint32, params ...[]byte) {
		g.do(cc, []*genObject{g.indexAuth(n, true)}, []uint32{n.h}, params...)
	}
	read := func(cc uint32, params ...[]byte) {
		g.do(cc, []*genObject{g.indexAuth(n, false)}, []uint32{n.h}, params...)
	}
	switch g.n(14) {
	case 0, 1, 2, 3:
		switch {
		case typ == 1 && g.one(90):
			write(0x134)
		case typ == 2 && g.one(90):
			write(0x135, g.bytes(8))
		case typ == 4 && g.one(90):
			write(0x136, b2(g.bytes(g.n(40))))
		case typ >= 8 && g.one(90):
			write(0x137, b2([]byte{0, 0, 0, byte(g.n(2)), 0, 0, 0, byte(g.n(5))}), u16(0))
		default:
			write(0x137, b2(g.bytes(g.n(20))), u16(uint16(g.n(12))))
		}
	case 4, 5, 6, 7:
		read(0x14E, u16(uint16(g.pick(8, 8, 4, 0, 32, 16))), u16(uint16(g.pick(0, 0, 0, 3, 12))))
	case 8:
		if g.one(50) {
			write(0x138)
		} else {
			read(0x14F)
		}
	case 9:
		pw := g.pw()
		kept := trimmed(pw)
		if a := g.doAs(0x13B, &kept, []*genObject{n}, nil, b2(pw)); a.rc == 0 {
			n.auth = kept
		}
	case 10:
		key := g.ofType(signs)
		g.do(0x184, []*genObject{key, g.indexAuth(n, false)}, []uint32{n.h}, b2(g.bytes(8)), g.sigScheme(), u16(uint16(g.pick(0, 8, 4))), u16(0))
	case 11:
		if g.one(20) {
			g.do(0x132, []*genObject{g.hierarchy(g.pick(owner, platform))}, nil)
		}
	default:
		by := g.hierarchy(owner)
		if n.attr&(1<<30) != 0 || g.one(10) {
			by = g.hierarchy(platform)
		}
		if g.one(40) && g.do(0x122, []*genObject{by}, []uint32{n.h}).rc == 0 {
			delete(g.indices, n.h)
		}
	}
}

func (g *generator) hierarchies() {
	switch g.n(12) {
	case 0, 1, 2:
		h := g.pick(owner, endorsement, platform, lockoutAuth)
		pw := g.pw()
		kept := trimmed(pw)
		if a := g.doAs(0x129, &kept, []*genObject{g.hierarchy(h)}, nil, b2(pw)); a.rc == 0 {
			g.auths[h] = kept
		}
	case 3, 4:
		alg, policy := uint16(0xB), make([]byte, 32)
		if g.one(30) {
			alg, policy = 0x10, nil
		}
		g.do(0x12E, []*genObject{g.hierarchy(g.pick(owner, endorsement, platform))}, nil, b2(policy), u16(alg))
	case 5, 6:
		g.do(0x139, []*genObject{g.hierarchy(lockoutAuth)}, nil)
	case 7:
		g.do(0x13A, []*genObject{g.hierarchy(lockoutAuth)}, nil, u32(uint32(1+g.n(40))), u32(1000), u32(1000))
	case 8:
		g.do(0x127, []*genObject{g.hierarchy(g.pick(lockoutAuth, platform))}, nil, []byte{byte(g.n(2))})
	case 9:
		by, which := g.pick(owner, endorsement, platform, platform), g.pick(owner, endorsement, platform+1)
		on := byte(g.n(3) / 2)
		a := g.do(0x121, []*genObject{g.hierarchy(by)}, nil, u32(which), []byte{on ^ 1})
		if a.rc == 0 {
			g.objects = nil
			g.sync()
		}
	case 10:
		if !g.one(30) {
			return
		}
		none := []byte(nil)
		by := g.pick(lockoutAuth, platform)
		kept := &none
		if by == platform {
			v := g.auths[platform]
			kept = &v
		}
		if g.doAs(0x126, kept, []*genObject{g.hierarchy(by)}, nil).rc == 0 {
			g.auths = map[uint32][]byte{platform: g.auths[platform]}
			g.objects = nil
			for h, n := range g.indices {
				if n.attr&(1<<30) == 0 {
					delete(g.indices, h)
				}
			}
			g.sync()
		}
	default:
		g.send(softtpm.Step{CC: 0x17B, Params: u16(uint16(g.n(100))), Sessions: g.authorize(0x17B)})
	}
}

// sync flushes every transient object, when it is not sure which are there.
func (g *generator) sync() {
	for h := uint32(0x80000000); h < 0x80000003; h++ {
		g.send(softtpm.Step{CC: 0x165, Params: u32(h)})
	}
	g.objects = slices.DeleteFunc(g.objects, func(o *genObject) bool { return o.h>>24 == 0x80 })
	g.known = map[uint32]*knownObject{}
}

func (g *generator) contextMoves() {
	if len(g.contexts) > 0 && g.one(50) {
		blob := g.contexts[g.n(len(g.contexts))]
		a := g.send(softtpm.Step{CC: 0x161, Params: blob})
		if a.rc == 0 && a.handle>>24 == 0x80 {
			g.objects = append(g.objects, &genObject{h: a.handle, typ: 8, public: true})
		}
		return
	}
	o := g.object()
	if a := g.send(softtpm.Step{CC: 0x162, Handles: []uint32{o.h}}); a.rc == 0 && len(g.contexts) < 4 {
		g.contexts = append(g.contexts, bytes.Clone(a.out))
	}
}

func (g *generator) evict() {
	o := g.object()
	at := 0x81000000 + uint32(g.n(3)) + g.pick(0, 0, 0, 0x800000)
	by := g.hierarchy(g.pick(owner, owner, platform))
	if o.h>>24 == 0x81 && g.one(70) {
		at = o.h
	}
	a := g.do(0x120, []*genObject{by}, []uint32{o.h}, u32(at))
	if a.rc != 0 {
		return
	}
	if o.h>>24 == 0x81 {
		g.forget(o.h)
	} else {
		c := *o
		c.h = at
		g.objects = append(g.objects, &c)
	}
}

func (g *generator) power() {
	kind := uint16(g.n(2))
	if g.one(60) {
		g.send(softtpm.Step{CC: 0x145, Params: u16(kind), Sessions: g.authorize(0x145)})
	}
	g.t.PowerOff()
	g.t.PowerOn()
	g.locality = int(g.pick(0, 0, 0, 3, 2))
	g.startup(uint16(g.n(2)))
	g.locality = 0
	g.startup(0) // unless it has started
}

func (g *generator) ask() {
	switch g.n(4) {
	case 0:
		g.send(softtpm.Step{CC: 0x17A, Params: bytes.Join([][]byte{u32(1), u32(g.pick(0x80000000, 0x81000000, 0x02000000, 0x03000000, 0x01000000)), u32(20)}, nil)})
	case 1:
		g.send(softtpm.Step{CC: 0x17A, Params: bytes.Join([][]byte{u32(6), u32(0x20E), u32(4)}, nil)})
	case 2:
		g.send(softtpm.Step{CC: 0x18A, Params: bytes.Join([][]byte{u16(0x23), u16(0x10), u16(0x10), u16(uint16(g.pick(3, 4, 5))), u16(0x10)}, nil)})
	default:
		if len(g.sessions) > 0 {
			s := g.sessions[g.n(len(g.sessions))]
			key := g.ofType(signs)
			g.do(0x14D, []*genObject{g.hierarchy(endorsement), key}, []uint32{s.h}, b2(g.bytes(4)), g.sigScheme())
		}
	}
}
