package eventlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// EvCEL is the type given to the records of a CEL log, which have none.
const EvCEL Type = 0xFFFF0001

// hashNames are the names of CEL and of the Linux kernel.
var hashNames = [...]struct {
	name string
	hash crypto.Hash
}{{"sha1", crypto.SHA1}, {"sha256", crypto.SHA256}, {"sha384", crypto.SHA384}, {"sha512", crypto.SHA512}}

// HashName returns the name of a bank as CEL, pcrs.txt files and systemd write
// it ("sha256"), or "" for a hash that is no bank.
func HashName(h crypto.Hash) string {
	for _, n := range hashNames {
		if n.hash == h {
			return n.name
		}
	}
	return ""
}

// HashByName is the reverse of HashName; it returns 0 for an unknown name.
func HashByName(name string) crypto.Hash {
	for _, n := range hashNames {
		if n.name == name {
			return n.hash
		}
	}
	return 0
}

// record is a CEL record in JSON (CEL section 5.3, and what systemd writes).
// Its content is kept, not interpreted: nothing but the digests is replayed.
type record struct {
	Recnum      *uint64         `json:"recnum,omitempty"`
	PCR         *uint32         `json:"pcr,omitempty"`
	NVIndex     json.RawMessage `json:"nv_index,omitempty"` // systemd's NvPCRs: extends an NV index, no PCR
	NVIndexName string          `json:"nv_index_name,omitempty"`
	Digests     []recordDigest  `json:"digests"`
	ContentType string          `json:"content_type,omitempty"`
	Content     json.RawMessage `json:"content,omitempty"`
}

type recordDigest struct {
	HashAlg string `json:"hashAlg"`
	Digest  string `json:"digest"`
}

// ParseCEL reads a log that user space wrote: CEL records as a JSON array, as
// a sequence of JSON objects (plain, one a line, or with the record separators
// of RFC 7464, as systemd's tpm2-measure.log), or as CEL TLV. Every record
// names the same hash algorithms, each once. An empty log is one without
// records. The limits of Parse apply.
func ParseCEL(log []byte, opts *Options) (*Log, error) {
	o := Options{MaxSize: DefaultMaxSize, MaxEvents: DefaultMaxEvents}
	if opts != nil && opts.MaxSize > 0 {
		o.MaxSize = opts.MaxSize
	}
	if opts != nil && opts.MaxEvents > 0 {
		o.MaxEvents = opts.MaxEvents
	}
	if len(log) > o.MaxSize {
		return nil, fmt.Errorf("eventlog: log of %d bytes, limit %d", len(log), o.MaxSize)
	}
	b := &celBuilder{log: &Log{agile: true}, max: o.MaxEvents}
	var err error
	if len(log) > 0 && log[0] == celRecnum {
		err = b.tlv(log)
	} else {
		err = b.json(log)
	}
	if err != nil {
		return nil, &ParseError{Offset: b.off, Event: len(b.log.events), Err: err}
	}
	return b.log, nil
}

// celBuilder makes a Log of records: their digests and content are copied into
// a buffer in the layout that Log reads.
type celBuilder struct {
	log *Log
	max int
	off int
}

func (b *celBuilder) json(data []byte) error {
	if t := bytes.TrimLeft(data, " \t\r\n"); len(t) > 0 && t[0] == '[' {
		return b.jsonArray(t)
	}
	dec := json.NewDecoder(&skipSeparators{r: bytes.NewReader(data)})
	dec.DisallowUnknownFields()
	for {
		var r record
		b.off = int(dec.InputOffset())
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := b.record(&r); err != nil {
			return err
		}
	}
}

func (b *celBuilder) jsonArray(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if _, err := dec.Token(); err != nil {
		return err
	}
	for dec.More() {
		var r record
		b.off = int(dec.InputOffset())
		if err := dec.Decode(&r); err != nil {
			return err
		}
		if err := b.record(&r); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("bytes after the array")
	}
	return nil
}

// skipSeparators turns the RS bytes of RFC 7464 into spaces. JSON text never
// holds them raw.
type skipSeparators struct{ r io.Reader }

func (s *skipSeparators) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	for i := range p[:n] {
		if p[i] == 0x1E {
			p[i] = ' '
		}
	}
	return n, err
}

func (b *celBuilder) record(r *record) error {
	if r.PCR == nil && r.NVIndex != nil && r.Recnum == nil {
		return nil
	}
	if r.PCR == nil {
		return errors.New("record without a PCR")
	}
	var ds []celDigest
	for _, d := range r.Digests {
		h := HashByName(d.HashAlg)
		raw, err := hex.DecodeString(d.Digest)
		if h == 0 || err != nil || len(raw) != h.Size() {
			return fmt.Errorf("digest of %d characters does not fit algorithm %q", len(d.Digest), strings.ToValidUTF8(d.HashAlg[:min(len(d.HashAlg), 16)], "?"))
		}
		ds = append(ds, celDigest{h, raw})
	}
	if r.Recnum != nil && *r.Recnum != uint64(len(b.log.events)) {
		return fmt.Errorf("record number %d, want %d", *r.Recnum, len(b.log.events))
	}
	return b.add(*r.PCR, ds, r.Content)
}

type celDigest struct {
	hash   crypto.Hash
	digest []byte
}

