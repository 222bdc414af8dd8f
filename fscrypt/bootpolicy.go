package fscrypt

import (
	"bytes"
	"crypto"
	"crypto/fips140"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// BootPolicy says in which boot states the TPM unseals. Policies of package
// secureboot satisfy it: literal PCR values, and values that the owner signed
// (PolicyAuthorize), which change with an update without resealing.
type BootPolicy interface {
	// Digest is the policy digest (SHA-256) that Satisfy reaches in a new
	// session.
	Digest() []byte
	// Satisfy runs the policy's commands in a session.
	Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, nonceTPM tpm2.TPM2BNonce) error
	// PCRs returns the values that the policy wants, for errors to name those
	// that differ. A value is nil where the policy does not say it: a signed
	// policy holds only a hash over all of them.
	PCRs() (bank crypto.Hash, values map[int][]byte)
}

// checkPolicies refuses policies that bind to nothing. It returns the digest
// and bank that all of them share.
func checkPolicies(ps []BootPolicy) (digest []byte, bank crypto.Hash, err error) {
	if len(ps) == 0 {
		return nil, 0, errors.New("TPM protector without a boot policy: it would open in any boot state")
	}
	for i, p := range ps {
		d := p.Digest()
		b, pcrs := p.PCRs()
		switch {
		case len(d) != sha256.Size || bytes.Equal(d, make([]byte, sha256.Size)):
			return nil, 0, fmt.Errorf("boot policy %d has an empty digest", i)
		case i > 0 && (!bytes.Equal(d, digest) || b != bank):
			return nil, 0, fmt.Errorf("boot policy %d has another digest than policy 0: only alternatives under one authority can share a slot", i)
		case len(pcrs) == 0:
			return nil, 0, fmt.Errorf("boot policy %d names no PCR", i)
		}
		for n, v := range pcrs {
			switch {
			case n < 0 || n > 23 || (v != nil && len(v) != b.Size()):
				return nil, 0, fmt.Errorf("boot policy %d: bad value for PCR %d", i, n)
			case tpm.Resettable(n):
				return nil, 0, fmt.Errorf("boot policy %d: PCR %d can be reset by software and proves nothing", i, n)
			case n == tpm.PCRModules:
				return nil, 0, fmt.Errorf("boot policy %d: PCR %d holds the modules, which may be changed while the node runs", i, n)
			case n == tpm.PCRLatch:
				return nil, 0, fmt.Errorf("boot policy %d: PCR %d is the latch, which the TPM protector binds itself", i, n)
			}
		}
		digest, bank = d, b
	}
	return digest, bank, nil
}

// differing lists the PCRs that have not the values that p wants.
func differing(t transport.TPM, p BootPolicy) (*PolicyError, error) {
	bank, want := p.PCRs()
	var pcrs []int
	for n := range want {
		pcrs = append(pcrs, n)
	}
	slices.Sort(pcrs)
	got, err := tpm.ReadPCRs(t, bank, pcrs...)
	if err != nil {
		return nil, err
	}
	e := &PolicyError{Bank: bank}
	unknown := slices.ContainsFunc(pcrs, func(n int) bool { return want[n] == nil })
	if unknown && satisfied(t, p) {
		return e, nil
	}
	for _, n := range pcrs {
		if !bytes.Equal(got[n], want[n]) {
			e.Diffs = append(e.Diffs, PCRDiff{PCR: n, Want: want[n], Got: got[n]})
		}
	}
	return e, nil
}

// satisfied tries a policy in a session of its own, for a policy that does not
// say which values it wants.
func satisfied(t transport.TPM, p BootPolicy) bool {
	sess, end, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return false
	}
	err = p.Satisfy(t, sess.Handle(), sess.NonceTPM())
	return errors.Join(err, end()) == nil
}

// choose returns the policy that fits the PCRs now, or the one that comes
// closest and how far it is off.
func choose(t transport.TPM, ps []BootPolicy) (BootPolicy, *PolicyError, error) {
	var best BootPolicy
	var least *PolicyError
	for _, p := range ps {
		e, err := differing(t, p)
		if err != nil {
			return nil, nil, err
		}
		if least == nil || len(e.Diffs) < len(least.Diffs) {
			best, least = p, e
		}
	}
	return best, least, nil
}

// extendPolicy is PolicyUpdate of TPM 2.0 part 1, section 19.7.
func extendPolicy(digest []byte, cc tpm2.TPMCC, data ...[]byte) []byte {
	h := sha256.New()
	h.Write(digest)
	_ = binary.Write(h, binary.BigEndian, uint32(cc)) // a hash takes every write
	for _, d := range data {
		h.Write(d)
	}
	return h.Sum(nil)
}

// extendPCR is what TPM2_PCR_Extend makes of a PCR.
func extendPCR(bank crypto.Hash, value, digest []byte) []byte {
	h := bank.New()
	h.Write(value)
	h.Write(digest)
	return h.Sum(nil)
}

// latchClause binds the latch PCR to the value it has before this volume is
// opened.
type latchClause struct {
	selection tpm2.TPMLPCRSelection
	digest    []byte
	value     []byte
}

func newLatchClause(pcr int, bank crypto.Hash, after [][]byte) (*latchClause, error) {
	sel, err := tpm.Selection(bank, []int{pcr})
	if err != nil {
		return nil, err
	}
	value := make([]byte, bank.Size())
	for _, l := range after {
		value = extendPCR(bank, value, bankDigest(bank, l))
	}
	d := sha256.Sum256(value)
	return &latchClause{tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{sel}}, d[:], value}, nil
}

func (c *latchClause) extend(digest []byte) []byte {
	return extendPolicy(digest, tpm2.TPMCCPolicyPCR, tpm2.Marshal(c.selection), c.digest)
}

func (c *latchClause) satisfy(t transport.TPM, session tpm2.TPMISHPolicy) error {
	_, err := tpm2.PolicyPCR{PolicySession: session, PcrDigest: tpm2.TPM2BDigest{Buffer: c.digest}, Pcrs: c.selection}.Execute(t)
	return err
}

func bankDigest(bank crypto.Hash, latch []byte) (digest []byte) {
	// The SHA-1 bank as well, also in FIPS 140-only mode: closed is closed.
	fips140.WithoutEnforcement(func() {
		h := bank.New()
		h.Write(latch)
		digest = h.Sum(nil)
	})
	return digest
}

// extendLatch extends the latch in every active bank.
func extendLatch(t transport.TPM, pcr int, latch []byte) error {
	banks, err := tpm.Banks(t)
	if err != nil {
		return err
	}
	digests := make(map[crypto.Hash][]byte)
	for _, b := range banks {
		digests[b] = bankDigest(b, latch)
	}
	return tpm.ExtendPCR(t, pcr, digests)
}
