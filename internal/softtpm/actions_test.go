package softtpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/softtpm"
)

// step sends one or a few commands.
func (g *generator) step() {
	weights := []struct {
		weight int
		do     func()
	}{
		{10, g.createPrimary}, {8, g.createAndLoad}, {3, g.loadExternal}, {14, g.useObject}, {5, g.attestSomething}, {8, g.hashing},
		{8, g.pcrs}, {6, g.defineIndex}, {22, g.useIndex}, {14, g.startAnySession}, {26, g.policy}, {3, g.hierarchies}, {3, g.contextMoves},
		{4, g.evict}, {5, g.flushRandom}, {2, g.flushSession}, {1, g.power}, {3, g.ask},
	}
	sum := 0
	for _, w := range weights {
		sum += w.weight
	}
	for n := g.n(sum); ; {
		if n -= weights[0].weight; n < 0 {
			weights[0].do()
			return
		}
		weights = weights[1:]
	}
}

func (g *generator) made(a answer, auth []byte, typ uint16, attrs uint32) {
	if a.rc == 0 {
		g.objects = append(g.objects, &genObject{h: a.handle, auth: trimmed(auth), typ: typ, attr: attrs})
	}
}

func (g *generator) createPrimary() {
	public, data, typ, attrs := g.template()
	auth := g.pw()
	h := g.hierarchy(g.pick(owner, owner, endorsement, null, platform))
	sensitive := b2(append(b2(auth), b2(data)...))
	if g.one(10) {
		g.made(g.do(0x191, []*genObject{h}, nil, sensitive, b2(public)), auth, typ, attrs)
		return
	}
	a := g.do(0x131, []*genObject{h}, nil, sensitive, b2(public), b2(g.bytes(g.n(20))), pcrSelections(g))
	g.made(a, auth, typ, attrs)
	if a.rc == 0 {
		d := decode(a.out)
		d.b2()
		d.b2()
		hash := b2(d.b2())
		tag, hier := d.u16(), d.u32()
		ticket := bytes.Join([][]byte{u16(tag), u32(hier), b2(d.b2())}, nil)
		g.creation = append(append(hash, u16(0x10)...), ticket...)
	}
}

func (g *generator) createAndLoad() {
	parent := g.ofType(parents)
	public, data, typ, attrs := g.template()
	auth := g.pw()
	a := g.do(0x153, []*genObject{parent}, nil, b2(append(b2(auth), b2(data)...)), b2(public), b2(nil), pcrSelections(g))
	if a.rc != 0 {
		return
	}
	d := decode(a.out)
	private, made := b2(d.b2()), b2(d.b2())
	if g.one(3) {
		private[len(private)-1] ^= 1
	}
	g.made(g.do(0x157, []*genObject{parent}, nil, private, made), auth, typ, attrs)
	if o := g.object(); g.one(20) {
		g.do(0x150, []*genObject{o}, []uint32{parent.h}, b2(g.pw()))
	}
}

func (g *generator) loadExternal() {
	public := knownKey()
	a := g.send(softtpm.Step{CC: 0x167, Params: bytes.Join([][]byte{b2(nil), b2(tpm2.Marshal(public)), u32(g.pick(null, owner, endorsement))}, nil),
		Sessions: g.authorize(0x167)})
	g.made(a, nil, 0x23, 1<<18|1<<6)
	if a.rc == 0 {
		g.objects[len(g.objects)-1].public = true
	}
}

// digestScheme is TPMT_SIG_SCHEME: the key's own, or ECDSA.
func (g *generator) sigScheme() []byte {
	if g.one(60) {
		return u16(0x10)
	}
	return append(u16(uint16(g.pick(0x18, 0x18, 5))), u16(uint16(g.pick(0xB, 0xC, 4)))...)
}

