package fscrypt

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// counterInfo names the counter that witnesses the volume's generation. It is
// kept in the encrypted part of the header.
type counterInfo struct {
	Index  uint32 `json:"index"`
	Name   string `json:"name"`   // hex, with the Written attribute set
	Parent string `json:"parent"` // name of the storage root key that sessions are salted to
	Base   uint64 `json:"base"`   // the counter's value at generation Start
	Start  uint64 `json:"start,omitempty"`
}

// shareInfo names the NV index that holds half of a slot's secret.
type shareInfo struct {
	Index uint32 `json:"index"`
	Name  string `json:"name"`
}

// nvAuth makes the auth value of an index. It is text: go-tpm cuts auth values
// at a zero byte.
func nvAuth(s *Secret, info string) ([]byte, error) {
	b, err := derive(s, 16, nil, info)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	return []byte(hex.EncodeToString(b)), nil
}

func isNV(h tpm2.TPMHandle) bool { return h>>24 == 1 }

// nvIndex is an index with its name.
type nvIndex struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
}

func readIndex(t transport.TPM, h tpm2.TPMHandle) (nvIndex, tpm2.TPMSNVPublic, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: h}.Execute(t)
	if err != nil {
		return nvIndex{}, tpm2.TPMSNVPublic{}, err
	}
	pub, err := rsp.NVPublic.Contents()
	if err != nil {
		return nvIndex{}, tpm2.TPMSNVPublic{}, err
	}
	name, err := tpm2.NVName(pub)
	if err != nil {
		return nvIndex{}, tpm2.TPMSNVPublic{}, err
	}
	return nvIndex{h, *name}, *pub, nil
}

func (n nvIndex) auth(srk *tpm.Key, auth []byte, opts ...tpm2.AuthOption) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: n.handle, Name: n.name, Auth: srk.Session(append(opts, tpm2.Auth(auth))...)}
}

func (n nvIndex) named() tpm2.NamedHandle { return tpm2.NamedHandle{Handle: n.handle, Name: n.name} }

// defineNV defines an index in the owner hierarchy.
func defineNV(t transport.TPM, srk *tpm.Key, pub tpm2.TPMSNVPublic, owner, auth []byte) (nvIndex, error) {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: srk.Session(tpm.EncryptIn(), tpm2.Auth(owner))},
		Auth:       tpm2.TPM2BAuth{Buffer: auth},
		PublicInfo: tpm2.New2B(pub),
	}.Execute(t)
	if errors.Is(err, tpm2.TPMRCNVDefined) {
		return nvIndex{}, fmt.Errorf("NV index 0x%08x is in use: destroy the volume that has it, take another index, or set UnsafeReplaceNV", uint32(pub.NVIndex))
	}
	if err != nil {
		return nvIndex{}, sessionError(fmt.Errorf("define NV index 0x%08x: %w", uint32(pub.NVIndex), err))
	}
	name, err := tpm2.NVName(&pub)
	if err != nil {
		return nvIndex{}, err
	}
	return nvIndex{pub.NVIndex, *name}, nil
}

// undefineNV removes an index, if it is there.
func undefineNV(t transport.TPM, srk *tpm.Key, h tpm2.TPMHandle, owner []byte) error {
	idx, _, err := readIndex(t, h)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: srk.Session(tpm2.Auth(owner))},
		NVIndex:    idx.named(),
	}.Execute(t)
	if err != nil {
		return fmt.Errorf("undefine NV index 0x%08x: %w", uint32(h), err)
	}
	return nil
}

