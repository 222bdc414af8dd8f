package tpm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	attestation "github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

func TestMapHasNoCollisions(t *testing.T) {
	m := tpm.Map()
	for i, a := range m {
		assert.LessOrEqual(t, a.First, a.Last, a.What)
		for _, b := range m[i+1:] {
			assert.False(t, a.First <= b.Last && b.First <= a.Last, "%q and %q overlap", a.What, b.What)
		}
	}
}

type script struct{ responses [][]byte }

func (s *script) Send([]byte) ([]byte, error) {
	r := s.responses[0]
	s.responses = s.responses[1:]
	return r, nil
}

func TestRetryIsAnsweredByTheDevice(t *testing.T) {
	retry := []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22}
	ok := []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0}
	rsp, err := tpm.Wrap(&script{[][]byte{retry, retry, ok}}).Send(ok)
	require.NoError(t, err)
	assert.Equal(t, ok, rsp)
}

func TestMalformedResponsesAreRefused(t *testing.T) {
	for name, rsp := range map[string][]byte{
		"empty":     {},
		"short":     {0x80, 1, 0, 0},
		"size lies": {0x80, 1, 0, 0, 1, 0, 0, 0, 0, 0},
		"too long":  make([]byte, tpm.MaxMessage+1),
	} {
		_, err := tpm.Wrap(&script{[][]byte{rsp}}).Send([]byte{1})
		assert.Error(t, err, name)
	}
}

func TestWrapTwiceSharesOneLock(t *testing.T) {
	raw := &script{}
	a, b := tpm.Wrap(raw), tpm.Wrap(raw)
	ctx, cancel := context.WithCancel(t.Context())
	err := a.Do(ctx, func(d *tpm.Device) error {
		assert.Same(t, d, tpm.Wrap(d))
		cancel()
		return b.Do(ctx, func(*tpm.Device) error { return nil })
	})
	require.ErrorIs(t, err, context.Canceled)
}

func TestSaltedSessionHidesWhatComesOut(t *testing.T) {
	tpmtest.Each(t, saltedSessionHidesWhatComesOut)
}

func saltedSessionHidesWhatComesOut(t *testing.T, dev *tpmtest.TPM, _ *tpmtest.Maker) {
	bus := &tpmtest.Bus{TPM: dev.Device}
	srk, err := tpm.SRK(bus, nil)
	require.NoError(t, err)
	defer srk.Flush()
	require.NoError(t, srk.Pin(srk.Name.Buffer))
	require.ErrorIs(t, srk.Pin([]byte("another")), tpm.ErrName)
	require.ErrorIs(t, srk.Pin(nil), tpm.ErrName)

	rsp, err := tpm2.GetRandom{BytesRequested: 32}.Execute(bus, srk.Session(tpm.EncryptOut()))
	require.NoError(t, err)
	assert.False(t, bytes.Contains(bus.Bytes(), rsp.RandomBytes.Buffer))
	rsp, err = tpm2.GetRandom{BytesRequested: 32}.Execute(bus)
	require.NoError(t, err)
	assert.True(t, bytes.Contains(bus.Bytes(), rsp.RandomBytes.Buffer))
}

func TestPCRsSurviveNoReboot(t *testing.T) { tpmtest.Each(t, pCRsSurviveNoReboot) }

func pCRsSurviveNoReboot(t *testing.T, dev *tpmtest.TPM, m *tpmtest.Maker) {
	require.NotNil(t, m.Root)
	banks, err := tpm.Banks(dev)
	require.NoError(t, err)
	assert.Contains(t, banks, crypto.SHA256)
	d := sha256.Sum256([]byte("event"))
	require.NoError(t, tpm.ExtendPCR(dev, 13, map[crypto.Hash][]byte{crypto.SHA256: d[:]}))
	want := sha256.Sum256(append(make([]byte, 32), d[:]...))
	got, err := tpm.ReadPCRs(dev, crypto.SHA256, 13, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	require.NoError(t, err)
	assert.Equal(t, want[:], got[13])
	assert.Len(t, got, 10)
	require.NoError(t, dev.Reboot(t.Context()))
	got, err = tpm.ReadPCRs(dev, crypto.SHA256, 13)
	require.NoError(t, err)
	assert.Equal(t, make([]byte, 32), got[13])
}

func TestChannelServesGoAttestation(t *testing.T) { tpmtest.Each(t, channelServesGoAttestation) }

func channelServesGoAttestation(t *testing.T, dev *tpmtest.TPM, m *tpmtest.Maker) {
	a, err := attestation.OpenTPM(&attestation.OpenConfig{CommandChannel: tpm.NewChannel(dev.Device, nil)})
	require.NoError(t, err)
	certs, err := a.EKCertificates()
	require.NoError(t, err)
	require.NotEmpty(t, certs)
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(m.Root)
	for _, c := range m.Intermediates {
		inter.AddCert(c)
	}
	certs[0].Certificate.UnhandledCriticalExtensions = nil
	_, err = certs[0].Certificate.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	require.NoError(t, err)
}
