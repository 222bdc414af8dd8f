package quote

import (
	"crypto"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/trusttree/trusttree/attest/internal/strict"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/internal/tpm"
)

const (
	maxBanks = 3
	numPCRs  = 24
)

// Selection names PCRs of one bank. The zero value selects nothing and is
// refused everywhere.
type Selection struct {
	Bank crypto.Hash // SHA-256, SHA-384 or SHA-512; SHA-1 is refused
	PCRs []int       // ascending, without duplicates, 0 to 23 but not 16 and 23, which software can reset
}

var bankNames = [...]struct {
	hash crypto.Hash
	name string
}{{crypto.SHA256, "sha256"}, {crypto.SHA384, "sha384"}, {crypto.SHA512, "sha512"}}

type selectionJSON struct {
	Bank string `json:"bank"`
	PCRs []int  `json:"pcrs"`
}

// MarshalJSON implements json.Marshaler: {"bank":"sha256","pcrs":[0,7]}.
func (s Selection) MarshalJSON() ([]byte, error) {
	for _, b := range bankNames {
		if b.hash == s.Bank {
			return json.Marshal(selectionJSON{b.name, s.PCRs})
		}
	}
	return nil, fmt.Errorf("%w: bank %v", ErrSelection, s.Bank)
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Selection) UnmarshalJSON(data []byte) error {
	var j selectionJSON
	if err := strict.Decode(data, &j); err != nil { // a decoder's strictness does not reach into UnmarshalJSON
		return reason.Because(reason.Encoding, fmt.Errorf("%w: %w", ErrSelection, err))
	}
	for _, b := range bankNames {
		if b.name == j.Bank {
			*s = Selection{b.hash, j.PCRs}
			return CheckSelection([]Selection{*s})
		}
	}
	return reason.Because(reason.UnknownBank, fmt.Errorf("%w: bank %q", ErrSelection, j.Bank))
}

// CheckSelection returns ErrSelection unless sel is a canonical, non-empty
// selection of at most three banks, each named once.
func CheckSelection(sel []Selection) error {
	if len(sel) == 0 || len(sel) > maxBanks {
		code := reason.TooManyBanks
		if len(sel) == 0 {
			code = reason.NothingSelected
		}
		return reason.Because(code, fmt.Errorf("%w: %d banks, want 1 to %d", ErrSelection, len(sel), maxBanks))
	}
	for i, s := range sel {
		if s.Bank != crypto.SHA256 && s.Bank != crypto.SHA384 && s.Bank != crypto.SHA512 {
			code := reason.UnknownBank
			if s.Bank == crypto.SHA1 {
				code = reason.SHA1Bank
			}
			return reason.Because(code, fmt.Errorf("%w: bank %v is not accepted", ErrSelection, s.Bank))
		}
		for _, other := range sel[:i] {
			if other.Bank == s.Bank {
				return reason.Because(reason.BankTwice, fmt.Errorf("%w: bank %v is named twice", ErrSelection, s.Bank))
			}
		}
		if len(s.PCRs) == 0 {
			return reason.Because(reason.NothingSelected, fmt.Errorf("%w: no PCRs of bank %v", ErrSelection, s.Bank))
		}
		last := -1
		for _, p := range s.PCRs {
			if p <= last || p >= numPCRs || tpm.Resettable(p) {
				return reason.Because(reason.ForbiddenPCR, fmt.Errorf("%w: PCR %d: PCRs are ascending, 0 to 23, without 16 and 23", ErrSelection, p))
			}
			last = p
		}
	}
	return nil
}

// ValuesSize returns how many bytes the values of a selection have.
func ValuesSize(sel []Selection) int {
	n := 0
	for _, s := range sel {
		n += len(s.PCRs) * s.Bank.Size()
	}
	return n
}

// appendSelection appends the only accepted TPML_PCR_SELECTION of sel: banks
// in order, three bytes of bits each.
func appendSelection(b []byte, sel []Selection) []byte {
	b = append(b, 0, 0, 0, byte(len(sel)))
	for _, s := range sel {
		alg := byte(0x0B) // TPM_ALG_SHA256
		switch s.Bank {
		case crypto.SHA384:
			alg = 0x0C
		case crypto.SHA512:
			alg = 0x0D
		}
		var bits [3]byte
		for _, p := range s.PCRs {
			bits[p/8] |= 1 << (p % 8)
		}
		b = append(b, 0, alg, 3, bits[0], bits[1], bits[2])
	}
	return b
}

// differs says in what a TPML_PCR_SELECTION that was quoted is not the one that
// was demanded. Both can be read.
func differs(quoted, demanded []byte) reason.Code {
	const sha1 = 0x0004 // TPM_ALG_SHA1
	got, canonical := selected(quoted)
	want, _ := selected(demanded)
	more, fewer, otherBank := false, false, false
	for alg, pcrs := range got {
		if alg == sha1 {
			return reason.SHA1Bank
		}
		for p := range pcrs {
			more = more || !want[alg][p]
		}
		otherBank = otherBank || len(pcrs) > 0 && want[alg] == nil
	}
	for alg, pcrs := range want {
		for p := range pcrs {
			fewer = fewer || !got[alg][p]
		}
	}
	switch {
	case !slices.ContainsFunc(slices.Collect(maps.Values(got)), func(pcrs map[int]bool) bool { return len(pcrs) > 0 }):
		return reason.NothingSelected
	case !canonical:
		return reason.Encoding
	case otherBank && fewer:
		return reason.OtherBank
	case more && fewer:
		return reason.OtherPCRs
	case more:
		return reason.MorePCRs
	case fewer:
		return reason.FewerPCRs
	}
	return reason.Encoding
}

// selected returns the PCRs of a TPML_PCR_SELECTION by the bank's algorithm,
// and whether each bank is named once with three bytes.
func selected(b []byte) (banks map[uint16]map[int]bool, canonical bool) {
	c := cursor{b: b}
	banks, canonical = map[uint16]map[int]bool{}, true
	for range c.u32() {
		alg := c.u16()
		bits := c.bytes(int(c.u8()))
		canonical = canonical && banks[alg] == nil && len(bits) == 3
		if banks[alg] == nil {
			banks[alg] = map[int]bool{}
		}
		for p := range 8 * len(bits) {
			if bits[p/8]>>(p%8)&1 == 1 {
				banks[alg][p] = true
			}
		}
	}
	return banks, canonical
}
