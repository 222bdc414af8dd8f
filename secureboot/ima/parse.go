package ima

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
)

// Limits on a log, unless Options says less.
const (
	DefaultMaxEntry   = 1 << 20   // bytes of template data
	DefaultMaxEntries = 1_000_000 // entries
	maxTemplateName   = 256
	imaNameSize       = 256 // the "ima" template hashes names padded to this
)

// Options says how to read a log; the zero value and nil are for Linux's
// defaults.
type Options struct {
	PCR        int // CONFIG_IMA_MEASURE_PCR_IDX; 0 means 10
	MaxEntry   int // 0 means DefaultMaxEntry
	MaxEntries int // 0 means DefaultMaxEntries
}

func (o *Options) fill() Options {
	var r Options
	if o != nil {
		r = *o
	}
	if r.PCR == 0 {
		r.PCR = 10
	}
	if r.MaxEntry <= 0 {
		r.MaxEntry = DefaultMaxEntry
	}
	if r.MaxEntries <= 0 {
		r.MaxEntries = DefaultMaxEntries
	}
	return r
}

// ParseError says where a log can't be read. Use errors.As.
type ParseError struct {
	Offset int // of the entry, in bytes
	Entry  int // its number, from 0
	Err    error
}

func (e *ParseError) Error() string {
	return fmt.Sprintf("ima: entry %d at offset %d: %v", e.Entry, e.Offset, e.Err)
}

func (e *ParseError) Unwrap() error { return e.Err }

// ErrTruncated says that a log ends in the middle of an entry.
var ErrTruncated = errors.New("log ends inside an entry")

// Log is a parsed, unverified log. It reads from the bytes it was parsed from.
type Log struct {
	raw     []byte
	pcr     int
	entries []span
}

// span is the index entry of one entry; offsets are into Log.raw.
type span struct {
	start, name, data, end uint32
	old                    bool // template "ima": no length before the data
}

// Parse reads a log. An empty one has no entries. It returns a *ParseError for
// one that is malformed at any byte. The log is not copied.
func Parse(log []byte, opts *Options) (*Log, error) {
	o := opts.fill()
	if len(log) > 1<<31-1 {
		return nil, fmt.Errorf("ima: log of %d bytes", len(log))
	}
	l := &Log{raw: log, pcr: o.PCR}
	for off := 0; off < len(log); {
		if len(l.entries) == o.MaxEntries {
			return nil, &ParseError{off, len(l.entries), fmt.Errorf("more than %d entries", o.MaxEntries)}
		}
		s, err := l.scan(off, o)
		if err != nil {
			return nil, &ParseError{off, len(l.entries), err}
		}
		if l.entries == nil {
			l.entries = make([]span, 0, min(len(log)/int(s.end-s.start)+1, 4096))
		}
		l.entries = append(l.entries, s)
		off = int(s.end)
	}
	return l, nil
}

func (l *Log) scan(off int, o Options) (s span, err error) {
	b := l.raw[off:]
	if len(b) < 28 {
		return s, ErrTruncated
	}
	if pcr := binary.LittleEndian.Uint32(b); pcr != uint32(o.PCR) {
		return s, fmt.Errorf("entry of PCR %d, want %d", pcr, o.PCR)
	}
	n := binary.LittleEndian.Uint32(b[24:])
	if n == 0 || n > maxTemplateName {
		return s, fmt.Errorf("template name of %d bytes, limit %d", n, maxTemplateName)
	}
	pos := 28 + int(n)
	s = span{start: uint32(off), name: uint32(off + 28)}
	if len(b) < pos+4 {
		return s, ErrTruncated
	}
	var size int
	if s.old = string(b[28:pos]) == "ima"; s.old {
		if len(b) < pos+24 {
			return s, ErrTruncated
		}
		name := binary.LittleEndian.Uint32(b[pos+20:])
		if name >= imaNameSize {
			return s, fmt.Errorf("file name of %d bytes, limit %d", name, imaNameSize-1)
		}
		size = 24 + int(name)
	} else {
		v := binary.LittleEndian.Uint32(b[pos:])
		if v > uint32(o.MaxEntry) {
			return s, fmt.Errorf("template data of %d bytes, limit %d", v, o.MaxEntry)
		}
		size = int(v)
		pos += 4
	}
	if size > len(b)-pos {
		return s, ErrTruncated
	}
	s.data, s.end = uint32(off+pos), uint32(off+pos+size)
	return s, nil
}

