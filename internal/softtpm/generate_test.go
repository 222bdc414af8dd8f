package softtpm_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/softtpm"
)

// generator sends random commands that make sense: objects, indices, sessions
// and policies that are there, mostly with right authorisations. What it sends
// next depends on the seed and on what the TPM has answered, so two TPMs that
// answer alike get the same stream.
type generator struct {
	*player
	r        *rand.Rand
	objects  []*genObject
	indices  map[uint32]*genObject
	sessions []*genSession
	auths    map[uint32][]byte // of hierarchies
	contexts [][]byte
	creation []byte // creation hash and ticket of the object made last
	ticket   []byte // of PolicySigned or PolicySecret: timeout, cpHash, ref, name and ticket
	locality int
}

type genObject struct {
	h    uint32
	auth []byte
	name []byte // of an index; the player knows objects' names
	typ  uint16 // of the public area; 0 for a sequence
	attr uint32
	// public: without a private part. HMAC sessions are not tried with these,
	// because libtpms goes into failure mode.
	public bool
}

type genSession struct {
	h         uint32
	kind      byte
	keyed     bool
	sym       bool
	bind      uint32
	bindAuth  []byte
	bindName  []byte
	needAuth  bool
	needPlain bool
}

func newGenerator(t chip, seed uint64) *generator {
	g := &generator{player: newPlayer(t), r: rand.New(rand.NewPCG(seed, 0)), indices: map[uint32]*genObject{}, auths: map[uint32][]byte{}}
	g.startup(0)
	return g
}

func (g *generator) n(n int) int             { return g.r.IntN(n) }
func (g *generator) one(percent int) bool    { return g.r.IntN(100) < percent }
func (g *generator) bytes(n int) []byte      { return randomBytes(g.r, n) }
func (g *generator) pick(v ...uint32) uint32 { return v[g.n(len(v))] }

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// pw is an authorisation value: often none.
func (g *generator) pw() []byte {
	return [][]byte{nil, nil, []byte("pw"), []byte("other"), []byte("0123456789abcdef0123456789abcdef"), {1, 0, 2, 0}}[g.n(6)]
}

func trimmed(b []byte) []byte { return bytes.TrimRight(b, "\x00") }

func (g *generator) startup(kind uint16) {
	g.player.sessions = map[uint32]*playSession{}
	for h := range g.known {
		if h>>24 != 0x81 {
			delete(g.known, h)
		}
	}
	g.objects = slices.DeleteFunc(g.objects, func(o *genObject) bool { return o.h>>24 != 0x81 })
	g.sessions = nil
	delete(g.auths, platform)
	g.send(softtpm.Step{CC: 0x144, Locality: g.locality, Params: u16(kind)})
}

// authorize returns the sessions of a command whose handles need n
// authorisations.
func (g *generator) authorize(cc uint32, entities ...*genObject) (list []softtpm.StepAuth) {
	if len(entities) > 0 && g.one(1) {
		return nil // missing
	}
	var used []uint32
	session := func() *genSession {
		if len(g.sessions) == 0 {
			return nil
		}
		s := g.sessions[g.n(len(g.sessions))]
		if slices.Contains(used, s.h) && !g.one(5) {
			return nil
		}
		used = append(used, s.h)
		return s
	}
	attrs := func(s *genSession, extra bool) (a byte) {
		if g.one(80) {
			a = attrContinue
		}
		if s.sym && g.one(40) || g.one(2) {
			a |= attrDecrypt
		}
		if s.sym && g.one(40) || g.one(2) {
			a |= attrEncrypt
		}
		if g.one(15) && (s.kind == 0 || g.one(10)) {
			a |= 0x80
			if g.one(20) {
				a |= 0x02
			}
			if g.one(10) {
				a |= 0x04
			}
		}
		if extra && a&^attrContinue == 0 && g.one(95) {
			a |= 0x80
		}
		return a
	}
	for _, e := range entities {
		if s := session(); s != nil && !e.public && g.one(45) {
			a := softtpm.StepAuth{Handle: s.h, Attrs: attrs(s, false), Nonce: g.bytes(16), Auth: e.auth, AuthOut: e.auth, Assoc: true}
			switch {
			case s.kind == 1 && s.needPlain:
				a.Password = true
			case s.kind == 1:
				a.Included = s.needAuth
			default:
				a.Included = !(s.bind == e.h && s.bind != 0 && bytes.Equal(s.bindAuth, e.auth) && bytes.Equal(s.bindName, g.entityName(e)))
			}
			if s.kind == 1 && !s.keyed && !(s.needAuth && len(e.auth) > 0) && !s.needPlain {
				a.Empty = g.one(50)
			}
			a.Wrong = !a.Empty && !a.Password && g.one(4)
			list = append(list, a)
			continue
		}
		a := softtpm.StepAuth{Handle: pwHandle, Attrs: byte(g.n(2)), Auth: e.auth, Password: true}
		if g.one(4) {
			a.Auth = []byte("wrong")
		}
		list = append(list, a)
	}
	for len(list) < 3 && g.one(10) {
		if s := session(); s != nil {
			list = append(list, softtpm.StepAuth{Handle: s.h, Attrs: attrs(s, true), Nonce: g.bytes(16), Wrong: g.one(3)})
		} else {
			break
		}
	}
	return list
}