func (g *generator) useObject() {
	o := g.object()
	switch g.n(9) {
	case 0, 1:
		o = g.ofType(signs)
		g.do(0x15D, []*genObject{o}, nil, b2(g.bytes(32)), g.sigScheme(), u16(0x8024), u32(null), b2(nil))
	case 2, 3:
		g.do(0x15E, []*genObject{g.ofType(func(o *genObject) bool { return o.typ == 8 && o.attr&(1<<18) == 0 })}, nil)
	case 4:
		o = g.ofType(func(o *genObject) bool { return o.typ == 0x25 })
		g.do(0x193, []*genObject{o}, nil, b2(g.bytes(16*g.n(4))), []byte{byte(g.n(2))}, u16(uint16(g.pick(0x10, 0x43, 0x40))), b2(g.bytes(16)))
	case 5:
		o = g.ofType(func(o *genObject) bool { return o.typ == 8 && o.attr&(1<<18) != 0 })
		g.do(0x155, []*genObject{o}, nil, b2(g.bytes(g.n(80))), u16(uint16(g.pick(0x10, 0xB))))
	case 6:
		g.send(softtpm.Step{CC: 0x173, Handles: []uint32{o.h}, Sessions: g.authorize(0x173)})
	case 7:
		g.send(softtpm.Step{CC: 0x163, Handles: []uint32{o.h}}) // ECDH_KeyGen
	default:
		g.send(softtpm.Step{CC: 0x168, Handles: []uint32{g.ofType(parents).h}, Params: append(b2(g.bytes(16)), b2(g.bytes(34))...)})
	}
}

func (g *generator) attestSomething() {
	key := g.ofType(signs)
	if g.one(10) {
		key = &genObject{h: null}
	}
	extra := b2(g.bytes(g.n(33)))
	switch g.n(5) {
	case 0, 1:
		g.do(0x158, []*genObject{key}, nil, extra, g.sigScheme(), pcrSelections(g))
	case 2:
		g.do(0x148, []*genObject{g.object(), key}, nil, extra, g.sigScheme())
	case 3:
		g.do(0x14C, []*genObject{g.hierarchy(endorsement), key}, nil, extra, g.sigScheme())
	default:
		if g.creation != nil {
			d := decode(g.creation)
			hash := b2(d.b2())
			d.u16()
			g.do(0x14A, []*genObject{key}, []uint32{g.object().h}, extra, hash, g.sigScheme(), d.b)
		}
	}
}

func (g *generator) hashing() {
	switch g.n(4) {
	case 0:
		g.send(softtpm.Step{CC: 0x17D, Params: bytes.Join([][]byte{b2(g.bytes(g.n(100))), u16(uint16(g.pick(4, 0xB, 0xC, 0xD))), u32(g.pick(owner, null, platform))}, nil), Sessions: g.authorize(0x17D)})
	case 1:
		auth := g.pw()
		a := g.send(softtpm.Step{CC: 0x186, Params: append(b2(auth), u16(uint16(g.pick(0xB, 0x10, 4)))...), Sessions: g.authorize(0x186)})
		g.made(a, auth, 0, 0)
	case 2:
		g.do(0x15C, []*genObject{g.ofType(func(o *genObject) bool { return o.typ == 0 })}, nil, b2(g.bytes(g.n(100))))
	default:
		o := g.ofType(func(o *genObject) bool { return o.typ == 0 })
		if a := g.do(0x13E, []*genObject{o}, nil, b2(g.bytes(g.n(100))), u32(g.pick(owner, null))); a.rc == 0 {
			g.forget(o.h)
		}
	}
}

func (g *generator) pcrs() {
	g.locality = int(g.pick(0, 0, 0, 0, 1, 2, 3, 4))
	pcr := &genObject{h: uint32(g.n(25))}
	switch g.n(5) {
	case 0, 1:
		n := 1 + g.n(3)
		list := u32(uint32(n))
		for range n {
			alg := []uint16{4, 0xB, 0xC, 0xD}[g.n(4)]
			list = append(append(list, u16(alg)...), g.bytes(hashID(tpm2.TPMAlgID(alg)).Size())...)
		}
		g.do(0x182, []*genObject{pcr}, nil, list)
	case 2:
		g.do(0x13C, []*genObject{pcr}, nil, b2(g.bytes(g.n(50))))
	case 3:
		pcr.h = g.pick(16, 17, 18, 19, 20, 21, 22, 23, 15, 0)
		g.do(0x13D, []*genObject{pcr}, nil)
	default:
		g.send(softtpm.Step{CC: 0x17E, Locality: g.locality, Params: pcrSelections(g), Sessions: g.authorize(0x17E)})
	}
	g.locality = 0
}

