package quote

import (
	"encoding/binary"
	"fmt"

	"github.com/trusttree/trusttree/attest/reason"
)

// cursor reads big-endian TPM structures (TPM 2.0 Library, part 2). After the
// first read beyond the end every read gives zero and ok is false. It copies
// nothing: what it returns are slices of the input.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) bytes(n int) []byte {
	if c.bad || n < 0 || n > len(c.b) {
		c.bad = true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() uint8 {
	if v := c.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if v := c.bytes(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if v := c.bytes(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if v := c.bytes(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// sized reads a TPM2B of at most limit bytes.
func (c *cursor) sized(limit int) []byte {
	n := int(c.u16())
	if n > limit {
		c.bad = true
		return nil
	}
	return c.bytes(n)
}

// done reports whether everything was read and nothing was missing.
func (c *cursor) done() bool { return !c.bad && len(c.b) == 0 }

// whole returns an error unless everything was read and nothing was missing.
func (c *cursor) whole(what string) error {
	switch {
	case c.bad:
		return reason.Because(reason.CutShort, fmt.Errorf("%w: %s cut short", ErrMalformed, what))
	case len(c.b) > 0:
		return reason.Because(reason.TrailingBytes, fmt.Errorf("%w: %s with bytes too many", ErrMalformed, what))
	}
	return nil
}
