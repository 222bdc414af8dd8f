package fscrypt

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/bits"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/trusttree/trusttree/fscrypt/internal/disk"
	"github.com/trusttree/trusttree/fscrypt/internal/journal"
)

// Limits of the manifest, which is held in memory: about 300 bytes a file.
const (
	maxFiles    = 1 << 20
	maxFileName = 1024 // bytes
	maxParts    = 4096 // segments of one file
)

// entry is a file as the manifest knows it.
type entry struct {
	Version uint64 `json:"v"` // counts how often the name was written
	Parts   []part `json:"p"`
	ModTime int64  `json:"t"` // nanoseconds since 1970

	// Of a protected file of a kernel mode volume: SHA-256 and size.
	Digest []byte `json:"g,omitempty"`
	Bytes  int64  `json:"b,omitempty"`
}

// part is one object: a whole age file.
type part struct {
	ID    string `json:"id"`
	Epoch uint64 `json:"e"`           // volume key that wraps its file key
	Size  int64  `json:"s"`           // plaintext bytes
	Pad   int64  `json:"z,omitempty"` // zeros behind them, which hide the size
	Open  bool   `json:"o,omitempty"` // a segment that is being written

	// A small object is kept in the log (Data), later with others in one file
	// (Pack, Off, Len); a large one has a file of its own.
	Data []byte `json:"d,omitempty"`
	Pack string `json:"k,omitempty"`
	Off  int64  `json:"f,omitempty"`
	Len  int64  `json:"l,omitempty"`
}

// maxInline is the size of an object, in bytes, up to which it is kept in the
// log: a file of 4 KiB costs one flush then.
const maxInline = 6 << 10

// file names the file below objects that a part is in; empty if it is in the
// log.
func (p *part) file() string {
	switch {
	case p.Data != nil:
		return ""
	case p.Pack != "":
		return p.Pack
	}
	return p.ID
}

func (p *part) check() error {
	for _, id := range []string{p.ID, p.Pack} {
		if b, err := hex.DecodeString(id); err != nil || (len(b) != 16 && id != "") {
			return errors.New("bad object")
		}
	}
	if p.ID == "" || p.Size < 0 || p.Pad < 0 || p.Off < 0 || p.Len < 0 || len(p.Data) > maxInline {
		return errors.New("bad object")
	}
	return nil
}

// padding is how many zeros hide a size: up to 12 % more, so that only about
// log log of the size shows (Padmé; Nikitin and others, PETS 2019).
func padding(size int64) int64 {
	if size < 2 {
		return 0
	}
	e := bits.Len64(uint64(size)) - 1
	low := e - bits.Len(uint(e))
	if low <= 0 {
		return 0
	}
	mask := int64(1)<<low - 1
	return (size+mask)&^mask - size
}

func (e *entry) size() (n int64) {
	n = e.Bytes
	for _, p := range e.Parts {
		n += p.Size
	}
	return n
}

// op is a record of the manifest's log.
type op struct {
	Op    string `json:"op"`
	Name  string `json:"n,omitempty"`
	To    string `json:"to,omitempty"`
	File  *entry `json:"f,omitempty"`
	Gen   uint64 `json:"g,omitempty"`
	Head  uint64 `json:"h,omitempty"` // generation that the header has at least
	Count int    `json:"c,omitempty"` // files that follow in this snapshot
	Batch []*op  `json:"b,omitempty"` // changes that are made together
}

const (
	opHead   = "head"
	opPut    = "put"
	opRename = "rename"
	opRemove = "remove"
	opBatch  = "batch"
)

// manifest is the volume's tree: what the log adds up to.
type manifest struct {
	files map[string]*entry
	dirs  map[string]map[string]bool // children by directory; "." is the root
	gen   uint64
	head  uint64
	owed  int // files that the snapshot promised and that have not come

	inline int            // bytes kept in the log
	packs  map[string]int // parts in each pack
}

func newManifest() *manifest {
	return &manifest{packs: map[string]int{}, files: map[string]*entry{}, dirs: map[string]map[string]bool{".": {}}}
}

func validName(name string) error {
	if !fs.ValidPath(name) || name == "." || len(name) > maxFileName {
		return fmt.Errorf("name %.60q: want a slash-separated path of at most %d bytes without . and ..: %w", name, maxFileName, fs.ErrInvalid)
	}
	return nil
}

