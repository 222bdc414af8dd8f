package softtpm

import "bytes"

// pcrRule says from which localities a PCR can be reset and extended (PC
// Client Platform TPM Profile, section 4.6.2): bit n stands for locality n.
type pcrRule struct {
	saved         bool // kept by TPM2_Shutdown(STATE)
	reset, extend byte
}

func pcrRuleOf(pcr int) pcrRule {
	switch pcr {
	case 16, 23:
		return pcrRule{false, 0x0F, 0x1F}
	case 17, 18:
		return pcrRule{false, 0, 0x1C}
	case 19:
		return pcrRule{false, 0, 0x0C}
	case 20:
		return pcrRule{false, 0x04, 0x0E}
	case 21, 22:
		return pcrRule{false, 0x04, 0x04}
	}
	return pcrRule{true, 0, 0x1F}
}

// resetPCRs sets the PCRs as TPM2_Startup does. With keep, those that
// TPM2_Shutdown(STATE) saved stay.
func (t *TPM) resetPCRs(keep bool) {
	old := t.pcrs
	t.pcrs = map[uint16]*[pcrCount][]byte{}
	for _, alg := range banks {
		var b [pcrCount][]byte
		for i := range b {
			switch {
			case keep && pcrRuleOf(i).saved:
				b[i] = old[alg][i]
			case i >= 17 && i <= 22:
				b[i] = bytes.Repeat([]byte{0xFF}, hashSize(alg))
			default:
				b[i] = make([]byte, hashSize(alg))
			}
		}
		t.pcrs[alg] = &b
	}
}

// changed counts a change of a PCR; the PC Client profile leaves some out.
func (t *TPM) pcrChanged(pcr int) {
	if pcr != 16 && (pcr < 21 || pcr > 23) {
		t.pcrUpdates++
	}
}

// selected returns the values of selected PCRs, at most limit (all when it is
// negative), and the selection that they are.
func (t *TPM) selected(sels []pcrSel, limit int) (out []pcrSel, values [][]byte) {
	for _, s := range sels {
		o := pcrSel{s.alg, make([]byte, len(s.sel))}
		for i := range pcrCount {
			if s.has(i) && (limit < 0 || len(values) < limit) {
				o.sel[i/8] |= 1 << (i % 8)
				values = append(values, t.pcrs[s.alg][i])
			}
		}
		out = append(out, o)
	}
	return out, values
}

func pcrRead(t *TPM, c *call) rc {
	sels := c.p.next().pcrSels()
	if e := c.end(); e != 0 {
		return e
	}
	out, values := t.selected(sels, 8)
	c.out.u32(t.pcrUpdates)
	c.out.pcrSels(out)
	c.out.u32(uint32(len(values)))
	for _, v := range values {
		c.out.b2(v)
	}
	return 0
}

func (t *TPM) extend(alg uint16, pcr int, d []byte) {
	b := t.pcrs[alg]
	b[pcr] = digest(alg, b[pcr], d)
	t.pcrChanged(pcr)
}

func pcrExtend(t *TPM, c *call) rc {
	r := c.p.next()
	n := r.u32()
	if r.err == 0 && n > uint32(len(banks)) {
		r.fail(rcSize)
	}
	type entry struct {
		alg uint16
		d   []byte
	}
	var list []entry
	for ; n > 0 && r.err == 0; n-- {
		alg := r.hash(false)
		list = append(list, entry{alg, r.bytes(hashSize(alg))})
	}
	if e := c.end(); e != 0 {
		return e
	}
	if c.h[0] == rhNull {
		return 0
	}
	pcr := int(c.h[0])
	if pcrRuleOf(pcr).extend&t.localityBits() == 0 {
		return rcLocality
	}
	for _, e := range list {
		t.extend(e.alg, pcr, e.d)
	}
	return 0
}

func pcrEvent(t *TPM, c *call) rc {
	data := c.p.next().b2(1024)
	if e := c.end(); e != 0 {
		return e
	}
	if c.h[0] != rhNull && pcrRuleOf(int(c.h[0])).extend&t.localityBits() == 0 {
		return rcLocality
	}
	c.out.u32(uint32(len(banks)))
	for _, alg := range banks {
		d := digest(alg, data)
		if c.h[0] != rhNull {
			t.extend(alg, int(c.h[0]), d)
		}
		c.out.u16(alg)
		c.out.raw(d)
	}
	return 0
}

func pcrReset(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	if c.h[0] == rhNull {
		return 0
	}
	pcr := int(c.h[0])
	if pcrRuleOf(pcr).reset&t.localityBits() == 0 {
		return rcLocality
	}
	for _, alg := range banks {
		t.pcrs[alg][pcr] = make([]byte, hashSize(alg))
	}
	t.pcrChanged(pcr)
	return 0
}
