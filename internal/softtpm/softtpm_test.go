package softtpm_test

import (
	"crypto/sha256"
	"crypto/x509"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/softtpm"
)

func newTPM(tb testing.TB) (*softtpm.TPM, *softtpm.Maker) {
	tb.Helper()
	m, err := softtpm.NewMaker()
	require.NoError(tb, err)
	t, err := softtpm.New(softtpm.Config{Maker: m})
	require.NoError(tb, err)
	startup(tb, t)
	return t, m
}

func startup(tb testing.TB, t transport.TPM) {
	tb.Helper()
	_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(t)
	require.NoError(tb, err)
}

func readNV(tb testing.TB, t transport.TPM, h tpm2.TPMHandle) []byte {
	tb.Helper()
	pub, err := tpm2.NVReadPublic{NVIndex: h}.Execute(t)
	require.NoError(tb, err)
	p, err := pub.NVPublic.Contents()
	require.NoError(tb, err)
	rsp, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: h, Name: pub.NVName}, Size: p.DataSize,
	}.Execute(t)
	require.NoError(tb, err)
	return rsp.Data.Buffer
}

func TestEndorsementCertificatesChainToTheMaker(t *testing.T) {
	tp, m := newTPM(t)
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(m.Root)
	inter.AddCert(m.Intermediates[0])
	for h, template := range map[tpm2.TPMHandle]tpm2.TPMTPublic{0x01C0000A: tpm2.ECCEKTemplate, 0x01C00002: tpm2.RSAEKTemplate} {
		cert, err := x509.ParseCertificate(readNV(t, tp, h))
		require.NoError(t, err)
		cert.UnhandledCriticalExtensions = nil
		_, err = cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		require.NoError(t, err)
		ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(tp)
		require.NoError(t, err)
		pub, err := ek.OutPublic.Contents()
		require.NoError(t, err)
		key, err := tpm2.Pub(*pub)
		require.NoError(t, err)
		require.Equal(t, cert.PublicKey, key)
		_, err = tpm2.FlushContext{FlushHandle: ek.ObjectHandle}.Execute(tp)
		require.NoError(t, err)
	}
}

func srk(tb testing.TB, t transport.TPM, template tpm2.TPMTPublic) *tpm2.CreatePrimaryResponse {
	tb.Helper()
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(t)
	require.NoError(tb, err)
	tb.Cleanup(func() { _, _ = tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(t) })
	return r
}

func TestSealedDataComesBackThroughAnEncryptedSession(t *testing.T) {
	for name, template := range map[string]tpm2.TPMTPublic{"ecc": tpm2.ECCSRKTemplate, "rsa": tpm2.RSASRKTemplate} {
		t.Run(name, func(t *testing.T) {
			tp, _ := newTPM(t)
			p := srk(t, tp, template)
			pub, err := p.OutPublic.Contents()
			require.NoError(t, err)
			enc := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(p.ObjectHandle, *pub), tpm2.AESEncryption(128, tpm2.EncryptInOut))
			c, err := tpm2.Create{
				ParentHandle: tpm2.AuthHandle{Handle: p.ObjectHandle, Name: p.Name, Auth: enc},
				InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
					UserAuth: tpm2.TPM2BAuth{Buffer: []byte("pass")},
					Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: []byte("secret")}),
				}},
				InPublic: tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
					ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true}}),
			}.Execute(tp)
			require.NoError(t, err)
			l, err := tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: p.ObjectHandle, Name: p.Name, Auth: tpm2.PasswordAuth(nil)},
				InPrivate: c.OutPrivate, InPublic: c.OutPublic}.Execute(tp)
			require.NoError(t, err)
			u, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: l.ObjectHandle, Name: l.Name,
				Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth([]byte("pass")), tpm2.Salted(p.ObjectHandle, *pub), tpm2.AESEncryption(128, tpm2.EncryptOut))}}.Execute(tp)
			require.NoError(t, err)
			require.Equal(t, "secret", string(u.OutData.Buffer))
			_, err = tpm2.FlushContext{FlushHandle: l.ObjectHandle}.Execute(tp)
			require.NoError(t, err)
		})
	}
}

func TestPCRExtendAndRead(t *testing.T) {
	tp, _ := newTPM(t)
	d := sha256.Sum256([]byte("event"))
	_, err := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: 7, Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: d[:]}}}}.Execute(tp)
	require.NoError(t, err)
	r, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0x80, 0, 0}}}}}.Execute(tp)
	require.NoError(t, err)
	want := sha256.Sum256(append(make([]byte, 32), d[:]...))
	require.Equal(t, want[:], r.PCRValues.Digests[0].Buffer)
}
