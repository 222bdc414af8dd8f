package secureboot

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// Component is a part of the boot (firmware, loader, kernel) with the
// measurements that it may make: those of exactly one of its variants. A
// variant without records says that the component may be absent. It is
// systemd-pcrlock's component.
type Component struct {
	Name     string    `json:"name"`
	Variants []Variant `json:"variants"`
}

// Variant is one version of a component. In JSON it is the content of a
// .pcrlock file.
type Variant struct {
	Name    string   `json:"name,omitempty"`
	Records []Record `json:"records"`
}

// Record is one extend: a subset of CEL-JSON.
type Record struct {
	PCR     int      `json:"pcr"`
	Digests []Digest `json:"digests"`
}

// Digest is a hash value with its algorithm. In JSON it is CEL's
// {"hashAlg":"sha256","digest":"…"}.
type Digest struct {
	Hash  crypto.Hash
	Value []byte
}

type digestJSON struct {
	HashAlg string `json:"hashAlg"`
	Digest  string `json:"digest"`
}

// MarshalJSON implements json.Marshaler.
func (d Digest) MarshalJSON() ([]byte, error) {
	name := eventlog.HashName(d.Hash)
	if name == "" || len(d.Value) != d.Hash.Size() {
		return nil, fmt.Errorf("digest of %d bytes does not fit hash %v", len(d.Value), d.Hash)
	}
	return json.Marshal(digestJSON{name, hex.EncodeToString(d.Value)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (d *Digest) UnmarshalJSON(b []byte) error {
	var j digestJSON
	if err := strictUnmarshal(b, &j); err != nil {
		return err
	}
	h := eventlog.HashByName(j.HashAlg)
	v, err := hex.DecodeString(j.Digest)
	if h == 0 || err != nil || len(v) != h.Size() {
		return fmt.Errorf("digest of %d characters does not fit algorithm %.16q", len(j.Digest), j.HashAlg)
	}
	d.Hash, d.Value = h, v
	return nil
}

// digest returns the record's digest in a bank, or nil.
func (r *Record) digest(bank crypto.Hash) []byte {
	for i := range r.Digests {
		if r.Digests[i].Hash == bank {
			return r.Digests[i].Value
		}
	}
	return nil
}

// maxStates bounds how many readings of a log are followed at once. Digests
// rarely collide between variants, so real policies need a handful.
const maxStates = 512

// position is how many events of each PCR have been matched.
type position [24]int32

// matcher matches the events of some PCRs against components.
type matcher struct {
	bank   crypto.Hash
	comps  []Component
	pcrs   uint32               // bit for each PCR that is matched
	events [24][][]byte         // digests, in order
	far    [24]int32            // furthest event reached in each PCR
	want   [24]map[int][][]byte // digests expected after the furthest event
}

// match reports whether the components, one variant of each, explain every
// event of the PCRs, in order. It follows all readings at once.
func (m *matcher) match() (ok, overflow bool) {
	states := map[position]bool{{}: true}
	for i := range m.comps {
		next := make(map[position]bool, len(states))
		for s := range states {
			for v := range m.comps[i].Variants {
				if t, ok := m.advance(s, m.comps[i].Variants[v].Records); ok {
					next[t] = true
				}
			}
			if len(next) > maxStates {
				return false, true
			}
		}
		if states = next; len(states) == 0 {
			return false, false
		}
	}
	for s := range states {
		if m.complete(s) {
			return true, false
		}
	}
	return false, false
}

func (m *matcher) advance(s position, records []Record) (position, bool) {
	for i := range records {
		r := &records[i]
		if r.PCR < 0 || r.PCR > 23 || m.pcrs&(1<<r.PCR) == 0 {
			continue
		}
		at := s[r.PCR]
		d := r.digest(m.bank)
		if int(at) >= len(m.events[r.PCR]) || d == nil || !bytes.Equal(d, m.events[r.PCR][at]) {
			m.expected(r.PCR, at, d)
			return s, false
		}
		s[r.PCR]++
		m.far[r.PCR] = max(m.far[r.PCR], s[r.PCR])
	}
	return s, true
}

func (m *matcher) expected(pcr int, at int32, d []byte) {
	if m.want[pcr] == nil {
		m.want[pcr] = make(map[int][][]byte)
	}
	if d != nil && len(m.want[pcr][int(at)]) < 8 {
		m.want[pcr][int(at)] = append(m.want[pcr][int(at)], d)
	}
}

func (m *matcher) complete(s position) bool {
	for pcr := range s {
		if m.pcrs&(1<<pcr) != 0 && int(s[pcr]) != len(m.events[pcr]) {
			return false
		}
	}
	return true
}

// covers reports whether any component has a record for a PCR.
func covers(comps []Component, pcr int) bool {
	for i := range comps {
		for j := range comps[i].Variants {
			for k := range comps[i].Variants[j].Records {
				if comps[i].Variants[j].Records[k].PCR == pcr {
					return true
				}
			}
		}
	}
	return false
}
