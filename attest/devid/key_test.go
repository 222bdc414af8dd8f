package devid_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/attest/ca"
	"github.com/trusttree/trusttree/attest/devid"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

func owner() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
}

func platform() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
}

func each(t *testing.T, f func(t *testing.T, dev *tpmtest.TPM, n *attest.Node)) {
	tpmtest.Each(t, func(t *testing.T, dev *tpmtest.TPM, m *tpmtest.Maker) {
		n, err := attest.Open(t.Context(), dev, attest.NodeConfig{Endorsers: attest.Endorsers{Anchors: []*x509.Certificate{m.Root}, Intermediates: m.Intermediates}})
		require.NoError(t, err)
		f(t, dev, n)
	})
}

// A maker's IAK of the TCG's exact template quotes, certifies the owner's TLS
// key, and is found again with its certificate, also after TPM2_Clear.
func TestIAK(t *testing.T) {
	each(t, func(t *testing.T, dev *tpmtest.TPM, n *attest.Node) {
		maker, err := ca.NewEphemeral("machine maker")
		require.NoError(t, err)
		next := devid.FirstIndex
		for _, curve := range []tpm2.TPMECCCurve{tpm2.TPMECCNistP256, tpm2.TPMECCNistP384} {
			template, err := devid.IAK(curve)
			require.NoError(t, err)
			iak, err := devid.Open(t.Context(), dev, template)
			require.NoError(t, err)
			leaf := certify(t, maker, iak.Public())
			next, err = devid.Store(t.Context(), dev, platform(), next, leaf, maker.Certificate())
			require.NoError(t, err)

			key, err := quote.ParseKey(iak.TPMPublic())
			require.NoError(t, err)
			nonce := sha256.Sum256([]byte("fresh"))
			sel := []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{0, 7}}, {Bank: crypto.SHA384, PCRs: []int{7}}}
			data, sig, values, err := iak.Quote(t.Context(), sel, nonce[:])
			require.NoError(t, err)
			v, err := key.VerifyQuote(data, sig, values, sel, nonce[:])
			require.NoError(t, err)
			assert.True(t, v.Plain())

			tlsKey, err := n.DeviceKey(t.Context())
			require.NoError(t, err)
			public, data, sig, err := iak.Certify(t.Context(), tlsKey.Handle(), nonce[:])
			require.NoError(t, err)
			got, err := key.VerifyCertify(data, sig, public, nonce[:])
			require.NoError(t, err)
			assert.Equal(t, tlsKey.Public(), got)

			_, err = iak.Sign(nil, nonce[:], crypto.SHA256)
			require.Error(t, err, "an attestation key signs nothing from outside")
			_, err = tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(dev)
			require.NoError(t, err)
			again, err := devid.Open(t.Context(), dev, template)
			require.NoError(t, err)
			found, issuers, err := again.Certificate(t.Context(), n)
			require.NoError(t, err)
			assert.Equal(t, leaf.Raw, found.Raw)
			require.NotEmpty(t, issuers)
			require.NoError(t, found.CheckSignatureFrom(issuers[0]))
		}
	})
}

// An IDevID is certified by the IAK of its TPM, under the policy that guards it:
// without, the TPM refuses.
func TestIAKCertifiesIDevID(t *testing.T) {
	each(t, func(t *testing.T, dev *tpmtest.TPM, n *attest.Node) {
		before, err := tpm.LoadedHandles(dev)
		require.NoError(t, err)
		for _, curve := range []tpm2.TPMECCCurve{tpm2.TPMECCNistP256, tpm2.TPMECCNistP384} {
			template, err := devid.IAK(curve)
			require.NoError(t, err)
			iak, err := devid.Open(t.Context(), dev, template)
			require.NoError(t, err)
			template, err = devid.IDevID(curve)
			require.NoError(t, err)
			idevid, err := devid.Open(t.Context(), dev, template)
			require.NoError(t, err)
			nonce := sha256.Sum256([]byte("fresh"))
			public, data, sig, err := iak.CertifyInitial(t.Context(), idevid, nonce[:])
			require.NoError(t, err)
			key, err := quote.ParseKey(iak.TPMPublic())
			require.NoError(t, err)
			got, err := key.VerifyCertify(data, sig, public, nonce[:])
			require.NoError(t, err)
			assert.Equal(t, idevid.Public(), got)
			_, _, _, err = iak.CertifyInitial(t.Context(), iak, nonce[:])
			require.Error(t, err)

			k, err := tpm.CreatePrimary(dev, tpm2.TPMRHEndorsement, nil, template)
			require.NoError(t, err)
			_, err = tpm2.Certify{ObjectHandle: k.Auth(nil), SignHandle: k.Auth(nil), InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}.Execute(dev)
			require.Error(t, err, "the empty auth value does not administrate")
			require.NoError(t, k.Flush())
		}
		after, err := tpm.LoadedHandles(dev)
		require.NoError(t, err)
		assert.Equal(t, before.Count(), after.Count())
	})
}