func (g *generator) entityName(e *genObject) []byte {
	if o := g.known[e.h]; o != nil {
		return o.name
	}
	if e.name != nil {
		return e.name
	}
	return u32(e.h)
}

func (g *generator) hierarchy(h uint32) *genObject { return &genObject{h: h, auth: g.auths[h]} }

// do sends a command: authorised entities come first among its handles.
func (g *generator) do(cc uint32, entities []*genObject, more []uint32, params ...[]byte) answer {
	return g.doAs(cc, nil, entities, more, params...)
}

// doAs is do for commands after which the first entity has another
// authorisation value.
func (g *generator) doAs(cc uint32, newAuth *[]byte, entities []*genObject, more []uint32, params ...[]byte) answer {
	s := softtpm.Step{CC: cc, Locality: g.locality, Params: bytes.Join(params, nil)}
	for _, e := range entities {
		s.Handles = append(s.Handles, e.h)
		name := g.entityName(e)
		if e.typ == 0 && e.h>>24 == 0x80 && g.known[e.h] == nil {
			name = nil
		}
		s.Names = append(s.Names, name)
	}
	for _, h := range more {
		s.Handles = append(s.Handles, h)
		name := u32(h)
		if n := g.indices[h]; n != nil {
			name = n.name
		}
		s.Names = append(s.Names, name)
	}
	s.Sessions = g.authorize(cc, entities...)
	if newAuth != nil && len(s.Sessions) > 0 && !s.Sessions[0].Password {
		s.Sessions[0].AuthOut = *newAuth
	}
	used := slices.Clone(s.Sessions)
	a := g.send(s)
	if a.rc == 0 {
		for i, u := range used {
			for _, x := range g.sessions {
				if x.h == u.Handle && u.Attrs&0x80 != 0 {
					x.bind = 0 // an audit session is bound to nothing
				}
			}
			g.sessions = slices.DeleteFunc(g.sessions, func(x *genSession) bool { return x.h == u.Handle && u.Attrs&attrContinue == 0 })
			for _, x := range g.sessions {
				if x.h == u.Handle && x.kind == 1 && i < len(entities) {
					x.needAuth, x.needPlain = false, false
				}
			}
		}
	}
	return a
}

func pcrSelections(g *generator) []byte {
	var out []byte
	n := g.n(3)
	for range n {
		out = append(out, u16([]uint16{4, 0xB, 0xC, 0xD, 0xB}[g.n(5)])...)
		out = append(out, 3, byte(g.r.Uint32()), byte(g.n(2)), byte(g.n(2)*0x80|g.n(2)))
	}
	return append(u32(uint32(n)), out...)
}

