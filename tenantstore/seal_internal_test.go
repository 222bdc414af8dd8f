package tenantstore

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/tenantstore/engine"
	"github.com/trusttree/trusttree/tenantstore/internal/xaes"
)

func testSealer(tb testing.TB, seed byte) *sealer {
	z, err := newSealer(bytes.Repeat([]byte{seed}, secretSize), UID{1}, engine.Ref{UID: [16]byte{2}, Generation: 3})
	require.NoError(tb, err)
	return z
}

// FuzzOpenRecord gives foreign bytes for a sealed record: none opens, none
// panics, and what was sealed opens as it was.
func FuzzOpenRecord(f *testing.F) {
	z := testSealer(f, 1)
	ek := append(z.space(kindRecord, "c"), "key"...)
	good := bytes.Clone(z.seal(new(scratch), ek, 7, []byte("value")))
	f.Add(ek, good)
	f.Add(ek, good[:len(good)-1])
	f.Add(ek[:3], good)
	f.Add(ek, append([]byte{2}, good[1:]...))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, k, sealed []byte) {
		version, value, err := z.open(new(scratch), k, bytes.Clone(sealed))
		if err == nil { // a seed: the fuzzer's other processes seal it with other nonces
			require.Equal(t, ek, k)
			require.Equal(t, uint64(7), version)
			require.Equal(t, "value", string(value))
			return
		}
		require.ErrorIs(t, err, ErrTampered)
		require.Nil(t, value)
	})
}

// TestNoncesNeverRepeat seals across several runs of a derived key: no nonce
// comes twice, each run has another first half, and each record opens by the
// plain XAES-256-GCM of C2SP, nonce by nonce, with no knowledge of runs.
func TestNoncesNeverRepeat(t *testing.T) {
	z := testSealer(t, 1)
	key, err := subkey(secret(bytes.Repeat([]byte{1}, secretSize)).data(), "records", UID{1}, engine.Ref{UID: [16]byte{2}, Generation: 3})
	require.NoError(t, err)
	plainXAES, err := xaes.New(key)
	require.NoError(t, err)
	ek := append(z.space(kindRecord, "c"), "key"...)
	seen, halves := map[string]bool{}, map[string]int{}
	sc := new(scratch)
	for range 3*runLength + 5 {
		sealed := z.seal(sc, ek, 1, []byte("v"))
		nonce := sealed[1 : 1+xaes.NonceSize]
		require.False(t, seen[string(nonce)])
		seen[string(nonce)] = true
		halves[string(nonce[:xaes.HalfSize])]++
		if len(seen)%500 == 0 {
			plain, err := plainXAES.Open(nil, nonce, sealed[1+xaes.NonceSize:], append(bytes.Clone(z.prefix), ek...))
			require.NoError(t, err)
			require.Equal(t, "v", string(plain[8:]))
		}
	}
	require.Len(t, halves, 4)
	for _, n := range halves {
		require.LessOrEqual(t, n, runLength)
	}
}

// TestForgersFillOnlyACache opens records with thousands of foreign nonces: the
// derived keys that are remembered stay few, and true records still open.
func TestForgersFillOnlyACache(t *testing.T) {
	z := testSealer(t, 1)
	ek := append(z.space(kindRecord, "c"), "key"...)
	good := bytes.Clone(z.seal(new(scratch), ek, 7, []byte("value")))
	for range 1000 {
		bad := bytes.Clone(good)
		_, _ = rand.Read(bad[1 : 1+xaes.NonceSize])
		_, _, err := z.open(new(scratch), ek, bad)
		require.ErrorIs(t, err, ErrTampered)
	}
	assert.LessOrEqual(t, len(z.records.known), maxSubkeys)
	_, value, err := z.open(new(scratch), ek, good)
	require.NoError(t, err)
	require.Equal(t, "value", string(value))
}
