package bootpolicy

import (
	"bytes"
	"context"
	"crypto"
	"crypto/fips140"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// Policy is a condition on the boot state.
type Policy interface {
	// Digest is the policy digest (SHA-256) of a session that ran Satisfy and
	// nothing else.
	Digest() []byte
	// Satisfy runs the policy's commands in a fresh policy session of t. It
	// returns an error that wraps ErrNotSatisfied when the boot state is not
	// the right one. It leaves nothing loaded in the TPM.
	Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, nonceTPM tpm2.TPM2BNonce) error
	// PCRs returns the bank and the values that the policy demands, for
	// messages; a value is nil where the policy does not say it (signed
	// policies hold a hash only).
	PCRs() (crypto.Hash, map[int][]byte)
}

// ErrNotSatisfied says that the machine is not in the policy's boot state.
var ErrNotSatisfied = errors.New("bootpolicy: boot state does not satisfy the policy")

// Literal is a policy over PCR values.
type literal struct {
	bank   crypto.Hash
	values map[int][]byte
	pcrs   []int // sorted
	digest []byte
}

// Literal returns the policy that PCRs of one bank have these values (TPM2_
// PolicyPCR). SHA-1 banks are refused.
func Literal(bank crypto.Hash, values map[int][]byte) (Policy, error) {
	if bank == crypto.SHA1 {
		return nil, errors.New("bootpolicy: SHA-1 PCRs do not resist collisions")
	}
	if len(values) == 0 {
		return nil, errors.New("bootpolicy: no PCR values: the policy would always hold")
	}
	l := &literal{bank: bank, values: make(map[int][]byte, len(values)), pcrs: slices.Sorted(maps.Keys(values))}
	for pcr, v := range values {
		if tpm.Resettable(pcr) {
			return nil, fmt.Errorf("bootpolicy: PCR %d can be reset by software", pcr)
		}
		if len(v) != bank.Size() {
			return nil, fmt.Errorf("bootpolicy: value of PCR %d has %d bytes, want %d", pcr, len(v), bank.Size())
		}
		l.values[pcr] = bytes.Clone(v)
	}
	var err error
	l.digest, err = pcrDigest(bank, l.pcrs, l.values)
	return l, err
}

func (l *literal) Digest() []byte { return bytes.Clone(l.digest) }

func (l *literal) PCRs() (crypto.Hash, map[int][]byte) { return l.bank, maps.Clone(l.values) }

func (l *literal) Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
	have, err := tpm.ReadPCRs(t, l.bank, l.pcrs...)
	if err != nil {
		return fmt.Errorf("bootpolicy: %w", err)
	}
	var differ []string
	for _, pcr := range l.pcrs {
		if !bytes.Equal(have[pcr], l.values[pcr]) {
			differ = append(differ, fmt.Sprintf("PCR %d is %x, want %x", pcr, have[pcr], l.values[pcr]))
		}
	}
	if len(differ) > 0 {
		return fmt.Errorf("%w: %s", ErrNotSatisfied, strings.Join(differ, "; "))
	}
	return policyPCR(t, session, l.bank, l.pcrs, l.values)
}

// policyPCR runs TPM2_PolicyPCR with the values that are demanded: the TPM
// refuses it if the PCRs changed since they were read.
func policyPCR(t transport.TPM, session tpm2.TPMISHPolicy, bank crypto.Hash, pcrs []int, values map[int][]byte) error {
	sel, err := tpm.Selection(bank, pcrs)
	if err != nil {
		return err
	}
	h := sha256.New()
	for _, pcr := range pcrs {
		h.Write(values[pcr])
	}
	_, err = tpm2.PolicyPCR{PolicySession: session, PcrDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		Pcrs: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{sel}}}.Execute(t)
	if err != nil {
		return fmt.Errorf("%w: PolicyPCR: %w", ErrNotSatisfied, err)
	}
	return nil
}

// pcrDigest computes the policy digest of TPM2_PolicyPCR (part 3, section 23.7).
func pcrDigest(bank crypto.Hash, pcrs []int, values map[int][]byte) ([]byte, error) {
	sel, err := tpm.Selection(bank, pcrs)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for _, pcr := range pcrs {
		h.Write(values[pcr])
	}
	list := tpm2.Marshal(tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{sel}})
	return extend(make([]byte, sha256.Size), tpm2.TPMCCPolicyPCR, list, h.Sum(nil)), nil
}

// extend is a policy update: H(old ‖ command code ‖ arguments).
func extend(old []byte, cc tpm2.TPMCC, args ...[]byte) []byte {
	h := sha256.New()
	h.Write(old)
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	for _, a := range args {
		h.Write(a)
	}
	return h.Sum(nil)
}

// Cap extends a PCR with the hash of a label, in every bank: what was unsealed
// under a policy over this PCR can't be unsealed again before the next boot.
// PCR 15 is the re-unseal latch. It refuses PCRs that software can reset.
func Cap(ctx context.Context, t transport.TPM, pcr int, label string) error {
	if pcr < 0 || pcr > 23 || tpm.Resettable(pcr) {
		return fmt.Errorf("bootpolicy: PCR %d can't be capped", pcr)
	}
	return tpm.Wrap(t).Do(ctx, func(d *tpm.Device) error {
		banks, err := tpm.Banks(d)
		if err != nil {
			return fmt.Errorf("bootpolicy: %w", err)
		}
		digests := make(map[crypto.Hash][]byte, len(banks))
		for _, b := range banks {
			// The SHA-1 bank as well, also in FIPS 140-only mode: capped is capped.
			fips140.WithoutEnforcement(func() {
				h := b.New()
				h.Write([]byte(label))
				digests[b] = h.Sum(nil)
			})
		}
		if err := tpm.ExtendPCR(d, pcr, digests); err != nil {
			return fmt.Errorf("bootpolicy: %w", err)
		}
		return nil
	})
}
