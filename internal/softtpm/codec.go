package softtpm

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Limits of structures, as TPM_PT values report them.
const (
	maxCommand   = 4096 // bytes of one command or response
	maxDigest    = 64   // bytes of the largest digest
	maxBuffer    = 1024 // TPM2B_MAX_BUFFER
	maxNVBuffer  = 1024 // bytes of one NV read or write
	maxNVIndex   = 2048 // bytes of one NV index
	maxSensitive = 256  // bytes of sensitive data of a sealed object (part 2, MAX_SYM_DATA 128; libtpms takes 256)
	maxSymData   = 128
	maxNonce     = maxDigest
	maxRSABytes  = 384 // 3072 bits
	maxECCBytes  = 66  // P-521
	maxPrivate   = 2048
	maxPCRSels   = 16
	pcrCount     = 24
)

// reader is a bounded cursor with a sticky error. Parameters are counted by
// next, so that an error says in which parameter it lies.
type reader struct {
	b   []byte
	err rc
	n   int // number of the parameter being read; 0 outside the parameter area
}

// next starts the next parameter.
func (r *reader) next() *reader {
	if r.err == 0 {
		r.n++
	}
	return r
}

func (r *reader) fail(e rc) {
	if r.err != 0 {
		return
	}
	if r.n > 0 {
		e = e.param(r.n)
	}
	r.err = e
	r.b = nil
}

func (r *reader) bytes(n int) []byte {
	if r.err != 0 || n > len(r.b) {
		r.fail(rcInsufficient)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) u8() byte {
	if v := r.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if v := r.bytes(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if v := r.bytes(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if v := r.bytes(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// yesNo reads a TPMI_YES_NO.
func (r *reader) yesNo() bool {
	v := r.u8()
	if v > 1 {
		r.fail(rcValue)
	}
	return v == 1
}

// b2 reads a TPM2B of at most limit bytes and returns a copy.
func (r *reader) b2(limit int) []byte {
	n := int(r.u16())
	if r.err == 0 && n > limit {
		r.fail(rcSize)
	}
	if r.err != 0 {
		return nil
	}
	return bytes.Clone(r.bytes(n))
}

// sized reads a TPM2B that holds a structure: read reads it, and must take
// exactly as many bytes as the size says.
func (r *reader) sized(read func()) {
	n := int(r.u16())
	if r.err == 0 && n == 0 {
		r.fail(rcSize)
		return
	}
	before := len(r.b)
	read()
	if r.err == 0 && before-len(r.b) != n {
		r.fail(rcSize)
	}
}

// hash reads a TPMI_ALG_HASH; null says whether TPM_ALG_NULL is allowed.
func (r *reader) hash(null bool) uint16 {
	a := r.u16()
	if r.err == 0 && hashOf(a) == 0 && (!null || a != algNull) {
		r.fail(rcHash)
	}
	return a
}

type writer struct{ b []byte }

func (w *writer) u8(v byte)       { w.b = append(w.b, v) }
func (w *writer) u16(v uint16)    { w.b = binary.BigEndian.AppendUint16(w.b, v) }
func (w *writer) u32(v uint32)    { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64)    { w.b = binary.BigEndian.AppendUint64(w.b, v) }
func (w *writer) raw(v ...[]byte) { w.b = append(w.b, bytes.Join(v, nil)...) }
func (w *writer) b2(v []byte)     { w.u16(uint16(len(v))); w.b = append(w.b, v...) }

func (w *writer) flag(v bool) {
	if v {
		w.u8(1)
	} else {
		w.u8(0)
	}
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// pcrSel is a TPMS_PCR_SELECTION.
type pcrSel struct {
	alg uint16
	sel []byte
}

func (s pcrSel) has(pcr int) bool { return pcr/8 < len(s.sel) && s.sel[pcr/8]>>(pcr%8)&1 == 1 }

func (r *reader) pcrSels() []pcrSel {
	n := r.u32()
	if n > maxPCRSels {
		r.fail(rcSize)
		return nil
	}
	var out []pcrSel
	for ; n > 0 && r.err == 0; n-- {
		a := r.hash(false)
		l := int(r.u8())
		if r.err == 0 && l != pcrCount/8 {
			r.fail(rcValue)
		}
		out = append(out, pcrSel{a, bytes.Clone(r.bytes(l))})
	}
	return out
}

func (w *writer) pcrSels(s []pcrSel) {
	w.u32(uint32(len(s)))
	for _, p := range s {
		w.u16(p.alg)
		w.u8(byte(len(p.sel)))
		w.raw(p.sel)
	}
}

// ticket is any of the ticket structures (part 2, section 10.7).
type ticket struct {
	tag    uint16
	hier   uint32
	digest []byte
}

// ticket reads a ticket of one of the given tags.
func (r *reader) ticket(tag ...uint16) (t ticket) {
	t.tag = r.u16()
	if r.err == 0 && !slices.Contains(tag, t.tag) {
		if knownTag(t.tag) {
			r.fail(rcTag)
		} else {
			r.fail(rcValue)
		}
	}
	t.hier = r.u32()
	switch t.hier {
	case rhOwner, rhEndorsement, rhPlatform, rhNull:
	default:
		r.fail(rcValue)
	}
	t.digest = r.b2(maxDigest)
	return t
}

func (w *writer) ticket(t ticket) {
	w.u16(t.tag)
	w.u32(t.hier)
	w.b2(t.digest)
}

// trim drops trailing zeros, which are no part of an authorisation value.
func trim(b []byte) []byte { return bytes.TrimRight(b, "\x00") }
