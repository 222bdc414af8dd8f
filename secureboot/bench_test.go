package secureboot_test

import (
	"crypto"
	"strings"
	"testing"

	"github.com/trusttree/trusttree/secureboot"
)

// BenchmarkAppraise is a whole appraisal: both logs, Secure Boot, reference
// values, IMA's files. Policies are signed once, not in here.
func BenchmarkAppraise(b *testing.B) {
	for name, pin := range map[string]bool{"rules": false, "pinned": true} {
		b.Run(name, func(b *testing.B) {
			p := learn(b, crypto.SHA256, secureboot.LearnOptions{PinPCR7: pin}, "uki-sb-on")
			ev := boot(b, "uki-sb-on", crypto.SHA256)
			b.ReportAllocs()
			for b.Loop() {
				if r := p.Appraise(ev, now); r.Status != secureboot.Affirming {
					b.Fatal(r.Err())
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appraisals/s")
		})
	}
}

// BenchmarkHostile1MiB: logs and lists that cost the verifier most.
func BenchmarkHostile1MiB(b *testing.B) {
	p := learn(b, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	for name, ev := range hostile(b) {
		b.Run(strings.ReplaceAll(name, " ", "-"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if r := p.Appraise(ev, now); r.Status == secureboot.Affirming {
					b.Fatal(r.Status)
				}
			}
		})
	}
}
