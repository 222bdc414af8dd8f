// Package journal is an encrypted log of records in one file. Each record is
// bound to its place behind all earlier ones, so that none can be changed,
// dropped, repeated or moved. Cutting records off the end can't be seen here;
// the volume's counter sees it.
//
// A file is a sequence of records: 4 bytes length of the box, 4 bytes CRC-32C
// of these and the record's number, 24 bytes nonce, box. The box is
// XChaCha20-Poly1305 with the additional data context ‖ number ‖ tag of the
// record before.
package journal

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
)

// MaxRecord is the largest record, in bytes.
const MaxRecord = 1 << 20

const (
	prefixSize = 8
	nonceSize  = chacha20poly1305.NonceSizeX
	overhead   = prefixSize + nonceSize + chacha20poly1305.Overhead
	sector     = 512 // unit in which a disk loses what was not flushed
)

// ErrTampered says that a record is not what was written at its place.
var ErrTampered = errors.New("record fails authentication")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Log is an open journal. It is not safe for concurrent use.
type Log struct {
	f       disk.File
	aead    cipher.AEAD
	context []byte
	seq     uint64
	tag     [chacha20poly1305.Overhead]byte
	size    int64
	broken  error // a write failed: what the file holds is unknown
	buf     []byte
}

// New starts a journal in an empty file. Context is bound into every record.
func New(f disk.File, key, context []byte) (*Log, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	return &Log{f: f, aead: aead, context: bytes.Clone(context)}, nil
}

// Replay reads a journal and calls f with each record; f must not keep it. A
// last record that a power cut left unfinished is cut off. Anything else that
// does not authenticate is ErrTampered.
func Replay(file disk.File, key, context []byte, f func([]byte) error) (*Log, error) {
	l, err := New(file, key, context)
	if err != nil {
		return nil, err
	}
	end, err := file.Size()
	if err != nil {
		return nil, err
	}
	r := io.NewSectionReader(file, 0, end)
	for l.size < end {
		rec, n, err := l.next(r, end)
		if err != nil {
			return nil, err
		}
		if n == 0 { // torn
			if err := file.Truncate(l.size); err != nil {
				return nil, err
			}
			if err := file.Sync(); err != nil {
				return nil, err
			}
			break
		}
		l.size += n
		if err := f(rec); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// next reads the record at l.size. It returns size 0 for a torn one.
func (l *Log) next(r io.ReaderAt, end int64) (rec []byte, n int64, err error) {
	rest := end - l.size
	torn := func() ([]byte, int64, error) {
		ok, err := unwritten(r, l.size, end)
		if err != nil {
			return nil, 0, err
		}
		if !ok {
			return nil, 0, fmt.Errorf("record %d at byte %d: %w", l.seq, l.size, ErrTampered)
		}
		return nil, 0, nil
	}
	if rest < prefixSize {
		return nil, 0, nil
	}
	var prefix [prefixSize]byte
	if _, err := r.ReadAt(prefix[:], l.size); err != nil {
		return nil, 0, err
	}
	size := binary.BigEndian.Uint32(prefix[:])
	if binary.BigEndian.Uint32(prefix[4:]) != l.check(size) || size > MaxRecord+chacha20poly1305.Overhead || size < chacha20poly1305.Overhead {
		if rest > MaxRecord+overhead {
			return nil, 0, fmt.Errorf("record %d at byte %d: %w", l.seq, l.size, ErrTampered)
		}
		return torn()
	}
	n = prefixSize + nonceSize + int64(size)
	if rest < n {
		return nil, 0, nil
	}
	box := make([]byte, nonceSize+int(size))
	if _, err := r.ReadAt(box, l.size+prefixSize); err != nil {
		return nil, 0, err
	}
	var tag [chacha20poly1305.Overhead]byte
	copy(tag[:], box[len(box)-len(tag):])
	rec, err = l.aead.Open(box[nonceSize:nonceSize], box[:nonceSize], box[nonceSize:], l.ad())
	if err != nil {
		if rest > n {
			return nil, 0, fmt.Errorf("record %d at byte %d: %w", l.seq, l.size, ErrTampered)
		}
		return torn()
	}
	l.tag, l.seq = tag, l.seq+1
	return rec, n, nil
}

// unwritten reports whether some sector's part of [from, end) holds nothing
// but zeros: what a disk leaves of a write that it did not finish. Ciphertext
// that was written never looks so.
func unwritten(r io.ReaderAt, from, end int64) (bool, error) {
	for from < end {
		stop := min((from/sector+1)*sector, end)
		b := make([]byte, stop-from)
		if _, err := r.ReadAt(b, from); err != nil {
			return false, err
		}
		if len(bytes.Trim(b, "\x00")) == 0 {
			return true, nil
		}
		from = stop
	}
	return false, nil
}

func (l *Log) check(size uint32) uint32 {
	var b [12]byte
	binary.BigEndian.PutUint32(b[:], size)
	binary.BigEndian.PutUint64(b[4:], l.seq)
	return crc32.Checksum(b[:], castagnoli)
}

func (l *Log) ad() []byte {
	ad := make([]byte, 0, len(l.context)+8+len(l.tag))
	ad = append(ad, l.context...)
	ad = binary.BigEndian.AppendUint64(ad, l.seq)
	return append(ad, l.tag[:]...)
}

// Add appends a record without flushing it.
func (l *Log) Add(rec []byte) error {
	if l.broken != nil {
		return fmt.Errorf("journal unusable since a write failed: %w", l.broken)
	}
	if len(rec) > MaxRecord {
		return fmt.Errorf("record of %d bytes, limit %d", len(rec), MaxRecord)
	}
	size := uint32(len(rec) + chacha20poly1305.Overhead)
	b := binary.BigEndian.AppendUint32(l.buf[:0], size)
	b = binary.BigEndian.AppendUint32(b, l.check(size))
	var nonce [nonceSize]byte
	rand.Read(nonce[:])
	b = append(b, nonce[:]...)
	b = l.aead.Seal(b, nonce[:], rec, l.ad())
	l.buf = b[:0]
	if _, err := l.f.WriteAt(b, l.size); err != nil {
		l.broken = err
		return err
	}
	copy(l.tag[:], b[len(b)-len(l.tag):])
	l.seq++
	l.size += int64(len(b))
	return nil
}

// Sync makes what was added durable.
func (l *Log) Sync() error {
	if l.broken != nil {
		return fmt.Errorf("journal unusable since a write failed: %w", l.broken)
	}
	if err := l.f.Sync(); err != nil {
		l.broken = err
		return err
	}
	return nil
}

// Size returns the journal's length in bytes.
func (l *Log) Size() int64 { return l.size }

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }
