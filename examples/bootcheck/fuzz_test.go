package main

import (
	"crypto"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzParsePCRs(f *testing.F) {
	b, err := os.ReadFile(recorded + "uki-sb-on/pcrs.txt")
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte("sha256 0 00\n\nsha1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		pcrs, err := parsePCRs(b, crypto.SHA256)
		if err != nil {
			return
		}
		for pcr, v := range pcrs {
			require.GreaterOrEqual(t, pcr, 0)
			require.Less(t, pcr, 24)
			require.Len(t, v, 32)
		}
	})
}

// FuzzVerifyQuote: no other bytes than a recorded quote's are accepted as its
// quote and signature.
func FuzzVerifyQuote(f *testing.F) {
	const dir = recorded + "uki-sb-on"
	ev, q, err := directory(dir, "sha256").load(crypto.SHA256)
	require.NoError(f, err)
	require.Equal(f, quoteVerified, q.state)
	read := func(name string) []byte {
		b, err := os.ReadFile(dir + "/" + name)
		require.NoError(f, err)
		return b
	}
	ak, quote, sig, nonce := read("ak_pub.tpm2b"), read("quote_sha256.tpms_attest"), read("quote_sha256.tpmt_signature"), read("nonce.bin")
	f.Add(ak, quote, sig)
	f.Add(ak, quote[:40], sig[:10])
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		_, _ = verifyQuote(a, b, c, nonce, crypto.SHA256, ev.PCRs)
		if _, err := verifyQuote(ak, b, c, nonce, crypto.SHA256, ev.PCRs); err == nil {
			require.Equal(t, quote, b)
		}
	})
}