func certify(t *testing.T, maker *ca.CA, key crypto.PublicKey) *x509.Certificate {
	t.Helper()
	chain, err := maker.Issue(t.Context(), attest.IssueRequest{Key: key, Template: &x509.Certificate{
		Subject: pkix.Name{CommonName: "lamp", SerialNumber: "0815"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}})
	require.NoError(t, err)
	return chain[0]
}

// An IDevID of the TCG's exact template serves TLS 1.2 and 1.3.
func TestIDevIDServesTLS(t *testing.T) {
	each(t, func(t *testing.T, dev *tpmtest.TPM, n *attest.Node) {
		maker, err := ca.NewEphemeral("machine maker")
		require.NoError(t, err)
		roots := x509.NewCertPool()
		roots.AddCert(maker.Certificate())
		for curve, scheme := range map[tpm2.TPMECCCurve]tls.SignatureScheme{
			tpm2.TPMECCNistP256: tls.ECDSAWithP256AndSHA256, tpm2.TPMECCNistP384: tls.ECDSAWithP384AndSHA384,
		} {
			template, err := devid.IDevID(curve)
			require.NoError(t, err)
			k, err := devid.Open(t.Context(), dev, template)
			require.NoError(t, err)
			leaf := certify(t, maker, k.Public())
			cert := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: k, SupportedSignatureAlgorithms: []tls.SignatureScheme{scheme}}
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				a, b := net.Pipe()
				conf := &tls.Config{
					Certificates: []tls.Certificate{cert}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
					MinVersion: version, MaxVersion: version, InsecureSkipVerify: true, // the certificate has no DNS name
				}
				done := make(chan error, 1)
				go func() { done <- tls.Client(a, conf).HandshakeContext(t.Context()) }()
				err := tls.Server(b, conf).HandshakeContext(t.Context())
				require.NoError(t, errors.Join(err, <-done), "%v %x", curve, version)
			}
			sum := sha512.Sum512([]byte("x"))
			_, err = k.Sign(nil, sum[:], crypto.SHA512)
			require.Error(t, err, "the template prescribes the hash")
			_, err = k.Sign(nil, sum[:], nil)
			require.Error(t, err)
			_, _, _, err = k.Quote(t.Context(), []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{0}}}, sum[:32])
			require.NoError(t, err, "the TPM lets any signing key quote")
			key, err := quote.ParseKey(k.TPMPublic())
			require.ErrorIs(t, err, quote.ErrKey, "a verifier does not")
			assert.Nil(t, key)
		}
		h, err := tpm.LoadedHandles(dev)
		require.NoError(t, err)
		assert.Zero(t, h.Count())
	})
}