// defineCounter makes an exact counter that only who can open the volume can
// increment, and returns it after its first increment.
func (p *TPM) defineCounter(ctx context.Context, auth []byte) (info *counterInfo, err error) {
	if !isNV(p.Counter) {
		return nil, fmt.Errorf("counter 0x%08x is not an NV index", uint32(p.Counter))
	}
	err = p.do(ctx, p.pins(), func(t *tpm.Device, srk *tpm.Key) error {
		if p.UnsafeReplaceNV {
			if err := undefineNV(t, srk, p.Counter, p.OwnerAuth); err != nil {
				return err
			}
		}
		_, err := defineNV(t, srk, tpm2.TPMSNVPublic{
			NVIndex: p.Counter, NameAlg: tpm2.TPMAlgSHA256,
			Attributes: tpm2.TPMANV{AuthRead: true, AuthWrite: true, NoDA: true, NT: tpm2.TPMNTCounter},
			DataSize:   8,
		}, p.OwnerAuth, auth)
		if err != nil {
			return err
		}
		idx, _, err := readIndex(t, p.Counter)
		if err != nil {
			return err
		}
		if _, err := (tpm2.NVIncrement{AuthHandle: idx.auth(srk, auth), NVIndex: idx.named()}).Execute(t); err != nil {
			return fmt.Errorf("first increment of the counter: %w", err)
		}
		if idx, _, err = readIndex(t, p.Counter); err != nil { // the name changed
			return err
		}
		info = &counterInfo{Index: uint32(p.Counter), Name: hex.EncodeToString(idx.name.Buffer), Parent: hex.EncodeToString(srk.Name.Buffer)}
		info.Base, err = readCounter(t, srk, idx, auth)
		return err
	})
	return info, err
}

// useCounter reads the counter, increments it when step says so, and returns
// how far it is from its base.
func (p *TPM) useCounter(ctx context.Context, info *counterInfo, auth []byte, step func(value uint64) (bool, error)) (value uint64, err error) {
	parent, err := hex.DecodeString(info.Parent)
	if err != nil {
		return 0, err
	}
	err = p.do(ctx, append(p.pins(), parent), func(t *tpm.Device, srk *tpm.Key) error {
		idx, _, err := readIndex(t, tpm2.TPMHandle(info.Index))
		if errors.Is(err, tpm2.TPMRCHandle) {
			return fmt.Errorf("the counter 0x%08x is gone: %w", info.Index, ErrRollback)
		}
		if err != nil {
			return err
		}
		if hex.EncodeToString(idx.name.Buffer) != info.Name {
			return fmt.Errorf("the counter 0x%08x was replaced: %w", info.Index, ErrRollback)
		}
		abs, err := readCounter(t, srk, idx, auth)
		if err != nil {
			return err
		}
		if abs < info.Base {
			return fmt.Errorf("the counter 0x%08x is below its base: %w", info.Index, ErrRollback)
		}
		value = abs - info.Base + info.Start
		inc, err := step(value)
		if err != nil || !inc {
			return err
		}
		if _, err := (tpm2.NVIncrement{AuthHandle: idx.auth(srk, auth), NVIndex: idx.named()}).Execute(t); err != nil {
			return fmt.Errorf("increment the counter: %w", err)
		}
		value++
		return nil
	})
	return value, err
}

func readCounter(t transport.TPM, srk *tpm.Key, idx nvIndex, auth []byte) (uint64, error) {
	rsp, err := tpm2.NVRead{AuthHandle: idx.auth(srk, auth, tpm.EncryptOut()), NVIndex: idx.named(), Size: 8}.Execute(t)
	if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCNVUninitialized) {
		return 0, fmt.Errorf("the counter 0x%08x was replaced: %w (TPM: %w)", uint32(idx.handle), ErrRollback, err)
	}
	if err != nil {
		return 0, sessionError(fmt.Errorf("read the counter: %w", err))
	}
	if len(rsp.Data.Buffer) != 8 {
		return 0, fmt.Errorf("the counter has %d bytes", len(rsp.Data.Buffer))
	}
	return binary.BigEndian.Uint64(rsp.Data.Buffer), nil
}

// shareIndex picks the one of the TPM's two share indices that no slot in
// force needs. What else may be there was left by a cut.
func (p *TPM) shareIndex(t transport.TPM, srk *tpm.Key, used map[tpm2.TPMHandle]bool) (tpm2.TPMHandle, error) {
	if !isNV(p.Share) {
		return 0, fmt.Errorf("share 0x%08x is not an NV index", uint32(p.Share))
	}
	h := p.Share
	if used[h] {
		h++
	}
	if used[h] {
		return 0, fmt.Errorf("both share indices, 0x%08x and the next, are in use", uint32(p.Share))
	}
	if len(used) > 0 || p.UnsafeReplaceNV {
		return h, undefineNV(t, srk, h, p.OwnerAuth)
	}
	return h, nil
}