func (g *generator) startAnySession() {
	s := &genSession{kind: []byte{0, 0, 1, 1, 1, 3}[g.n(6)]}
	key, bind := uint32(null), &genObject{h: null}
	if g.one(30) {
		key = g.ofType(parents).h
		s.keyed = true
	}
	if g.one(25) {
		switch g.n(3) {
		case 0:
			bind = g.object()
		case 1:
			bind = g.hierarchy(g.pick(owner, endorsement, platform, lockoutAuth))
		default:
			for _, h := range g.sortedIndices() {
				bind = g.indices[h]
			}
		}
		s.keyed = true
		s.bind, s.bindAuth, s.bindName = bind.h, bind.auth, g.entityName(bind)
	}
	sym := u16(0x10)
	if g.one(50) {
		s.sym = true
		sym = append(append(u16(6), u16(uint16(g.pick(128, 256, 128, 192)))...), u16(0x43)...)
		if g.one(20) {
			sym = append(u16(0xA), u16(0xB)...)
		}
	}
	params := bytes.Join([][]byte{b2(g.bytes(16 + g.n(5))), b2(nil), {s.kind}, sym, u16(uint16(g.pick(0xB, 0xB, 0xB, 4, 0xC)))}, nil)
	a := g.startSession(softtpm.Step{CC: 0x176, Handles: []uint32{key, bind.h}, Params: params, BindAuth: bind.auth})
	if a.rc == 0 {
		s.h = a.handle
		g.sessions = append(g.sessions, s)
	}
}

func (g *generator) flushSession() {
	if len(g.sessions) > 0 {
		s := g.sessions[g.n(len(g.sessions))]
		g.send(softtpm.Step{CC: 0x165, Params: u32(s.h)})
		g.sessions = slices.DeleteFunc(g.sessions, func(x *genSession) bool { return x == s })
	}
}

// policy sends a policy command for a session that is there.
func (g *generator) policy() {
	var s *genSession
	for _, i := range g.r.Perm(len(g.sessions)) {
		if s = g.sessions[i]; s.kind != 0 {
			break
		}
	}
	if s == nil {
		return
	}
	h := []uint32{s.h}
	simple := func(cc uint32, params ...[]byte) answer {
		return g.send(softtpm.Step{CC: cc, Handles: h, Params: bytes.Join(params, nil), Sessions: g.authorize(cc)})
	}
	switch g.n(20) {
	case 0:
		var want []byte
		if g.one(10) {
			want = g.bytes(32)
		}
		simple(0x17F, b2(want), pcrSelections(g))
	case 1:
		simple(0x16C, u32(g.pick(0x15E, 0x15E, 0x14E, 0x137, 0x150, 0x999, 0x148)))
	case 2:
		if simple(0x16B).rc == 0 {
			s.needAuth, s.needPlain = true, false
		}
	case 3:
		if simple(0x18C).rc == 0 {
			s.needAuth, s.needPlain = false, true
		}
	case 4:
		simple(0x16F, []byte{byte(g.pick(1, 3, 8, 31, 32, 0))})
	case 5:
		simple(0x18F, []byte{byte(g.n(2))})
	case 6:
		simple(0x171, u32(2), b2(make([]byte, 32)), b2(g.bytes(32)))
	case 7:
		simple(g.pick(0x16E, 0x170, 0x190), b2(g.bytes(int(g.pick(32, 32, 20)))))
	case 8:
		simple(0x188, b2(g.bytes(34)), b2(g.bytes(34)), []byte{byte(g.n(2))})
	case 9:
		simple(0x16D, b2(u32(uint32(g.n(3)))), u16(uint16(g.pick(16, 20, 24, 22))), u16(uint16(g.pick(0, 1, 3, 5, 7, 9))))
	case 10:
		if simple(0x180).rc == 0 {
			s.needAuth, s.needPlain = false, false
		}
	case 11:
		g.policyTicket(s)
	case 12, 13:
		g.policySecret(s)
	case 14:
		g.policySigned(s)
	case 15:
		if list := g.sortedIndices(); len(list) > 0 {
			n := g.indices[list[0]]
			g.refreshIndex(n)
			auth := g.indexAuth(n, false)
			if g.one(50) {
				g.do(0x192, []*genObject{auth}, []uint32{n.h, s.h})
			} else {
				g.do(0x149, []*genObject{auth}, []uint32{n.h, s.h}, b2(g.bytes(1+g.n(5))), u16(uint16(g.n(4))), u16(uint16(g.n(13))))
			}
		}
	default:
		simple(0x189)
	}
}

