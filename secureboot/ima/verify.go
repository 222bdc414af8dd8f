package ima

import (
	"bytes"
	"crypto"
	"crypto/fips140"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/trusttree/trusttree/secureboot/internal/hashing"
)

// Errors of Verify and Resume.
var (
	ErrBehind   = errors.New("ima: log does not lead to the quoted PCR")
	ErrTemplate = errors.New("ima: template digest does not match the template data")
	ErrRebooted = errors.New("ima: the machine was started anew since the state was kept: verify the whole log")
)

// State is how far a log has been verified. Keep it per node to verify only
// what is new; it is trusted, so keep it where the node can't write.
type State struct {
	Bank         crypto.Hash `json:"bank"`
	Entries      int         `json:"entries"`
	Bytes        int         `json:"bytes"` // of the log: the next tail starts there
	PCR          []byte      `json:"pcr"`
	Padded       bool        `json:"padded"`
	ResetCount   uint32      `json:"resetCount"` // of the quote's clock: another boot voids the state
	RestartCount uint32      `json:"restartCount"`
}

// Aggregate says whether the boot_aggregate entry fits the quote.
type Aggregate int

// The zero value is that nothing was checked.
const (
	AggregateUnchecked Aggregate = iota // over another bank than the quote's, or PCRs 0 to 9 are not all quoted
	AggregateOK
	AggregateMismatch
	AggregateMissing // the first entry is none
)

// Verified is the part of a log that a quoted PCR confirms. Only Verify and
// Resume make one.
type Verified struct {
	log       *Log
	base, end int // number of log's first entry; entries of log that were verified

	State      State
	Padded     bool // the bank holds padded SHA-1 digests: it has the strength of SHA-1
	Violations int
	Unverified int // entries of the log after the quote
	Aggregate  Aggregate
	Aggregates int // number of boot_aggregate entries; each kexec adds one
}

// Entries yields the verified entries: those that are new since the state that
// Resume was given. Of a violation nothing is said but that it happened: the
// kernel extends all ones for it, so no digest binds which file it was (Log.
// Entries tells what the log claims).
func (v *Verified) Entries() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range v.end {
			e := v.log.entry(i)
			if e.Violation {
				e = Entry{Violation: true}
			}
			e.Num = v.base + i
			if !yield(e) {
				return
			}
		}
	}
}

// Verify finds the prefix of the log that leads to the log's PCR in values,
// which must come from a verified quote of one bank, and checks boot_aggregate
// against PCRs 0 to 9 of the same quote. Errors: ErrBehind, ErrTemplate.
func (l *Log) Verify(bank crypto.Hash, values map[int][]byte) (*Verified, error) {
	v, err := l.verify(State{Bank: bank}, values)
	if err != nil {
		return nil, err
	}
	v.aggregate(values)
	return v, nil
}

// Resume verifies the tail of a log: the bytes after state.Bytes. The clock
// counts are the new quote's; ErrRebooted says that they are of another boot.
// Aggregate stays unchecked: it was checked when the state was made.
func Resume(state State, tail []byte, values map[int][]byte, resetCount, restartCount uint32, opts *Options) (*Verified, error) {
	if state.ResetCount != resetCount || state.RestartCount != restartCount {
		return nil, ErrRebooted
	}
	l, err := Parse(tail, opts)
	if err != nil {
		return nil, err
	}
	return l.verify(state, values)
}

func (l *Log) verify(s State, values map[int][]byte) (*Verified, error) {
	size := s.Bank.Size()
	switch s.Bank {
	case crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return nil, fmt.Errorf("ima: hash %v is no PCR bank", s.Bank)
	}
	only := fips140.Enforced()
	if s.Bank == crypto.SHA1 && only {
		return nil, errors.New("ima: a SHA-1 bank is not allowed in FIPS 140-only mode")
	}
	want, ok := values[l.pcr]
	if !ok || len(want) != size {
		return nil, fmt.Errorf("%w: PCR %d is not quoted", ErrBehind, l.pcr)
	}
	if s.Entries == 0 {
		s.PCR = make([]byte, size)
	}
	if len(s.PCR) != size {
		return nil, errors.New("ima: state is of another bank")
	}
	w := walker{log: l, bank: s.Bank, size: size, noSHA1: only}
	copy(w.native[:], s.PCR)
	copy(w.padded[:], s.PCR)
	w.doNative = s.Entries == 0 || !s.Padded
	w.doPadded = s.Bank != crypto.SHA1 && (s.Entries == 0 || s.Padded) && !only
	end, padded, err := w.find(want)
	if err != nil {
		return nil, err
	}
	v := &Verified{log: l, base: s.Entries, end: end, Padded: padded, Violations: w.violations, Unverified: len(l.entries) - end, Aggregates: w.aggregates}
	v.State = s
	v.State.PCR = bytes.Clone(want)
	v.State.Padded = padded
	v.State.Entries += end
	if end > 0 {
		v.State.Bytes += int(l.entries[end-1].end)
	}
	return v, nil
}

