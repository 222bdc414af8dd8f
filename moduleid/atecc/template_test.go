package atecc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func rawSignature(der []byte) ([]byte, error) {
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) > 0 {
		return nil, errors.New("no ECDSA signature")
	}
	out := make([]byte, 64)
	rs.R.FillBytes(out[:32])
	rs.S.FillBytes(out[32:])
	return out, nil
}

// ownTemplate is a self-signed certificate in the layout of a compressed one,
// and its key.
func ownTemplate(t testing.TB) (der, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	point, err := k.PublicKey.Bytes()
	require.NoError(t, err)
	from := time.Date(2025, 3, 4, 5, 0, 0, 0, time.UTC)
	bits := uint32(25)<<19 | 3<<15 | 4<<10 | 5<<5 | 10
	sum := sha256.Sum256(append(point[1:65:65], byte(bits>>16), byte(bits>>8), byte(bits)))
	sum[0] = sum[0]&0x3f | 0x40
	c := &x509.Certificate{SerialNumber: new(big.Int).SetBytes(sum[:16]), Subject: pkix.Name{CommonName: "Test Signer FFFF"},
		NotBefore: from, NotAfter: from.AddDate(10, 0, 0), BasicConstraintsValid: true, SubjectKeyId: keyID(point[1:])}
	der, err = x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	require.NoError(t, err)
	return der, point[1:]
}

func TestCompressedCertificateRoundTrip(t *testing.T) {
	sample, _ := ownTemplate(t)
	other, key := ownTemplate(t)
	c, err := x509.ParseCertificate(other)
	require.NoError(t, err)
	got, err := rebuild(sample, fields{compressed: compress(t, c, 10), key: key})
	require.NoError(t, err)
	require.Equal(t, other, got, "one certificate is the template of the other")

	for name, change := range map[string]func(*fields){
		"too short":                  func(f *fields) { f.compressed = f.compressed[:71] },
		"month 0":                    func(f *fields) { f.compressed[64], f.compressed[65] = 0, 0 },
		"unknown source of serials":  func(f *fields) { f.compressed[70] = 0 },
		"serial of another size":     func(f *fields) { f.compressed[70] = 0x80 },
		"validity of another size":   func(f *fields) { f.compressed[66] &^= 31 },
		"public key of another size": func(f *fields) { f.key = f.key[:63] },
	} {
		t.Run(name, func(t *testing.T) {
			f := fields{compressed: compress(t, c, 10), key: key}
			change(&f)
			_, err := rebuild(sample, f)
			require.Error(t, err)
		})
	}
}