func (g *generator) expiration() []byte {
	return u32([]uint32{0, 0, 1000, 0xFFFFFC18, 0xFFFFFC18}[g.n(5)]) // -1000
}

func (g *generator) policySecret(s *genSession) {
	e := g.hierarchy(g.pick(owner, endorsement, platform, null))
	if list := g.sortedIndices(); len(list) > 0 && g.one(40) {
		e = g.indices[list[0]] // keys have random names, which would be in the policy
		g.refreshIndex(e)
	}
	nonce, ref, exp := []byte(nil), g.bytes(g.n(4)), g.expiration()
	if ps := g.player.sessions[s.h]; ps != nil && g.one(50) {
		nonce = ps.nonceTPM
	}
	a := g.do(0x151, []*genObject{e}, []uint32{s.h}, b2(nonce), b2(nil), b2(ref), exp)
	g.keepTicket(a, ref, g.entityName(e))
}

func (g *generator) keepTicket(a answer, ref, name []byte) {
	if a.rc != 0 {
		return
	}
	d := decode(a.out)
	if when := d.b2(); len(when) > 0 {
		g.ticket = bytes.Join([][]byte{b2(when), b2(nil), b2(ref), b2(name), d.b}, nil)
	}
}

// policySigned signs with the key whose private scalar is one.
func (g *generator) policySigned(s *genSession) {
	a := g.send(softtpm.Step{CC: 0x167, Params: bytes.Join([][]byte{b2(nil), b2(tpm2.Marshal(knownKey())), u32(owner)}, nil)})
	if a.rc != 0 {
		return
	}
	ref, exp := g.bytes(g.n(4)), g.expiration()
	var nonce []byte
	if ps := g.player.sessions[s.h]; ps != nil && g.one(70) {
		nonce = ps.nonceTPM
	}
	sum := sha256.Sum256(bytes.Join([][]byte{nonce, exp, ref}, nil))
	if g.one(10) {
		sum[0] ^= 1
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 1))
	if err != nil {
		return
	}
	r, v, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return
	}
	sig := bytes.Join([][]byte{u16(0x18), u16(0xB), b2(r.FillBytes(make([]byte, 32))), b2(v.FillBytes(make([]byte, 32)))}, nil)
	b := g.send(softtpm.Step{CC: 0x160, Handles: []uint32{a.handle, s.h}, Params: bytes.Join([][]byte{b2(nonce), b2(nil), b2(ref), exp, sig}, nil)})
	if o := g.known[a.handle]; o != nil {
		g.keepTicket(b, ref, o.name)
	}
	g.send(softtpm.Step{CC: 0x165, Params: u32(a.handle)})
}

func (g *generator) policyTicket(s *genSession) {
	if g.ticket == nil {
		return
	}
	params := bytes.Clone(g.ticket)
	if g.one(20) {
		params[len(params)-1] ^= 1
	}
	g.send(softtpm.Step{CC: 0x172, Handles: []uint32{s.h}, Params: params})
}
