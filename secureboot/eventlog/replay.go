package eventlog

import (
	"bytes"
	"crypto"
	"crypto/fips140"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/trusttree/trusttree/secureboot/internal/hashing"
)

// ErrNoBank says that a log has no digests of the bank that was asked for.
var ErrNoBank = errors.New("eventlog: log has no digests of this bank")

// Extend is one extend of a PCR as the log tells it: what a software TPM is
// given to bring it into the state of that boot.
type Extend struct {
	PCR     int
	Digests map[crypto.Hash][]byte // one for each bank of the log that is known
}

// Banks returns the known hashes of the log's digests.
func (l *Log) Banks() []crypto.Hash {
	var banks []crypto.Hash
	for _, b := range l.banks[:l.nbanks] {
		if b.hash != 0 {
			banks = append(banks, b.hash)
		}
	}
	return banks
}

// Len returns the number of events, without the Spec ID event.
func (l *Log) Len() int { return len(l.events) }

// StartupLocality returns the locality (0, 3 or 4) with which PCR 0 starts,
// which a software TPM can't imitate by extending.
func (l *Log) StartupLocality() int { return int(l.locality) }

// Extends yields every event that was extended, in the log's order.
func (l *Log) Extends() iter.Seq[Extend] {
	return func(yield func(Extend) bool) {
		for i := range l.events {
			e := &l.events[i]
			if e.typ == EvNoAction {
				continue
			}
			x := Extend{PCR: int(e.pcr), Digests: make(map[crypto.Hash][]byte, l.nbanks)}
			for bi, b := range l.banks[:l.nbanks] {
				if b.hash != 0 {
					x.Digests[b.hash] = bytes.Clone(l.digest(e, bi))
				}
			}
			if !yield(x) {
				return
			}
		}
	}
}

// Replay returns the values that the PCRs named in the log would have if it
// were true. It returns ErrNoBank for a bank that the log does not have.
func (l *Log) Replay(bank crypto.Hash) (map[int][]byte, error) {
	var r registers
	if err := r.init(bank, l); err != nil {
		return nil, err
	}
	r.replay(l)
	values := make(map[int][]byte)
	for pcr := range r.used {
		if r.used[pcr] > 0 {
			values[pcr] = bytes.Clone(r.value(pcr))
		}
	}
	return values, nil
}

// registers is a set of PCRs that is being replayed.
type registers struct {
	hash   crypto.Hash
	size   int
	state  [maxPCR + 1][64]byte
	used   [maxPCR + 1]int // events so far
	target *[maxPCR + 1][]byte
	prefix [maxPCR + 1]int // events after which target was met; -1 never
}

func (r *registers) init(bank crypto.Hash, l *Log) error {
	switch bank {
	case crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return fmt.Errorf("%w: %v", ErrNoBank, bank)
	}
	if bank == crypto.SHA1 && fips140.Enforced() {
		return fmt.Errorf("%w: SHA-1 is not allowed in FIPS 140-only mode", ErrNoBank)
	}
	r.hash, r.size = bank, bank.Size()
	r.state[0][r.size-1] = l.locality
	for i := range r.prefix {
		r.prefix[i] = -1
	}
	return nil
}

func (r *registers) value(pcr int) []byte { return r.state[pcr][:r.size] }

// note remembers whether a PCR has just the value that it should have.
func (r *registers) note(pcr int) {
	if r.target != nil && bytes.Equal(r.target[pcr], r.value(pcr)) {
		r.prefix[pcr] = r.used[pcr]
	}
}

func (r *registers) replay(l *Log) bool {
	bi := l.bankOf(r.hash)
	if bi < 0 {
		return false
	}
	for i := range l.events {
		if e := &l.events[i]; e.typ != EvNoAction {
			r.extend(int(e.pcr), l.digest(e, bi))
		}
	}
	return true
}

func (r *registers) extend(pcr int, digest []byte) {
	var buf [128]byte
	s := r.state[pcr][:r.size]
	copy(buf[:], s)
	copy(buf[r.size:], digest)
	hashing.Sum(r.hash, s, buf[:2*r.size])
	r.used[pcr]++
	r.note(pcr)
}

