package fscrypt

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// clause is a part of the policy that the sealer appends to the boot policy.
type clause interface {
	extend(digest []byte) []byte
	satisfy(t transport.TPM, session tpm2.TPMISHPolicy) error
	explain(t transport.TPM) error // why it does not hold now, nil if it does
}

func (p *TPM) clauses(d *tpmData, bank crypto.Hash) ([]clause, error) {
	var cs []clause
	if d.Revocation != nil {
		c, err := d.Revocation.clause()
		if err != nil {
			return nil, err
		}
		cs = append(cs, c)
	}
	if d.Latch != noLatch {
		if len(d.After) > maxAfter {
			return nil, fmt.Errorf("slot: %w", ErrTampered)
		}
		var after [][]byte
		for _, a := range d.After {
			b, err := hex.DecodeString(a)
			if err != nil || len(b) != secretSize {
				return nil, fmt.Errorf("latch value %.8q… is not %d bytes in hexadecimal", a, secretSize)
			}
			after = append(after, b)
		}
		c, err := newLatchClause(d.Latch, bank, after)
		if err != nil {
			return nil, err
		}
		cs = append(cs, &boundLatch{latchClause: c, pcr: d.Latch, bank: bank})
	}
	if d.PIN {
		cs = append(cs, pinClause{})
	}
	return cs, nil
}

type boundLatch struct {
	*latchClause
	pcr  int
	bank crypto.Hash
}

func (l *boundLatch) explain(t transport.TPM) error {
	got, err := tpm.ReadPCRs(t, l.bank, l.pcr)
	if err != nil {
		return err
	}
	if !bytes.Equal(got[l.pcr], l.value) {
		return fmt.Errorf("PCR %d: %w, and the volumes before it in their order", l.pcr, ErrLatched)
	}
	return nil
}

// pinClause is PolicyAuthValue.
type pinClause struct{}

func (pinClause) extend(digest []byte) []byte {
	return extendPolicy(digest, tpm2.TPMCCPolicyAuthValue)
}

func (pinClause) satisfy(t transport.TPM, session tpm2.TPMISHPolicy) error {
	_, err := tpm2.PolicyAuthValue{PolicySession: session}.Execute(t)
	return err
}

func (pinClause) explain(transport.TPM) error { return nil }
