// Package auditlog is an append-only Merkle log (RFC 6962 hashing, as in
// golang.org/x/mod/sumdb/tlog) in two files: entries and hashes. Each entry
// has a leaf, which the tree commits to, and a body, which it does not. Append
// returns after both are on the disk.
package auditlog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/trusttree/trusttree/internal/durable"
)

// Limits of one entry in bytes.
const (
	MaxLeaf = 1 << 10
	MaxBody = 16 << 10

	header        = 12 // length of leaf, length of body, CRC-32C of both
	maxCheckpoint = 4 << 10
)

// ErrTampered says that the log is not what its checkpoint signed.
var ErrTampered = errors.New("audit log does not match its signed checkpoint")

// Log is an open log. It is safe for concurrent use.
type Log struct {
	dir    string
	signer note.Signer

	mu      sync.Mutex
	entries *os.File
	hashes  *os.File
	size    int64 // entries
	end     int64 // bytes of entries
	broken  error // set when a write failed: nothing is appended after it

	cosigning sync.Mutex // for the file cosigned
}

// Open opens or makes the log in dir. It drops what a cut left half written,
// which nobody was told of, calls each with every entry, and returns
// ErrTampered when the signed checkpoint does not hold.
func Open(dir string, signer note.Signer, verifier note.Verifier, each func(Entry) error) (_ *Log, err error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l := &Log{dir: dir, signer: signer}
	defer func() {
		if err != nil {
			_ = l.Close()
		}
	}()
	if l.entries, err = openFile(filepath.Join(dir, "entries")); err != nil {
		return nil, err
	}
	if l.hashes, err = openFile(filepath.Join(dir, "hashes")); err != nil {
		return nil, err
	}
	if err := durable.SyncDir(dir); err != nil {
		return nil, err
	}
	head, err := l.readHead(verifier)
	if err != nil {
		return nil, err
	}
	fi, err := l.hashes.Stat()
	if err != nil {
		return nil, err
	}
	rebuild := head.N // hashes behind the checkpoint may not have reached the disk
	if fi.Size() < tlog.StoredHashCount(head.N)*tlog.HashSize {
		rebuild = 0
	}
	for e, err := range l.scan() {
		if err != nil {
			return nil, err
		}
		if err := each(e); err != nil {
			return nil, err
		}
		if e.Seq >= rebuild {
			if err := l.writeHashes(e.Seq, e.Leaf); err != nil {
				return nil, err
			}
		}
		l.size, l.end = e.Seq+1, e.end
	}
	if err := errors.Join(l.checkHead(head), l.checkCosigned(verifier)); err != nil {
		return nil, err
	}
	if err := l.entries.Truncate(l.end); err != nil {
		return nil, err
	}
	if err := l.hashes.Truncate(tlog.StoredHashCount(l.size) * tlog.HashSize); err != nil {
		return nil, err
	}
	if err := errors.Join(l.entries.Sync(), l.hashes.Sync()); err != nil {
		return nil, err
	}
	if l.size == 0 { // from now on a log without a checkpoint was tampered with
		if _, _, err := l.Checkpoint(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func openFile(name string) (*os.File, error) {
	if fi, err := os.Lstat(name); err == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is no regular file", ErrTampered, name)
	}
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
}

// readHead reads the checkpoint that was signed last; without one the log must
// be empty.
func (l *Log) readHead(verifier note.Verifier) (tree tlog.Tree, err error) {
	f, err := os.Open(filepath.Join(l.dir, "checkpoint"))
	if errors.Is(err, fs.ErrNotExist) {
		fi, err := l.entries.Stat()
		if err == nil && fi.Size() > 0 {
			err = fmt.Errorf("%w: the checkpoint is missing", ErrTampered)
		}
		return tree, err
	}
	if err != nil {
		return tree, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCheckpoint))
	if err != nil {
		return tree, err
	}
	origin, tree, err := OpenCheckpoint(b, verifier)
	if err == nil && origin != l.signer.Name() {
		err = fmt.Errorf("checkpoint of %q", origin)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrTampered, err)
	}
	return tree, err
}

// checkHead compares the files with the checkpoint.
func (l *Log) checkHead(tree tlog.Tree) error {
	if tree.N > l.size {
		return fmt.Errorf("%w: %d entries were signed, %d are there", ErrTampered, tree.N, l.size)
	}
	if tree.N == 0 {
		return nil
	}
	h, err := tlog.TreeHash(tree.N, l)
	if err != nil {
		return err
	}
	if h != tree.Hash {
		return fmt.Errorf("%w: root hash at %d differs", ErrTampered, tree.N)
	}
	return nil
}

