package mux

import (
	"io"
	"math/bits"
	"sync"
)

// Sizes of receive segments: powers of two.
const (
	minSegmentBits = 9
	maxSegmentBits = 18
	growAt         = 4 << 10 // with so much unread, segments are no longer the smallest
	busySegment    = 16 << 10
)

var segments [maxSegmentBits - minSegmentBits + 1]sync.Pool

// newSegment returns an empty segment with room for n bytes, at most 256 KiB.
func newSegment(n int) *[]byte {
	c := max(bits.Len(uint(n-1)), minSegmentBits) - minSegmentBits
	if p, ok := segments[c].Get().(*[]byte); ok {
		*p = (*p)[:0]
		return p
	}
	b := make([]byte, 0, 1<<(c+minSegmentBits))
	return &b
}

func freeSegment(p *[]byte) {
	segments[bits.Len(uint(cap(*p)-1))-minSegmentBits].Put(p)
}

// buffer holds what was received and not read. It takes at most about twice the
// bytes that it holds, whatever pieces they came in, and nothing when empty.
type buffer struct {
	list []*[]byte
	head int // of list
	off  int // read of the first segment
	n    int
}

// room returns space for up to n bytes after what is there.
func (b *buffer) room(n int) []byte {
	if b.head < len(b.list) {
		last := b.list[len(b.list)-1]
		if free := cap(*last) - len(*last); free > 0 {
			return (*last)[len(*last):cap(*last)][:min(n, free)]
		}
	}
	size := min(n, 1<<maxSegmentBits)
	if b.n >= growAt {
		size = max(size, busySegment)
	}
	b.list = append(b.list, newSegment(size))
	last := b.list[len(b.list)-1]
	return (*last)[:cap(*last)][:min(n, cap(*last))]
}

// added says that n bytes of room were filled.
func (b *buffer) added(n int) {
	last := b.list[len(b.list)-1]
	*last = (*last)[:len(*last)+n]
	b.n += n
}

// join adds a segment, of which the first bytes are taken already; then nothing
// is before it.
func (b *buffer) join(seg *[]byte, taken int) {
	b.list = append(b.list, seg)
	b.off += taken
	b.n += len(*seg) - taken
}

func (b *buffer) read(p []byte) (n int) {
	for n < len(p) && b.n > 0 {
		s := b.list[b.head]
		c := copy(p[n:], (*s)[b.off:])
		n, b.n, b.off = n+c, b.n-c, b.off+c
		if b.off == len(*s) {
			freeSegment(s)
			b.list[b.head] = nil
			b.head, b.off = b.head+1, 0
		}
	}
	if b.n == 0 {
		b.drop()
	} else if b.head > 64 && b.head > len(b.list)/2 {
		k := copy(b.list, b.list[b.head:])
		clear(b.list[k:])
		b.list, b.head = b.list[:k], 0
	}
	return n
}

// drop throws away all that is there.
func (b *buffer) drop() {
	for _, s := range b.list[b.head:] {
		freeSegment(s)
	}
	*b = buffer{list: b.list[:0]}
	if cap(b.list) > 64 {
		b.list = nil
	}
	clear(b.list[:cap(b.list)])
}

// reader reads headers through a small buffer, and long payloads past it.
type reader struct {
	r    io.Reader
	buf  []byte
	i, j int
}

func (r *reader) full(p []byte) error {
	for len(p) > 0 {
		if r.i < r.j {
			n := copy(p, r.buf[r.i:r.j])
			p, r.i = p[n:], r.i+n
			continue
		}
		if len(p) >= len(r.buf) {
			n, err := r.r.Read(p)
			p = p[n:]
			if err != nil && len(p) > 0 {
				return err
			}
			continue
		}
		n, err := r.r.Read(r.buf)
		r.i, r.j = 0, n
		if n == 0 && err != nil {
			return err
		}
	}
	return nil
}
