package quote_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"testing"

	attestation "github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest/internal/softnode"
)

// BenchmarkQuote verifies one quote over eight PCRs: the bare signature check,
// ours, go-attestation (a new parse of the key for each quote, as its API
// wants) and go-tpm's own decoder with the checks that it leaves to the caller.
func BenchmarkQuote(b *testing.B) {
	for _, kind := range []softnode.Kind{softnode.P256(), softnode.RSA()} {
		k, ak := newAK(b, kind)
		index := []int{0, 1, 2, 3, 4, 5, 6, 7}
		list, want := pcrs(crypto.SHA256, index...), sel(crypto.SHA256, index...)
		data := softnode.Attested{ExtraData: qualifying, PCRs: list}.Encode()
		sig, values := k.Sign(data), softnode.Values(list)
		digest := sha256.Sum256(data)

		b.Run(kind.String()+"/bare", func(b *testing.B) {
			b.ReportAllocs()
			switch key := k.Signer.Public().(type) {
			case *rsa.PublicKey:
				for b.Loop() {
					require.NoError(b, rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], sig[6:]))
				}
			case *ecdsa.PublicKey:
				n := int(binary.BigEndian.Uint16(sig[4:]))
				der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[6 : 6+n]), new(big.Int).SetBytes(sig[8+n:])})
				require.NoError(b, err)
				for b.Loop() {
					if !ecdsa.VerifyASN1(key, digest[:], der) {
						b.Fatal("signature")
					}
				}
			}
		})
		b.Run(kind.String()+"/ours", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ak.VerifyQuote(data, sig, values, want, qualifying); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(kind.String()+"/go-attestation", func(b *testing.B) {
			var pcrs []attestation.PCR
			for _, p := range list {
				pcrs = append(pcrs, attestation.PCR{Index: p.Index, Digest: p.Value, DigestAlg: crypto.SHA256})
			}
			b.ReportAllocs()
			for b.Loop() {
				pub, err := attestation.ParseAKPublic(k.Public)
				if err == nil {
					err = pub.VerifyAll([]attestation.Quote{{Quote: data, Signature: sig}}, pcrs, qualifying)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(kind.String()+"/go-tpm", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.Public)
				require.NoError(b, err)
				s, err := tpm2.Unmarshal[tpm2.TPMTSignature](sig)
				require.NoError(b, err)
				_, err = tpm2.Unmarshal[tpm2.TPMSAttest](data)
				require.NoError(b, err)
				d := sha256.Sum256(data)
				key, err := tpm2.Pub(*pub)
				require.NoError(b, err)
				switch key := key.(type) {
				case *rsa.PublicKey:
					raw, err := s.Signature.RSASSA()
					require.NoError(b, err)
					require.NoError(b, rsa.VerifyPKCS1v15(key, crypto.SHA256, d[:], raw.Sig.Buffer))
				case *ecdsa.PublicKey:
					raw, err := s.Signature.ECDSA()
					require.NoError(b, err)
					require.True(b, ecdsa.Verify(key, d[:], new(big.Int).SetBytes(raw.SignatureR.Buffer), new(big.Int).SetBytes(raw.SignatureS.Buffer)))
				}
			}
		})
	}
}

// The bar of allocations is a count, not a time: it holds on every machine.
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
