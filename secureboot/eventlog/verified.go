package eventlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"fmt"
	"iter"
	"strconv"
	"unicode/utf16"

	"github.com/trusttree/trusttree/secureboot/internal/hashing"
)

// Binding says what of an event's data its digest vouches for.
type Binding int

// Bindings, from nothing to everything.
const (
	BindingNone  Binding = iota // nothing: the digest is of something that is not in the log
	BindingValue                // the value of a UEFI variable, but neither its name nor its GUID
	BindingText                 // the text after a prefix such as "grub_cmd: ", but not the prefix
	BindingData                 // the data as a whole
)

// String returns the binding's name.
func (b Binding) String() string {
	switch b {
	case BindingValue:
		return "value"
	case BindingText:
		return "text"
	case BindingData:
		return "data"
	}
	return "none"
}

// Event is an event as a log tells it: for display only.
type Event struct {
	Num  int // from 0, without the Spec ID event
	PCR  int // -1 for an EV_NO_ACTION without one
	Type Type
	Data []byte // a view into the log

	log *Log
	e   *event
}

// Events yields the log's events, unverified.
func (l *Log) Events() iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for i := range l.events {
			if !yield(l.event(i)) {
				return
			}
		}
	}
}

func (l *Log) event(i int) Event {
	e := &l.events[i]
	pcr := int(e.pcr)
	if e.pcr == noPCR {
		pcr = -1
	}
	return Event{Num: i, PCR: pcr, Type: e.typ, Data: l.dataOf(e), log: l, e: e}
}

// Digest returns the event's digest in one bank, or nil if the log has none.
func (e Event) Digest(bank crypto.Hash) []byte {
	if bi := e.log.bankOf(bank); bi >= 0 {
		return e.log.digest(e.e, bi)
	}
	return nil
}

// Hint returns what the event seems to be about, in printable form. Nothing
// vouches for it.
func (e Event) Hint() string {
	const limit = 120
	data := e.Data
	var s string
	switch e.Type {
	case EvEFIVariableDriverConfig, EvEFIVariableBoot, EvEFIVariableBoot2, EvEFIVariableAuthority:
		if v, ok := ParseVariable(data); ok {
			s = v.Name
		}
	case EvEFIBootServicesApp, EvEFIBootServicesDriver, EvEFIRuntimeServiceDriver:
		s = devicePath(data)
	case EvSeparator:
		s = "separator"
	case EvEventTag: // TCG_PCClientTaggedEvent: ID, size, data
		if len(data) > 8 {
			s = text(data[8:])
		}
	case EvEFIGPTEvent, EvEFIGPTEvent2:
		s = "partition table"
	case EvEFIHandoffTables, EvEFIHandoffTables2:
		s = "firmware tables"
	case EvEFIPlatformFirmwareBlob: // base and length
		if len(data) == 16 {
			s = fmt.Sprintf("%d bytes at 0x%x", binary.LittleEndian.Uint64(data[8:]), binary.LittleEndian.Uint64(data))
		}
	default:
		s = text(data)
	}
	if len(s) > limit {
		s = s[:limit]
	}
	q := strconv.QuoteToASCII(s)
	return q[1 : len(q)-1]
}

// Verified is the part of a log that a quote confirms: for one bank, the
// ordered events of each quoted PCR. Only Log.Verify makes one. It is safe for
// concurrent use.
type Verified struct {
	bank    crypto.Hash
	logs    []*Log
	covered uint32 // bit for each quoted PCR
	order   []ref  // events of covered PCRs, ordered by PCR
	start   [maxPCR + 2]int32
	seps    [len(separators)][64]byte // digests of the separators
}

type ref struct{ log, event int32 }

// index sorts the events by PCR, keeping their order within each.
func (v *Verified) index() {
	var count [maxPCR + 2]int32
	each := func(f func(pcr uint32, r ref)) {
		for li, l := range v.logs {
			for i := range l.events {
				if e := &l.events[i]; e.typ != EvNoAction && v.covered&(1<<e.pcr) != 0 {
					f(e.pcr, ref{int32(li), int32(i)})
				}
			}
		}
	}
	for i, sep := range separators {
		hashing.Sum(v.bank, v.seps[i][:], binary.LittleEndian.AppendUint32(make([]byte, 0, 4), sep))
	}
	each(func(pcr uint32, _ ref) { count[pcr+1]++ })
	for i := 1; i < len(count); i++ {
		count[i] += count[i-1]
	}
	v.start = count
	v.order = make([]ref, count[maxPCR+1])
	each(func(pcr uint32, r ref) {
		v.order[count[pcr]] = r
		count[pcr]++
	})
}

// Bank returns the bank that was verified.
func (v *Verified) Bank() crypto.Hash { return v.bank }

// Covers reports whether a PCR was among the quoted values.
func (v *Verified) Covers(pcr int) bool { return pcr >= 0 && pcr <= maxPCR && v.covered&(1<<pcr) != 0 }

// Len returns the number of events of one PCR.
func (v *Verified) Len(pcr int) int {
	if pcr < 0 || pcr > maxPCR {
		return 0
	}
	return int(v.start[pcr+1] - v.start[pcr])
}

