// Package delta makes updates smaller: an index of block hashes, with which a
// node takes what it has from any older version, and a patch from a known
// version. Neither is trusted: the result is verified whole.
package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
)

const (
	// Block is the size of a block in bytes: that of most file systems.
	Block = 4096
	// hashLen is how much of a block's SHA-256 an index holds.
	hashLen    = 16
	indexMagic = "ttindex1"
	// MaxBlocks bounds an index: 64 GiB of content, 256 MiB of index.
	MaxBlocks = 16 << 20
)

// ErrFormat says that an index or a patch is malformed.
var ErrFormat = errors.New("malformed delta")

func blockHash(b []byte) (h [hashLen]byte) {
	sum := sha256.Sum256(b)
	copy(h[:], sum[:])
	return h
}

// Index is the list of block hashes of some content.
type Index struct {
	Length int64
	hashes []byte
}

// WriteIndex writes the index of content.
func WriteIndex(w io.Writer, content io.Reader, length int64) error {
	head := binary.BigEndian.AppendUint64([]byte(indexMagic), uint64(length))
	if _, err := w.Write(head); err != nil {
		return err
	}
	buf := make([]byte, Block)
	for left := length; left > 0; {
		n := min(left, Block)
		if _, err := io.ReadFull(content, buf[:n]); err != nil {
			return err
		}
		h := blockHash(buf[:n])
		if _, err := w.Write(h[:]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// ParseIndex reads an index for content of a known length.
func ParseIndex(data []byte, length int64) (*Index, error) {
	blocks := (length + Block - 1) / Block
	if !bytes.HasPrefix(data, []byte(indexMagic)) || length < 0 || blocks > MaxBlocks || int64(len(data)) != 16+blocks*hashLen ||
		binary.BigEndian.Uint64(data[8:]) != uint64(length) {
		return nil, fmt.Errorf("%w: index of %d bytes for content of %d", ErrFormat, len(data), length)
	}
	return &Index{Length: length, hashes: data[16:]}, nil
}

// IndexSize is how long the index of content is.
func IndexSize(length int64) int64 { return 16 + (length+Block-1)/Block*hashLen }

// Blocks returns how many blocks there are.
func (x *Index) Blocks() int { return len(x.hashes) / hashLen }

func (x *Index) hash(i int) []byte { return x.hashes[i*hashLen : (i+1)*hashLen] }

// Size is the length of block i.
func (x *Index) Size(i int) int { return int(min(Block, x.Length-int64(i)*Block)) }

// Matches reports whether b is block i.
func (x *Index) Matches(i int, b []byte) bool {
	h := blockHash(b)
	return len(b) == x.Size(i) && bytes.Equal(h[:], x.hash(i))
}

// Base finds blocks in older content. It holds 16 bytes for each of its blocks.
type Base struct {
	r       io.ReaderAt
	size    int64
	entries []baseEntry // sorted by key
}

type baseEntry struct {
	key   uint64
	block uint32
}

// NewBase hashes the blocks of older content. check is called now and then and
// stops it with an error.
func NewBase(r io.ReaderAt, size int64, check func() error) (*Base, error) {
	if size > MaxBlocks*Block {
		return nil, fmt.Errorf("%w: base of %d bytes", ErrFormat, size)
	}
	b := &Base{r: r, size: size, entries: make([]baseEntry, 0, size/Block+1)}
	buf := make([]byte, 64*Block)
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := check(); err != nil {
			return nil, err
		}
		n := min(int64(len(buf)), size-off)
		if _, err := r.ReadAt(buf[:n], off); err != nil && err != io.EOF {
			return nil, err
		}
		for o := int64(0); o < n; o += Block {
			h := blockHash(buf[o:min(o+Block, n)])
			b.entries = append(b.entries, baseEntry{binary.BigEndian.Uint64(h[:]), uint32((off + o) / Block)})
		}
	}
	sort.Slice(b.entries, func(i, j int) bool { return b.entries[i].key < b.entries[j].key })
	return b, nil
}

// Find returns block i of x if the base has it, in buf. What it returns was
// read and hashed again.
func (b *Base) Find(x *Index, i int, buf []byte) ([]byte, bool) {
	key := binary.BigEndian.Uint64(x.hash(i))
	at := sort.Search(len(b.entries), func(j int) bool { return b.entries[j].key >= key })
	for tries := 0; at < len(b.entries) && b.entries[at].key == key && tries < 4; at, tries = at+1, tries+1 {
		off := int64(b.entries[at].block) * Block
		n := min(int64(x.Size(i)), b.size-off)
		if _, err := b.r.ReadAt(buf[:n], off); err != nil && err != io.EOF {
			continue
		}
		if x.Matches(i, buf[:n]) {
			return buf[:n], true
		}
	}
	return nil, false
}
