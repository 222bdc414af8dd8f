package bootpolicy_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot/bootpolicy"
)

func FuzzSigned(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f, err)
	good, err := bootpolicy.SignPCRs(key, crypto.SHA256, map[int][]byte{11: after("v1")})
	require.NoError(f, err)
	f.Add(good)
	f.Add([]byte(`{"sha256":[{"pcrs":[11],"pkfp":"","pol":"","sig":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := bootpolicy.Signed(key.Public(), b)
		if err == nil {
			p.PCRs()
			p.Digest()
		}
	})
}

// FuzzFloorWrite: an approval that the authority did not sign never reaches the
// TPM, of which there is none here.
func FuzzFloorWrite(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f, err)
	floor, err := bootpolicy.NewFloor(0x01800120, key.Public())
	require.NoError(f, err)
	foreign, err := bootpolicy.NewFloor(0x01800120, other.Public())
	require.NoError(f, err)
	p, err := bootpolicy.Literal(crypto.SHA256, map[int][]byte{11: after("v1")})
	require.NoError(f, err)
	approval, err := foreign.Approve(other, p, 1, true)
	require.NoError(f, err)
	f.Add(approval)
	f.Add([]byte(`{"version":1,"first":false,"policy":"","policyVersion":1,"signature":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		require.Error(t, floor.Write(t.Context(), nil, b))
	})
}
