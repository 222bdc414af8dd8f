package eventlog

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // banks of PCRs
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
)

// Limits on a log, unless Options says less.
const (
	DefaultMaxSize   = 16 << 20 // bytes
	DefaultMaxEvents = 100_000
	maxBanks         = 8
	maxPCR           = 23
	noPCR            = 0xFFFFFFFF // EV_NO_ACTION may carry it
)

// Options says how to read a log. The zero value and nil are for the log of a
// machine with a TPM.
type Options struct {
	MaxSize   int  // bytes; 0 means DefaultMaxSize
	MaxEvents int  // 0 means DefaultMaxEvents
	CCEL      bool // the log is an ACPI CCEL area: padded with 0xFF bytes, its registers are measurement registers 1 to 4
}

// ParseError says where a log can't be read. Use errors.As.
type ParseError struct {
	Offset int // of the event in which the problem is, in bytes
	Event  int // its number, from 0
	Err    error
}

func (e *ParseError) Error() string {
	return fmt.Sprintf("eventlog: event %d at offset %d: %v", e.Event, e.Offset, e.Err)
}

func (e *ParseError) Unwrap() error { return e.Err }

// ErrTruncated says that a log ends in the middle of an event.
var ErrTruncated = errors.New("log ends inside an event")

// Log is a parsed, unverified log: what the attester says. It reads from the
// bytes it was parsed from, and is safe for concurrent use.
type Log struct {
	raw      []byte
	agile    bool
	locality byte // StartupLocality: PCR 0 starts with it
	nbanks   int
	banks    [maxBanks]bank
	size     int // bytes of an event's digests, algorithms included
	events   []event
}

type bank struct {
	alg  uint16
	size int
	at   int         // offset of the digest when an event lists the header's algorithms in order
	hash crypto.Hash // 0 for an algorithm that is not known: skipped, never judged
}

// event is the index entry of one event; offsets are into Log.raw.
type event struct {
	pcr     uint32
	typ     Type
	digests uint32
	data    uint32
	size    uint32
}

var knownBanks = [...]bank{
	{alg: 0x0004, size: 20, hash: crypto.SHA1}, {alg: 0x000B, size: 32, hash: crypto.SHA256}, {alg: 0x000C, size: 48, hash: crypto.SHA384},
	{alg: 0x000D, size: 64, hash: crypto.SHA512}, {alg: 0x0012, size: 32}, // SM3-256: size known, not judged
}

// Parse reads a log in either format. It returns a *ParseError for one that is
// malformed at any byte, and refuses a log without an event. The log is not
// copied: it must not change while the Log is in use.
func Parse(log []byte, opts *Options) (*Log, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.MaxSize <= 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.MaxEvents <= 0 {
		o.MaxEvents = DefaultMaxEvents
	}
	o.MaxSize = min(o.MaxSize, 1<<30) // offsets are 32 bits
	if len(log) > o.MaxSize {
		return nil, fmt.Errorf("eventlog: log of %d bytes, limit %d", len(log), o.MaxSize)
	}
	if len(log) == 0 {
		return nil, errors.New("eventlog: log is empty: the firmware measured nothing, or it was not handed over")
	}
	l := &Log{raw: log}
	off := 0
	e, next, err := l.sha1Event(0)
	if err != nil {
		return nil, &ParseError{0, 0, err}
	}
	if e.typ == EvNoAction && bytes.HasPrefix(l.dataOf(&e), specID) {
		if err := l.header(&e); err != nil {
			return nil, &ParseError{0, 0, err}
		}
		l.agile, off = true, next
	} else {
		l.nbanks, l.banks[0] = 1, knownBanks[0]
	}
	least := 32 // bytes of the smallest event
	if l.agile {
		least = 16 + l.size
	}
	l.events = make([]event, 0, min((len(log)-off)/least+1, o.MaxEvents))
	if err := l.scan(off, o); err != nil {
		return nil, err
	}
	if len(l.events) == 0 {
		return nil, errors.New("eventlog: log holds no event")
	}
	return l, nil
}

