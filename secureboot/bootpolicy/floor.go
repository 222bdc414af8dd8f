package bootpolicy

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// Layout of the index: a TPMT_HA that PolicyAuthorizeNV reads, and the version
// that the next write must exceed.
const (
	versionOffset = 2 + sha256.Size
	floorSize     = versionOffset + 8
)

// writeRef keeps the authority's approvals of writes apart from everything else
// that its key may sign.
var writeRef = []byte("trusttree policy floor write v1")

// Floor is an NV index that holds the digest of the policy in force and its
// version. Only writes that the authority's key approved are possible, each
// for one digest and one version, and only upwards: an older approval does not
// work again. Who holds the owner's authorisation can undefine the index, and
// set it up again from an old approval: take the index's owner authorisation
// out of the node's hands (TPM2_HierarchyChangeAuth) at enrolment.
type Floor struct {
	index tpm2.TPMHandle
	auth  *authority
}

// NewFloor describes the index at a handle. The fleet's is 0x01800120.
func NewFloor(index tpm2.TPMHandle, authority crypto.PublicKey) (*Floor, error) {
	if index>>24 != 0x01 {
		return nil, fmt.Errorf("bootpolicy: 0x%08x is no NV index", uint32(index))
	}
	a, err := newAuthority(authority)
	if err != nil {
		return nil, err
	}
	return &Floor{index, a}, nil
}

// public is the index's public area before or after its first write.
func (f *Floor) public(written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{NVIndex: f.index, NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{PolicyWrite: true, AuthRead: true, OwnerRead: true, NoDA: true, NT: tpm2.TPMNTOrdinary, Written: written},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: f.auth.digest(writeRef)}, DataSize: floorSize}
}

func (f *Floor) handle(written bool) (tpm2.NamedHandle, error) {
	p := f.public(written)
	name, err := tpm2.NVName(&p)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("bootpolicy: name of the index: %w", err)
	}
	return tpm2.NamedHandle{Handle: f.index, Name: *name}, nil
}

// Define makes the index. ownerAuth is the owner hierarchy's authorisation
// value; nil when it is empty.
func (f *Floor) Define(ctx context.Context, t transport.TPM, ownerAuth []byte) error {
	return tpm.Wrap(t).Do(ctx, func(d *tpm.Device) error {
		_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(ownerAuth)},
			PublicInfo: tpm2.New2B(f.public(false))}.Execute(d)
		if err != nil {
			return fmt.Errorf("bootpolicy: define NV index 0x%08x: %w", uint32(f.index), err)
		}
		return nil
	})
}

// approval is what the authority signs. It is not secret.
type approval struct {
	FormatVersion int    `json:"version"`
	First         bool   `json:"first"`         // for the first write of an index, not for later ones
	Policy        []byte `json:"policy"`        // digest of the policy that comes into force
	Generation    uint64 `json:"policyVersion"` // must exceed the one in the index
	Signature     []byte `json:"signature"`
}

// maxApproval bounds an approval's JSON, in bytes.
const maxApproval = 8192

// Approve lets the authority bring a policy into force as a version above 0,
// without a TPM. first is for an index that was never written: make one
// approval of each kind, nodes may be in either state.
func (f *Floor) Approve(key crypto.Signer, p Policy, version uint64, first bool) ([]byte, error) {
	if version == 0 {
		return nil, errors.New("bootpolicy: version 0 can't be approved")
	}
	a := approval{FormatVersion: 1, First: first, Policy: p.Digest(), Generation: version}
	digest, err := f.writeDigest(&a)
	if err != nil {
		return nil, err
	}
	if a.Signature, err = sign(key, digest, writeRef); err != nil {
		return nil, err
	}
	if !f.auth.verify(digest, writeRef, a.Signature) {
		return nil, errors.New("bootpolicy: signer is not the floor's authority")
	}
	return json.Marshal(a)
}

// write is the command that an approval allows, and no other.
func (f *Floor) write(a *approval) (h tpm2.NamedHandle, cmd tpm2.NVWrite, err error) {
	if h, err = f.handle(!a.First); err != nil {
		return h, cmd, err
	}
	data := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256))
	data = append(data, a.Policy...)
	data = binary.BigEndian.AppendUint64(data, a.Generation)
	return h, tpm2.NVWrite{AuthHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name}, NVIndex: h, Data: tpm2.TPM2BMaxNVBuffer{Buffer: data}}, nil
}

// writeDigest is the policy that the authority approves: this very command
// (PolicyCpHash), and either a version in the index below the new one
// (PolicyNV) or an index never written (PolicyNvWritten).
func (f *Floor) writeDigest(a *approval) ([]byte, error) {
	h, cmd, err := f.write(a)
	if err != nil {
		return nil, err
	}
	cp, err := tpm2.CPHash(tpm2.TPMAlgSHA256, cmd)
	if err != nil {
		return nil, fmt.Errorf("bootpolicy: cpHash: %w", err)
	}
	d := make([]byte, sha256.Size)
	if a.First {
		d = extend(d, tpm2.TPMCCPolicyNvWritten, []byte{0})
	} else {
		args := sha256.New()
		args.Write(binary.BigEndian.AppendUint64(nil, a.Generation))
		args.Write(binary.BigEndian.AppendUint16(nil, versionOffset))
		args.Write(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMEOUnsignedLT)))
		d = extend(d, tpm2.TPMCCPolicyNV, args.Sum(nil), h.Name.Buffer)
	}
	return extend(d, tpm2.TPMCCPolicyCpHash, cp.Buffer), nil
}

