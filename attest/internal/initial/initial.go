// Package initial has the TCG's templates of initial keys, IAK and IDevID, and
// satisfies their policy (TCG TPM 2.0 Keys for Device Identity and Attestation
// 1.0, sections 7.3.4 to 7.3.6).
//
// The policy guards what takes the ADMIN role: TPM2_ActivateCredential and
// TPM2_Certify of the key itself. It is PolicyOR of four branches, of which
// the second and the third are for these two commands.
package initial

import (
	"crypto"
	_ "crypto/sha256" // hash of the P-256 templates
	_ "crypto/sha512" // of the P-384 ones
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// The NV indices that the policies' fourth branch names hold a policy of the
// machine's maker, for keys that can be recovered (section 7.3.2). Their public
// area is part of the branch (section 7.3.5.1).
const (
	indexIDevID = 0x01C90010
	indexIAK    = 0x01C90018
	// Written, policy write, write all, no dictionary attack, read by platform,
	// owner, auth value and policy.
	indexAttributes = 0x220F1008
)

// Kind is one of the two kinds of initial keys.
type Kind string

// The kinds, by the content of their templates' unique field.
const (
	IAK    Kind = "IAK"    // attestation key: signs what its TPM made
	IDevID Kind = "IDEVID" // device identity: signs anything
)

// Template returns the template of a key for a curve, P-256 or P-384: a primary
// of the endorsement hierarchy.
func (k Kind) Template(curve tpm2.TPMECCCurve) (tpm2.TPMTPublic, error) {
	var hash tpm2.TPMAlgID
	switch curve {
	case tpm2.TPMECCNistP256:
		hash = tpm2.TPMAlgSHA256
	case tpm2.TPMECCNistP384:
		hash = tpm2.TPMAlgSHA384
	default:
		return tpm2.TPMTPublic{}, fmt.Errorf("curve %v: want P-256 or P-384", curve)
	}
	param := tpm2.TPM2BECCParameter{Buffer: []byte(k)}
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: hash, AuthPolicy: tpm2.TPM2BDigest{Buffer: k.policy(hash)},
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, AdminWithPolicy: true,
			Restricted: k == IAK, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: curve,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
			},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: param, Y: param}),
	}, nil
}

// branches are the policy's alternatives in order: PolicySecret(endorsement),
// that and PolicyCommandCode of TPM2_Certify, that and PolicyCommandCode of
// TPM2_ActivateCredential, PolicyAuthorizeNV.
func (k Kind) branches(alg tpm2.TPMAlgID) [][]byte {
	hash := tpm.Hash(alg)
	digest := func(parts ...[]byte) []byte {
		h := hash.New()
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	zero := make([]byte, hash.Size())
	secret := digest(digest(zero, u32(uint32(tpm2.TPMCCPolicySecret)), u32(uint32(tpm2.TPMRHEndorsement))))
	command := func(cc tpm2.TPMCC) []byte {
		return digest(secret, u32(uint32(tpm2.TPMCCPolicyCommandCode)), u32(uint32(cc)))
	}
	size := uint16(2 + hash.Size()) // algorithm and digest
	index := uint32(indexIDevID)
	if k == IAK {
		index = indexIAK
	}
	nv := u32(index + map[crypto.Hash]uint32{crypto.SHA256: 0, crypto.SHA384: 1}[hash])
	nv = binary.BigEndian.AppendUint16(nv, uint16(alg))
	nv = append(nv, u32(indexAttributes)...)
	nv = binary.BigEndian.AppendUint16(nv, uint16(len(secret))) // who may write it
	nv = append(nv, secret...)
	nv = binary.BigEndian.AppendUint16(nv, size)
	name := append(binary.BigEndian.AppendUint16(nil, uint16(alg)), digest(nv)...)
	return [][]byte{
		secret, command(tpm2.TPMCCCertify), command(tpm2.TPMCCActivateCredential),
		digest(zero, u32(uint32(tpm2.TPMCCPolicyAuthorizeNV)), name),
	}
}

func (k Kind) policy(alg tpm2.TPMAlgID) []byte {
	h := tpm.Hash(alg).New()
	h.Write(make([]byte, h.Size()))
	h.Write(u32(uint32(tpm2.TPMCCPolicyOR)))
	for _, b := range k.branches(alg) {
		h.Write(b)
	}
	return h.Sum(nil)
}

// Authorise starts a policy session that authorises one command in the ADMIN
// role of a loaded key of this kind: TPM2_Certify of it, or
// TPM2_ActivateCredential. The endorsement hierarchy's auth value must be
// empty. The caller closes the session on every path.
func (k Kind) Authorise(t transport.TPM, key *tpm.Key, command tpm2.TPMCC) (sess tpm2.Session, done func() error, err error) {
	alg := key.Public.NameAlg
	sess, done, err = tpm2.PolicySession(t, alg, 16)
	if err != nil {
		return nil, nil, fmt.Errorf("policy session: %w", err)
	}
	fail := func(err error) (tpm2.Session, func() error, error) {
		_ = done() // the first error tells more
		return nil, nil, fmt.Errorf("policy of an initial key: %w", err)
	}
	if _, err := (tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: sess.Handle(), NonceTPM: sess.NonceTPM(),
	}).Execute(t); err != nil {
		return fail(err)
	}
	if _, err := (tpm2.PolicyCommandCode{PolicySession: sess.Handle(), Code: command}).Execute(t); err != nil {
		return fail(err)
	}
	var list tpm2.TPMLDigest
	for _, b := range k.branches(alg) {
		list.Digests = append(list.Digests, tpm2.TPM2BDigest{Buffer: b})
	}
	if _, err := (tpm2.PolicyOr{PolicySession: sess.Handle(), PHashList: list}).Execute(t); err != nil {
		return fail(err)
	}
	return sess, done, nil
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