// room says why a file can't have this name: because it is a directory, or
// because part of it is a file.
func (m *manifest) room(name string) error {
	if err := validName(name); err != nil {
		return err
	}
	if m.dirs[name] != nil {
		return fmt.Errorf("%s: is a directory: %w", name, fs.ErrExist)
	}
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		if m.files[d] != nil {
			return fmt.Errorf("%s: %s is a file: %w", name, d, fs.ErrInvalid)
		}
	}
	if m.files[name] == nil && len(m.files) >= maxFiles {
		return fmt.Errorf("%s: the volume has %d files, the most allowed", name, maxFiles)
	}
	return nil
}

func (m *manifest) link(name string) {
	for name != "." {
		d := path.Dir(name)
		if m.dirs[d] == nil {
			m.dirs[d] = map[string]bool{}
		}
		m.dirs[d][path.Base(name)] = true
		name = d
	}
}

func (m *manifest) unlink(name string) {
	for name != "." {
		d := path.Dir(name)
		delete(m.dirs[d], path.Base(name))
		if d == "." || len(m.dirs[d]) > 0 {
			return
		}
		delete(m.dirs, d)
		name = d
	}
}

// apply makes one change, or says why it can't be.
func (m *manifest) apply(o *op) error {
	switch o.Op {
	case opHead:
		if o.Gen < m.gen || o.Head < m.head || o.Count < 0 {
			return fmt.Errorf("generation goes back: %w", ErrTampered)
		}
		m.gen, m.head = o.Gen, o.Head
		m.owed += o.Count
	case opPut:
		if o.File == nil || len(o.File.Parts) > maxParts {
			return errors.New("put without a file")
		}
		if err := m.room(o.Name); err != nil {
			return err
		}
		if n := len(o.File.Digest); (n != 0 && n != sha256.Size) || o.File.Bytes < 0 {
			return errors.New("bad digest")
		}
		for _, p := range o.File.Parts {
			if err := p.check(); err != nil {
				return err
			}
		}
		m.count(m.files[o.Name], -1)
		m.count(o.File, 1)
		m.files[o.Name] = o.File
		m.link(o.Name)
		if m.owed > 0 {
			m.owed--
		}
	case opRename:
		e := m.files[o.Name]
		if e == nil {
			return fmt.Errorf("%s: %w", o.Name, fs.ErrNotExist)
		}
		if o.Name == o.To {
			return nil
		}
		delete(m.files, o.Name)
		m.unlink(o.Name)
		if err := m.room(o.To); err != nil {
			m.files[o.Name] = e
			m.link(o.Name)
			return err
		}
		m.count(m.files[o.To], -1)
		m.files[o.To] = e
		m.link(o.To)
	case opRemove:
		if m.files[o.Name] == nil {
			return fmt.Errorf("%s: %w", o.Name, fs.ErrNotExist)
		}
		m.count(m.files[o.Name], -1)
		delete(m.files, o.Name)
		m.unlink(o.Name)
	case opBatch:
		for _, b := range o.Batch {
			if b == nil || b.Op == opBatch || b.Op == opHead {
				return errors.New("bad batch")
			}
			if err := m.apply(b); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("unknown change %.20q", o.Op)
	}
	return nil
}

// count adds to or takes from what is known of where objects are.
func (m *manifest) count(e *entry, n int) {
	if e == nil {
		return
	}
	for _, p := range e.Parts {
		m.inline += n * len(p.Data)
		if p.Pack == "" {
			continue
		}
		if m.packs[p.Pack] += n; m.packs[p.Pack] == 0 {
			delete(m.packs, p.Pack)
		}
	}
}

// objects returns the names of all files of objects in use.
func (m *manifest) objects() map[string]bool {
	ids := make(map[string]bool, len(m.files))
	for _, e := range m.files {
		for _, p := range e.Parts {
			ids[p.file()] = true
		}
	}
	return ids
}

// logFile names a log: its number, and the volume key that it is under.
type logFile struct {
	num, epoch uint64
}

func (l logFile) name() string { return fmt.Sprintf("log.%d.%d", l.num, l.epoch) }

func (l logFile) context(h *header) []byte {
	b := append([]byte("trusttree fscrypt log v1 "), h.UUID...)
	b = binary.BigEndian.AppendUint64(b, l.num)
	return binary.BigEndian.AppendUint64(b, l.epoch)
}

// logKey derives the key of the log from a volume key.
func logKey(vk *Secret, h *header) ([]byte, error) {
	return derive(vk, chacha20poly1305.KeySize, []byte(h.UUID), "log")
}

// findLogs lists the logs, the newest last, and what a cut left of others.
func findLogs(d disk.FS) (logs []logFile, rest []string, err error) {
	names, err := d.List(".")
	if err != nil {
		return nil, nil, err
	}
	for _, n := range names {
		var l logFile
		if strings.HasSuffix(n, ".tmp") {
			rest = append(rest, n)
		} else if _, err := fmt.Sscanf(n, "log.%d.%d", &l.num, &l.epoch); err == nil && l.name() == n {
			logs = append(logs, l)
		}
	}
	slices.SortFunc(logs, func(a, b logFile) int {
		if a.num != b.num {
			return int(int64(a.num) - int64(b.num))
		}
		return int(int64(a.epoch) - int64(b.epoch))
	})
	return logs, rest, nil
}

// loadLog replays a log into a manifest.
func loadLog(d disk.FS, h *header, l logFile, vk *Secret) (*manifest, *journal.Log, error) {
	key, err := logKey(vk, h)
	if err != nil {
		return nil, nil, err
	}
	defer clear(key)
	f, err := d.Open(l.name())
	if err != nil {
		return nil, nil, err
	}
	m := newManifest()
	log, err := journal.Replay(f, key, l.context(h), func(rec []byte) error {
		o := new(op)
		if err := strictJSON(rec, o); err != nil {
			return err
		}
		return m.apply(o)
	})
	if err == nil && (m.owed > 0 || m.gen == 0) {
		err = errors.New("the snapshot is incomplete")
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("manifest %s: %w: %w", l.name(), ErrTampered, err), f.Close())
	}
	return m, log, nil
}

