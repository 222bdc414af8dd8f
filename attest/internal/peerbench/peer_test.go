// Package peerbench measures the quote verifier beside peers whose
// dependencies stay out of the library's module.
package peerbench

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"syscall"
	"testing"

	attestation "github.com/google/go-attestation/attest"
	pb "github.com/google/go-tpm-tools/proto/tpm"
	toolsquote "github.com/google/go-tpm-tools/quote"

	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
)

// measure runs f and reports processor time beside wall time, which says more
// on a machine with other work.
func measure(b *testing.B, f func() error) {
	b.ReportAllocs()
	before, n := cpu(), 0
	for b.Loop() {
		if err := f(); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(cpu()-before)/float64(n), "cpu-ns/op")
}

func cpu() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkQuote verifies one quote over eight PCRs of SHA-256.
func BenchmarkQuote(b *testing.B) {
	for _, kind := range []softnode.Kind{softnode.P256(), softnode.RSA()} {
		k := softnode.NewKey(kind, softnode.AKAttributes)
		ak, err := quote.ParseKey(k.Public)
		if err != nil {
			b.Fatal(err)
		}
		qualifying := make([]byte, 32)
		sel := []quote.Selection{{Bank: crypto.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7}}}
		var list []softnode.PCR
		var theirs []attestation.PCR
		tools := &pb.PCRs{Hash: pb.HashAlgo_SHA256, Pcrs: map[uint32][]byte{}}
		for _, i := range sel[0].PCRs {
			d := sha256.Sum256([]byte{byte(i)})
			list = append(list, softnode.PCR{Bank: crypto.SHA256, Index: i, Value: d[:]})
			theirs = append(theirs, attestation.PCR{Index: i, Digest: d[:], DigestAlg: crypto.SHA256})
			tools.Pcrs[uint32(i)] = d[:]
		}
		data := softnode.Attested{ExtraData: qualifying, PCRs: list}.Encode()
		sig, values, digest := k.Sign(data), softnode.Values(list), sha256.Sum256(data)
		type variant struct {
			name string
			f    func() error
		}
		var variants []variant
		switch key := k.Signer.Public().(type) {
		case *rsa.PublicKey:
			variants = append(variants, variant{"bare-signature", func() error { return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], sig[6:]) }})
		case *ecdsa.PublicKey:
			n := int(binary.BigEndian.Uint16(sig[4:]))
			der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[6 : 6+n]), new(big.Int).SetBytes(sig[8+n:])})
			if err != nil {
				b.Fatal(err)
			}
			variants = append(variants, variant{"bare-signature", func() error {
				if !ecdsa.VerifyASN1(key, digest[:], der) {
					return quote.ErrSignature
				}
				return nil
			}})
		}
		pub, err := attestation.ParseAKPublic(k.Public)
		if err != nil {
			b.Fatal(err)
		}
		q := &pb.Quote{Quote: data, RawSig: sig, Pcrs: tools}
		variants = append(variants,
			variant{"ours", func() error {
				_, err := ak.VerifyQuote(data, sig, values, sel, qualifying)
				return err
			}},
			variant{"go-attestation", func() error {
				return pub.VerifyAll([]attestation.Quote{{Quote: data, Signature: sig}}, theirs, qualifying)
			}},
			variant{"go-tpm-tools", func() error { return toolsquote.Verify(q, k.Signer.Public(), qualifying) }})
		for _, v := range variants {
			b.Run(kind.String()+"/"+v.name, func(b *testing.B) { measure(b, v.f) })
		}
		// All in turn, in rounds of 20: what else the machine does hits each of
		// them alike. The metrics are the lowest processor times of a round.
		b.Run(kind.String()+"/interleaved", func(b *testing.B) {
			const round = 20
			best := make([]float64, len(variants))
			for b.Loop() {
				for i, v := range variants {
					before := cpu()
					for range round {
						if err := v.f(); err != nil {
							b.Fatal(err)
						}
					}
					if t := float64(cpu()-before) / round; best[i] == 0 || t < best[i] {
						best[i] = t
					}
				}
			}
			for i, v := range variants {
				b.ReportMetric(best[i], v.name+"-ns")
			}
		})
	}
}
