package bootpolicy

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// Limits on signed PCR policies.
const (
	maxSignedSize    = 1 << 20 // bytes of JSON
	maxSignedEntries = 1024
)

// signedEntry is one signed policy in systemd's JSON
// (tpm2-pcr-signature.json): {"sha256":[{"pcrs":[11],"pkfp":…,"pol":…,"sig":…}]}.
type signedEntry struct {
	PCRs []int  `json:"pcrs"`
	PKFP string `json:"pkfp"` // SHA-256 of the key
	Pol  string `json:"pol"`  // policy digest of TPM2_PolicyPCR
	Sig  []byte `json:"sig"`  // over the digest's bytes
	// Values are the PCRs' values in hexadecimal, in the order of PCRs. They are
	// ours: systemd reads over them. They say nothing that Pol does not bind, so
	// a reader that compares them with it may believe them; errors then name the
	// PCRs that differ.
	Values []string `json:"values,omitempty"`
}

var bankNames = []struct {
	name string
	bank crypto.Hash
}{{"sha512", crypto.SHA512}, {"sha384", crypto.SHA384}, {"sha256", crypto.SHA256}}

// SignPCRs signs PCR values of one bank, each map one boot state that is good,
// in the JSON format of systemd-measure. It needs no TPM. The key is RSA (as
// systemd up to 257 demands) or ECDSA.
func SignPCRs(key crypto.Signer, bank crypto.Hash, states ...map[int][]byte) ([]byte, error) {
	a, err := newAuthority(key.Public())
	if err != nil {
		return nil, err
	}
	if len(states) == 0 || len(states) > maxSignedEntries {
		return nil, fmt.Errorf("bootpolicy: %d boot states, want 1 to %d", len(states), maxSignedEntries)
	}
	var name string
	for _, b := range bankNames {
		if b.bank == bank {
			name = b.name
		}
	}
	if name == "" {
		return nil, fmt.Errorf("bootpolicy: bank %v can't be signed", bank)
	}
	var entries []signedEntry
	for _, values := range states {
		p, err := Literal(bank, values)
		if err != nil {
			return nil, err
		}
		sig, err := sign(key, p.Digest(), nil)
		if err != nil {
			return nil, err
		}
		if !a.verify(p.Digest(), nil, sig) {
			return nil, errors.New("bootpolicy: signer made a signature that does not verify")
		}
		e := signedEntry{PCRs: slices.Sorted(maps.Keys(values)), PKFP: a.fp, Pol: hex.EncodeToString(p.Digest()), Sig: sig}
		for _, pcr := range e.PCRs {
			e.Values = append(e.Values, hex.EncodeToString(values[pcr]))
		}
		entries = append(entries, e)
	}
	return json.Marshal(map[string][]signedEntry{name: entries})
}

// signed is a TPM2_PolicyAuthorize over PCR policies that a key signed.
type signed struct {
	auth    *authority
	entries []bankEntry
	digest  []byte
}

type bankEntry struct {
	bank crypto.Hash
	pcrs []int
	pol  []byte
	sig  []byte
	// values are what the entry says of the PCRs, checked against pol; nil when
	// it says nothing.
	values map[int][]byte
}

