package softtpm

import "encoding/binary"

// PIN indices (part 1, section 37.2.8): the data is how often the authorisation
// value was used (PIN Pass) or missed (PIN Fail), and how often it may be.

func (n *nvIndex) pin() bool { return n.typ() == ntPINFail || n.typ() == ntPINPass }

func (n *nvIndex) pinCounts() (tries, limit uint32) {
	if len(n.data) != 8 {
		return 0, 0
	}
	return binary.BigEndian.Uint32(n.data), binary.BigEndian.Uint32(n.data[4:])
}

// countPIN counts one use of the authorisation value.
func (t *TPM) countPIN(n *nvIndex, right bool) {
	tries, _ := n.pinCounts()
	switch {
	case n.typ() == ntPINPass && right, n.typ() == ntPINFail && !right:
		tries++
	case n.typ() == ntPINFail && tries != 0:
		tries = 0
	default:
		return
	}
	binary.BigEndian.PutUint32(n.data, tries)
	t.dirty = true
}
