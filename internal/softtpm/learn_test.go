package softtpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"math/big"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/softtpm"
)

func decode(b []byte) *decoder { return &decoder{b: b, out: new(strings.Builder)} }

// nameOf is the name of a public area.
func nameOf(public []byte) []byte {
	if len(public) < 4 {
		return nil
	}
	alg := tpm2.TPMAlgID(binary.BigEndian.Uint16(public[2:]))
	if alg == tpm2.TPMAlgNull {
		return nil
	}
	return append(bytes.Clone(public[2:4]), hashed(alg, public)...)
}

// learn takes from a response what later commands need, and checks in it what
// can be computed: it says which checks there were, and which failed.
func (p *player) learn(s softtpm.Step, a answer) string {
	var notes []string
	check := func(what string, ok bool) {
		if !ok {
			what += " WRONG"
		}
		notes = append(notes, what)
	}
	d := decode(a.out)
	switch s.CC {
	case 0x131, 0x191: // CreatePrimary, CreateLoaded
		o := &knownObject{}
		if s.CC == 0x191 {
			d.b2()
		}
		o.public = bytes.Clone(d.b2())
		if s.CC == 0x131 {
			data, sum := d.b2(), d.b2()
			check("creation", bytes.Equal(sum, hashed(algOf(o.public), data)))
			d.u16()
			d.u32()
			d.b2()
		}
		o.name = bytes.Clone(d.b2())
		check("name", bytes.Equal(o.name, nameOf(o.public)))
		p.settle(o, s.Handles[0])
		p.known[a.handle] = o
	case 0x153: // Create
		d.b2()
		public, data, sum := d.b2(), d.b2(), d.b2()
		check("creation", bytes.Equal(sum, hashed(algOf(public), data)))
		if parent := p.known[s.Handles[0]]; parent != nil {
			names := append(b2(parent.name), b2(parent.qname)...)
			check("parent", bytes.Contains(data, names))
		}
	case 0x157: // Load
		in := decode(s.Params)
		in.b2()
		o := &knownObject{public: bytes.Clone(in.b2()), name: bytes.Clone(d.b2())}
		check("name", bytes.Equal(o.name, nameOf(o.public)))
		p.settle(o, s.Handles[0])
		p.known[a.handle] = o
	case 0x167: // LoadExternal
		in := decode(s.Params)
		in.b2()
		o := &knownObject{public: bytes.Clone(in.b2()), name: bytes.Clone(d.b2())}
		check("name", bytes.Equal(o.name, nameOf(o.public)))
		p.known[a.handle] = o
	case 0x173: // ReadPublic
		public, name, qname := d.b2(), d.b2(), d.b2()
		o := p.known[s.Handles[0]]
		if o != nil {
			check("public", bytes.Equal(public, o.public))
			check("qualified", o.qname == nil || bytes.Equal(qname, o.qname))
		} else {
			p.known[s.Handles[0]] = &knownObject{public: bytes.Clone(public), name: bytes.Clone(name), qname: bytes.Clone(qname)}
		}
		check("name", bytes.Equal(name, nameOf(public)))
	case 0x120: // EvictControl
		h := binary.BigEndian.Uint32(append(bytes.Clone(s.Params), 0, 0, 0, 0))
		if s.Handles[1]>>24 == 0x81 {
			delete(p.known, h)
		} else if o := p.known[s.Handles[1]]; o != nil {
			p.known[h] = o
		}
	case 0x165: // FlushContext
		h := binary.BigEndian.Uint32(append(bytes.Clone(s.Params), 0, 0, 0, 0))
		delete(p.known, h)
		delete(p.sessions, h)
	case 0x13E: // SequenceComplete
		delete(p.known, s.Handles[0])
	case 0x162:
		if o := p.known[s.Handles[0]]; o != nil {
			p.saved[string(a.out)] = o
		}
	case 0x161:
		if o := p.saved[string(s.Params)]; o != nil {
			p.known[a.handle] = o
		}
	case 0x158, 0x148, 0x14A, 0x14C, 0x184, 0x14D: // attestations
		att, sig := d.b2(), d.b
		n := map[uint32]int{0x148: 1, 0x14C: 1, 0x14D: 1}[s.CC]
		signer := p.known[s.Handles[n]]
		if signer == nil {
			break
		}
		in := decode(att)
		in.u32()
		in.u16()
		qualified := in.b2()
		check("signer", signer.qname == nil || bytes.Equal(qualified, signer.qname))
		in.b2()
		in.take(25)
		switch s.CC {
		case 0x148:
			if o := p.known[s.Handles[0]]; o != nil {
				check("certified", bytes.Equal(in.b2(), o.name) && (o.qname == nil || bytes.Equal(in.b2(), o.qname)))
			}
		case 0x14A:
			if o := p.known[s.Handles[1]]; o != nil {
				check("certified", bytes.Equal(in.b2(), o.name))
			}
		}
		check("signature", verifies(signer.public, sig, att, nil))
	case 0x15D: // Sign
		if o := p.known[s.Handles[0]]; o != nil {
			check("signature", verifies(o.public, a.out, nil, decode(s.Params).b2()))
		}
	case 0x126, 0x121, 0x124, 0x125: // Clear, HierarchyControl, ChangeEPS, ChangePPS
		p.known = map[uint32]*knownObject{} // learned again by ReadPublic
	}
	if len(notes) == 0 {
		return ""
	}
	return " {" + strings.Join(notes, " ") + "}"
}