// Signed returns the policy that the PCRs have values which key signed.
// signatures is what SignPCRs or systemd-measure made; it may be nil for a
// Policy that only seals: the digest depends on the key alone, so a new image
// needs new signatures but no sealing. Entries of other keys are skipped;
// one of this key whose signature is wrong is an error. Strict JSON, at most
// 1 MiB.
func Signed(key crypto.PublicKey, signatures []byte) (Policy, error) {
	a, err := newAuthority(key)
	if err != nil {
		return nil, err
	}
	s := &signed{auth: a, digest: a.digest(nil)}
	if signatures == nil {
		return s, nil
	}
	if len(signatures) > maxSignedSize {
		return nil, fmt.Errorf("bootpolicy: signed policy of %d bytes, limit %d", len(signatures), maxSignedSize)
	}
	var banks map[string][]signedEntry
	dec := json.NewDecoder(bytes.NewReader(signatures))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&banks); err != nil {
		return nil, fmt.Errorf("bootpolicy: signed policy: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("bootpolicy: signed policy: bytes after the JSON value")
	}
	for _, b := range bankNames { // strongest first; SHA-1 entries are not used
		for _, e := range banks[b.name] {
			if err := s.add(b.bank, e); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func (s *signed) add(bank crypto.Hash, e signedEntry) error {
	if e.PKFP != s.auth.fp {
		return nil
	}
	pol, err := hex.DecodeString(e.Pol)
	if err != nil || len(pol) != 32 || len(e.PCRs) == 0 || !slices.IsSorted(e.PCRs) || len(s.entries) >= maxSignedEntries {
		return errors.New("bootpolicy: signed policy: malformed entry")
	}
	if _, err := tpm.Selection(bank, e.PCRs); err != nil || slices.ContainsFunc(e.PCRs, tpm.Resettable) {
		return fmt.Errorf("bootpolicy: signed policy: PCRs %v", e.PCRs)
	}
	if !s.auth.verify(pol, nil, e.Sig) {
		return errors.New("bootpolicy: signed policy: wrong signature")
	}
	values, err := e.values(bank, pol)
	if err != nil {
		return err
	}
	s.entries = append(s.entries, bankEntry{bank, e.PCRs, pol, e.Sig, values})
	return nil
}

func (e *signedEntry) values(bank crypto.Hash, pol []byte) (map[int][]byte, error) {
	if len(e.Values) == 0 {
		return nil, nil
	}
	if len(e.Values) != len(e.PCRs) {
		return nil, errors.New("bootpolicy: signed policy: malformed entry")
	}
	values := make(map[int][]byte, len(e.PCRs))
	for i, pcr := range e.PCRs {
		v, err := hex.DecodeString(e.Values[i])
		if err != nil {
			return nil, errors.New("bootpolicy: signed policy: malformed entry")
		}
		values[pcr] = v
	}
	p, err := Literal(bank, values)
	if err != nil {
		return nil, fmt.Errorf("bootpolicy: signed policy: %w", err)
	}
	if !bytes.Equal(p.Digest(), pol) {
		return nil, errors.New("bootpolicy: signed policy: values are not those that were signed")
	}
	return values, nil
}

func (s *signed) Digest() []byte { return bytes.Clone(s.digest) }

// PCRs returns the first entry's bank, and the PCRs of that bank: with a value
// where all entries agree on it, without one otherwise.
func (s *signed) PCRs() (crypto.Hash, map[int][]byte) {
	if len(s.entries) == 0 {
		return 0, nil
	}
	first := s.entries[0]
	values := make(map[int][]byte)
	for _, e := range s.entries {
		if e.bank != first.bank {
			continue
		}
		for _, pcr := range e.pcrs {
			values[pcr] = bytes.Clone(e.values[pcr])
			if !bytes.Equal(e.values[pcr], first.values[pcr]) {
				values[pcr] = nil
			}
		}
	}
	for pcr := range values { // an entry that leaves a PCR out says nothing of it
		if slices.ContainsFunc(s.entries, func(e bankEntry) bool { return e.bank == first.bank && e.values[pcr] == nil }) {
			values[pcr] = nil
		}
	}
	return first.bank, values
}

// Satisfy looks for an entry that fits the PCRs as they are.
func (s *signed) Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
	banks, err := tpm.Banks(t)
	if err != nil {
		return fmt.Errorf("bootpolicy: %w", err)
	}
	for _, e := range s.entries {
		if !slices.Contains(banks, e.bank) {
			continue
		}
		values, err := tpm.ReadPCRs(t, e.bank, e.pcrs...)
		if err != nil {
			return fmt.Errorf("bootpolicy: %w", err)
		}
		pol, err := pcrDigest(e.bank, e.pcrs, values)
		if err != nil {
			return fmt.Errorf("bootpolicy: %w", err)
		}
		if !bytes.Equal(pol, e.pol) {
			continue
		}
		if err := policyPCR(t, session, e.bank, e.pcrs, values); err != nil {
			return err
		}
		return s.auth.authorize(t, session, e.pol, nil, e.sig)
	}
	return fmt.Errorf("%w: none of %d signed policies fits the PCRs", ErrNotSatisfied, len(s.entries))
}
