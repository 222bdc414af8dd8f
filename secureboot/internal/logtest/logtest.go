// Package logtest takes event logs apart and puts them together again, so that
// tests can do to them what an attacker would.
package logtest

import (
	"crypto"
	"encoding/binary"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// Event is one event of a crypto-agile log.
type Event struct {
	PCR     uint32
	Type    eventlog.Type
	Digests []Digest
	Data    []byte
}

// Digest is one digest of an event.
type Digest struct {
	Hash  crypto.Hash
	Value []byte
}

var algs = map[crypto.Hash]uint16{crypto.SHA1: 4, crypto.SHA256: 0xB, crypto.SHA384: 0xC, crypto.SHA512: 0xD}

// Split takes a crypto-agile log apart: the Spec ID event's bytes, and the
// events. It panics on a log that does not parse.
func Split(log []byte) (header []byte, events []Event) {
	l, err := eventlog.Parse(log, nil)
	if err != nil {
		panic(err)
	}
	n := 32 + binary.LittleEndian.Uint32(log[28:])
	header = append(header, log[:n]...)
	for e := range l.Events() {
		x := Event{PCR: uint32(e.PCR), Type: e.Type, Data: append([]byte(nil), e.Data...)}
		for _, b := range l.Banks() {
			x.Digests = append(x.Digests, Digest{b, append([]byte(nil), e.Digest(b)...)})
		}
		events = append(events, x)
	}
	return header, events
}

// Join is the reverse of Split.
func Join(header []byte, events []Event) []byte {
	b := append([]byte(nil), header...)
	for _, e := range events {
		b = append(b, e.Bytes()...)
	}
	return b
}

// Bytes returns the event in the crypto-agile format.
func (e Event) Bytes() []byte {
	b := binary.LittleEndian.AppendUint32(nil, e.PCR)
	b = binary.LittleEndian.AppendUint32(b, uint32(e.Type))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Digests)))
	for _, d := range e.Digests {
		b = binary.LittleEndian.AppendUint16(b, algs[d.Hash])
		b = append(b, d.Value...)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
	return append(b, e.Data...)
}

// Measured returns an event whose digests are of its data.
func Measured(pcr uint32, typ eventlog.Type, data []byte, banks ...crypto.Hash) Event {
	e := Event{PCR: pcr, Type: typ, Data: data}
	for _, b := range banks {
		h := b.New()
		h.Write(data)
		e.Digests = append(e.Digests, Digest{b, h.Sum(nil)})
	}
	return e
}

// Header returns a Spec ID event for these banks.
func Header(banks ...crypto.Hash) []byte {
	d := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	d = binary.LittleEndian.AppendUint32(d, uint32(len(banks)))
	for _, b := range banks {
		d = binary.LittleEndian.AppendUint16(d, algs[b])
		d = binary.LittleEndian.AppendUint16(d, uint16(b.Size()))
	}
	d = append(d, 0)
	b := make([]byte, 32, 32+len(d))
	b[4] = byte(eventlog.EvNoAction)
	binary.LittleEndian.PutUint32(b[28:], uint32(len(d)))
	return append(b, d...)
}

// Values replays events: what the TPM of that boot would hold.
func Values(bank crypto.Hash, events []Event) map[int][]byte {
	v := make(map[int][]byte)
	for pcr := range 24 {
		v[pcr] = make([]byte, bank.Size())
		if pcr >= 17 && pcr <= 22 {
			for i := range v[pcr] {
				v[pcr][i] = 0xFF
			}
		}
	}
	for _, e := range events {
		if e.Type == eventlog.EvNoAction {
			continue
		}
		for _, d := range e.Digests {
			if d.Hash == bank {
				h := bank.New()
				h.Write(v[int(e.PCR)])
				h.Write(d.Value)
				v[int(e.PCR)] = h.Sum(nil)
			}
		}
	}
	return v
}
