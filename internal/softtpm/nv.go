package softtpm

import (
	"bytes"
	"encoding/binary"
)

// Attributes of an NV index (TPMA_NV).
const (
	nvPPWrite        uint32 = 1 << 0
	nvOwnerWrite     uint32 = 1 << 1
	nvAuthWrite      uint32 = 1 << 2
	nvPolicyWrite    uint32 = 1 << 3
	nvTypeMask       uint32 = 0xF0
	nvPolicyDelete   uint32 = 1 << 10
	nvWriteLocked    uint32 = 1 << 11
	nvWriteAll       uint32 = 1 << 12
	nvWriteDefine    uint32 = 1 << 13
	nvWriteSTClear   uint32 = 1 << 14
	nvGlobalLock     uint32 = 1 << 15
	nvPPRead         uint32 = 1 << 16
	nvOwnerRead      uint32 = 1 << 17
	nvAuthRead       uint32 = 1 << 18
	nvPolicyRead     uint32 = 1 << 19
	nvNoDA           uint32 = 1 << 25
	nvOrderly        uint32 = 1 << 26
	nvClearSTClear   uint32 = 1 << 27
	nvReadLocked     uint32 = 1 << 28
	nvWritten        uint32 = 1 << 29
	nvPlatformCreate uint32 = 1 << 30
	nvReadSTClear    uint32 = 1 << 31
	nvReserved       uint32 = 0x01F00300
)

// Types of NV index (TPM_NT), in place.
const (
	ntOrdinary uint32 = 0x00
	ntCounter  uint32 = 0x10
	ntBits     uint32 = 0x20
	ntExtend   uint32 = 0x40
	ntPINFail  uint32 = 0x80
	ntPINPass  uint32 = 0x90
)

// nvIndex is one NV index. What a first write leaves out holds ones.
type nvIndex struct {
	handle  uint32
	nameAlg uint16
	attrs   uint32
	policy  []byte
	size    int
	auth    []byte
	data    []byte

	// slot names the endorsement key whose certificate this is, made when it is
	// first asked for; ekNone for all other indices.
	slot ekSlot
}

func (n *nvIndex) typ() uint32 { return n.attrs & nvTypeMask }

// public returns the TPMS_NV_PUBLIC.
func (n *nvIndex) public() []byte {
	var w writer
	w.u32(n.handle)
	w.u16(n.nameAlg)
	w.u32(n.attrs)
	w.b2(n.policy)
	w.u16(uint16(n.size))
	return w.b
}

func (n *nvIndex) name() []byte {
	return append(be16(n.nameAlg), digest(n.nameAlg, n.public())...)
}

// access checks what the attributes say about who may use an index.
func (n *nvIndex) access(auth uint32, owner, platform uint32) rc {
	switch auth {
	case rhOwner:
		if n.attrs&owner == 0 {
			return rcNVAuth
		}
	case rhPlatform:
		if n.attrs&platform == 0 {
			return rcNVAuth
		}
	default:
		if auth != n.handle {
			return rcNVAuth
		}
	}
	return 0
}

// readable says whether an index may be read with an authorisation.
func (t *TPM) readable(auth, index uint32) rc {
	n := t.nv[index]
	if n.attrs&nvReadLocked != 0 {
		return rcNVLocked
	}
	if e := n.access(auth, nvOwnerRead, nvPPRead); e != 0 {
		return e
	}
	if n.attrs&nvWritten == 0 {
		return rcNVUninitialized
	}
	return 0
}

// writable says whether an index may be written with an authorisation.
func (t *TPM) writable(auth, index uint32) rc {
	n := t.nv[index]
	if n.attrs&nvWriteLocked != 0 {
		return rcNVLocked
	}
	return n.access(auth, nvOwnerWrite, nvPPWrite)
}

// store writes data at an offset and marks the index as written.
func (t *TPM) store(n *nvIndex, offset int, data []byte) {
	if n.attrs&nvWritten == 0 {
		n.data = make([]byte, n.size)
		if n.attrs&nvOrderly == 0 { // orderly ones are in RAM
			n.data = bytes.Repeat([]byte{0xFF}, n.size)
		}
		n.attrs |= nvWritten
	}
	copy(n.data[offset:], data)
	t.dirty = true
}

const maxNVIndices = 256

// maxOrderlyCount is how far an orderly counter counts between two writes.
const maxOrderlyCount = 0xFF

func nvReadPublic(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[0]]
	c.out.b2(n.public())
	c.out.b2(n.name())
	return 0
}