// scan walks over the events. It checks each of them.
func (l *Log) scan(off int, o Options) (err error) {
	var extended, locality bool
	for off < len(l.raw) {
		count := len(l.events)
		if o.CCEL && allPadding(l.raw[off:]) {
			break
		}
		if count >= o.MaxEvents {
			return &ParseError{off, count, fmt.Errorf("more than %d events", o.MaxEvents)}
		}
		var e event
		var next int
		if l.agile {
			e, next, err = l.agileEvent(off)
		} else {
			e, next, err = l.sha1Event(off)
		}
		if err == nil {
			err = l.check(&e, o, &extended, &locality)
		}
		if err != nil {
			return &ParseError{off, count, err}
		}
		l.events = append(l.events, e)
		off = next
	}
	return nil
}

var (
	specID          = []byte("Spec ID Event03\x00")
	startupLocality = []byte("StartupLocality\x00")
)

// check holds the rules for single events and their order (PFP section 10.4.5).
func (l *Log) check(e *event, o Options, extended, locality *bool) error {
	if e.typ != EvNoAction {
		if e.pcr > maxPCR || o.CCEL && e.pcr > 4 {
			return fmt.Errorf("PCR %d out of range", e.pcr)
		}
		if !l.agile && e.typ == EvPrebootCert && e.size == 0 && allZero(l.raw[e.digests:e.digests+20]) {
			return errors.New("zero bytes instead of an event: padding is not allowed")
		}
		*extended = *extended || e.pcr == 0
		return nil
	}
	if e.pcr > maxPCR && e.pcr != noPCR {
		return fmt.Errorf("PCR %d out of range", e.pcr)
	}
	data := l.dataOf(e)
	switch {
	case bytes.HasPrefix(data, specID):
		return errors.New("second Spec ID event")
	case bytes.HasPrefix(data, startupLocality):
		switch {
		case e.pcr != 0:
			return fmt.Errorf("StartupLocality for PCR %d", e.pcr)
		case *extended:
			return errors.New("StartupLocality after PCR 0 was extended")
		case *locality:
			return errors.New("second StartupLocality")
		case len(data) != len(startupLocality)+1:
			return fmt.Errorf("StartupLocality of %d bytes", len(data))
		}
		v := data[len(startupLocality)]
		if v != 0 && v != 3 && v != 4 {
			return fmt.Errorf("StartupLocality %d, want 0, 3 or 4", v)
		}
		*locality, l.locality = true, v
	}
	return nil
}

// header reads the TCG_EfiSpecIDEvent (PFP section 10.4.5.1).
func (l *Log) header(e *event) error {
	if e.pcr != 0 || !allZero(l.raw[e.digests:e.digests+20]) {
		return errors.New("the Spec ID event is not PCR 0 with a zero digest")
	}
	d := l.dataOf(e)
	if len(d) < 29 {
		return fmt.Errorf("the Spec ID event: %w", ErrTruncated)
	}
	if minor, major, uintn := d[20], d[21], d[23]; major != 2 || uintn != 1 && uintn != 2 {
		return fmt.Errorf("the Spec ID version %d.%d with uintn size %d is not supported", major, minor, uintn)
	}
	n := binary.LittleEndian.Uint32(d[24:])
	if n == 0 || n > maxBanks {
		return fmt.Errorf("the Spec ID event names %d algorithms, limit %d", n, maxBanks)
	}
	d = d[28:]
	if len(d) < 4*int(n)+1 {
		return fmt.Errorf("the Spec ID event: %w", ErrTruncated)
	}
	for i := range int(n) {
		b := bank{alg: binary.LittleEndian.Uint16(d), size: int(binary.LittleEndian.Uint16(d[2:]))}
		d = d[4:]
		if b.size == 0 || b.size > 64 {
			return fmt.Errorf("algorithm 0x%04x has digests of %d bytes", b.alg, b.size)
		}
		for _, k := range knownBanks {
			if k.alg == b.alg {
				if k.size != b.size {
					return fmt.Errorf("algorithm 0x%04x has digests of %d bytes, want %d", b.alg, b.size, k.size)
				}
				b.hash = k.hash
			}
		}
		for _, old := range l.banks[:i] {
			if old.alg == b.alg {
				return fmt.Errorf("algorithm 0x%04x is named twice", b.alg)
			}
		}
		l.size += 2 + b.size
		b.at = l.size - b.size
		l.banks[i] = b
	}
	l.nbanks = int(n)
	if len(d) != 1+int(d[0]) {
		return errors.New("vendor data of the Spec ID event does not end with the event")
	}
	return nil
}

