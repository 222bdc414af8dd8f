package bootpolicy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/internal/tpm"
)

// authority is a public key whose signatures approve policies in the TPM.
type authority struct {
	key    crypto.PublicKey
	public tpm2.TPMTPublic
	name   []byte
	fp     string // systemd's pkfp
}

// newAuthority returns the key as systemd loads it into the TPM (tpm2-util.c,
// tpm2_tpm2b_public_from_openssl_pkey), so that names and policies agree. RSA
// of 2048 to 4096 bits, and ECDSA on P-256 and P-384.
func newAuthority(key crypto.PublicKey) (*authority, error) {
	a := &authority{key: key, public: tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{Decrypt: true, SignEncrypt: true, UserWithAuth: true}}}
	var fp []byte
	switch k := key.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits != 2048 && bits != 3072 && bits != 4096 {
			return nil, fmt.Errorf("bootpolicy: RSA key of %d bits, want 2048, 3072 or 4096", bits)
		}
		a.public.Type = tpm2.TPMAlgRSA
		a.public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: tpm2.TPMKeyBits(k.N.BitLen()), Exponent: uint32(k.E), // spelled out, not 0, as systemd does: it is part of the name

			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}, Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull}})
		a.public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
		fp = x509.MarshalPKCS1PublicKey(k)
	case *ecdsa.PublicKey:
		curve := map[elliptic.Curve]tpm2.TPMECCCurve{elliptic.P256(): tpm2.TPMECCNistP256, elliptic.P384(): tpm2.TPMECCNistP384}[k.Curve]
		if curve == 0 {
			return nil, fmt.Errorf("bootpolicy: ECDSA key on %s, want P-256 or P-384", k.Params().Name)
		}
		point, err := k.Bytes() // 4 ‖ x ‖ y
		if err != nil {
			return nil, fmt.Errorf("bootpolicy: %w", err)
		}
		half := len(point) / 2
		a.public.Type = tpm2.TPMAlgECC
		a.public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve,
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}, Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
			KDF: tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull}})
		a.public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+half]}, Y: tpm2.TPM2BECCParameter{Buffer: point[1+half:]}})
		var err2 error
		if fp, err2 = x509.MarshalPKIXPublicKey(k); err2 != nil {
			return nil, fmt.Errorf("bootpolicy: %w", err2)
		}
	default:
		return nil, fmt.Errorf("bootpolicy: key of type %T, want RSA or ECDSA", key)
	}
	name, err := tpm2.ObjectName(&a.public)
	if err != nil {
		return nil, fmt.Errorf("bootpolicy: name of the key: %w", err)
	}
	a.name = name.Buffer
	sum := sha256.Sum256(fp)
	a.fp = fmt.Sprintf("%x", sum)
	return a, nil
}

// digest is the policy digest of TPM2_PolicyAuthorize (part 3, section 23.16).
func (a *authority) digest(ref []byte) []byte {
	d := extend(make([]byte, sha256.Size), tpm2.TPMCCPolicyAuthorize, a.name)
	h := sha256.New()
	h.Write(d)
	h.Write(ref)
	return h.Sum(nil)
}

// sign approves a policy digest: the signature is over H(digest ‖ ref), PKCS#1
// v1.5 or ECDSA in DER, with SHA-256.
func sign(s crypto.Signer, digest, ref []byte) ([]byte, error) {
	h := sha256.Sum256(append(append([]byte(nil), digest...), ref...))
	sig, err := s.Sign(rand.Reader, h[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("bootpolicy: sign: %w", err)
	}
	return sig, nil
}

// verify checks a signature made by sign, without a TPM.
func (a *authority) verify(digest, ref, sig []byte) bool {
	h := sha256.Sum256(append(append([]byte(nil), digest...), ref...))
	switch k := a.key.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, h[:], sig) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, h[:], sig)
	}
	return false
}

// authorize runs LoadExternal, VerifySignature and PolicyAuthorize for a
// session that has reached digest.
func (a *authority) authorize(t transport.TPM, session tpm2.TPMISHPolicy, digest, ref, sig []byte) (err error) {
	tsig, err := a.signature(sig)
	if err != nil {
		return err
	}
	key, err := tpm2.LoadExternal{InPublic: tpm2.New2B(a.public), Hierarchy: tpm2.TPMRHOwner}.Execute(t)
	if err != nil {
		return fmt.Errorf("bootpolicy: load the policy key: %w", err)
	}
	defer func() { err = errors.Join(err, tpm.Flush(t, key.ObjectHandle)) }()
	h := sha256.Sum256(append(append([]byte(nil), digest...), ref...))
	ticket, err := tpm2.VerifySignature{KeyHandle: tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name},
		Digest: tpm2.TPM2BDigest{Buffer: h[:]}, Signature: tsig}.Execute(t)
	if err != nil {
		return fmt.Errorf("%w: signature: %w", ErrNotSatisfied, err)
	}
	_, err = tpm2.PolicyAuthorize{PolicySession: session, ApprovedPolicy: tpm2.TPM2BDigest{Buffer: digest}, PolicyRef: tpm2.TPM2BDigest{Buffer: ref},
		KeySign: tpm2.TPM2BName{Buffer: a.name}, CheckTicket: ticket.Validation}.Execute(t)
	if err != nil {
		return fmt.Errorf("%w: PolicyAuthorize: %w", ErrNotSatisfied, err)
	}
	return nil
}

// signature converts a signature to the TPM's form.
func (a *authority) signature(sig []byte) (tpm2.TPMTSignature, error) {
	if _, ok := a.key.(*rsa.PublicKey); ok {
		return tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
			&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}})}, nil
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(sig, &rs); err != nil || len(rest) > 0 || rs.R.Sign() <= 0 || rs.S.Sign() <= 0 {
		return tpm2.TPMTSignature{}, errors.New("bootpolicy: ECDSA signature is malformed")
	}
	return tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA,
		&tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: rs.R.Bytes()},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: rs.S.Bytes()}})}, nil
}
