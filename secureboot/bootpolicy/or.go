package bootpolicy

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	maxBranches = 8   // of one TPM2_PolicyOR
	maxLeaves   = 512 // of an Or: three levels
)

// or is a tree of TPM2_PolicyOR commands with at most eight branches each.
type or struct {
	leaves []Policy
	levels [][][]byte // digests: levels[0] of the leaves, each next of the groups of eight below
}

// Or returns the policy that one of the branches holds. More than eight are
// nested, up to 512. A branch must not be repeated.
func Or(branches ...Policy) (Policy, error) {
	switch {
	case len(branches) == 0 || slices.Contains(branches, nil):
		return nil, errors.New("bootpolicy: Or without a branch")
	case len(branches) == 1:
		return branches[0], nil
	case len(branches) > maxLeaves:
		return nil, fmt.Errorf("bootpolicy: Or of %d branches, limit %d", len(branches), maxLeaves)
	}
	o := &or{leaves: slices.Clone(branches)}
	var level [][]byte
	for _, b := range branches {
		d := b.Digest()
		if slices.ContainsFunc(level, func(x []byte) bool { return bytes.Equal(x, d) }) {
			return nil, errors.New("bootpolicy: Or with a repeated branch")
		}
		level = append(level, d)
	}
	o.levels = append(o.levels, level)
	for len(level) > 1 {
		var up [][]byte
		for g := range slices.Chunk(level, maxBranches) {
			up = append(up, group(g))
		}
		o.levels = append(o.levels, up)
		level = up
	}
	return o, nil
}

// group is the digest of TPM2_PolicyOR over up to eight digests. A group of one
// (the rest of a level) passes through.
func group(g [][]byte) []byte {
	if len(g) == 1 {
		return g[0]
	}
	return extend(make([]byte, sha256.Size), tpm2.TPMCCPolicyOR, g...)
}

func (o *or) Digest() []byte { return bytes.Clone(o.levels[len(o.levels)-1][0]) }

// PCRs returns those of the first branch: they are for messages.
func (o *or) PCRs() (crypto.Hash, map[int][]byte) { return o.leaves[0].PCRs() }

// Satisfy runs the first branch that holds, then the PolicyORs above it.
func (o *or) Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	var errs []error
	for i, b := range o.leaves {
		err := b.Satisfy(t, session, nonce)
		if err == nil {
			return o.climb(t, session, i)
		}
		if !errors.Is(err, ErrNotSatisfied) {
			return err
		}
		errs = append(errs, fmt.Errorf("branch %d: %w", i, err))
		if err := restart(t, session); err != nil {
			return err
		}
		if len(errs) > maxBranches {
			errs = errs[:maxBranches]
		}
	}
	return errors.Join(errs...)
}

func (o *or) climb(t transport.TPM, session tpm2.TPMISHPolicy, i int) error {
	for _, level := range o.levels[:len(o.levels)-1] {
		first := i / maxBranches * maxBranches
		g := level[first:min(first+maxBranches, len(level))]
		i /= maxBranches
		if len(g) == 1 {
			continue
		}
		list := tpm2.TPMLDigest{}
		for _, d := range g {
			list.Digests = append(list.Digests, tpm2.TPM2BDigest{Buffer: d})
		}
		if _, err := (tpm2.PolicyOr{PolicySession: session, PHashList: list}).Execute(t); err != nil {
			return fmt.Errorf("bootpolicy: PolicyOR: %w", err)
		}
	}
	return nil
}

// restart runs TPM2_PolicyRestart, which go-tpm does not have: it takes back
// what a branch did to the session before it failed.
func restart(t transport.TPM, session tpm2.TPMISHPolicy) error {
	cmd := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	cmd = binary.BigEndian.AppendUint32(cmd, 14)
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(tpm2.TPMCCPolicyRestart))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(session))
	rsp, err := t.Send(cmd)
	if err != nil {
		return fmt.Errorf("bootpolicy: PolicyRestart: %w", err)
	}
	if len(rsp) < 10 {
		return errors.New("bootpolicy: PolicyRestart: response is truncated")
	}
	if rc := binary.BigEndian.Uint32(rsp[6:]); rc != 0 {
		return fmt.Errorf("bootpolicy: PolicyRestart: %w", tpm2.TPMRC(rc))
	}
	return nil
}
