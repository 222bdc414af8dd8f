package devid

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"math/big"

	"encoding/asn1"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/attest/internal/initial"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/internal/tpm"
)

// Key is an initial key in a TPM: the maker's attestation key (IAK) or device
// identity (IDevID). It is a primary key of the endorsement hierarchy, made
// again for each use, so that it takes no slot and outlives TPM2_Clear. It is
// safe for concurrent use.
type Key struct {
	dev    *tpm.Device
	public tpm2.TPMTPublic // the template
	name   []byte
	tpmt   []byte
	key    *ecdsa.PublicKey
}

// Open returns the key that a template makes (IAK or IDevID). The endorsement
// hierarchy's auth value must be empty.
func Open(ctx context.Context, t transport.TPM, template tpm2.TPMTPublic) (*Key, error) {
	k := &Key{dev: tpm.Wrap(t), public: template}
	err := k.dev.Do(ctx, func(d *tpm.Device) (err error) {
		made, err := tpm.CreatePrimary(d, tpm2.TPMRHEndorsement, nil, template)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, made.Flush()) }()
		pub, err := tpm2.Pub(made.Public)
		if err != nil {
			return err
		}
		var ok bool
		if k.key, ok = pub.(*ecdsa.PublicKey); !ok {
			return fmt.Errorf("template makes a key of type %T", pub)
		}
		k.name, k.tpmt = made.Name.Buffer, tpm2.Marshal(made.Public)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("devid: %w", err)
	}
	return k, nil
}

// Public implements crypto.Signer: the key is a *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.key }

// TPMPublic returns the key's TPMT_PUBLIC, which quote.ParseKey takes of an
// IAK.
func (k *Key) TPMPublic() []byte { return append([]byte(nil), k.tpmt...) }

func (k *Key) do(ctx context.Context, f func(d *tpm.Device, key *tpm.Key) error) error {
	err := k.dev.Do(ctx, func(d *tpm.Device) (err error) {
		made, err := tpm.CreatePrimary(d, tpm2.TPMRHEndorsement, nil, k.public)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, made.Flush()) }()
		if err := made.Pin(k.name); err != nil {
			return err
		}
		return f(d, made)
	})
	if err != nil {
		return fmt.Errorf("devid: %w", err)
	}
	return nil
}

// Sign implements crypto.Signer for an IDevID and the hash of its template:
// SHA-256 of a P-256 key, SHA-384 of a P-384 key. rand is not used. An IAK signs
// only what its TPM made, with Quote and Certify.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := crypto.SHA256
	if k.public.NameAlg == tpm2.TPMAlgSHA384 {
		hash = crypto.SHA384
	}
	if k.public.ObjectAttributes.Restricted {
		return nil, errors.New("devid: an attestation key signs nothing from outside its TPM")
	}
	if opts == nil || opts.HashFunc() != hash || len(digest) != hash.Size() {
		return nil, fmt.Errorf("devid: the key signs %v digests only", hash)
	}
	var sig []byte
	err := k.do(context.Background(), func(d *tpm.Device, key *tpm.Key) error {
		r, err := tpm2.Sign{
			KeyHandle: key.Auth(nil), Digest: tpm2.TPM2BDigest{Buffer: digest},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(d)
		if err != nil {
			return err
		}
		e, err := r.Signature.Signature.ECDSA()
		if err != nil {
			return err
		}
		sig, err = asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer)})
		return err
	})
	return sig, err
}

// Quote has an IAK quote PCRs, for quote.Key.VerifyQuote: the TPMS_ATTEST, the
// TPMT_SIGNATURE and the values in the order of the selection. The values are
// read before and may be older than the quote; then they do not verify, and
// the caller tries again.
func (k *Key) Quote(ctx context.Context, sel []quote.Selection, qualifying []byte) (tpmsAttest, tpmtSignature, values []byte, err error) {
	if err := quote.CheckSelection(sel); err != nil {
		return nil, nil, nil, err
	}
	err = k.do(ctx, func(d *tpm.Device, key *tpm.Key) error {
		var list tpm2.TPMLPCRSelection
		for _, s := range sel {
			one, err := tpm.Selection(s.Bank, s.PCRs)
			if err != nil {
				return err
			}
			list.PCRSelections = append(list.PCRSelections, one)
			read, err := tpm.ReadPCRs(d, s.Bank, s.PCRs...)
			if err != nil {
				return err
			}
			for _, p := range s.PCRs {
				values = append(values, read[p]...)
			}
		}
		r, err := tpm2.Quote{
			SignHandle: key.Auth(nil), QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: list,
		}.Execute(d)
		if err != nil {
			return err
		}
		tpmsAttest, tpmtSignature = r.Quoted.Bytes(), tpm2.Marshal(r.Signature)
		return nil
	})
	return tpmsAttest, tpmtSignature, values, err
}

// CertifyInitial has an IAK certify an initial key of the same TPM, mostly the
// IDevID, for quote.Key.VerifyCertify: to the maker's CA it shows that the key is
// where the IAK is.
func (k *Key) CertifyInitial(ctx context.Context, other *Key, qualifying []byte) (tpmtPublic, tpmsAttest, tpmtSignature []byte, err error) {
	if other == nil || other.public.ObjectAttributes.Restricted {
		return nil, nil, nil, errors.New("devid: the key to be certified is no IDevID")
	}
	err = k.do(ctx, func(d *tpm.Device, key *tpm.Key) error {
		inner := &Key{dev: d, public: other.public, name: other.name}
		return inner.do(ctx, func(d *tpm.Device, object *tpm.Key) (err error) {
			sess, done, err := initial.IDevID.Authorise(d, object, tpm2.TPMCCCertify)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			tpmtPublic, tpmsAttest, tpmtSignature, err = certify(d, key, object, sess, qualifying)
			return err
		})
	})
	return tpmtPublic, tpmsAttest, tpmtSignature, err
}

// Certify has an IAK certify the key at a persistent handle whose auth value
// is empty, such as the node's TLS key (attest.DeviceKey.Handle), for
// quote.Key.VerifyCertify.
func (k *Key) Certify(ctx context.Context, at tpm2.TPMHandle, qualifying []byte) (tpmtPublic, tpmsAttest, tpmtSignature []byte, err error) {
	err = k.do(ctx, func(d *tpm.Device, key *tpm.Key) error {
		object, err := tpm.ReadKey(d, at)
		if err != nil {
			return err
		}
		tpmtPublic, tpmsAttest, tpmtSignature, err = certify(d, key, object, nil, qualifying)
		return err
	})
	return tpmtPublic, tpmsAttest, tpmtSignature, err
}

// certify has key certify object, which auth authorises; nil is its empty auth
// value.
func certify(d *tpm.Device, key, object *tpm.Key, auth tpm2.Session, qualifying []byte) (tpmtPublic, tpmsAttest, tpmtSignature []byte, err error) {
	r, err := tpm2.Certify{
		ObjectHandle: object.Auth(auth), SignHandle: key.Auth(nil), QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(d)
	if err != nil {
		return nil, nil, nil, err
	}
	return tpm2.Marshal(object.Public), r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature), nil
}