func algOf(public []byte) tpm2.TPMAlgID {
	if len(public) < 4 {
		return tpm2.TPMAlgNull
	}
	return tpm2.TPMAlgID(binary.BigEndian.Uint16(public[2:]))
}

// settle computes the qualified name of an object below a parent.
func (p *player) settle(o *knownObject, parent uint32) {
	above := u32(parent)
	if parent>>24 == 0x80 || parent>>24 == 0x81 {
		k := p.known[parent]
		if k == nil {
			return
		}
		above = k.qname
	}
	if o.name != nil {
		o.qname = append(bytes.Clone(o.name[:2]), hashed(algOf(o.public), above, o.name)...)
	}
}

// verifies checks a TPMT_SIGNATURE over a message, or over a digest.
func verifies(public, sig, message, digest []byte) bool {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return false
	}
	d := decode(sig)
	alg, hash := d.u16(), tpm2.TPMAlgID(d.u16())
	if message != nil {
		digest = hashed(hash, message)
	}
	if pub.Type == tpm2.TPMAlgKeyedHash {
		return alg == uint16(tpm2.TPMAlgHMAC) && len(d.b) == hashID(hash).Size()
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		return false
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		r, s := new(big.Int).SetBytes(d.b2()), new(big.Int).SetBytes(d.b2())
		return ecdsa.Verify(k, digest, r, s)
	case *rsa.PublicKey:
		if alg == uint16(tpm2.TPMAlgRSAPSS) {
			return rsa.VerifyPSS(k, hashID(hash), digest, d.b2(), nil) == nil
		}
		return rsa.VerifyPKCS1v15(k, hashID(hash), digest, d.b2()) == nil
	}
	return false
}

// substituted are the commands in whose parameters values of the recorded TPM
// stand: keys, private areas, names, tickets, signatures, contexts.
var substituted = []uint32{0x157, 0x167, 0x14A, 0x177, 0x15D, 0x16A, 0x172, 0x156, 0x161, 0x168, 0x147, 0x160, 0x188, 0x170, 0x154, 0x159, 0x150}

// play plays one recorded step.
func (p *player) play(s softtpm.Step) {
	switch s.Event {
	case "off":
		p.t.PowerOff()
		p.sessions = map[uint32]*playSession{}
		for h := range p.known {
			if h>>24 != 0x81 {
				delete(p.known, h)
			}
		}
		return
	case "on":
		p.t.PowerOn()
		if p.provide == nil && len(p.lines) == 0 {
			p.provide = s.NV
		}
		return
	case "flush":
		s = softtpm.Step{CC: 0x165, Params: u32(s.Handle)}
	}
	if slices.Contains(substituted, s.CC) {
		for _, w := range p.swaps {
			s.Params = bytes.ReplaceAll(s.Params, w.from, w.to)
		}
	}
	if s.Raw != nil {
		p.send(s)
		return
	}
	var a answer
	recorded := s.Out
	switch {
	case s.CC == 0x176:
		a = p.startSession(s)
	case s.CC == 0x147 && s.RC == 0:
		s.Params = p.credential(s)
		a = p.send(s)
	default:
		a = p.send(s)
	}
	if a.rc == 0 && s.RC == 0 {
		p.match(s.CC, recorded, a.out)
	}
	if s.CC == 0x144 && a.rc == 0 && len(p.provide) > 0 {
		p.makeIndices()
	}
}

