package attest

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/ekimport"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/internal/tpm"
)

// BeginImport opens an enrolment in one round trip, for a TPM whose EK
// certificate the owner has already, from an inventory or an earlier contact:
// only that TPM can answer. token, which may be nil, is what Admit sees. Errors
// are those of Begin.
func (r *Registrar) BeginImport(ctx context.Context, ekCertificates [][]byte, token []byte) (*ekimport.Challenge, error) {
	if err := r.made(); err != nil {
		return nil, err
	}
	c, err := r.beginImport(ctx, ekCertificates, token)
	if err != nil {
		r.c.Log.WarnContext(ctx, "enrolment refused", "event", "attest.enroll-refused", "step", "begin-import", "error", err.Error())
	}
	return c, err
}

func (r *Registrar) beginImport(ctx context.Context, ekCertificates [][]byte, token []byte) (*ekimport.Challenge, error) {
	var f fields
	f.certificates(ekCertificates)
	f.size("token", token, 0, maxToken)
	if f.err != nil {
		return nil, reason.Because(f.code, fmt.Errorf("%w: %w", ErrMalformed, f.err))
	}
	now := r.c.Now()
	en, err := r.c.Endorsers.Verify(ekCertificates, now)
	if err != nil {
		return nil, err
	}
	if _, err := r.entry(ctx, en, nil); err != nil && !errors.Is(err, ErrBound) { // which key it is bound to shows at the end
		return nil, err
	}
	if err := r.c.Admit(ctx, Applicant{Endorsement: en, Token: token}); err != nil {
		return nil, fmt.Errorf("%w: device %s: %w", ErrNotAdmitted, en.device, err)
	}
	t, err := templateOf(en.cert.PublicKey)
	if err != nil {
		return nil, err
	}
	parent, err := t.public(en.cert.PublicKey)
	if err != nil {
		return nil, err
	}
	im, key, err := ekimport.New(parent)
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	defer clear(key)
	p := pending{
		Version: messageVersion, Purpose: purposeImport, Device: en.device, Nonce: newNonce(),
		Expires: now.Add(r.c.ChallengeTTL), Chain: ekCertificates, Token: token, ImportKey: key,
	}
	id, err := r.put(ctx, p)
	if err != nil {
		return nil, err
	}
	return &ekimport.Challenge{
		Version: messageVersion, ID: id, Device: en.device, Nonce: p.Nonce, Public: im.Public, Duplicate: im.Duplicate, Seed: im.Seed, Expires: p.Expires,
	}, nil
}

// CompleteImport is Complete for an answer to BeginImport. The attestation key
// must be a primary key of the endorsement hierarchy. The challenge is used up
// whatever the outcome. Errors are those of Complete; an HMAC that is not of
// the imported key is ErrActivation.
func (r *Registrar) CompleteImport(ctx context.Context, rsp *ekimport.Response) (*Enrollment, error) {
	if err := r.made(); err != nil {
		return nil, err
	}
	e, err := r.completeImport(ctx, rsp)
	if err != nil {
		r.c.Log.WarnContext(ctx, "enrolment refused", "event", "attest.enroll-refused", "step", "complete-import", "error", err.Error())
		return nil, err
	}
	r.c.Log.InfoContext(ctx, "device enrolled", "event", "attest.enrolled", "device", e.Device.String(), "expires", e.Expires)
	return e, nil
}

func (r *Registrar) completeImport(ctx context.Context, rsp *ekimport.Response) (*Enrollment, error) {
	if err := check(rsp); err != nil {
		return nil, err
	}
	now := r.c.Now()
	p, err := takePending(ctx, r.c.Challenges, rsp.ID, purposeImport, now)
	if err != nil {
		return nil, err
	}
	defer clear(p.ImportKey)
	csr, err := parseCSR(rsp.CSR)
	if err != nil {
		return nil, err
	}
	binding := enrollBinding(purposeImport, p.Device, p.Nonce, spkiOf(csr.RawSubjectPublicKeyInfo))
	ak, primary, err := quote.VerifyImported(p.ImportKey, rsp.AKCertify, rsp.AKSignature, rsp.AKPublic, binding)
	if errors.Is(err, quote.ErrSignature) {
		return nil, reason.Because(reason.WrongSecret, fmt.Errorf("%w: the attestation key is not certified by the imported key", ErrActivation))
	}
	if err != nil {
		return nil, err
	}
	if !primary {
		return nil, reason.Because(reason.NotPrimary, fmt.Errorf("%w: the attestation key is not a primary key of the endorsement hierarchy", quote.ErrKey))
	}
	p.AKPublic = rsp.AKPublic
	return r.admit(ctx, p, ak, rsp.KeyPublic, rsp.Certify, rsp.Signature, rsp.CSR, now)
}

