package quote_test

import (
	"crypto"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest/internal/softnode"
)

// The bar of allocations is a count, not a time: it holds on every machine.
// The peers are measured in internal/peerbench.
func TestQuoteVerificationAllocatesLittle(t *testing.T) {
	for _, kind := range []softnode.Kind{softnode.P256(), softnode.RSA()} {
		k, ak := newAK(t, kind)
		list, want := pcrs(crypto.SHA256, 0, 7), sel(crypto.SHA256, 0, 7)
		data := softnode.Attested{ExtraData: qualifying, PCRs: list}.Encode()
		sig, values := k.Sign(data), softnode.Values(list)
		n := testing.AllocsPerRun(100, func() { _, _ = ak.VerifyQuote(data, sig, values, want, qualifying) })
		require.LessOrEqual(t, n, 20.0, kind.String())
	}
}

func BenchmarkVerifyQuote(b *testing.B) {
	for _, kind := range []softnode.Kind{softnode.P256(), softnode.RSA()} {
		k, ak := newAK(b, kind)
		list, want := pcrs(crypto.SHA256, 0, 1, 2, 3, 4, 5, 6, 7), sel(crypto.SHA256, 0, 1, 2, 3, 4, 5, 6, 7)
		data := softnode.Attested{ExtraData: qualifying, PCRs: list}.Encode()
		sig, values := k.Sign(data), softnode.Values(list)
		b.Run(kind.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ak.VerifyQuote(data, sig, values, want, qualifying); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
