package attesttest

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/internal/tpm"
)

// ErrEventLog says that what was given is no TCG event log.
var ErrEventLog = errors.New("attesttest: not a TCG event log")

// Limits of an event log.
const (
	maxEventLog = 16 << 20 // bytes
	maxAlgs     = 16       // digests of one event
)

const evNoAction = 3 // EV_NO_ACTION: told, not measured

// BootLog reboots the TPM into the state that a firmware's event log tells
// (TCG PC Client Platform Firmware Profile 1.06, section 10; on Linux
// /sys/kernel/security/tpm0/binary_bios_measurements): it starts at the log's
// StartupLocality and extends each event's digests. The log is not judged. It
// fails with ErrEventLog, and then the TPM stays as it was, when the log is
// malformed or over 16 MiB.
func (t *TPM) BootLog(log []byte) error {
	locality, list, err := ParseLog(log)
	if err != nil {
		return err
	}
	return t.BootAt(locality, list...)
}

// ParseLog reads a firmware's event log: the locality at which the TPM was
// started, and what was extended. Digests of hashes that the TPM has no bank
// for are left out. What follows the first event that is all zeros or 0xFF,
// the filling of some firmware's buffer, is not read.
func ParseLog(log []byte) (locality int, list []Measurement, err error) {
	if len(log) > maxEventLog {
		return 0, nil, fmt.Errorf("%w: %d bytes, limit %d", ErrEventLog, len(log), maxEventLog)
	}
	r := &logReader{b: log}
	sizes, err := r.header()
	if err != nil {
		return 0, nil, err
	}
	for n := 1; len(r.b) > 0 && !filling(r.b); n++ {
		m, kind, event := r.event(sizes)
		if r.bad {
			return 0, nil, fmt.Errorf("%w: event %d, at byte %d, is cut or malformed", ErrEventLog, n, len(log)-len(r.b))
		}
		switch rest, ok := bytes.CutPrefix(event, []byte("StartupLocality\x00")); {
		case kind == evNoAction && ok && len(rest) == 1:
			locality = int(rest[0])
		case kind != evNoAction:
			list = append(list, m)
		}
	}
	return locality, list, nil
}

func filling(b []byte) bool {
	return len(bytes.Trim(b[:min(len(b), 32)], "\x00")) == 0 || len(bytes.Trim(b[:min(len(b), 32)], "\xff")) == 0
}

// logReader is a cursor that remembers that it ran out.
type logReader struct {
	b   []byte
	bad bool
}

func (r *logReader) bytes(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *logReader) u16() uint16 {
	if v := r.bytes(2); v != nil {
		return binary.LittleEndian.Uint16(v)
	}
	return 0
}

func (r *logReader) u32() uint32 {
	if v := r.bytes(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

// header reads the first event of a crypto-agile log, which tells the sizes of
// its digests. A log without is one of SHA-1 digests alone: then sizes is nil.
func (r *logReader) header() (sizes map[tpm2.TPMAlgID]uint16, err error) {
	first := &logReader{b: r.b}
	_, kind, data := first.event(nil)
	spec, ok := bytes.CutPrefix(data, []byte("Spec ID Event03\x00"))
	if first.bad || kind != evNoAction || !ok {
		return nil, nil
	}
	in := &logReader{b: spec}
	in.bytes(8) // platform class, versions, size of a pointer
	n := in.u32()
	if n == 0 || n > maxAlgs {
		return nil, fmt.Errorf("%w: header with %d digests an event, limit %d", ErrEventLog, n, maxAlgs)
	}
	sizes = map[tpm2.TPMAlgID]uint16{}
	for range n {
		alg := tpm2.TPMAlgID(in.u16())
		sizes[alg] = in.u16()
		if h := tpm.Hash(alg); h != 0 && int(sizes[alg]) != h.Size() {
			return nil, fmt.Errorf("%w: header says that a digest of %v has %d bytes", ErrEventLog, h, sizes[alg])
		}
	}
	if in.bad {
		return nil, fmt.Errorf("%w: header is cut", ErrEventLog)
	}
	r.b = first.b
	return sizes, nil
}

// event reads one event.
func (r *logReader) event(sizes map[tpm2.TPMAlgID]uint16) (m Measurement, kind uint32, data []byte) {
	pcr := r.u32()
	kind = r.u32()
	m = Measurement{PCR: int(pcr), Digests: map[crypto.Hash][]byte{}}
	if sizes == nil {
		m.Digests[crypto.SHA1] = r.bytes(20)
	} else {
		n := r.u32()
		if n > maxAlgs {
			r.bad = true
		}
		for i := uint32(0); i < n && !r.bad; i++ {
			alg := tpm2.TPMAlgID(r.u16())
			size, ok := sizes[alg]
			if !ok {
				r.bad = true
			}
			if d := r.bytes(uint64(size)); tpm.Hash(alg) != 0 {
				m.Digests[tpm.Hash(alg)] = d
			}
		}
	}
	data = r.bytes(uint64(r.u32()))
	if kind != evNoAction && pcr > 23 {
		r.bad = true
	}
	return m, kind, data
}