// writeLog makes a new log that holds a snapshot of m, durably.
func writeLog(d disk.FS, h *header, l logFile, vk *Secret, m *manifest) (*journal.Log, error) {
	key, err := logKey(vk, h)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	tmp := l.name() + ".tmp"
	if err := d.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := d.Create(tmp)
	if err != nil {
		return nil, err
	}
	log, err := journal.New(f, key, l.context(h))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	err = addOp(log, &op{Op: opHead, Gen: m.gen, Head: m.head, Count: len(m.files)})
	for _, name := range slices.Sorted(maps.Keys(m.files)) {
		if err == nil {
			err = addOp(log, &op{Op: opPut, Name: name, File: m.files[name]})
		}
	}
	if err == nil {
		err = log.Sync()
	}
	if err == nil {
		err = d.Rename(tmp, l.name())
	}
	if err != nil {
		return nil, errors.Join(err, log.Close(), d.Remove(tmp))
	}
	if err := d.SyncDir("."); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return log, nil
}

func addOp(log *journal.Log, o *op) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return log.Add(b, o.Op == opRemove || o.Op == opHead)
}

// fileInfo is an entry, or a directory, to package io/fs.
type fileInfo struct {
	name string
	size int64
	mode fs.FileMode
	time time.Time
}

func (i fileInfo) Name() string               { return i.name }
func (i fileInfo) Size() int64                { return i.size }
func (i fileInfo) Mode() fs.FileMode          { return i.mode }
func (i fileInfo) Type() fs.FileMode          { return i.mode.Type() }
func (i fileInfo) ModTime() time.Time         { return i.time }
func (i fileInfo) IsDir() bool                { return i.mode.IsDir() }
func (i fileInfo) Sys() any                   { return nil }
func (i fileInfo) Info() (fs.FileInfo, error) { return i, nil }
func (i fileInfo) String() string             { return fs.FormatFileInfo(i) }

func (m *manifest) stat(name string) (fileInfo, error) {
	if e := m.files[name]; e != nil {
		return fileInfo{path.Base(name), e.size(), 0o600, time.Unix(0, e.ModTime)}, nil
	}
	if m.dirs[name] != nil {
		return fileInfo{path.Base(name), 0, fs.ModeDir | 0o700, time.Time{}}, nil
	}
	return fileInfo{}, fs.ErrNotExist
}
