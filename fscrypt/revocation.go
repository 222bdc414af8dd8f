package fscrypt

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// revocationInfo binds a slot to a counter: it opens while the counter is at
// most Limit (TPM2_PolicyNV).
type revocationInfo struct {
	Index uint32 `json:"index"`
	Name  string `json:"name"` // hex, with the Written attribute set
	Limit uint64 `json:"limit"`
}

// revocationAttributes: anybody reads it, as TPM2_PolicyNV must; who holds the
// owner's authorisation counts it up, and could as well undefine it.
var revocationAttributes = tpm2.TPMANV{AuthRead: true, OwnerWrite: true, NoDA: true, NT: tpm2.TPMNTCounter}

// maxCatchUp bounds how often a counter is incremented at once.
const maxCatchUp = 16

func (i *revocationInfo) clause() (*counterClause, error) {
	name, err := hex.DecodeString(i.Name)
	if err != nil || len(name) != 2+sha256.Size || !isNV(tpm2.TPMHandle(i.Index)) {
		return nil, fmt.Errorf("slot names counter 0x%08x: %w", i.Index, ErrTampered)
	}
	return &counterClause{nvIndex{tpm2.TPMHandle(i.Index), tpm2.TPM2BName{Buffer: name}}, i.Limit}, nil
}

// counterClause is PolicyNV: the counter is at most limit.
type counterClause struct {
	idx   nvIndex
	limit uint64
}

func (c *counterClause) operand() []byte { return binary.BigEndian.AppendUint64(nil, c.limit) }

func (c *counterClause) extend(digest []byte) []byte {
	args := binary.BigEndian.AppendUint16(c.operand(), 0) // offset
	args = binary.BigEndian.AppendUint16(args, uint16(tpm2.TPMEOUnsignedLE))
	h := sha256.Sum256(args)
	return extendPolicy(digest, tpm2.TPMCCPolicyNV, h[:], c.idx.name.Buffer)
}

func (c *counterClause) satisfy(t transport.TPM, session tpm2.TPMISHPolicy) error {
	_, err := tpm2.PolicyNV{
		AuthHandle:    tpm2.AuthHandle{Handle: c.idx.handle, Name: c.idx.name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:       c.idx.named(),
		PolicySession: session,
		OperandB:      tpm2.TPM2BOperand{Buffer: c.operand()},
		Operation:     tpm2.TPMEOUnsignedLE,
	}.Execute(t)
	return err
}

func (c *counterClause) explain(t transport.TPM) error {
	idx, _, err := readIndex(t, c.idx.handle)
	if errors.Is(err, tpm2.TPMRCHandle) || (err == nil && hex.EncodeToString(idx.name.Buffer) != hex.EncodeToString(c.idx.name.Buffer)) {
		return fmt.Errorf("the slot's counter 0x%08x was removed or replaced: %w", uint32(c.idx.handle), ErrRevoked)
	}
	if err != nil {
		return err
	}
	rsp, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: idx.handle, Name: idx.name, Auth: tpm2.PasswordAuth(nil)}, NVIndex: idx.named(), Size: 8}.Execute(t)
	if err != nil {
		return err
	}
	if b := rsp.Data.Buffer; len(b) == 8 && binary.BigEndian.Uint64(b) > c.limit {
		return fmt.Errorf("the slot was replaced or removed (its counter 0x%08x is beyond %d): %w", uint32(c.idx.handle), c.limit, ErrRevoked)
	}
	return nil
}

// bindCounter binds a new slot to the TPM's Revocation counter, which it
// defines where no slot in force has it. A slot that takes the place of one
// that has the counter outlives the next increment, which ends that one.
func (p *TPM) bindCounter(t transport.TPM, srk *tpm.Key, n *notes) (*revocationInfo, error) {
	h := p.Revocation
	if !isNV(h) {
		return nil, fmt.Errorf("revocation counter 0x%08x is not an NV index", uint32(h))
	}
	if n == nil {
		return nil, errors.New("a revocation counter belongs to a volume's slot")
	}
	if n.bound[h] || (n.counters[h] && !n.replaced[h]) {
		return nil, fmt.Errorf("revocation counter 0x%08x belongs to another slot: each needs its own", uint32(h))
	}
	if !n.counters[h] {
		if err := p.defineRevocation(t, srk, n); err != nil {
			return nil, err
		}
	}
	idx, pub, err := readIndex(t, h)
	if err != nil {
		return nil, err
	}
	if want := revocationAttributes; pub.Attributes.NT != want.NT || !pub.Attributes.Written || pub.Attributes.AuthWrite || pub.Attributes.PolicyWrite {
		return nil, fmt.Errorf("NV index 0x%08x is not a revocation counter", uint32(h))
	}
	value, err := readCounter(t, srk, idx, nil)
	if err != nil {
		return nil, err
	}
	if n.counters[h] {
		value++
	}
	if n.bound == nil {
		n.bound = map[tpm2.TPMHandle]bool{}
	}
	n.bound[h] = true
	return &revocationInfo{Index: uint32(h), Name: hex.EncodeToString(idx.name.Buffer), Limit: value}, nil
}

