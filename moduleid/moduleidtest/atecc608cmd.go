package moduleidtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/binary"
	"time"
)

// Statuses that the emulated chip answers.
const (
	statusOK    = 0x00
	statusParse = 0x03
	statusExec  = 0x0f
	statusComm  = 0xff
)

// execute runs one command packet and returns the framed answer and how long
// it takes at the slowest.
func (c *ATECC608) execute(p []byte) ([]byte, time.Duration) {
	const ms = time.Millisecond
	if len(p) < 7 || int(p[0]) != len(p) || crc16(p[:len(p)-2]) != binary.LittleEndian.Uint16(p[len(p)-2:]) {
		return respond(statusComm), ms
	}
	op, p1, p2, data := p[1], p[2], binary.LittleEndian.Uint16(p[3:]), p[5:len(p)-2]
	switch op {
	case 0x30:
		return c.info(p1), ms
	case 0x02:
		return c.readZone(p1, p2), 5 * ms
	case 0x1b:
		return c.random(p1), 23 * ms
	case 0x16:
		return c.nonce(p1, p2, data), 20 * ms
	case 0x40:
		return c.genKey(p1, p2, data), 115 * ms
	case 0x41:
		return c.sign(p1, p2), 115 * ms
	}
	return respond(statusParse), ms
}

func (c *ATECC608) locked() (config, data bool) { return c.config[87] == 0, c.config[86] == 0 }

func (c *ATECC608) slotConfig(slot uint16) uint16 {
	return binary.LittleEndian.Uint16(c.config[20+2*slot:])
}

func (c *ATECC608) keyConfig(slot uint16) uint16 {
	return binary.LittleEndian.Uint16(c.config[96+2*slot:])
}

func (c *ATECC608) info(mode byte) []byte {
	if mode != 0 {
		return respond(statusParse)
	}
	return respond(c.config[4:8]...)
}

func (c *ATECC608) readZone(p1 byte, p2 uint16) []byte {
	n := 4
	if p1&0x80 != 0 {
		n = 32
		if p2&7 != 0 {
			return respond(statusParse)
		}
	}
	var zone []byte
	var at int
	switch p1 & 0x7f {
	case 0:
		zone, at = c.config[:], int(p2>>3&3)*32+int(p2&7)*4
	case 2:
		slot := p2 >> 3 & 15
		if _, locked := c.locked(); !locked || c.slotConfig(slot)&0x80 != 0 || c.keyConfig(slot)&1 != 0 {
			return respond(statusExec)
		}
		zone, at = c.slots[slot], int(p2>>8)*32+int(p2&7)*4
	default:
		return respond(statusParse)
	}
	if at+n > len(zone) {
		return respond(statusParse)
	}
	return respond(zone[at : at+n]...)
}

func (c *ATECC608) random(mode byte) []byte {
	if mode > 1 {
		return respond(statusParse)
	}
	if config, _ := c.locked(); !config {
		return respond(bytes.Repeat([]byte{0xff, 0xff, 0, 0}, 8)...)
	}
	r := make([]byte, 32)
	rand.Read(r)
	return respond(r...)
}

func (c *ATECC608) nonce(mode byte, p2 uint16, in []byte) []byte {
	if c.old() && mode&0xfc != 0 {
		return respond(statusParse) // the 508A has TempKey alone
	}
	switch mode & 3 {
	case 3:
		if len(in) != 32 || p2 != 0 {
			return respond(statusParse)
		}
		switch mode & 0xc0 {
		case 0:
			c.temp = &tempKey{value: [32]byte(in), input: true}
		case 0x40:
			c.digest = append([]byte(nil), in...)
		default:
			return respond(statusParse)
		}
		return respond(statusOK)
	case 0, 1:
		if len(in) != 20 || p2 != 0 || mode&0xfc != 0 {
			return respond(statusParse)
		}
		out := make([]byte, 32)
		rand.Read(out)
		c.temp = &tempKey{value: seal(out, in, []byte{0x16, mode, 0})}
		return respond(out...)
	}
	return respond(statusParse)
}

