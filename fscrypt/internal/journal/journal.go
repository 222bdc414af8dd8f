// Package journal is an encrypted log of records in one file. Each record is
// bound to its place behind all earlier ones, so that none can be changed,
// dropped, repeated or moved. Cutting records off the end can't be seen here;
// the volume's counter sees it.
//
// A file is a sequence of records: 4 bytes length of the box, 4 bytes CRC-32C
// of these and the record's number, 24 bytes nonce, box. The box is
// XChaCha20-Poly1305 with the additional data context ‖ number ‖ tag of the
// record before. Zeros follow the last record: they are written ahead, so that
// flushing a record changes neither the file's size nor its extents and costs
// the file system no metadata.
//
// One record is what a power cut leaves whole or not at all. Several records
// may be added before one flush only while nothing relies on the file yet.
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

	minAhead = 64 << 10 // zeros written ahead at once
	maxAhead = 1 << 20
	// reserve is how much of them only records that free space may use.
	reserve = 16 << 10
	// maxTail is the most that follows the last whole record.
	maxTail = MaxRecord + overhead + maxAhead + reserve + sector
	// flushAt is how much is added before it is written.
	flushAt = 256 << 10
)

// ErrTampered says that a record is not what was written at its place.
var ErrTampered = errors.New("record fails authentication")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Log is an open journal. It is not safe for concurrent use.
type Log struct {
	f       disk.File
	aead    cipher.AEAD
	context []byte
	mark
	flushed mark   // what the last Sync made durable
	added   []byte // records that are not in the file yet
	written int64  // end of what is in the file
	ahead   int64  // end of the zeros in the file
	frees   bool   // what was added may use the reserve
	broken  error  // a flush failed: what the file holds is unknown
}

// mark is a place between records.
type mark struct {
	seq  uint64
	tag  [chacha20poly1305.Overhead]byte
	size int64
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
		if n == 0 {
			break
		}
		l.size += n
		if err := f(rec); err != nil {
			return nil, err
		}
	}
	l.flushed, l.written, l.ahead = l.mark, l.size, max(end, l.size)
	return l, nil
}

// next reads the record at l.size. It returns size 0 at the end.
func (l *Log) next(r io.ReaderAt, end int64) (rec []byte, n int64, err error) {
	rest := end - l.size
	if rest < prefixSize {
		return nil, 0, l.tail(r, end, 0)
	}
	var prefix [prefixSize]byte
	if _, err := r.ReadAt(prefix[:], l.size); err != nil {
		return nil, 0, err
	}
	size, ok := l.length(prefix[:], l.seq)
	if !ok {
		return nil, 0, l.tail(r, end, 0)
	}
	n = prefixSize + nonceSize + int64(size)
	if rest < n {
		return nil, 0, l.tail(r, end, n)
	}
	box := make([]byte, nonceSize+int(size))
	if _, err := r.ReadAt(box, l.size+prefixSize); err != nil {
		return nil, 0, err
	}
	var tag [chacha20poly1305.Overhead]byte
	copy(tag[:], box[len(box)-len(tag):])
	rec, err = l.aead.Open(box[nonceSize:nonceSize], box[:nonceSize], box[nonceSize:], l.ad(l.seq, l.tag[:]))
	if err != nil {
		return nil, 0, l.tail(r, end, n)
	}
	l.tag, l.seq = tag, l.seq+1
	return rec, n, nil
}

// length reads the prefix of a record.
func (l *Log) length(prefix []byte, seq uint64) (size uint32, ok bool) {
	size = binary.BigEndian.Uint32(prefix)
	ok = size >= chacha20poly1305.Overhead && size <= MaxRecord+chacha20poly1305.Overhead
	return size, ok && binary.BigEndian.Uint32(prefix[4:]) == check(size, seq)
}

