package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
)

// kept is a TPM that nobody closes.
type kept struct{ transport.TPM }

func (kept) Close() error { return nil }

// TestAnotherReleaseWasBooted: firmware may start the other slot under the number
// of the one on trial; the release is not committed then.
func TestAnotherReleaseWasBooted(t *testing.T) {
	maker, err := attesttest.NewMaker()
	require.NoError(t, err)
	device, err := maker.NewTPM()
	require.NoError(t, err)
	digest := make([]byte, 32)
	digest[0] = 1
	require.NoError(t, device.Boot(attesttest.Measurement{PCR: 4, Digests: map[crypto.Hash][]byte{crypto.SHA256: digest}}))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	require.NoError(t, err)
	n := &node{boot: &wire.Bootstrap{PolicyKey: spki}, tpm: &tpmDevice{t: kept{device}}}
	running, err := (modulePCRs{n.tpm}).ReadPCR(t.Context(), 4, crypto.SHA256)
	require.NoError(t, err)
	sign := func(states ...map[int][]byte) []byte {
		signed, err := bootpolicy.SignPCRs(key, crypto.SHA256, states...)
		require.NoError(t, err)
		return signed
	}
	other := make([]byte, 32)
	assert.NoError(t, n.booted(t.Context(), sign(map[int][]byte{4: running})))
	assert.NoError(t, n.booted(t.Context(), sign(map[int][]byte{4: running}, map[int][]byte{4: other})), "a release that boots in two ways")
	assert.ErrorContains(t, n.booted(t.Context(), sign(map[int][]byte{4: other})), "something else was booted")
	assert.ErrorContains(t, n.booted(t.Context(), nil), "not signed")
	foreign, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	signed, err := bootpolicy.SignPCRs(foreign, crypto.SHA256, map[int][]byte{4: running})
	require.NoError(t, err)
	assert.ErrorContains(t, n.booted(t.Context(), signed), "not signed")
}