// Write carries out an approval that Approve made. It wraps ErrNotSatisfied
// when the TPM refuses: an older version, an approval for the other state of
// the index, or a signature that is not the authority's.
func (f *Floor) Write(ctx context.Context, t transport.TPM, approved []byte) error {
	var a approval
	dec := json.NewDecoder(bytes.NewReader(approved))
	dec.DisallowUnknownFields()
	if len(approved) > maxApproval {
		return fmt.Errorf("bootpolicy: approval of %d bytes, limit %d", len(approved), maxApproval)
	}
	if err := dec.Decode(&a); err != nil {
		return fmt.Errorf("bootpolicy: approval: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) || a.FormatVersion != 1 || len(a.Policy) != sha256.Size {
		return errors.New("bootpolicy: approval: malformed, or of another version than 1")
	}
	digest, err := f.writeDigest(&a)
	if err != nil {
		return err
	}
	if !f.auth.verify(digest, writeRef, a.Signature) {
		return fmt.Errorf("%w: approval has a wrong signature", ErrNotSatisfied)
	}
	return tpm.Wrap(t).Do(ctx, func(d *tpm.Device) error { return f.carryOut(d, &a, digest) })
}

func (f *Floor) carryOut(d *tpm.Device, a *approval, digest []byte) (err error) {
	h, cmd, err := f.write(a)
	if err != nil {
		return err
	}
	cp, err := tpm2.CPHash(tpm2.TPMAlgSHA256, cmd)
	if err != nil {
		return fmt.Errorf("bootpolicy: cpHash: %w", err)
	}
	session, closer, err := tpm.UnsaltedPolicySession(d)
	if err != nil {
		return fmt.Errorf("bootpolicy: policy session: %w", err)
	}
	defer func() { err = errors.Join(err, closer()) }()
	if a.First {
		_, err = tpm2.PolicyNVWritten{PolicySession: session.Handle(), WrittenSet: false}.Execute(d)
	} else {
		_, err = tpm2.PolicyNV{AuthHandle: tpm2.AuthHandle{Handle: f.index, Name: h.Name, Auth: tpm2.PasswordAuth(nil)},
			NVIndex: h, PolicySession: session.Handle(), OperandB: tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, a.Generation)},
			Offset: versionOffset, Operation: tpm2.TPMEOUnsignedLT}.Execute(d)
	}
	if err != nil {
		return fmt.Errorf("%w: version %d is not above the one in the index, or the index is not in the state of this approval: %w", ErrNotSatisfied, a.Generation, err)
	}
	if _, err := (tpm2.PolicyCPHash{PolicySession: session.Handle(), CPHashA: *cp}).Execute(d); err != nil {
		return fmt.Errorf("bootpolicy: PolicyCpHash: %w", err)
	}
	if err := f.auth.authorize(d, session.Handle(), digest, writeRef, a.Signature); err != nil {
		return err
	}
	cmd.AuthHandle = tpm2.AuthHandle{Handle: f.index, Name: h.Name, Auth: session}
	if _, err := cmd.Execute(d); err != nil {
		return fmt.Errorf("%w: NV_Write: %w", ErrNotSatisfied, err)
	}
	return nil
}

// AuthorizeNV returns the policy that the floor's index demands: whichever
// policy it names now must hold (TPM2_PolicyAuthorizeNV). inForce is that
// policy, with what Satisfy needs; its digest takes no part in this one's, so
// that a new one needs no sealing. An inForce that the index does not name (any
// more) does not satisfy it.
func (f *Floor) AuthorizeNV(inForce Policy) (Policy, error) {
	h, err := f.handle(true)
	if err != nil {
		return nil, err
	}
	if inForce == nil {
		return nil, errors.New("bootpolicy: AuthorizeNV without a policy")
	}
	return &authorizeNV{h, inForce}, nil
}

type authorizeNV struct {
	index   tpm2.NamedHandle
	inForce Policy
}

func (a *authorizeNV) Digest() []byte {
	return extend(make([]byte, sha256.Size), tpm2.TPMCCPolicyAuthorizeNV, a.index.Name.Buffer)
}

func (a *authorizeNV) PCRs() (crypto.Hash, map[int][]byte) { return a.inForce.PCRs() }

func (a *authorizeNV) Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	if err := a.inForce.Satisfy(t, session, nonce); err != nil {
		return err
	}
	_, err := tpm2.PolicyAuthorizeNV{AuthHandle: tpm2.AuthHandle{Handle: a.index.Handle, Name: a.index.Name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex: a.index, PolicySession: session}.Execute(t)
	if err != nil {
		return fmt.Errorf("%w: the policy floor names another policy, or was never written: %w", ErrNotSatisfied, err)
	}
	return nil
}