// add appends one record.
func (b *celBuilder) add(pcr uint32, ds []celDigest, content []byte) error {
	l := b.log
	switch {
	case len(l.events) >= b.max:
		return fmt.Errorf("more than %d records", b.max)
	case pcr > maxPCR:
		return fmt.Errorf("PCR %d out of range", pcr)
	case len(ds) == 0:
		return errors.New("record without a digest")
	case l.nbanks != 0 && len(ds) != l.nbanks:
		return fmt.Errorf("%d digests, the first record has %d", len(ds), l.nbanks)
	case len(ds) > maxBanks:
		return fmt.Errorf("%d digests, limit %d", len(ds), maxBanks)
	}
	first, seen := l.nbanks == 0, 0
	e := event{pcr: pcr, typ: EvCEL, digests: uint32(len(l.raw))}
	for _, d := range ds {
		i := l.bankOf(d.hash)
		if first && i < 0 {
			i = l.nbanks
			for _, k := range knownBanks {
				if k.hash == d.hash {
					l.size += 2 + k.size
					k.at = l.size - k.size
					l.banks[i] = k
				}
			}
			l.nbanks++
		}
		if i < 0 {
			return fmt.Errorf("digest of %s, which the first record does not have", HashName(d.hash))
		}
		if seen&(1<<i) != 0 {
			return fmt.Errorf("two digests of %s", HashName(d.hash))
		}
		seen |= 1 << i
		l.raw = binary.LittleEndian.AppendUint16(l.raw, l.banks[i].alg)
		l.raw = append(l.raw, d.digest...)
	}
	e.data, e.size = uint32(len(l.raw)), uint32(len(content))
	l.raw = append(l.raw, content...)
	l.events = append(l.events, e)
	return nil
}

// Types of CEL TLVs (CEL section 5.1).
const (
	celRecnum  = 0
	celPCR     = 1
	celDigests = 3
)

// tlv reads CEL TLV: type (1 byte), length (4 bytes, big endian), value.
func (b *celBuilder) tlv(data []byte) error {
	next := func() (typ byte, value []byte, err error) {
		if len(data) < 5 {
			return 0, nil, ErrTruncated
		}
		n := binary.BigEndian.Uint32(data[1:])
		if uint64(n) > uint64(len(data)-5) {
			return 0, nil, ErrTruncated
		}
		typ, value, data = data[0], data[5:5+n], data[5+n:]
		b.off += 5 + int(n)
		return typ, value, nil
	}
	for len(data) > 0 {
		typ, v, err := next()
		if err != nil {
			return err
		}
		recnum, ok := number(v)
		if typ != celRecnum || !ok || recnum != uint64(len(b.log.events)) {
			return fmt.Errorf("want record number %d", len(b.log.events))
		}
		if typ, v, err = next(); err != nil {
			return err
		}
		pcr, ok := number(v)
		if typ != celPCR || !ok || pcr > maxPCR {
			return errors.New("record without a PCR in range")
		}
		if typ, v, err = next(); err != nil {
			return err
		}
		if typ != celDigests {
			return errors.New("record without digests")
		}
		ds, err := tlvDigests(v)
		if err != nil {
			return err
		}
		if _, v, err = next(); err != nil {
			return err
		}
		if err := b.add(uint32(pcr), ds, v); err != nil {
			return err
		}
	}
	return nil
}

func tlvDigests(v []byte) (ds []celDigest, err error) {
	for len(v) > 0 {
		if len(v) < 5 || len(ds) == maxBanks {
			return nil, ErrTruncated
		}
		n := binary.BigEndian.Uint32(v[1:])
		if uint64(n) > uint64(len(v)-5) {
			return nil, ErrTruncated
		}
		var h crypto.Hash
		for _, k := range knownBanks {
			if k.hash != 0 && k.alg == uint16(v[0]) && k.size == int(n) {
				h = k.hash
			}
		}
		if h == 0 {
			return nil, fmt.Errorf("digest of %d bytes does not fit algorithm 0x%02x", n, v[0])
		}
		ds = append(ds, celDigest{h, v[5 : 5+n]})
		v = v[5+n:]
	}
	return ds, nil
}

// number reads a big-endian number of up to 8 bytes.
func number(v []byte) (n uint64, ok bool) {
	if len(v) == 0 || len(v) > 8 {
		return 0, false
	}
	for _, c := range v {
		n = n<<8 | uint64(c)
	}
	return n, true
}

// WriteCEL writes the log's extended events as a JSON array of CEL records. The
// content carries type and data of each event as content_type "pcclient_std".
func (l *Log) WriteCEL(w io.Writer) error {
	var n uint64
	sep := "["
	for ev := range l.Events() {
		if ev.Type == EvNoAction {
			continue
		}
		pcr := uint32(ev.PCR)
		r := record{Recnum: &n, PCR: &pcr, ContentType: "pcclient_std"}
		for bi, k := range l.banks[:l.nbanks] {
			if k.hash != 0 {
				r.Digests = append(r.Digests, recordDigest{HashName(k.hash), hex.EncodeToString(l.digest(ev.e, bi))})
			}
		}
		content, err := json.Marshal(map[string]string{"event_type": ev.Type.String(), "event_data": hex.EncodeToString(ev.Data)})
		if err != nil {
			return err
		}
		r.Content = content
		line, err := json.Marshal(&r)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s%s", sep, line); err != nil {
			return err
		}
		sep = ",\n"
		n++
	}
	if n == 0 {
		_, err := io.WriteString(w, "[]\n")
		return err
	}
	_, err := io.WriteString(w, "]\n")
	return err
}
