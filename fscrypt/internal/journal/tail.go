package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// tail looks at what follows the last whole record: nothing but zeros, one
// record that a power cut left unfinished, which it overwrites, or what nobody
// wrote there: ErrTampered. Size is how long the record says it is, 0 if it
// does not say.
//
// A cut leaves some sectors of one record unwritten, which hold zeros, and
// nothing behind that record. Ciphertext never looks like that. Who writes
// zeros over the end of the file could as well cut it off; but zeros over a
// record that others follow do not take these away unnoticed.
func (l *Log) tail(r io.ReaderAt, end, size int64) error {
	tampered := fmt.Errorf("record %d at byte %d: %w", l.seq, l.size, ErrTampered)
	if end-l.size > maxTail {
		return tampered
	}
	b := make([]byte, end-l.size)
	if _, err := r.ReadAt(b, l.size); err != nil {
		return err
	}
	b = bytes.TrimRight(b, "\x00")
	torn := false
	switch {
	case len(b) == 0:
		return nil
	case end-l.size < prefixSize, size > end-l.size: // the file did not get longer
		torn = true
	case size == 0: // the sectors of the prefix, or one of them
		torn = l.unwritten(b, prefixSize) && len(b) <= MaxRecord+overhead
	default:
		torn = l.unwritten(b, size) && int64(len(b)) <= size
	}
	if !torn || l.followed(b) {
		return tampered
	}
	if _, err := l.f.WriteAt(make([]byte, len(b)), l.size); err != nil {
		return err
	}
	return l.f.Sync()
}

// unwritten reports whether a sector's part of [0, n) of what follows the last
// whole record holds nothing but zeros. B has none at its end.
func (l *Log) unwritten(b []byte, n int64) bool {
	for from := int64(0); from < n; {
		stop := (l.size+from)/sector*sector + sector - l.size
		if from >= int64(len(b)) || len(bytes.Trim(b[from:min(stop, int64(len(b)))], "\x00")) == 0 {
			return true
		}
		from = stop
	}
	return false
}

// maxTried bounds the bytes decrypted in search of records.
const maxTried = 64 << 20

// followed reports whether a later record authenticates: it stands behind the
// tag of the one before it.
func (l *Log) followed(b []byte) bool {
	seqs := map[uint32]uint64{} // CRC-32C is affine: that of the number alone finds the number
	for i := range uint64(len(b)/overhead + 1) {
		seqs[check(0, l.seq+1+i)] = l.seq + 1 + i
	}
	tried := 0
	for at := overhead; at+overhead <= len(b); at++ {
		size := binary.BigEndian.Uint32(b[at:])
		if size < chacha20poly1305.Overhead || int64(size) > int64(len(b)-at-prefixSize-nonceSize) {
			continue
		}
		seq, ok := seqs[binary.BigEndian.Uint32(b[at+4:])^check(size, 0)^check(0, 0)]
		if !ok {
			continue
		}
		if tried += int(size); tried > maxTried {
			return true
		}
		box := b[at+prefixSize:][:nonceSize+int(size)]
		before := b[at-chacha20poly1305.Overhead : at]
		if _, err := l.aead.Open(nil, box[:nonceSize], box[nonceSize:], l.ad(seq, before)); err == nil {
			return true
		}
	}
	return false
}
