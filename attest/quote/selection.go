package quote

import (
	"crypto"
	"encoding/json"
	"fmt"

	"github.com/trusttree/trusttree/attest/internal/strict"
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
		return fmt.Errorf("%w: %w", ErrSelection, err)
	}
	for _, b := range bankNames {
		if b.name == j.Bank {
			*s = Selection{b.hash, j.PCRs}
			return CheckSelection([]Selection{*s})
		}
	}
	return fmt.Errorf("%w: bank %q", ErrSelection, j.Bank)
}

// CheckSelection returns ErrSelection unless sel is a canonical, non-empty
// selection of at most three banks, each named once.
func CheckSelection(sel []Selection) error {
	if len(sel) == 0 || len(sel) > maxBanks {
		return fmt.Errorf("%w: %d banks, want 1 to %d", ErrSelection, len(sel), maxBanks)
	}
	for i, s := range sel {
		if s.Bank != crypto.SHA256 && s.Bank != crypto.SHA384 && s.Bank != crypto.SHA512 {
			return fmt.Errorf("%w: bank %v is not accepted", ErrSelection, s.Bank)
		}
		for _, other := range sel[:i] {
			if other.Bank == s.Bank {
				return fmt.Errorf("%w: bank %v is named twice", ErrSelection, s.Bank)
			}
		}
		if len(s.PCRs) == 0 {
			return fmt.Errorf("%w: no PCRs of bank %v", ErrSelection, s.Bank)
		}
		last := -1
		for _, p := range s.PCRs {
			if p <= last || p >= numPCRs || tpm.Resettable(p) {
				return fmt.Errorf("%w: PCR %d: PCRs are ascending, 0 to 23, without 16 and 23", ErrSelection, p)
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
