package softtpm

// symDef is a TPMT_SYM_DEF or TPMT_SYM_DEF_OBJECT.
type symDef struct{ alg, bits, mode uint16 }

// sym reads a TPMT_SYM_DEF_OBJECT; null says whether TPM_ALG_NULL is allowed.
func (r *reader) sym(null bool) (s symDef) {
	s.alg = r.u16()
	switch {
	case r.err != 0:
	case s.alg == algNull && null:
	case s.alg == algAES:
		if s.bits = r.u16(); r.err == 0 && s.bits != 128 && s.bits != 256 {
			r.fail(rcValue)
		}
		switch s.mode = r.u16(); s.mode {
		case algCTR, algOFB, algCBC, algCFB, algECB:
		case algNull:
		default:
			r.fail(rcMode)
		}
	default:
		r.fail(rcSymmetric)
	}
	return s
}

func (w *writer) sym(s symDef) {
	w.u16(s.alg)
	switch s.alg {
	case algNull:
	case algXOR:
		w.u16(s.bits)
	default:
		w.u16(s.bits)
		w.u16(s.mode)
	}
}

// scheme is any of the TPMT_…_SCHEME structures.
type scheme struct{ alg, hash, kdf uint16 }

// asymScheme reads the scheme of an RSA or ECC key.
func (r *reader) asymScheme(typ uint16) (s scheme) {
	s.alg = r.u16()
	switch {
	case r.err != 0, s.alg == algNull:
	case typ == algRSA && s.alg == algRSAES:
	case typ == algRSA && (s.alg == algRSASSA || s.alg == algRSAPSS || s.alg == algOAEP),
		typ == algECC && (s.alg == algECDSA || s.alg == algECDH):
		s.hash = r.hash(false)
	case typ == algRSA:
		r.fail(rcValue)
	default:
		r.fail(rcScheme)
	}
	return s
}

// sigScheme reads a TPMT_SIG_SCHEME+.
func (r *reader) sigScheme() (s scheme) {
	switch s.alg = r.u16(); s.alg {
	case algNull:
	case algRSASSA, algRSAPSS, algECDSA, algHMAC:
		s.hash = r.hash(false)
	default:
		r.fail(rcScheme)
	}
	return s
}

func (w *writer) scheme(s scheme) {
	w.u16(s.alg)
	switch s.alg {
	case algNull, algRSAES:
	case algXOR:
		w.u16(s.hash)
		w.u16(s.kdf)
	default:
		w.u16(s.hash)
	}
}

// public is a TPMT_PUBLIC.
type public struct {
	typ, nameAlg uint16
	attrs        uint32
	policy       []byte
	sym          symDef
	scheme       scheme
	bits         uint16 // RSA
	exponent     uint32 // RSA; zero means 65537
	curve        uint16 // ECC
	kdf          scheme // ECC
	unique       []byte // RSA modulus, or digest of a keyed hash or symmetric key
	x, y         []byte // ECC
}

func (p *public) is(attrs uint32) bool { return p.attrs&attrs == attrs }

// parent says whether other objects can be stored below this one.
func (p *public) parent() bool {
	return p.is(attrRestricted|attrDecrypt) && p.attrs&attrSign == 0 && p.typ != algKeyedHash && p.nameAlg != algNull
}

// public2B reads a TPM2B_PUBLIC. With null, the name algorithm may be
// TPM_ALG_NULL.
func (r *reader) public2B(null bool) *public {
	var p *public
	r.sized(func() { p = r.public(null) })
	return p
}

func (r *reader) public(null bool) *public {
	p := &public{typ: r.u16()}
	switch p.typ {
	case algRSA, algECC, algKeyedHash, algSymCipher:
	default:
		r.fail(rcType)
	}
	p.nameAlg = r.hash(null)
	if p.attrs = r.u32(); p.attrs&^attrDefined != 0 {
		r.fail(rcReservedBits)
	}
	p.policy = r.b2(maxDigest)
	r.publicParams(p)
	if p.typ == algECC {
		p.x, p.y = r.b2(maxECCBytes), r.b2(maxECCBytes)
		return p
	}
	limit := maxDigest
	if p.typ == algRSA {
		limit = maxRSABytes
	}
	p.unique = r.b2(limit)
	return p
}

// publicParams reads a TPMU_PUBLIC_PARMS of p's type.
func (r *reader) publicParams(p *public) {
	switch p.typ {
	case algRSA:
		p.sym, p.scheme = r.sym(true), r.asymScheme(algRSA)
		if p.bits = r.u16(); r.err == 0 && p.bits != 1024 && p.bits != 2048 && p.bits != 3072 {
			r.fail(rcValue)
		}
		p.exponent = r.u32()
	case algECC:
		p.sym, p.scheme = r.sym(true), r.asymScheme(algECC)
		if p.curve = r.u16(); r.err == 0 && curveOf(p.curve) == nil {
			r.fail(rcCurve)
		}
		switch p.kdf.alg = r.u16(); p.kdf.alg {
		case algNull:
		case algMGF1, algKDF1_56A, algKDF1_108:
			p.kdf.hash = r.hash(false)
		default:
			r.fail(rcKDF)
		}
	case algKeyedHash:
		switch p.scheme.alg = r.u16(); p.scheme.alg {
		case algNull:
		case algHMAC:
			p.scheme.hash = r.hash(false)
		case algXOR:
			p.scheme.hash = r.hash(false)
			switch p.scheme.kdf = r.u16(); p.scheme.kdf {
			case algNull, algMGF1, algKDF1_56A, algKDF1_108:
			default:
				r.fail(rcKDF)
			}
		default:
			r.fail(rcValue)
		}
	case algSymCipher:
		p.sym = r.sym(false)
	}
}

// bytes returns the TPMT_PUBLIC as it goes over the wire and into the name.
func (p *public) bytes() []byte {
	var w writer
	w.u16(p.typ)
	w.u16(p.nameAlg)
	w.u32(p.attrs)
	w.b2(p.policy)
	switch p.typ {
	case algRSA:
		w.sym(p.sym)
		w.scheme(p.scheme)
		w.u16(p.bits)
		w.u32(p.exponent)
	case algECC:
		w.sym(p.sym)
		w.scheme(p.scheme)
		w.u16(p.curve)
		w.scheme(p.kdf)
		w.b2(p.x)
		w.b2(p.y)
		return w.b
	case algKeyedHash:
		w.scheme(p.scheme)
	case algSymCipher:
		w.sym(p.sym)
	}
	w.b2(p.unique)
	return w.b
}

// name returns the object's name: algorithm and digest of the public area
// (part 1, section 16). Without a name algorithm it is empty.
func (p *public) name() []byte {
	if hashOf(p.nameAlg) == 0 {
		return nil
	}
	return append(be16(p.nameAlg), digest(p.nameAlg, p.bytes())...)
}