// Entry is one entry of the log.
type Entry struct {
	Seq        int64
	Leaf, Body []byte
	end        int64
}

// scan yields the entries on disk up to the first that is not whole.
func (l *Log) scan() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		r := bufio.NewReaderSize(io.NewSectionReader(l.entries, 0, 1<<62), 1<<16)
		var e Entry
		for ; ; e.Seq++ {
			var h [header]byte
			if _, err := io.ReadFull(r, h[:]); err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					yield(e, err)
				}
				return
			}
			n, m := binary.BigEndian.Uint32(h[:]), binary.BigEndian.Uint32(h[4:])
			if n > MaxLeaf || m > MaxBody {
				return
			}
			buf := make([]byte, n+m)
			if _, err := io.ReadFull(r, buf); err != nil || crc32.Checksum(buf, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(h[8:]) {
				return
			}
			e.Leaf, e.Body = buf[:n:n], buf[n:]
			e.end += header + int64(n) + int64(m)
			if !yield(e, nil) {
				return
			}
		}
	}
}

// ReadHashes implements tlog.HashReader.
func (l *Log) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if _, err := l.hashes.ReadAt(out[i][:], x*tlog.HashSize); err != nil {
			return nil, fmt.Errorf("%w: hash %d: %w", ErrTampered, x, err)
		}
	}
	return out, nil
}

func (l *Log) writeHashes(seq int64, leaf []byte) error {
	hs, err := tlog.StoredHashes(seq, leaf, l)
	if err != nil {
		return err
	}
	buf := make([]byte, 0, len(hs)*tlog.HashSize)
	for _, h := range hs {
		buf = append(buf, h[:]...)
	}
	_, err = l.hashes.WriteAt(buf, tlog.StoredHashIndex(0, seq)*tlog.HashSize)
	return err
}

// Append appends n entries that make makes, knowing their numbers, and syncs.
// After a failed write the log takes nothing more until it is opened again.
func (l *Log) Append(n int, make func(i int, seq int64) (leaf, body []byte, err error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	var buf []byte
	var leaves [][]byte
	for i := range n {
		leaf, body, err := make(i, l.size+int64(i))
		if err != nil {
			return err
		}
		if len(leaf) > MaxLeaf || len(body) > MaxBody {
			return fmt.Errorf("audit entry of %d+%d bytes", len(leaf), len(body))
		}
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(leaf)))
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(body)))
		both := append(leaf[:len(leaf):len(leaf)], body...)
		buf = binary.BigEndian.AppendUint32(buf, crc32.Checksum(both, crc32.MakeTable(crc32.Castagnoli)))
		buf = append(buf, both...)
		leaves = append(leaves, leaf)
	}
	err := func() error {
		if _, err := l.entries.WriteAt(buf, l.end); err != nil {
			return err
		}
		for i, leaf := range leaves {
			if err := l.writeHashes(l.size+int64(i), leaf); err != nil {
				return err
			}
		}
		return l.entries.Sync() // the hashes follow from the entries
	}()
	if err != nil {
		l.broken = fmt.Errorf("audit log broken: %w", err)
		return l.broken
	}
	l.size += int64(n)
	l.end += int64(len(buf))
	return nil
}

// Size returns the number of entries.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Checkpoint signs the log as it is (C2SP tlog-checkpoint), keeps the
// checkpoint beside it and returns it with the number of entries it covers.
func (l *Log) Checkpoint() (checkpoint []byte, size int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return nil, 0, l.broken
	}
	h, err := tlog.TreeHash(l.size, l)
	if err != nil {
		return nil, 0, err
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", l.signer.Name(), l.size, h)
	b, err := note.Sign(&note.Note{Text: text}, l.signer)
	if err != nil {
		return nil, 0, err
	}
	if err := l.hashes.Sync(); err != nil {
		return nil, 0, err
	}
	return b, l.size, durable.WriteFile(filepath.Join(l.dir, "checkpoint"), b, 0o600)
}

// Prove returns the inclusion proof of an entry in the tree of a size.
func (l *Log) Prove(size, seq int64) (tlog.RecordProof, error) { return tlog.ProveRecord(size, seq, l) }

// Entries yields the first n entries.
func (l *Log) Entries(n int64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var next int64
		for e, err := range l.scan() {
			if err == nil && e.Seq >= n {
				return
			}
			next = e.Seq + 1
			if !yield(e, err) || err != nil {
				return
			}
		}
		if next < n {
			yield(Entry{}, fmt.Errorf("%w: entry %d can't be read", ErrTampered, next))
		}
	}
}

// Close closes the files.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		l.broken = errors.New("audit log is closed")
	}
	var errs []error
	for _, f := range []*os.File{l.entries, l.hashes} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
