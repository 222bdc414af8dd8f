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