// At returns one event of a PCR, from 0. It panics out of range.
func (v *Verified) At(pcr, i int) VerifiedEvent {
	r := v.order[int(v.start[pcr])+i]
	l := v.logs[r.log]
	return VerifiedEvent{ev: l.event(int(r.event)), v: v, Digest: l.digest(&l.events[r.event], l.bankOf(v.bank)),
		PCR: pcr, Num: int(r.event), UserSpace: r.log > 0}
}

// Events yields the events of one PCR, in the order that the TPM confirms.
func (v *Verified) Events(pcr int) iter.Seq[VerifiedEvent] {
	return func(yield func(VerifiedEvent) bool) {
		for i := range v.Len(pcr) {
			if !yield(v.At(pcr, i)) {
				return
			}
		}
	}
}

// VerifiedEvent is one extend that a quote confirms. What is exported of it is
// fact, but for Num and UserSpace, which say where in the logs it stands.
type VerifiedEvent struct {
	PCR       int
	Digest    []byte // in the verified bank; a view into the log
	Num       int    // the event's number in its log
	UserSpace bool   // it comes from a log of user space

	ev Event
	v  *Verified
}

// Claimed returns the event as the log tells it: type and data are not
// confirmed.
func (e VerifiedEvent) Claimed() Event { return e.ev }

// Fact returns what the digest vouches for, and how. With BindingNone there is
// nothing to believe but the digest itself.
func (e VerifiedEvent) Fact() ([]byte, Binding) {
	data := e.ev.Data
	if e.is(data) {
		return data, BindingData
	}
	switch e.ev.Type {
	case EvEFIVariableBoot, EvEFIVariableBoot2, EvEFIVariableDriverConfig, EvEFIVariableAuthority:
		if v, ok := ParseVariable(data); ok && e.is(v.Data) {
			return v.Data, BindingValue
		}
		if n := len(data); n > 0 && e.is(data[:n-1]) { // shim before 15.3 logged one byte more than it measured
			return data[:n-1], BindingData
		}
	case EvIPL:
		if i := bytes.Index(data, []byte(": ")); i >= 0 {
			t := bytes.TrimRight(data[i+2:], "\x00")
			if e.is(t) {
				return t, BindingText
			}
		}
	}
	return nil, BindingNone
}

// IsDigestOf reports whether the event's digest is the hash of data.
func (e VerifiedEvent) IsDigestOf(data []byte) bool { return e.is(data) }

func (e VerifiedEvent) is(data []byte) bool {
	var buf [64]byte
	d := buf[:len(e.Digest)]
	hashing.Sum(e.v.bank, d, data)
	return bytes.Equal(d, e.Digest)
}

// Separators (PFP section 10.4.1, EV_SEPARATOR), recognised by digest alone.
var separators = [...]uint32{0, 0xFFFFFFFF, 1}

// Separator reports whether the digest is that of a separator, and its value:
// 0 or 0xFFFFFFFF between phases, 1 when the firmware met an error.
func (e VerifiedEvent) Separator() (value uint32, ok bool) {
	for i := range e.v.seps {
		if bytes.Equal(e.v.seps[i][:len(e.Digest)], e.Digest) {
			return separators[i], true
		}
	}
	return 0, false
}

// Variable is a UEFI_VARIABLE_DATA (PFP section 10.2.6).
type Variable struct {
	GUID [16]byte // as in memory: EFI_GUID, mixed endian
	Name string
	Data []byte // a view
	Rest []byte // what followed; empty in well-formed data
}

// ParseVariable decodes a UEFI_VARIABLE_DATA.
func ParseVariable(b []byte) (v Variable, ok bool) {
	if len(b) < 32 {
		return v, false
	}
	copy(v.GUID[:], b)
	names, size := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	b = b[32:]
	if names > uint64(len(b))/2 || size > uint64(len(b))-2*names {
		return v, false
	}
	v.Name = utf16Text(b[:2*names])
	v.Data, v.Rest = b[2*names:2*names+size:2*names+size], b[2*names+size:]
	return v, true
}

func utf16Text(b []byte) string {
	ascii := true
	for i := 0; i+1 < len(b); i += 2 {
		ascii = ascii && b[i+1] == 0 && b[i] < 0x80
	}
	if ascii {
		s := make([]byte, 0, 32)
		for i := 0; i+1 < len(b); i += 2 {
			s = append(s, b[i])
		}
		return string(s)
	}
	u := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		u = append(u, binary.LittleEndian.Uint16(b[i:]))
	}
	return string(utf16.Decode(u))
}

// text guesses at a string, in UTF-16 or bytes.
func text(b []byte) string {
	if len(b) >= 4 && len(b)%2 == 0 && b[1] == 0 && b[3] == 0 && b[0] != 0 {
		b = []byte(utf16Text(b[:min(len(b), 512)]))
	}
	return string(bytes.TrimRight(b[:min(len(b), 512)], "\x00"))
}

// devicePath returns the file path in a UEFI_IMAGE_LOAD_EVENT's device path.
func devicePath(b []byte) string {
	if len(b) < 32 {
		return ""
	}
	b = b[32:]
	for len(b) >= 4 {
		n := int(binary.LittleEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return ""
		}
		if b[0] == 4 && b[1] == 4 { // media, file path
			return string(bytes.TrimRight([]byte(utf16Text(b[4:n])), "\x00"))
		}
		b = b[n:]
	}
	return ""
}
