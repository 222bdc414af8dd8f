package secureboot_test

import (
	"crypto"
	"testing"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
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
	good := boot(b, "uki-sb-on", crypto.SHA256)
	header, events := logtest.Split(good.EventLog)
	small := logtest.Header(crypto.SHA256)
	for len(small) < 1<<20 {
		small = append(small, logtest.Measured(7, 0x8401, nil, crypto.SHA256).Bytes()...)
	}
	big := append([]logtest.Event(nil), events...)
	big = variableEvent("dbx", list(28+17*60_000, 0, 17, make([]byte, 17*60_000)...))(big)
	for name, log := range map[string][]byte{"events": small, "signatures": logtest.Join(header, big)} {
		b.Run(name, func(b *testing.B) {
			ev := good
			ev.EventLog = log
			_, es := logtest.Split(log)
			ev.PCRs = logtest.Values(crypto.SHA256, es)
			b.ReportAllocs()
			for b.Loop() {
				if r := p.Appraise(ev, now); r.Status != secureboot.Contraindicated {
					b.Fatal(r.Status)
				}
			}
		})
	}
}
