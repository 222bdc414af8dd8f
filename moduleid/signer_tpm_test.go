package moduleid_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"io"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// tpmSigner is a signing key in a TPM as a crypto.Signer.
type tpmSigner struct {
	tpm transport.TPM
	key tpm2.AuthHandle
	pub *ecdsa.PublicKey
}

func (s *tpmSigner) Public() crypto.PublicKey { return s.pub }

func (s *tpmSigner) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	rsp, err := tpm2.Sign{
		KeyHandle: s.key, Digest: tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(s.tpm)
	if err != nil {
		return nil, err
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)})
}

func (s *tpmSigner) Close() error {
	_, err := tpm2.FlushContext{FlushHandle: s.key.Handle}.Execute(s.tpm)
	return err
}

// A key that lives in a TPM is a module's key like any other.
func TestSignerInATPM(t *testing.T) {
	maker, err := tpmtest.NewSoftMaker()
	require.NoError(t, err)
	dev, err := maker.NewTPM(t.Context())
	require.NoError(t, err)
	defer dev.Close()
	created, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
	})}.Execute(dev)
	require.NoError(t, err)
	public, err := created.OutPublic.Contents()
	require.NoError(t, err)
	point, err := public.Unique.ECC()
	require.NoError(t, err)
	raw := make([]byte, 65)
	raw[0] = 4
	new(big.Int).SetBytes(point.X.Buffer).FillBytes(raw[1:33])
	new(big.Int).SetBytes(point.Y.Buffer).FillBytes(raw[33:])
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
	require.NoError(t, err)
	signer := &tpmSigner{dev, tpm2.AuthHandle{Handle: created.ObjectHandle, Name: created.Name, Auth: tpm2.PasswordAuth(nil)}, pub}

	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	cert, err := ca.Issue("gateway", pub, nil)
	require.NoError(t, err)
	require.NoError(t, verifySigner(t, ca.Pool(), signer, cert))
	chip, err := moduleid.FromSigner(signer, []*x509.Certificate{cert})
	require.NoError(t, err)
	require.NoError(t, chip.Close(), "it flushes the key")
}