// Certificates larger than an index, indices in use, ranges, failures: what is
// there is never overwritten, and a failure leaves nothing behind.
func TestStoreInNV(t *testing.T) {
	each(t, func(t *testing.T, dev *tpmtest.TPM, n *attest.Node) {
		ctx := t.Context()
		maker, err := ca.NewEphemeral("machine maker")
		require.NoError(t, err)
		big1 := large(t, maker)
		require.Greater(t, len(big1.Raw), 2048)
		next, err := devid.Store(ctx, dev, owner(), devid.FirstIndex, big1, maker.Certificate())
		require.NoError(t, err)
		assert.Equal(t, devid.FirstIndex+3, next, "two indices for the large one")
		certs, err := n.InitialCertificates(ctx)
		require.NoError(t, err)
		require.Len(t, certs, 2)
		assert.Equal(t, big1.Raw, certs[0].Raw)

		_, err = devid.Store(ctx, dev, owner(), devid.FirstIndex+2, maker.Certificate())
		require.ErrorIs(t, err, devid.ErrIndex, "in use")
		_, err = devid.Store(ctx, dev, owner(), devid.FirstIndex-1, maker.Certificate())
		require.ErrorIs(t, err, devid.ErrIndex)
		_, err = devid.Store(ctx, dev, owner(), devid.LastIndex, maker.Certificate(), maker.Certificate())
		require.ErrorIs(t, err, devid.ErrIndex, "the second one has no place")
		_, err = (tpm2.NVReadPublic{NVIndex: devid.LastIndex}).Execute(dev)
		require.ErrorIs(t, err, tpm2.TPMRCHandle, "the first one was removed again")
		_, err = devid.Store(ctx, dev, tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}, next, maker.Certificate())
		require.ErrorIs(t, err, devid.ErrIndex)
		_, err = devid.Store(ctx, dev, owner(), next)
		require.Error(t, err)

		template, err := devid.IAK(tpm2.TPMECCNistP256)
		require.NoError(t, err)
		iak, err := devid.Open(ctx, dev, template)
		require.NoError(t, err)
		_, _, err = iak.Certificate(ctx, n)
		require.ErrorIs(t, err, attest.ErrNoKey, "certificates of others are there")
	})
}

// Certificates without an index given begin where the TCG has the IDevID's, and
// pass the indices that it has for policies, which nobody takes for
// certificates either.
func TestStorePassesPolicyIndices(t *testing.T) {
	each(t, func(t *testing.T, dev *tpmtest.TPM, n *attest.Node) {
		ctx := t.Context()
		maker, err := ca.NewEphemeral("machine maker")
		require.NoError(t, err)
		next, err := devid.Store(ctx, dev, owner(), 0, maker.Certificate())
		require.NoError(t, err)
		assert.EqualValues(t, 0x01C90001, next)
		_, err = (tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(0x01C90000)}).Execute(dev)
		require.NoError(t, err)

		policy := append([]byte{0, 0x0B}, bytes.Repeat([]byte{0x30, 0x82}, 16)...)
		for i := tpm2.TPMHandle(0x01C90010); i < 0x01C9001C; i += 8 {
			_, err = (tpm2.NVDefineSpace{AuthHandle: owner(), PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: i, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(policy)), Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
			})}).Execute(dev)
			require.NoError(t, err)
			pub, err := tpm2.NVReadPublic{NVIndex: i}.Execute(dev)
			require.NoError(t, err)
			_, err = tpm2.NVWrite{AuthHandle: owner(), NVIndex: tpm2.NamedHandle{Handle: i, Name: pub.NVName}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: policy}}.Execute(dev)
			require.NoError(t, err)
		}
		big := large(t, maker)
		next, err = devid.Store(ctx, dev, owner(), 0x01C9000F, big, maker.Certificate())
		require.NoError(t, err)
		assert.EqualValues(t, 0x01C90022, next, "0F, 20, 21")
		certs, err := n.InitialCertificates(ctx)
		require.NoError(t, err)
		require.Len(t, certs, 3)
		assert.Equal(t, big.Raw, certs[1].Raw)
	})
}

// A TPM that fails at any command while certificates are stored is left as it
// was.
func TestStoreFailsWhole(t *testing.T) {
	m, err := attesttest.NewMaker()
	require.NoError(t, err)
	dev, err := m.NewTPM()
	require.NoError(t, err)
	maker, err := ca.NewEphemeral("machine maker")
	require.NoError(t, err)
	for skip := 0; ; skip++ {
		i := attesttest.Interpose(dev)
		i.Inject(0, skip, 1, attesttest.Answer(tpm2.TPMRCFailure))
		_, err := devid.Store(t.Context(), i, owner(), devid.FirstIndex, maker.Certificate(), maker.Certificate())
		if err == nil {
			require.Greater(t, skip, 5)
			break
		}
		_, err = (tpm2.NVReadPublic{NVIndex: devid.FirstIndex}).Execute(dev)
		require.ErrorIs(t, err, tpm2.TPMRCHandle, "command %d failed", skip)
	}
}

func large(t *testing.T, maker *ca.CA) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	leaf := certify(t, maker, key.Public())
	template := *leaf
	template.SerialNumber = big.NewInt(5)
	for range 90 {
		template.DNSNames = append(template.DNSNames, "a-name-that-is-long-enough.example")
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return c
}
