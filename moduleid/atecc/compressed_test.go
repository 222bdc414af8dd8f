package atecc_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// compressible issues a certificate in the layout of the vendor's tools; a nil
// issuer means self-signed.
func compressible(t *testing.T, cn string, pub *ecdsa.PublicKey, ca bool, issuer *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	point, err := pub.Bytes()
	require.NoError(t, err)
	from := time.Date(2025, 3, 4, 5, 0, 0, 0, time.UTC)
	bits := uint32(25)<<19 | 3<<15 | 4<<10 | 5<<5 | 10
	serial := sha256.Sum256(append(point[1:65:65], byte(bits>>16), byte(bits>>8), byte(bits)))
	serial[0] = serial[0]&0x3f | 0x40
	id := sha1.Sum(point)
	tmpl := &x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial[:16]), Subject: pkix.Name{CommonName: cn},
		NotBefore: from, NotAfter: from.AddDate(10, 0, 0), BasicConstraintsValid: true, IsCA: ca, SubjectKeyId: id[:],
		KeyUsage: x509.KeyUsageDigitalSignature}
	if ca {
		tmpl.KeyUsage = x509.KeyUsageCertSign
	}
	if issuer == nil {
		issuer = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, pub, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

func TestCompressedChainFromTheChip(t *testing.T) {
	signerKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	signer := compressible(t, "Test Signer FFFF", &signerKey.PublicKey, true, nil, signerKey)
	// Another chip's certificate of the same template is the sample.
	sampleKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	sample := compressible(t, "module", &sampleKey.PublicKey, false, signer, signerKey)

	emulator, err := moduleidtest.NewATECC608(moduleidtest.Instant)
	require.NoError(t, err)
	device := compressible(t, "module", emulator.PublicKey(), false, signer, signerKey)
	require.NoError(t, emulator.StoreSlot(10, atecc.Compress(t, device, 10)))
	require.NoError(t, emulator.StoreSlot(12, atecc.Compress(t, signer, 10)))
	point, err := signerKey.PublicKey.Bytes()
	require.NoError(t, err)
	padded := append(append(append(make([]byte, 4), point[1:33]...), 0, 0, 0, 0), point[33:]...)
	require.NoError(t, emulator.StoreSlot(11, padded))

	bus := moduleidtest.NewBus(0)
	bus.Plug(0x60, emulator)
	prove := func() (moduleid.Challenge, *moduleid.Evidence, error) {
		chip, err := atecc.NewHost(bus).Chip(atecc.Config{Certificates: atecc.Compressed(sample.Raw, signer.Raw)})
		require.NoError(t, err)
		c := moduleid.NewChallenge("node", "bay")
		e, err := chip.Prove(t.Context(), c)
		return c, e, err
	}
	c, e, err := prove()
	require.NoError(t, err)
	require.Equal(t, [][]byte{device.Raw, signer.Raw}, e.Chain)
	roots := x509.NewCertPool()
	roots.AddCert(signer)
	v := moduleid.Verifier{Schemes: []moduleid.Scheme{atecc.Scheme()}, UnsafeNoRevocations: true,
		Classes:    map[string]moduleid.Class{"camera": {Members: roots}},
		Connectors: map[string]moduleid.Connector{"bay": {Classes: []string{"camera"}}}}
	_, err = v.Verify(c, e)
	require.NoError(t, err)

	broken := atecc.Compress(t, device, 10)
	broken[0] ^= 1 // of the signature
	require.NoError(t, emulator.StoreSlot(10, broken))
	c, e, err = prove()
	require.NoError(t, err)
	_, err = v.Verify(c, e)
	require.ErrorIs(t, err, moduleid.ErrRefused, "a certificate that comes out wrong is found")
	require.NoError(t, emulator.StoreSlot(10, nil))
	_, _, err = prove()
	require.ErrorIs(t, err, moduleid.ErrRefused)
}
