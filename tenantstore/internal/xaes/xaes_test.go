package xaes_test

import (
	"bytes"
	"crypto/sha3"
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tenantstore/internal/xaes"
)

// The vectors are those of c2sp.org/XAES-256-GCM.
func TestC2SPVectors(t *testing.T) {
	for _, v := range []struct {
		key       byte
		aad, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		a, err := xaes.New(bytes.Repeat([]byte{v.key}, 32))
		require.NoError(t, err)
		nonce := []byte("ABCDEFGHIJKLMNOPQRSTUVWX")
		ct := a.Seal(nil, nonce, []byte("XAES-256-GCM"), []byte(v.aad))
		assert.Equal(t, v.want, hex.EncodeToString(ct))
		pt, err := a.Open(nil, nonce, ct, []byte(v.aad))
		require.NoError(t, err)
		assert.Equal(t, "XAES-256-GCM", string(pt))
		_, err = a.Open(nil, nonce, ct, []byte(v.aad+"x"))
		assert.Error(t, err)
		_, err = a.Open(nil, nonce[:12], ct, []byte(v.aad))
		assert.Error(t, err)
	}
	_, err := xaes.New(make([]byte, 16))
	assert.Error(t, err)
}

func TestC2SPAccumulated(t *testing.T) {
	iterations := testenv.N(10_000, 1_000_000)
	want := map[int]string{
		10_000:    "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939",
		1_000_000: "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15",
	}[iterations]
	s, d := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	one := make([]byte, 1)
	for range iterations {
		key, nonce := make([]byte, 32), make([]byte, 24)
		_, _ = s.Read(key)
		_, _ = s.Read(nonce)
		_, _ = s.Read(one)
		pt := make([]byte, int(one[0]))
		_, _ = s.Read(pt)
		_, _ = s.Read(one)
		aad := make([]byte, int(one[0]))
		_, _ = s.Read(aad)
		a, err := xaes.New(key)
		require.NoError(t, err)
		ct := a.Seal(nil, nonce, pt, aad)
		got, err := a.Open(nil, nonce, ct, aad)
		require.NoError(t, err)
		require.Equal(t, string(pt), string(got))
		_, _ = d.Write(ct)
	}
	sum := make([]byte, 32)
	_, _ = d.Read(sum)
	assert.Equal(t, want, hex.EncodeToString(sum))
}

func BenchmarkSeal200(b *testing.B) {
	a, _ := xaes.New(make([]byte, 32))
	nonce, pt, aad, dst := make([]byte, 24), make([]byte, 200), make([]byte, 48), make([]byte, 0, 256)
	b.SetBytes(200)
	for b.Loop() {
		dst = a.Seal(dst[:0], nonce, pt, aad)
	}
}