// credential encrypts the recorded credential to this TPM's key, for this
// TPM's object.
func (p *player) credential(s softtpm.Step) []byte {
	o, key := p.known[s.Handles[0]], p.known[s.Handles[1]]
	if o == nil || key == nil {
		return s.Params
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](key.public)
	if err != nil {
		return s.Params
	}
	k, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		return s.Params
	}
	blob, secret, err := tpm2.CreateCredential(rand.Reader, k, o.name, decode(s.Out).b2())
	if err != nil {
		return s.Params
	}
	return append(b2(blob), b2(secret)...)
}

// match pairs the random values of a recorded response with this TPM's.
func (p *player) match(cc uint32, recorded, got []byte) {
	r, g := randoms(cc, recorded), randoms(cc, got)
	if len(r) != len(g) {
		return
	}
	for i := range r {
		if len(r[i]) >= 16 && !bytes.Equal(r[i], g[i]) {
			p.swaps = append(p.swaps, swap{bytes.Clone(r[i]), bytes.Clone(g[i])})
		}
	}
	slices.SortStableFunc(p.swaps, func(a, b swap) int { return len(b.from) - len(a.from) })
}

// randoms lists the values in a response that differ between TPMs, those
// whose length may differ with their length.
func randoms(cc uint32, b []byte) (list [][]byte) {
	d := decode(b)
	add := func(v []byte) { list = append(list, v) }
	format, known := formats[cc]
	if cc == 0x162 {
		return [][]byte{b}
	}
	if !known {
		return nil
	}
	for _, f := range strings.TrimPrefix(format, "R:") {
		switch f {
		case '2':
			add(b2(d.b2()))
		case '=':
			d.b2()
		case 'P':
			public := d.b2()
			add(b2(public))
			if len(public) > 34 {
				switch binary.BigEndian.Uint16(public) {
				case 0x23:
					n := curveSize(public)
					if tail := public[len(public)-2*(2+n):]; n > 0 {
						add(tail[2 : 2+n])
						add(tail[4+n:])
					}
				case 0x08, 0x25:
					add(public[len(public)-32:])
				case 0x01:
					add(public[max(0, len(public)-256):])
				}
			}
		case 'C':
			d.b2()
			add(d.b2())
			d.b = append([]byte{0, 0}, d.b...) // as decoder.creation does
		case 'T':
			d.u16()
			d.u32()
			add(b2(d.b2()))
		case 'A':
			add(d.b2())
		case 'S':
			switch d.u16() {
			case 0x18:
				d.u16()
				add(b2(d.b2()))
				add(b2(d.b2()))
			case 0x14, 0x16:
				d.u16()
				add(d.b2())
			}
		default:
			return list
		}
	}
	// A name stands inside of other structures too.
	for _, v := range slices.Clone(list) {
		if len(v) == 36 {
			add(v[2:])
		}
	}
	return list
}

// makeIndices defines what the recorded TPM had from its factory.
func (p *player) makeIndices() {
	kept := p.lines
	pw := []softtpm.StepAuth{{Handle: pwHandle, Attrs: 1, Password: true}}
	for _, n := range p.provide {
		public := bytes.Clone(n.Public)
		attrs := binary.BigEndian.Uint32(public[6:])
		binary.BigEndian.PutUint32(public[6:], attrs&^uint32(1<<29|1<<11))
		index := binary.BigEndian.Uint32(public)
		p.send(softtpm.Step{CC: 0x12A, Handles: []uint32{platform}, Sessions: pw, Params: append(b2(nil), b2(public)...)})
		for off := 0; off < len(n.Data); off += 1024 {
			p.send(softtpm.Step{CC: 0x137, Handles: []uint32{platform, index}, Sessions: pw,
				Params: append(b2(n.Data[off:min(off+1024, len(n.Data))]), u16(uint16(off))...)})
		}
		p.send(softtpm.Step{CC: 0x138, Handles: []uint32{platform, index}, Sessions: pw})
	}
	made := p.lines[len(kept):]
	p.lines = kept
	for _, l := range made {
		if !strings.Contains(l, " ok") {
			p.lines = append(p.lines, "factory: "+l)
		}
	}
	p.provide = []softtpm.StepIndex{}
}