// sha1Event reads a TCG_PCClientPCREvent.
func (l *Log) sha1Event(off int) (e event, next int, err error) {
	b := l.raw[off:]
	if len(b) < 32 {
		return e, 0, ErrTruncated
	}
	e = event{pcr: binary.LittleEndian.Uint32(b), typ: Type(binary.LittleEndian.Uint32(b[4:])),
		digests: uint32(off + 8), data: uint32(off + 32), size: binary.LittleEndian.Uint32(b[28:])}
	if uint64(e.size) > uint64(len(b)-32) {
		return e, 0, ErrTruncated
	}
	return e, off + 32 + int(e.size), nil
}

// agileEvent reads a TCG_PCR_EVENT2: each algorithm of the header once.
func (l *Log) agileEvent(off int) (e event, next int, err error) {
	b := l.raw[off:]
	if len(b) < 12 {
		return e, 0, ErrTruncated
	}
	e = event{pcr: binary.LittleEndian.Uint32(b), typ: Type(binary.LittleEndian.Uint32(b[4:])), digests: uint32(off + 12)}
	if n := binary.LittleEndian.Uint32(b[8:]); n != uint32(l.nbanks) {
		return e, 0, fmt.Errorf("%d digests, the header names %d algorithms", n, l.nbanks)
	}
	pos := 12
	if l.ordered(b[pos:]) {
		pos += l.size
	} else if pos, err = l.unordered(b, pos); err != nil {
		return e, 0, err
	}
	if len(b)-pos < 4 {
		return e, 0, ErrTruncated
	}
	e.size = binary.LittleEndian.Uint32(b[pos:])
	pos += 4
	if uint64(e.size) > uint64(len(b)-pos) {
		return e, 0, ErrTruncated
	}
	e.data = uint32(off + pos)
	return e, off + pos + int(e.size), nil
}

// ordered reports whether b starts with the digests of all algorithms in the
// header's order, as nearly all logs have them.
func (l *Log) ordered(b []byte) bool {
	if len(b) < l.size {
		return false
	}
	for i := range l.banks[:l.nbanks] {
		if k := &l.banks[i]; binary.LittleEndian.Uint16(b[k.at-2:]) != k.alg {
			return false
		}
	}
	return true
}

// unordered walks over digests in any order: each algorithm once.
func (l *Log) unordered(b []byte, pos int) (int, error) {
	seen := 0
	for range l.nbanks {
		if len(b)-pos < 2 {
			return 0, ErrTruncated
		}
		alg := binary.LittleEndian.Uint16(b[pos:])
		i := l.bankIndex(alg)
		if i < 0 {
			return 0, fmt.Errorf("digest of algorithm 0x%04x, which the header does not name", alg)
		}
		if seen&(1<<i) != 0 {
			return 0, fmt.Errorf("two digests of algorithm 0x%04x", alg)
		}
		seen |= 1 << i
		pos += 2 + l.banks[i].size
		if pos > len(b) {
			return 0, ErrTruncated
		}
	}
	return pos, nil
}

func (l *Log) bankIndex(alg uint16) int {
	for i := range l.nbanks {
		if l.banks[i].alg == alg {
			return i
		}
	}
	return -1
}

// digest returns the event's digest in the bank with index bi.
func (l *Log) digest(e *event, bi int) []byte {
	pos := int(e.digests)
	if !l.agile {
		return l.raw[pos : pos+20 : pos+20]
	}
	if k := &l.banks[bi]; l.ordered(l.raw[pos:]) {
		return l.raw[pos+k.at : pos+k.at+k.size : pos+k.at+k.size]
	}
	want := l.banks[bi].alg
	for range l.nbanks {
		alg := binary.LittleEndian.Uint16(l.raw[pos:])
		size := l.banks[l.bankIndex(alg)].size
		if alg == want {
			return l.raw[pos+2 : pos+2+size : pos+2+size]
		}
		pos += 2 + size
	}
	return nil
}

func (l *Log) dataOf(e *event) []byte { return l.raw[e.data : e.data+e.size : e.data+e.size] }

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func allPadding(b []byte) bool {
	for _, c := range b {
		if c != 0xFF {
			return false
		}
	}
	return true
}
