package peerbench_test

import (
	"bytes"
	"crypto"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-attestation/attest"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// logs are a recorded boot that is part of the SDK and, where the corpus is
// there (TRUSTTREE_CORPUS), a log of some 50 KB.
func logs(b *testing.B) map[string][]byte {
	m := make(map[string][]byte)
	for name, file := range map[string]string{"uki": "../../testdata/vm/uki-sb-on/binary_bios_measurements", "shim": "../../testdata/vm/shim-sb-on/binary_bios_measurements",
		"keylime-49k": filepath.Join(os.Getenv("TRUSTTREE_CORPUS"), "secureboot/thirdparty/keylime/binary_bios_measurements"),
		"snp-45k":     filepath.Join(os.Getenv("TRUSTTREE_CORPUS"), "secureboot/thirdparty/go-eventlog/ubuntu-2404-amd-sevsnp.bin")} {
		raw, err := os.ReadFile(file)
		if err != nil {
			b.Logf("without %s: %v", name, err)
			continue
		}
		m[name] = raw
	}
	return m
}

func BenchmarkParseAndReplay(b *testing.B) {
	for name, raw := range logs(b) {
		l, err := eventlog.Parse(raw, nil)
		if err != nil {
			b.Fatal(err)
		}
		values, err := l.Replay(crypto.SHA256)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/trusttree", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				l, err := eventlog.Parse(raw, nil)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := l.Verify(crypto.SHA256, values); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/go-eventlog", func(b *testing.B) {
			mrs := register.PCRBank{TCGHashAlgo: 0xB}
			for i, v := range values {
				mrs.PCRs = append(mrs.PCRs, register.PCR{Index: i, Digest: v, DigestAlg: crypto.SHA256})
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tcg.ParseAndReplay(bytes.Clone(raw), mrs.MRs(), tcg.ParseOpts{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/go-attestation", func(b *testing.B) {
			var pcrs []attest.PCR
			for i, v := range values {
				pcrs = append(pcrs, attest.PCR{Index: i, Digest: v, DigestAlg: crypto.SHA256})
			}
			b.ReportAllocs()
			for b.Loop() {
				el, err := attest.ParseEventLog(raw)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := el.Verify(pcrs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
