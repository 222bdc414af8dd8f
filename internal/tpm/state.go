package tpm

import (
	"crypto"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Handles lists the transient objects and the loaded sessions that a TPM
// holds. Behind /dev/tpmrm0 these are the caller's own.
type Handles struct {
	Transient, Sessions []tpm2.TPMHandle
}

// Count returns how many handles there are.
func (h Handles) Count() int { return len(h.Transient) + len(h.Sessions) }

// LoadedHandles asks the TPM which transient objects and sessions it holds.
// Tests compare before and after: what a package opens it flushes.
func LoadedHandles(t transport.TPM) (h Handles, err error) {
	if h.Transient, err = handles(t, 0x80000000); err != nil {
		return h, err
	}
	h.Sessions, err = handles(t, 0x02000000)
	return h, err
}

func handles(t transport.TPM, first uint32) ([]tpm2.TPMHandle, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 256}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpm: list handles: %w", err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("tpm: list handles: %w", err)
	}
	return list.Handle, nil
}

var hashes = []struct {
	hash crypto.Hash
	alg  tpm2.TPMAlgID
}{
	{crypto.SHA1, tpm2.TPMAlgSHA1}, {crypto.SHA256, tpm2.TPMAlgSHA256},
	{crypto.SHA384, tpm2.TPMAlgSHA384}, {crypto.SHA512, tpm2.TPMAlgSHA512},
}

// Alg returns the TPM's number of a hash (SHA-1, SHA-256, SHA-384, SHA-512).
func Alg(h crypto.Hash) (tpm2.TPMAlgID, error) {
	for _, e := range hashes {
		if e.hash == h {
			return e.alg, nil
		}
	}
	return tpm2.TPMAlgNull, fmt.Errorf("tpm: no TPM algorithm for hash %v", h)
}

// Hash returns the hash of a TPM algorithm number, or 0 for one not known.
func Hash(alg tpm2.TPMAlgID) crypto.Hash {
	for _, e := range hashes {
		if e.alg == alg {
			return e.hash
		}
	}
	return 0
}

// Selection is the canonical selection of PCRs of one bank: ascending, in
// three bytes.
func Selection(bank crypto.Hash, pcrs []int) (tpm2.TPMSPCRSelection, error) {
	alg, err := Alg(bank)
	if err != nil {
		return tpm2.TPMSPCRSelection{}, err
	}
	bits := make([]byte, 3)
	for _, p := range pcrs {
		if p < 0 || p > 23 {
			return tpm2.TPMSPCRSelection{}, fmt.Errorf("tpm: PCR %d out of range 0 to 23", p)
		}
		bits[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMSPCRSelection{Hash: alg, PCRSelect: bits}, nil
}

// Banks returns the hashes of the PCR banks that have PCRs allocated.
func Banks(t transport.TPM) ([]crypto.Hash, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpm: list PCR banks: %w", err)
	}
	pcrs, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, fmt.Errorf("tpm: list PCR banks: %w", err)
	}
	var banks []crypto.Hash
	for _, s := range pcrs.PCRSelections {
		if h := Hash(s.Hash); h != 0 && slices.ContainsFunc(s.PCRSelect, func(b byte) bool { return b != 0 }) {
			banks = append(banks, h)
		}
	}
	return banks, nil
}

// ReadPCRs reads PCRs of one bank. The values are a hint: only a verified
// quote says what they are.
func ReadPCRs(t transport.TPM, bank crypto.Hash, pcrs ...int) (map[int][]byte, error) {
	values := make(map[int][]byte, len(pcrs))
	for chunk := range slices.Chunk(pcrs, 8) {
		sel, err := Selection(bank, chunk)
		if err != nil {
			return nil, err
		}
		rsp, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{sel}}}.Execute(t)
		if err != nil {
			return nil, fmt.Errorf("tpm: read PCRs %v: %w", chunk, err)
		}
		want := slices.Compact(slices.Sorted(slices.Values(chunk)))
		if len(rsp.PCRValues.Digests) != len(want) {
			return nil, fmt.Errorf("tpm: bank %v gave %d of %d PCRs: is the bank active?", bank, len(rsp.PCRValues.Digests), len(want))
		}
		for i, p := range want {
			values[p] = rsp.PCRValues.Digests[i].Buffer
		}
	}
	return values, nil
}

// ExtendPCR extends one PCR with digests, one for each bank.
func ExtendPCR(t transport.TPM, pcr int, digests map[crypto.Hash][]byte) error {
	for _, e := range hashes { // one command a bank: go-tpm decodes no longer lists
		d, ok := digests[e.hash]
		if !ok {
			continue
		}
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: e.alg, Digest: d}}},
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("tpm: extend PCR %d: %w", pcr, err)
		}
	}
	return nil
}
