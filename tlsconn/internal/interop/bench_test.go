package interop_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// figures are the relays' and the measurements' names in benchmarks.
var figures = struct{ relay, unit map[string]string }{
	map[string]string{"ours plain": "trusttree-plain", "ours mux": "trusttree-mux", "bare crypto/tls": "bare-crypto-tls"},
	map[string]string{bulk1: "bulk1-GB/s", bulk64: "bulk64-GB/s", cpu1: "cpu1-s/GB", cpu64: "cpu64-s/GB", rrP50: "rr-p50-us", rrP99: "rr-p99-us", conns: "conn/s", cpuConn: "conn-cpu-us"},
}

// eachRelay runs a benchmark with two fresh processes of every relay.
func eachRelay(b *testing.B, f func(b *testing.B, local string, pids []int)) {
	p, sink, whole := newPKI(b), load(b), b
	for _, k := range kinds(b, p, sink) {
		name := k.name
		if n := figures.relay[name]; n != "" {
			name = n
		}
		b.Run(name, func(b *testing.B) {
			p.t = b // the processes end with this benchmark
			defer func() { p.t = whole }()
			gw, local := freePort(b), freePort(b)
			server, client := k.up(b, gw, local)
			f(b, local, []int{server.Process.Pid, client.Process.Pid})
		})
	}
}

// BenchmarkRelay measures each relay as TestBesidePeers does: in one
// iteration, 512 MiB over one connection and over 64, 1,500 round trips and
// 640 new connections. Each has done all of it once before: a relay runs for
// months.
func BenchmarkRelay(b *testing.B) {
	eachRelay(b, func(b *testing.B, local string, pids []int) {
		sum := map[string]float64{}
		measure(b, local, pids)
		for b.Loop() {
			for what, v := range measure(b, local, pids) {
				sum[what] += v
			}
		}
		for what, v := range sum {
			b.ReportMetric(v/float64(b.N), figures.unit[what])
		}
		b.ReportMetric(0, "ns/op") // says nothing here
	})
}

// BenchmarkIdleRelay measures what both ends hold for 1,000 idle connections.
func BenchmarkIdleRelay(b *testing.B) {
	eachRelay(b, func(b *testing.B, local string, pids []int) {
		var held float64
		for b.Loop() {
			held = idle(b, local, pids)
		}
		b.ReportMetric(held, "idle-MB")
		b.ReportMetric(0, "ns/op")
	})
}

// BenchmarkProbeBesideBulk is a small round trip on a multiplexed tunnel that
// carries four bulk streams.
func BenchmarkProbeBesideBulk(b *testing.B) {
	p, sink := newPKI(b), load(b)
	all := kinds(b, p, sink)
	require.Equal(b, "ours mux", all[1].name)
	gw, local := freePort(b), freePort(b)
	all[1].up(b, gw, local)
	var p99 float64
	for b.Loop() {
		p99 = probe(b, local)
	}
	b.ReportMetric(p99, "probe-p99-ms")
	b.ReportMetric(0, "ns/op")
}