func (l *Log) bankOf(h crypto.Hash) int {
	return slices.IndexFunc(l.banks[:l.nbanks], func(b bank) bool { return b.hash == h && h != 0 })
}

// Mismatch is a PCR that a log does not explain.
type Mismatch struct {
	PCR    int
	Quoted []byte // what the TPM says
	Replay []byte // what the log says
	Events int    // events of the log for this PCR
	Prefix int    // number of events after which the replay had the quoted value (the log is ahead of the TPM), or -1
}

func (m Mismatch) String() string {
	switch {
	case m.Events == 0:
		return fmt.Sprintf("PCR %d is %x but the log has no event for it", m.PCR, m.Quoted)
	case m.Prefix >= 0:
		return fmt.Sprintf("PCR %d has the value after %d of the log's %d events: the log is ahead of the quote", m.PCR, m.Prefix, m.Events)
	}
	return fmt.Sprintf("PCR %d is %x but the log's %d events give %x", m.PCR, m.Quoted, m.Events, m.Replay)
}

// ReplayError lists every PCR that the log does not explain. Use errors.As.
type ReplayError struct{ Mismatches []Mismatch }

func (e *ReplayError) Error() string {
	s := make([]string, len(e.Mismatches))
	for i, m := range e.Mismatches {
		s[i] = m.String()
	}
	return "eventlog: log does not explain the quote: " + strings.Join(s, "; ")
}

// Verify compares the log with the values of one bank's PCRs, which must come
// from a verified quote. Logs of user space that continue this one follow in
// after. Every PCR in values must have exactly the value to which its events
// lead; a PCR without events must have its reset value: zeros, or for PCR 17
// to 22 (dynamic launch not used) all ones, the same in all of them. Other
// banks' digests are not looked at.
//
// It is all or nothing: on any mismatch the error is a *ReplayError that lists
// all of them. PCRs that are not in values take no part: their events are in
// the Log but not in the Verified. Errors: ErrNoBank, *ReplayError.
func (l *Log) Verify(bank crypto.Hash, values map[int][]byte, after ...*Log) (*Verified, error) {
	if len(values) == 0 {
		return nil, errors.New("eventlog: no PCR values to verify against")
	}
	var r registers
	if err := r.init(bank, l); err != nil {
		return nil, err
	}
	var target [maxPCR + 1][]byte
	for pcr, v := range values {
		if pcr < 0 || pcr > maxPCR || len(v) != r.size {
			return nil, fmt.Errorf("eventlog: PCR %d with a value of %d bytes does not fit bank %v", pcr, len(v), bank)
		}
		target[pcr] = v
	}
	r.target = &target
	for pcr := range target {
		r.note(pcr)
	}
	v := &Verified{bank: bank, logs: append([]*Log{l}, after...)}
	for _, log := range v.logs {
		if log.locality != 0 && log != l {
			return nil, errors.New("eventlog: StartupLocality in a log of user space")
		}
		if !r.replay(log) {
			return nil, fmt.Errorf("%w: %v", ErrNoBank, bank)
		}
	}
	var bad []Mismatch
	var drtm byte
	for pcr, want := range target {
		if want == nil {
			continue
		}
		v.covered |= 1 << pcr
		if bytes.Equal(want, r.value(pcr)) {
			if pcr >= 17 && pcr <= 22 {
				drtm |= 1
			}
			continue
		}
		if r.used[pcr] == 0 && pcr >= 17 && pcr <= 22 && allPadding(want) {
			drtm |= 2
			continue
		}
		bad = append(bad, Mismatch{PCR: pcr, Quoted: bytes.Clone(want), Replay: bytes.Clone(r.value(pcr)), Events: r.used[pcr], Prefix: r.prefix[pcr]})
	}
	if drtm == 3 {
		return nil, errors.New("eventlog: of PCRs 17 to 22 some are reset by a dynamic launch and others not")
	}
	if len(bad) > 0 {
		return nil, &ReplayError{bad}
	}
	v.index()
	return v, nil
}