func (p *TPM) defineRevocation(t transport.TPM, srk *tpm.Key, n *notes) error {
	if p.UnsafeReplaceNV {
		if err := undefineNV(t, srk, p.Revocation, p.OwnerAuth); err != nil {
			return err
		}
	}
	pub := tpm2.TPMSNVPublic{NVIndex: p.Revocation, NameAlg: tpm2.TPMAlgSHA256, Attributes: revocationAttributes, DataSize: 8}
	if _, err := defineNV(t, srk, pub, p.OwnerAuth, nil); err != nil {
		return err
	}
	n.undos = append(n.undos, func(ctx context.Context) error {
		return p.do(ctx, p.pins(), func(t *tpm.Device, srk *tpm.Key) error {
			return undefineNV(t, srk, p.Revocation, p.OwnerAuth)
		})
	})
	idx, _, err := readIndex(t, p.Revocation)
	if err == nil {
		err = p.increment(t, srk, idx)
	}
	return err
}

func (p *TPM) increment(t transport.TPM, srk *tpm.Key, idx nvIndex) error {
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: srk.Session(tpm2.Auth(p.OwnerAuth))}
	if _, err := (tpm2.NVIncrement{AuthHandle: owner, NVIndex: idx.named()}).Execute(t); err != nil {
		return fmt.Errorf("count revocation counter 0x%08x up: %w", uint32(idx.handle), err)
	}
	return nil
}

// countTo brings a slot's counter to a value, unless it is there or gone.
func (p *TPM) countTo(t transport.TPM, srk *tpm.Key, info *revocationInfo, want uint64) error {
	c, err := info.clause()
	if err != nil {
		return err
	}
	idx, _, err := readIndex(t, c.idx.handle)
	if errors.Is(err, tpm2.TPMRCHandle) || (err == nil && hex.EncodeToString(idx.name.Buffer) != info.Name) {
		return nil
	}
	if err != nil {
		return err
	}
	value, err := readCounter(t, srk, idx, nil)
	if err != nil {
		return err
	}
	if want > value && want-value > maxCatchUp {
		return fmt.Errorf("revocation counter 0x%08x is at %d, the slot speaks of %d: %w", info.Index, value, want, ErrTampered)
	}
	for ; value < want; value++ {
		if err := p.increment(t, srk, idx); err != nil {
			return err
		}
	}
	return nil
}

// revoke ends a slot: copies of it open no more. The counter goes with its
// last slot; a TPM never starts a new one at a lower value.
func (p *TPM) revoke(ctx context.Context, info *revocationInfo, inUse bool) error {
	return p.do(ctx, p.pins(), func(t *tpm.Device, srk *tpm.Key) error {
		if err := p.countTo(t, srk, info, info.Limit+1); err != nil || inUse {
			return err
		}
		idx, _, err := readIndex(t, tpm2.TPMHandle(info.Index))
		if errors.Is(err, tpm2.TPMRCHandle) || (err == nil && hex.EncodeToString(idx.name.Buffer) != info.Name) {
			return nil
		}
		if err != nil {
			return err
		}
		return undefineNV(t, srk, idx.handle, p.OwnerAuth)
	})
}

// catchUp counts the counters of slots in force up to their limits, which a
// power cut in Reseal or Rotate may have kept from happening: until then,
// copies of the slots that were replaced still open.
func (v *Volume) catchUp(ctx context.Context) {
	for _, info := range revocations(v.header.Slots) {
		for _, t := range tpmsOf(v.given...) {
			if t.Revocation != tpm2.TPMHandle(info.Index) {
				continue
			}
			err := t.do(ctx, t.pins(), func(dev *tpm.Device, srk *tpm.Key) error { return t.countTo(dev, srk, info, info.Limit) })
			if err != nil {
				v.event(ctx, slog.LevelWarn, "fscrypt.revocation.pending", slog.String("reason", err.Error()))
			}
			break
		}
	}
}

// revocations lists the counters that slots are bound to.
func revocations(slots []Slot) (infos []*revocationInfo) {
	for _, s := range slots {
		var a allData
		var t tpmData
		if strictJSON(s.Data, &a) == nil {
			infos = append(infos, revocations(a.Parts)...)
		} else if strictJSON(s.Data, &t) == nil && t.Revocation != nil {
			infos = append(infos, t.Revocation)
		}
	}
	return infos
}

func countersOf(slots []Slot) map[tpm2.TPMHandle]bool {
	used := map[tpm2.TPMHandle]bool{}
	for _, i := range revocations(slots) {
		used[tpm2.TPMHandle(i.Index)] = true
	}
	return used
}