// Import answers the cloud's import challenge: the TPM imports the HMAC key,
// which only it can, and certifies the attestation key with it; that one
// certifies the TLS key. Nothing that passes the bus is secret. Errors are
// ErrMalformed, ErrChallenge when the challenge is for another device,
// ekimport.ErrNotHMACKey, ErrActivation when the TPM can't import the key, and
// those of the TPM.
func (n *Node) Import(ctx context.Context, c *ekimport.Challenge, key *DeviceKey) (*ekimport.Response, error) {
	if err := check(c); err != nil {
		return nil, err
	}
	if c.Device != n.device {
		return nil, reason.Because(reason.OtherDevice, fmt.Errorf("%w: it is for device %s, this is %s", ErrChallenge, c.Device, n.device))
	}
	if err := ekimport.Check(c.Public); err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	public := tpm2.BytesAs2B[tpm2.TPMTPublic](c.Public)
	spki, err := key.spki()
	if err != nil {
		return nil, err
	}
	binding := enrollBinding(purposeImport, n.device, c.Nonce, spki)
	rsp := &ekimport.Response{Version: messageVersion, ID: c.ID, AKPublic: append([]byte(nil), n.akPub...), KeyPublic: tpm2.Marshal(key.pub)}
	err = n.do(ctx, func(d *tpm.Device) (err error) {
		hmac, err := n.importKey(d, c, public)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, hmac.Flush()) }()
		return n.withAK(d, func(ak *tpm.Key) error {
			if err := n.withAdmin(d, ak, tpm2.TPMCCCertify, func(admin tpm2.AuthHandle) (err error) {
				rsp.AKCertify, rsp.AKSignature, err = certify(d, admin, hmac, binding)
				return err
			}); err != nil {
				return err
			}
			rsp.Certify, rsp.Signature, err = certify(d, tpm2.AuthHandle{Handle: key.handle, Name: key.name, Auth: tpm2.PasswordAuth(nil)}, ak, binding)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if rsp.CSR, err = key.CSR(); err != nil {
		return nil, err
	}
	return rsp, nil
}

// importKey has the TPM import the HMAC key below the endorsement key and
// loads it. Flush it.
func (n *Node) importKey(d *tpm.Device, c *ekimport.Challenge, public tpm2.TPM2BPublic) (hmac *tpm.Key, err error) {
	err = n.withEK(d, func(ek *tpm.Key) error {
		var private tpm2.TPM2BPrivate
		err := n.authorised(d, ek, func(auth tpm2.Session) error {
			r, err := tpm2.Import{
				ParentHandle: ek.Auth(auth), ObjectPublic: public, Duplicate: tpm2.TPM2BPrivate{Buffer: c.Duplicate},
				InSymSeed: tpm2.TPM2BEncryptedSecret{Buffer: c.Seed}, Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
			}.Execute(d)
			if err != nil {
				return reason.Because(reason.OtherTPM, fmt.Errorf("%w: %w", ErrActivation, err))
			}
			private = r.OutPrivate
			return nil
		})
		if err != nil {
			return err
		}
		return n.authorised(d, ek, func(auth tpm2.Session) error {
			hmac, err = tpm.Load(d, ek, auth, private, public)
			return err
		})
	})
	if err != nil {
		return nil, errors.Join(err, hmac.Flush())
	}
	return hmac, nil
}

// certify has one key certify another.
func certify(d *tpm.Device, object tpm2.AuthHandle, by *tpm.Key, qualifying []byte) (attested, signature []byte, err error) {
	r, err := tpm2.Certify{
		ObjectHandle: object, SignHandle: by.Auth(nil), QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(d)
	if err != nil {
		return nil, nil, fmt.Errorf("attest: certify key: %w", err)
	}
	return r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature), nil
}