func nvWrite(t *TPM, c *call) rc {
	data := c.p.next().b2(maxNVBuffer)
	offset := int(c.p.next().u16())
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[1]]
	if e := t.writable(c.h[0], c.h[1]); e != 0 {
		return e
	}
	switch n.typ() {
	case ntCounter, ntBits, ntExtend:
		return rcAttributes
	}
	if offset > n.size {
		return rcValue.param(2)
	}
	if offset+len(data) > n.size || n.attrs&nvWriteAll != 0 && len(data) < n.size {
		return rcNVRange
	}
	t.store(n, offset, data)
	return 0
}

func nvIncrement(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[1]]
	if e := t.writable(c.h[0], c.h[1]); e != 0 {
		return e
	}
	if n.typ() != ntCounter {
		return rcAttributes.handle(2)
	}
	count := t.maxCount
	if n.attrs&nvWritten != 0 {
		count = binary.BigEndian.Uint64(n.data)
	}
	t.store(n, 0, be64(count+1))
	return 0
}

func nvExtend(t *TPM, c *call) rc {
	data := c.p.next().b2(maxNVBuffer)
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[1]]
	if e := t.writable(c.h[0], c.h[1]); e != 0 {
		return e
	}
	if n.typ() != ntExtend {
		return rcAttributes.handle(2)
	}
	old := n.data
	if n.attrs&nvWritten == 0 {
		old = make([]byte, n.size)
	}
	t.store(n, 0, digest(n.nameAlg, old, data))
	return 0
}

func nvSetBits(t *TPM, c *call) rc {
	bits := c.p.next().u64()
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[1]]
	if e := t.writable(c.h[0], c.h[1]); e != 0 {
		return e
	}
	if n.typ() != ntBits {
		return rcAttributes.handle(2)
	}
	var old uint64
	if n.attrs&nvWritten != 0 {
		old = binary.BigEndian.Uint64(n.data)
	}
	t.store(n, 0, be64(old|bits))
	return 0
}

func nvRead(t *TPM, c *call) rc {
	size := int(c.p.next().u16())
	offset := int(c.p.next().u16())
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[1]]
	if e := t.readable(c.h[0], c.h[1]); e != 0 {
		return e
	}
	if size > maxNVBuffer {
		return rcValue.param(1)
	}
	if offset > n.size {
		return rcValue.param(2)
	}
	if offset+size > n.size {
		return rcNVRange
	}
	c.out.b2(n.data[offset : offset+size])
	return 0
}

func nvWriteLock(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[1]]
	switch e := t.writable(c.h[0], c.h[1]); e {
	case 0:
	case rcNVLocked:
		return 0
	default:
		return e
	}
	if n.attrs&(nvWriteDefine|nvWriteSTClear) == 0 {
		return rcAttributes.handle(2)
	}
	n.attrs |= nvWriteLocked
	t.dirty = true
	return 0
}

func nvReadLock(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[1]]
	switch e := t.readable(c.h[0], c.h[1]); e {
	case 0, rcNVUninitialized:
	case rcNVLocked:
		return 0
	default:
		return e
	}
	if n.attrs&nvReadSTClear == 0 {
		return rcAttributes.handle(2)
	}
	n.attrs |= nvReadLocked
	t.dirty = true
	return 0
}

func nvGlobalWriteLock(t *TPM, c *call) rc {
	if e := c.end(); e != 0 {
		return e
	}
	for _, n := range t.nv {
		if n.attrs&nvGlobalLock != 0 {
			n.attrs |= nvWriteLocked
			t.dirty = true
		}
	}
	return 0
}

func nvChangeAuth(t *TPM, c *call) rc {
	auth := trim(c.p.next().b2(maxDigest))
	if e := c.end(); e != 0 {
		return e
	}
	n := t.nv[c.h[0]]
	if len(auth) > hashSize(n.nameAlg) {
		return rcSize.param(1)
	}
	n.auth = auth
	t.dirty = true
	return 0
}

// resetNV applies a TPM reset or restart to the indices (part 1, section 37.7):
// locks go, and with a reset what is in orderly ones; a counter that was not
// shut down in order goes on where it can't have been.
func (t *TPM) resetNV(reset, orderly bool) {
	for _, n := range t.nv {
		before := n.attrs
		n.attrs &^= nvReadLocked
		if n.typ() != ntCounter && (n.attrs&nvClearSTClear != 0 || reset && n.attrs&nvOrderly != 0) {
			n.attrs &^= nvWritten
		}
		if n.attrs&nvWriteDefine == 0 || n.attrs&nvWritten == 0 {
			n.attrs &^= nvWriteLocked
		}
		if n.typ() == ntCounter && n.attrs&nvOrderly != 0 && n.attrs&nvWritten != 0 && !orderly {
			n.data = be64(binary.BigEndian.Uint64(n.data) | maxOrderlyCount)
			t.dirty = true
		}
		t.dirty = t.dirty || n.attrs != before
	}
}