// Len returns the number of entries.
func (l *Log) Len() int { return len(l.entries) }

// Entries yields the entries, unverified: for display only.
func (l *Log) Entries() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range l.entries {
			if !yield(l.entry(i)) {
				return
			}
		}
	}
}

// template returns a template's name.
func (l *Log) template(s *span) []byte {
	end := s.data
	if !s.old {
		end -= 4
	}
	return l.raw[s.name:end]
}

// Entry is one measurement.
type Entry struct {
	Num       int    // from 0, of the whole log
	Template  string // a hint: no digest binds it
	Violation bool   // the kernel could not vouch for the file's content
	Known     bool   // the template is understood: what follows is set
	Alg       string // hash of Digest: "sha256"; "verity:sha256" for fs-verity
	Digest    []byte // of the file's content
	Name      []byte // raw; see String
	Signature []byte // security.ima, when the template has it
	Buffer    []byte // measured buffer (ima-buf)
}

// ID returns the digest as policies spell it: "sha256:…".
func (e Entry) ID() string { return fmt.Sprintf("%s:%x", e.Alg, e.Digest) }

// String returns the entry in printable form: names are escaped.
func (e Entry) String() string {
	q := strconv.QuoteToASCII(string(e.Name))
	return fmt.Sprintf("%s %s", e.ID(), q[1:len(q)-1])
}

// formats are the fields of the named templates (Linux
// security/integrity/ima/ima_template.c).
var formats = map[string]string{
	"ima-ng": "d-ng|n-ng", "ima-sig": "d-ng|n-ng|sig", "ima-ngv2": "d-ngv2|n-ng", "ima-sigv2": "d-ngv2|n-ng|sig",
	"ima-buf": "d-ng|n-ng|buf", "ima-modsig": "d-ng|n-ng|sig|d-modsig|modsig",
	"evm-sig": "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
}

func (l *Log) entry(i int) Entry {
	s := &l.entries[i]
	e := Entry{Num: i, Template: string(l.template(s)), Violation: allZero(l.raw[s.start+4 : s.start+24])}
	data := l.raw[s.data:s.end]
	if s.old {
		e.Known, e.Alg, e.Digest, e.Name = true, "sha1", data[:20], data[24:]
		if e.Violation {
			e.Digest = nil
		}
		return e
	}
	format, ok := formats[e.Template]
	if !ok {
		format = e.Template
	}
	e.Known = e.fields(format, data)
	return e
}

// fields splits template data. Every field has a length of 4 bytes. The
// template's name is not in the digest: a format in which a file name could
// pose as a digest is not known.
func (e *Entry) fields(format string, data []byte) bool {
	if !strings.HasPrefix(format, "d-ng|n-ng") && !strings.HasPrefix(format, "d-ngv2|n-ng") {
		return false
	}
	digest := false
	for f := range strings.SplitSeq(format, "|") {
		if len(data) < 4 {
			return false
		}
		n := binary.LittleEndian.Uint32(data)
		if uint64(n) > uint64(len(data)-4) {
			return false
		}
		v := data[4 : 4+n]
		data = data[4+n:]
		switch f {
		case "d-ng", "d-ngv2":
			i := bytes.IndexByte(v, 0)
			if digest || i < 1 || v[i-1] != ':' {
				return false
			}
			e.Alg, e.Digest, digest = strings.TrimPrefix(string(v[:i-1]), "ima:"), v[i+1:], true
			if e.Violation || allZero(e.Digest) {
				e.Digest = nil
			}
		case "n-ng":
			if e.Name != nil {
				return false
			}
			e.Name = bytes.TrimSuffix(v, []byte{0})
		case "sig":
			e.Signature = v
		case "buf":
			e.Buffer = v
		case "d-modsig", "modsig", "evmsig", "xattrnames", "xattrlengths", "xattrvalues", "iuid", "igid", "imode":
		default:
			return false
		}
	}
	return digest && len(data) == 0
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