// Add appends a record. It is durable only after Sync, and may not even be in
// the file before. A record that frees space may use what is held back for
// such on a full disk.
func (l *Log) Add(rec []byte, frees bool) error {
	if err := l.Usable(); err != nil {
		return err
	}
	if len(rec) > MaxRecord {
		return l.back(fmt.Errorf("record of %d bytes, limit %d", len(rec), MaxRecord))
	}
	l.frees = frees && (l.frees || len(l.added) == 0)
	size := uint32(len(rec) + chacha20poly1305.Overhead)
	b := binary.BigEndian.AppendUint32(l.added, size)
	b = binary.BigEndian.AppendUint32(b, check(size, l.seq))
	var nonce [nonceSize]byte
	rand.Read(nonce[:])
	b = append(b, nonce[:]...)
	b = l.aead.Seal(b, nonce[:], rec, l.ad(l.seq, l.tag[:]))
	copy(l.tag[:], b[len(b)-len(l.tag):])
	l.seq++
	l.size += int64(len(b) - len(l.added))
	l.added = b
	if len(b) < flushAt {
		return nil
	}
	return l.write()
}

// write puts what was added into the file, behind enough zeros.
func (l *Log) write() error {
	if l.size+reserve > l.ahead {
		err := l.writeAhead(l.size + reserve + min(max(l.size/2, minAhead), maxAhead))
		if err != nil && !l.frees {
			return l.back(err)
		}
	}
	_, err := l.f.WriteAt(l.added, l.written)
	if err != nil {
		return l.back(err)
	}
	l.written += int64(len(l.added))
	l.ahead = max(l.ahead, l.written)
	l.added = l.added[:0]
	return nil
}

// writeAhead makes the file longer, with zeros.
func (l *Log) writeAhead(to int64) error {
	to = (to + sector - 1) / sector * sector
	_, err := l.f.WriteAt(make([]byte, to-l.ahead), l.ahead)
	if err == nil {
		l.ahead = to
	}
	return err
}

// back takes back what was added since the last Sync, and returns why.
func (l *Log) back(why error) error {
	var err error
	if dirty := min(l.written+int64(len(l.added)), l.ahead); dirty > l.flushed.size {
		_, err = l.f.WriteAt(make([]byte, dirty-l.flushed.size), l.flushed.size)
	}
	if err == nil {
		err = l.f.Truncate(l.ahead)
	}
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		l.broken = errors.Join(why, err)
	}
	l.mark, l.written, l.added = l.flushed, l.flushed.size, l.added[:0]
	return why
}

// Sync makes what was added durable. When it fails, nothing of it is in the
// journal, unless Usable says that this is not known.
func (l *Log) Sync() error {
	if err := l.Usable(); err != nil {
		return err
	}
	if len(l.added) > 0 {
		if err := l.write(); err != nil {
			return err
		}
	}
	if err := l.f.Sync(); err != nil {
		l.broken = err
		return err
	}
	l.flushed = l.mark
	return nil
}

// Usable returns why nothing can be added any more.
func (l *Log) Usable() error {
	if l.broken == nil {
		return nil
	}
	return fmt.Errorf("journal unusable since a write failed: %w", l.broken)
}

// Break makes the journal unusable.
func (l *Log) Break(why error) { l.broken = errors.Join(l.broken, why) }

func check(size uint32, seq uint64) uint32 {
	var b [12]byte
	binary.BigEndian.PutUint32(b[:], size)
	binary.BigEndian.PutUint64(b[4:], seq)
	return crc32.Checksum(b[:], castagnoli)
}

func (l *Log) ad(seq uint64, before []byte) []byte {
	ad := make([]byte, 0, len(l.context)+8+len(before))
	ad = append(ad, l.context...)
	ad = binary.BigEndian.AppendUint64(ad, seq)
	return append(ad, before...)
}

// Size returns the length of all records in bytes.
func (l *Log) Size() int64 { return l.size }

// Close cuts off the zeros and closes the file. What was not flushed is lost.
func (l *Log) Close() error {
	var err error
	if l.broken == nil {
		err = l.f.Truncate(l.flushed.size)
	}
	return errors.Join(err, l.f.Close())
}