// writeShare stores half in NV, readable only with what is sealed.
func writeShare(t transport.TPM, srk *tpm.Key, h tpm2.TPMHandle, owner []byte, sealed, half *Secret) (*shareInfo, error) {
	auth, err := nvAuth(sealed, "share auth")
	if err != nil {
		return nil, err
	}
	defer clear(auth)
	idx, err := defineNV(t, srk, tpm2.TPMSNVPublic{
		NVIndex: h, NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{AuthRead: true, AuthWrite: true, NoDA: true, NT: tpm2.TPMNTOrdinary},
		DataSize:   secretSize,
	}, owner, auth)
	if err != nil {
		return nil, err
	}
	err = half.Use(func(b []byte) error {
		_, err := tpm2.NVWrite{AuthHandle: idx.auth(srk, auth, tpm.EncryptIn()), NVIndex: idx.named(), Data: tpm2.TPM2BMaxNVBuffer{Buffer: b}}.Execute(t)
		return err
	})
	if err == nil {
		idx, _, err = readIndex(t, h)
	}
	if err != nil {
		return nil, errors.Join(sessionError(fmt.Errorf("write the share: %w", err)), undefineNV(t, srk, h, owner))
	}
	return &shareInfo{Index: uint32(h), Name: hex.EncodeToString(idx.name.Buffer)}, nil
}

// dropShare undefines a share, if it still is the one that a slot names.
func (p *TPM) dropShare(ctx context.Context, info *shareInfo) error {
	return p.do(ctx, p.pins(), func(t *tpm.Device, srk *tpm.Key) error {
		idx, _, err := readIndex(t, tpm2.TPMHandle(info.Index))
		if errors.Is(err, tpm2.TPMRCHandle) || (err == nil && hex.EncodeToString(idx.name.Buffer) != info.Name) {
			return nil
		}
		if err != nil {
			return err
		}
		return undefineNV(t, srk, tpm2.TPMHandle(info.Index), p.OwnerAuth)
	})
}

// retire implements retirer.
func (p *TPM) retire(ctx context.Context, s Slot, b Binding) error {
	var d tpmData
	if err := strictJSON(s.Data, &d); err != nil {
		return err
	}
	var errs []error
	if i := d.Revocation; i != nil {
		errs = append(errs, p.revoke(ctx, i, b.notes != nil && b.notes.counters[tpm2.TPMHandle(i.Index)]))
	}
	if d.Share != nil && !isNV(tpm2.TPMHandle(d.Share.Index)) {
		errs = append(errs, ErrTampered)
	} else if d.Share != nil {
		errs = append(errs, p.dropShare(ctx, d.Share))
	}
	return errors.Join(errs...)
}

// readShare completes sealed with the half that is in NV.
func readShare(t transport.TPM, srk *tpm.Key, info *shareInfo, sealed *Secret) error {
	h := tpm2.TPMHandle(info.Index)
	if !isNV(h) {
		return fmt.Errorf("slot names share 0x%08x: %w", info.Index, ErrTampered)
	}
	gone := func(err error) error {
		return fmt.Errorf("the share in NV index 0x%08x was destroyed or replaced: %w (TPM: %w)", info.Index, ErrRevoked, err)
	}
	idx, _, err := readIndex(t, h)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return gone(err)
	}
	if err != nil {
		return err
	}
	auth, err := nvAuth(sealed, "share auth")
	if err != nil {
		return err
	}
	defer clear(auth)
	rsp, err := tpm2.NVRead{AuthHandle: idx.auth(srk, auth, tpm.EncryptOut()), NVIndex: idx.named(), Size: secretSize}.Execute(t)
	if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCNVUninitialized) {
		return gone(err)
	}
	if err != nil {
		return sessionError(fmt.Errorf("read the share: %w", err))
	}
	half, err := NewSecret(rsp.Data.Buffer)
	if err != nil {
		return err
	}
	defer half.Erase()
	return sealed.xor(half)
}
