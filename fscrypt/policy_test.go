package fscrypt_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/tpm"
)

// literal is a boot policy of literal PCR values.
type literal struct{ values map[int][]byte }

func (l *literal) PCRs() (crypto.Hash, map[int][]byte) { return crypto.SHA256, l.values }

func (l *literal) command(session tpm2.TPMISHPolicy) tpm2.PolicyPCR {
	var pcrs []int
	for n := range l.values {
		pcrs = append(pcrs, n)
	}
	slices.Sort(pcrs)
	h := sha256.New()
	for _, n := range pcrs {
		h.Write(l.values[n])
	}
	sel, err := tpm.Selection(crypto.SHA256, pcrs)
	if err != nil {
		panic(err)
	}
	return tpm2.PolicyPCR{PolicySession: session, PcrDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)}, Pcrs: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{sel}}}
}

func (l *literal) Digest() []byte {
	c, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		panic(err)
	}
	if err := l.command(0).Update(c); err != nil {
		panic(err)
	}
	return c.Hash().Digest
}

func (l *literal) Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
	_, err := l.command(session).Execute(t)
	return err
}

// authority signs boot policies for a fleet.
type authority struct {
	key *ecdsa.PrivateKey
	pub tpm2.TPMTPublic
}

func newAuthority(t testing.TB) *authority {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	xy, err := k.PublicKey.Bytes()
	require.NoError(t, err)
	return &authority{k, tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: xy[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: xy[33:]}}),
	}}
}

// signed is a boot policy that an authority approved (PolicyAuthorize), valid
// while the floor in NV is at most its version.
type signed struct {
	*literal
	by      *authority
	ref     []byte
	sig     []byte
	floor   *floor
	version uint64
}

// floor is an NV index that holds the least version still approved.
type floor struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
}

func (a *authority) approve(t testing.TB, l *literal, ref string, f *floor, version uint64) *signed {
	s := &signed{literal: l, by: a, ref: []byte(ref), floor: f, version: version}
	h := sha256.New()
	h.Write(s.branch())
	h.Write(s.ref)
	var err error
	s.sig, err = ecdsa.SignASN1(rand.Reader, a.key, h.Sum(nil))
	require.NoError(t, err)
	return s
}

func (s *signed) nv(session tpm2.TPMISHPolicy) tpm2.PolicyNV {
	return tpm2.PolicyNV{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:       tpm2.NamedHandle{Handle: s.floor.handle, Name: s.floor.name},
		PolicySession: session,
		OperandB:      tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, s.version)},
		Operation:     tpm2.TPMEOUnsignedLE,
	}
}

// branch is the digest that the authority signs.
func (s *signed) branch() []byte {
	c, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		panic(err)
	}
	if err := s.command(0).Update(c); err != nil {
		panic(err)
	}
	if s.floor != nil {
		if err := s.nv(0).Update(c); err != nil {
			panic(err)
		}
	}
	return c.Hash().Digest
}

func (s *signed) keyName() tpm2.TPM2BName {
	n, err := tpm2.ObjectName(&s.by.pub)
	if err != nil {
		panic(err)
	}
	return *n
}

func (s *signed) Digest() []byte {
	c, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		panic(err)
	}
	if err := (tpm2.PolicyAuthorize{PolicyRef: tpm2.TPM2BDigest{Buffer: s.ref}, KeySign: s.keyName()}).Update(c); err != nil {
		panic(err)
	}
	return c.Hash().Digest
}

func (s *signed) Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	if err := s.literal.Satisfy(t, session, nonce); err != nil {
		return err
	}
	if s.floor != nil {
		if _, err := s.nv(session).Execute(t); err != nil {
			return err
		}
	}
	loaded, err := tpm2.LoadExternal{InPublic: tpm2.New2B(s.by.pub), Hierarchy: tpm2.TPMRHOwner}.Execute(t)
	if err != nil {
		return err
	}
	defer tpm.Flush(t, loaded.ObjectHandle)
	digest := sha256.Sum256(append(slices.Clone(s.branch()), s.ref...))
	r, ss := parseSignature(s.sig)
	ticket, err := tpm2.VerifySignature{
		KeyHandle: loaded.ObjectHandle,
		Digest:    tpm2.TPM2BDigest{Buffer: digest[:]},
		Signature: tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r}, SignatureS: tpm2.TPM2BECCParameter{Buffer: ss},
		})},
	}.Execute(t)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession: session, ApprovedPolicy: tpm2.TPM2BDigest{Buffer: s.branch()},
		PolicyRef: tpm2.TPM2BDigest{Buffer: s.ref}, KeySign: s.keyName(), CheckTicket: ticket.Validation,
	}.Execute(t)
	return err
}

// defineFloor makes the floor's index in a TPM, at version 1.
func defineFloor(t testing.TB, dev transport.TPM, h tpm2.TPMHandle) *floor {
	pub := tpm2.TPMSNVPublic{NVIndex: h, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NT: tpm2.TPMNTOrdinary}}
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	_, err := tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(pub)}.Execute(dev)
	require.NoError(t, err)
	f := &floor{handle: h}
	f.set(t, dev, 1)
	return f
}

func (f *floor) set(t testing.TB, dev transport.TPM, v uint64) {
	f.read(t, dev)
	_, err := tpm2.NVWrite{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: f.handle, Name: f.name},
		Data:       tpm2.TPM2BMaxNVBuffer{Buffer: binary.BigEndian.AppendUint64(nil, v)},
	}.Execute(dev)
	require.NoError(t, err)
	f.read(t, dev)
}

func (f *floor) read(t testing.TB, dev transport.TPM) {
	rsp, err := tpm2.NVReadPublic{NVIndex: f.handle}.Execute(dev)
	require.NoError(t, err)
	f.name = rsp.NVName
}