func (c *ATECC608) keyOf(slot uint16) *ecdsa.PrivateKey {
	switch slot {
	case 0:
		return c.key
	case 1:
		return c.internal
	}
	return nil
}

func point(k *ecdsa.PublicKey) []byte {
	b, err := k.Bytes()
	if err != nil {
		panic(err) // keys made here are on their curve
	}
	return b[1:]
}

func (c *ATECC608) genKey(mode byte, p2 uint16, other []byte) []byte {
	key := c.keyOf(p2)
	if len(other) != 0 || mode&^0x08 != 0 {
		return respond(statusParse)
	}
	if key == nil || c.keyConfig(p2)&2 == 0 {
		return respond(statusExec)
	}
	pub := point(&key.PublicKey)
	if mode&0x08 != 0 { // digest of the public key into TempKey
		if c.temp == nil {
			return respond(statusExec)
		}
		sn := c.serial()
		c.temp.value = seal(c.temp.value[:], []byte{0x40, mode, byte(p2), byte(p2 >> 8), sn[8], sn[0], sn[1]}, make([]byte, 25), pub)
		c.temp.genKey, c.temp.keyID = true, byte(p2)
	}
	return respond(pub...)
}

func (c *ATECC608) serial() (sn [9]byte) {
	copy(sn[:4], c.config[0:4])
	copy(sn[4:], c.config[8:13])
	return sn
}

// old reports an ATECC508A, which has no message digest buffer.
func (c *ATECC608) old() bool { return c.config[6] == 0x50 }

func (c *ATECC608) sign(mode byte, p2 uint16) []byte {
	if c.old() && mode&0x20 != 0 {
		return respond(statusParse)
	}
	key := c.keyOf(p2)
	if mode&^byte(0xe0) != 0 {
		return respond(statusParse)
	}
	if _, data := c.locked(); key == nil || !data {
		return respond(statusExec)
	}
	var digest []byte
	if mode&0x80 != 0 {
		if c.slotConfig(p2)&1 == 0 {
			return respond(statusExec)
		}
		switch {
		case mode&0x20 != 0:
			digest = c.digest
		case c.temp != nil && c.temp.input:
			digest = c.temp.value[:]
		}
	} else if c.slotConfig(p2)&2 != 0 && mode&0x20 == 0 {
		digest = c.internalMessage(mode, p2)
	}
	if digest == nil {
		return respond(statusExec)
	}
	r, s, err := ecdsa.Sign(rand.Reader, key, digest)
	if err != nil {
		return respond(0x05)
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	c.temp, c.digest = nil, nil
	return respond(sig[:]...)
}

// internalMessage is the digest that an internal Sign signs: of what the chip
// itself put into TempKey, and where.
func (c *ATECC608) internalMessage(mode byte, slot uint16) []byte {
	t := c.temp
	if t == nil || t.input || !t.genKey {
		return nil
	}
	sn := c.serial()
	m := make([]byte, 55)
	copy(m, t.value[:])
	m[32], m[33], m[34], m[35] = 0x41, mode, byte(slot), byte(slot>>8)
	binary.LittleEndian.PutUint16(m[36:], c.slotConfig(uint16(t.keyID)))
	binary.LittleEndian.PutUint16(m[38:], c.keyConfig(uint16(t.keyID)))
	m[40] = t.keyID | 1<<6
	m[43] = sn[8]
	if mode&0x40 != 0 {
		copy(m[44:48], sn[4:8])
		copy(m[50:52], sn[2:4])
	}
	copy(m[48:50], sn[0:2])
	if c.config[88+t.keyID/8]&(1<<(t.keyID%8)) != 0 {
		m[52] = 1
	}
	sum := seal(m)
	return sum[:]
}