// walker replays a log in both ways at once: with digests of the bank's own
// hash, and with SHA-1 digests padded with zeros.
type walker struct {
	log                *Log
	bank               crypto.Hash
	size               int
	native, padded     [64]byte
	doNative, doPadded bool
	noSHA1             bool // FIPS 140-only mode: the log's own SHA-1 column is left alone
	violations         int
	aggregates         int
}

func (w *walker) find(want []byte) (end int, padded bool, err error) {
	for i := 0; ; i++ {
		if w.doNative && bytes.Equal(w.native[:w.size], want) {
			return i, w.doPadded && !w.doNative, nil
		}
		if w.doPadded && bytes.Equal(w.padded[:w.size], want) {
			return i, true, nil
		}
		if i == len(w.log.entries) {
			return 0, false, fmt.Errorf("%w: after all %d entries", ErrBehind, i)
		}
		if err := w.step(i); err != nil {
			return 0, false, err
		}
	}
}

func (w *walker) step(i int) error {
	s := &w.log.entries[i]
	logged := w.log.raw[s.start+4 : s.start+24]
	data := w.log.raw[s.data:s.end]
	if s.old {
		data = oldData(data)
	}
	var native, padded [64]byte
	if allZero(logged) {
		w.violations++
		for i := range native {
			native[i], padded[i] = 0xFF, 0xFF
		}
	} else {
		if !w.noSHA1 {
			if d := sha1.Sum(data); !bytes.Equal(d[:], logged) {
				return &ParseError{Offset: int(s.start), Entry: i, Err: ErrTemplate}
			}
		}
		copy(padded[:], logged)
		if w.doNative {
			hashing.Sum(w.bank, native[:], data)
		}
	}
	if !allZero(logged) && isAggregate(data) {
		w.aggregates++
	}
	if w.doNative {
		w.extend(&w.native, native[:w.size])
	}
	if w.doPadded {
		w.extend(&w.padded, padded[:w.size])
	}
	return nil
}

func (w *walker) extend(state *[64]byte, digest []byte) {
	var buf [128]byte
	copy(buf[:], state[:w.size])
	copy(buf[w.size:], digest)
	hashing.Sum(w.bank, state[:], buf[:2*w.size])
}

// oldData is what the "ima" template hashes: the digest, and the name padded.
func oldData(data []byte) []byte {
	buf := make([]byte, 20+imaNameSize)
	copy(buf, data[:20])
	copy(buf[20:], data[24:])
	return buf
}

const aggregateName = "boot_aggregate"

// isAggregate is a quick look for the name at the place where n-ng has it.
func isAggregate(data []byte) bool {
	if len(data) < 4 {
		return false
	}
	n := binary.LittleEndian.Uint32(data)
	if uint64(n)+8 > uint64(len(data)) {
		return len(data) == 20+imaNameSize && bytes.HasPrefix(data[20:], []byte(aggregateName+"\x00"))
	}
	return bytes.HasPrefix(data[n+8:], []byte(aggregateName+"\x00"))
}

// aggregate checks boot_aggregate: the hash over PCRs 0 to 9, for SHA-1 over 0
// to 7 (Linux ima_calc_boot_aggregate_tfm).
func (v *Verified) aggregate(values map[int][]byte) {
	if v.end == 0 {
		v.Aggregate = AggregateMissing
		return
	}
	e := v.log.entry(0)
	if !e.Known || string(e.Name) != aggregateName {
		v.Aggregate = AggregateMissing
		return
	}
	last := 9
	if v.State.Bank == crypto.SHA1 {
		last = 7
	}
	if names[v.State.Bank] != strings.TrimPrefix(e.Alg, "ima:") {
		return
	}
	h := v.State.Bank.New()
	for pcr := range last + 1 {
		val, ok := values[pcr]
		if !ok {
			return
		}
		h.Write(val)
	}
	v.Aggregate = AggregateMismatch
	if bytes.Equal(h.Sum(nil), e.Digest) {
		v.Aggregate = AggregateOK
	}
}

var names = map[crypto.Hash]string{crypto.SHA1: "sha1", crypto.SHA256: "sha256", crypto.SHA384: "sha384", crypto.SHA512: "sha512"}
