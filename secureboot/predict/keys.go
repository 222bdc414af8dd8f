package predict

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/trusttree/trusttree/secureboot"
)

// Keys are the Secure Boot variables: content of PK, KEK, db and dbx
// (EFI_SIGNATURE_LISTs; see SignatureList), nil for one that is absent.
type Keys struct {
	PK, KEK, DB, DBX []byte
	Disabled         bool // Secure Boot is off
}

var (
	guidGlobal   = guid("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	guidSecurity = guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
	guidX509     = guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
)

// SignatureList makes an EFI_SIGNATURE_LIST for each certificate (DER), as the
// usual enrolment tools do. owner is a GUID in text.
func SignatureList(owner string, certificates ...[]byte) ([]byte, error) {
	o, err := parseGUID(owner)
	if err != nil {
		return nil, err
	}
	var b []byte
	for _, der := range certificates {
		b = append(b, guidX509...)
		b = binary.LittleEndian.AppendUint32(b, uint32(28+16+len(der)))
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(16+len(der)))
		b = append(append(b, o...), der...)
	}
	return b, nil
}

// Variant returns the reference values of PCR 7. Each authority is the
// certificate (DER) in db that vouches for an image, in the order of their
// first use, measured with its owner (a GUID in text).
func (k Keys) Variant(name string, bank crypto.Hash, owner string, authorities ...[]byte) (secureboot.Variant, error) {
	v := secureboot.Variant{Name: name}
	o, err := parseGUID(owner)
	if err != nil {
		return v, err
	}
	if !bank.Available() {
		return v, fmt.Errorf("predict: hash %v is not linked in", bank)
	}
	add := func(b []byte) {
		v.Records = append(v.Records, secureboot.Record{PCR: 7, Digests: []secureboot.Digest{{Hash: bank, Value: hash(bank, b)}}})
	}
	on := []byte{1}
	if k.Disabled {
		on[0] = 0
	}
	add(variable(guidGlobal, "SecureBoot", on))
	add(variable(guidGlobal, "PK", k.PK))
	add(variable(guidGlobal, "KEK", k.KEK))
	add(variable(guidSecurity, "db", k.DB))
	add(variable(guidSecurity, "dbx", k.DBX))
	add(make([]byte, 4))
	for _, a := range authorities {
		if !bytes.Contains(k.DB, a) {
			return v, errors.New("predict: authority is not in db")
		}
		add(variable(guidSecurity, "db", append(bytes.Clone(o), a...)))
	}
	return v, nil
}

// variable is a UEFI_VARIABLE_DATA.
func variable(owner []byte, name string, data []byte) []byte {
	n := loadOptions(name)
	n = n[:len(n)-2] // no NUL
	b := bytes.Clone(owner)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(name)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	return append(append(b, n...), data...)
}

func guid(s string) []byte {
	g, err := parseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

func parseGUID(s string) ([]byte, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		return nil, fmt.Errorf("predict: %.40q is no GUID", s)
	}
	return []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}, nil
}

// maxPredictions bounds the boot states that Values lists.
const maxPredictions = 256

// Values returns the PCR values of every boot that the components allow: one
// map for each choice of one variant for each component, at most 256. PCRs
// without records are left out.
func Values(bank crypto.Hash, comps []secureboot.Component) ([]map[int][]byte, error) {
	if !bank.Available() {
		return nil, fmt.Errorf("predict: hash %v is not linked in", bank)
	}
	states := []map[int][]byte{{}}
	for _, c := range comps {
		var next []map[int][]byte
		for _, s := range states {
			for _, v := range c.Variants {
				t, err := after(bank, s, v)
				if err != nil {
					return nil, fmt.Errorf("predict: component %q: %w", c.Name, err)
				}
				if next = append(next, t); len(next) > maxPredictions {
					return nil, fmt.Errorf("predict: components allow more than %d boots", maxPredictions)
				}
			}
		}
		states = next
	}
	return states, nil
}

func after(bank crypto.Hash, s map[int][]byte, v secureboot.Variant) (map[int][]byte, error) {
	t := make(map[int][]byte, len(s))
	for pcr, value := range s {
		t[pcr] = value
	}
	for _, r := range v.Records {
		var d []byte
		for _, x := range r.Digests {
			if x.Hash == bank {
				d = x.Value
			}
		}
		if d == nil {
			return nil, fmt.Errorf("record of PCR %d has no digest of the bank", r.PCR)
		}
		old := t[r.PCR]
		if old == nil {
			old = make([]byte, bank.Size())
		}
		t[r.PCR] = hash(bank, append(bytes.Clone(old), d...))
	}
	return t, nil
}