// template returns a random public area and sensitive data for it.
func (g *generator) template() (public, data []byte, typ uint16, attrs uint32) {
	attrs = uint32(1<<1 | 1<<4) // fixedTPM, fixedParent
	flip := func(percent int, bit uint32) {
		if g.one(percent) {
			attrs ^= 1 << bit
		}
	}
	flip(12, 1)
	flip(12, 4)
	flip(75, 6) // userWithAuth
	flip(8, 7)  // adminWithPolicy
	flip(60, 10)
	flip(3, 11)
	flip(3, 2)
	alg := []uint16{0xB, 0xB, 0xB, 0xC, 4, 0xD}[g.n(6)]
	var policy []byte
	if g.one(15) {
		policy = make([]byte, hashID(tpm2.TPMAlgID(alg)).Size())
	}
	var parms []byte
	switch g.n(7) {
	case 0, 1: // storage key
		typ, attrs = 0x23, attrs|1<<5|1<<16|1<<17
		parms = append(append(u16(6), u16(uint16(g.pick(128, 128, 256)))...), u16(uint16(g.pick(0x43, 0x43, 0x43, 0x42)))...)
		parms = append(append(append(parms, u16(0x10)...), u16(uint16(g.pick(3, 3, 3, 4)))...), u16(0x10)...)
	case 2, 3: // signing key
		typ, attrs = 0x23, attrs|1<<5|1<<18
		flip(40, 16)
		parms = u16(0x10)
		if g.one(70) {
			parms = append(parms, append(u16(0x18), u16(uint16(g.pick(0xB, 0xB, 0xC, 4)))...)...)
		} else {
			parms = append(parms, u16(0x10)...)
		}
		parms = append(append(parms, u16(uint16(g.pick(3, 3, 4, 5)))...), u16(0x10)...)
	case 4: // sealed data
		typ = 8
		data = g.bytes(1 + g.n(64))
		parms = u16(0x10)
	case 5: // HMAC key
		typ, attrs = 8, attrs|1<<18
		if g.one(50) {
			attrs |= 1 << 5
		} else {
			data = g.bytes(1 + g.n(64))
		}
		parms = append(u16(5), u16(uint16(g.pick(0xB, 4, 0xC)))...)
	default: // symmetric key
		typ, attrs = 0x25, attrs|1<<5|1<<17|1<<18
		flip(20, 18)
		parms = append(append(u16(6), u16(uint16(g.pick(128, 192, 256)))...), u16(uint16(g.pick(0x43, 0x40, 0x41, 0x10)))...)
	}
	flip(2, uint32(g.n(20)))
	unique := b2(nil)
	if typ == 0x23 {
		unique = append(b2(nil), b2(nil)...)
	}
	public = bytes.Join([][]byte{u16(typ), u16(alg), u32(attrs), b2(policy), parms, unique}, nil)
	return public, data, typ, attrs
}

func (g *generator) flushRandom() {
	if i := g.n(len(g.objects) + 1); i < len(g.objects) {
		o := g.objects[i]
		if o.h>>24 == 0x80 && g.send(softtpm.Step{CC: 0x165, Params: u32(o.h)}).rc == 0 {
			g.forget(o.h)
		}
	}
}

func (g *generator) forget(h uint32) {
	delete(g.known, h)
	g.objects = slices.DeleteFunc(g.objects, func(o *genObject) bool { return o.h == h })
}

func (g *generator) object() *genObject {
	if len(g.objects) == 0 {
		return &genObject{h: 0x80000000, typ: 0x23}
	}
	return g.objects[g.n(len(g.objects))]
}

// ofType prefers an object that can do what is asked.
func (g *generator) ofType(ok func(*genObject) bool) *genObject {
	if g.one(92) {
		for _, i := range g.r.Perm(len(g.objects)) {
			if ok(g.objects[i]) {
				return g.objects[i]
			}
		}
	}
	return g.object()
}

func signs(o *genObject) bool   { return o.typ == 0x23 && o.attr&(1<<18) != 0 }
func parents(o *genObject) bool { return o.typ == 0x23 && o.attr&(1<<17) != 0 }

// refreshIndex learns an index's name.
func (g *generator) refreshIndex(n *genObject) {
	a := g.send(softtpm.Step{CC: 0x169, Handles: []uint32{n.h}, Names: [][]byte{n.name}})
	if a.rc == 0 {
		d := decode(a.out)
		public := d.b2()
		n.attr = binary.BigEndian.Uint32(public[6:])
		n.name = bytes.Clone(d.b2())
	}
}
