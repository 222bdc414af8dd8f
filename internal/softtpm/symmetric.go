package softtpm

import (
	"crypto/aes"
	"crypto/cipher"
)

func encryptDecrypt(t *TPM, c *call) rc {
	decrypt := c.p.next().yesNo()
	mode := c.p.next().symMode()
	iv := c.p.next().b2(aes.BlockSize)
	data := c.p.next().b2(maxBuffer)
	return t.symmetric(c, data, decrypt, mode, iv, [3]int{4, 2, 3})
}

func encryptDecrypt2(t *TPM, c *call) rc {
	data := c.p.next().b2(maxBuffer)
	decrypt := c.p.next().yesNo()
	mode := c.p.next().symMode()
	iv := c.p.next().b2(aes.BlockSize)
	return t.symmetric(c, data, decrypt, mode, iv, [3]int{1, 3, 4})
}

// symMode reads a TPMI_ALG_CIPHER_MODE+.
func (r *reader) symMode() uint16 {
	m := r.u16()
	switch m {
	case algCTR, algOFB, algCBC, algCFB, algECB, algNull:
	default:
		r.fail(rcMode)
	}
	return m
}

// symmetric serves both commands; where are the positions of the parameters
// data, mode and iv.
func (t *TPM) symmetric(c *call, data []byte, decrypt bool, mode uint16, iv []byte, where [3]int) rc {
	if e := c.end(); e != 0 {
		return e
	}
	o := t.object(c.h[0])
	if o.seq != nil || o.pub.typ != algSymCipher {
		return rcKey.handle(1)
	}
	if o.pub.is(attrRestricted) || decrypt && !o.pub.is(attrDecrypt) || !decrypt && !o.pub.is(attrSign) {
		return rcAttributes.handle(1)
	}
	switch own := o.pub.sym.mode; {
	case own == algNull && mode == algNull:
		return rcMode.param(where[1])
	case own != algNull && mode != algNull && mode != own:
		return rcMode.param(where[1])
	case own != algNull:
		mode = own
	}
	if mode == algECB && len(iv) != 0 || mode != algECB && len(iv) != aes.BlockSize {
		return rcSize.param(where[2])
	}
	if (mode == algCBC || mode == algECB) && len(data)%aes.BlockSize != 0 {
		return rcSize.param(where[0])
	}
	b, err := aes.NewCipher(o.sens.bits)
	if err != nil {
		return rcKey.handle(1)
	}
	c.out.b2(data)
	c.out.b2(applyMode(b, mode, iv, c.out.b[2:], decrypt))
	return 0
}

// applyMode works in place on data and returns the next initial vector.
func applyMode(b cipher.Block, mode uint16, iv, data []byte, decrypt bool) []byte {
	const size = aes.BlockSize
	next := append([]byte(nil), iv...)
	var pad [size]byte
	for len(data) > 0 {
		n := min(size, len(data))
		block := data[:n]
		in := append([]byte(nil), block...)
		switch {
		case mode == algECB && decrypt:
			b.Decrypt(block, block)
		case mode == algECB:
			b.Encrypt(block, block)
		case mode == algCBC && decrypt:
			b.Decrypt(block, block)
			xor(block, next)
			next = in
		case mode == algCBC:
			xor(block, next)
			b.Encrypt(block, block)
			next = append(next[:0], block...)
		default:
			b.Encrypt(pad[:], next)
			xor(block, pad[:])
			switch {
			case mode == algOFB:
				next = append(next[:0], pad[:]...)
			case mode == algCTR:
				for i := size - 1; i >= 0; i-- {
					if next[i]++; next[i] != 0 {
						break
					}
				}
			case decrypt:
				copy(next, in)
			default:
				copy(next, block)
			}
		}
		data = data[n:]
	}
	return next
}

func xor(b, with []byte) {
	for i := range b {
		b[i] ^= with[i]
	}
}
