package interop_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// TestBesidePeers measures relays as pairs of processes, all in one run, in
// interleaved rounds, and prints medians and each bar beside its target: bulk over
// one connection and over 64, CPU seconds per GB, request/response, new
// connections a second, memory of 1,000 idle connections, and a probe beside bulk.
// Ratios are taken within a round, so that a busy machine moves both sides; their
// median is what counts. It asserts no time. TRUSTTREE_LONG=1 runs it, for at
// least TLSCONN_ROUNDS rounds (10) unless they take longer than TLSCONN_MINUTES
// (18).
func TestBesidePeers(t *testing.T) {
	if !testenv.Long() {
		t.Skip("full figures: TRUSTTREE_LONG=1")
	}
	rounds, minutes := 10, 18
	for name, v := range map[string]*int{"TLSCONN_ROUNDS": &rounds, "TLSCONN_MINUTES": &minutes} {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			*v = n
		}
	}
	p := newPKI(t)
	sink := load(t)
	var relays []*relay
	ups := map[string]func(testing.TB, string, string) (*process, *process){}
	start1 := func(name string) *relay {
		gw, local := freePort(t), freePort(t)
		a, b := ups[name](t, gw, local)
		return &relay{name: name, local: local, pids: []int{a.Process.Pid, b.Process.Pid}, ends: []*process{a, b}, got: map[string][]float64{}}
	}
	for _, k := range kinds(t, p, sink) {
		if k.optional {
			continue
		}
		ups[k.name] = k.up
		relays = append(relays, start1(k.name))
	}
	began, done := time.Now(), 0
	for round := range rounds {
		if time.Since(began) > time.Duration(minutes)*time.Minute {
			break
		}
		for i := range relays {
			r := relays[(i+round)%len(relays)]
			for name, v := range measure(t, r.local, r.pids) {
				r.got[name] = append(r.got[name], v)
			}
		}
		done++
	}
	mux := relays[1]
	for range done {
		mux.got[probeP99] = append(mux.got[probeP99], probe(t, mux.local))
	}
	for _, r := range relays {
		for _, e := range r.ends {
			_ = e.Process.Kill()
			<-e.done
		}
	}
	for _, r := range relays {
		fresh := start1(r.name) // what bulk left in the heap is no idle connection's
		r.got[idleMB] = []float64{idle(t, fresh.local, fresh.pids)}
		for _, e := range fresh.ends {
			_ = e.Process.Kill()
			<-e.done
		}
	}
	fmt.Printf("%d interleaved rounds; medians [least-most]\n", done)
	for _, what := range []string{bulk1, bulk64, cpu1, cpu64, rrP50, rrP99, conns, cpuConn, idleMB, probeP99} {
		for _, r := range relays {
			if v := slices.Sorted(slices.Values(r.got[what])); len(v) > 0 {
				fmt.Printf("%-16s %-16s %9.2f  [%.2f-%.2f]\n", what, r.name, v[len(v)/2], v[0], v[len(v)-1])
			}
		}
	}
	bars(relays)
}

// relay is a pair of processes with what was measured.
type relay struct {
	name  string
	local string
	pids  []int
	ends  []*process
	got   map[string][]float64
}

// What is measured.
const (
	bulk1    = "bulk 1 GB/s"
	bulk64   = "bulk 64 GB/s"
	cpu1     = "CPU 1 s/GB"
	cpu64    = "CPU 64 s/GB"
	rrP50    = "rr p50 µs"
	rrP99    = "rr p99 µs"
	conns    = "conn/s"
	cpuConn  = "CPU µs/conn"
	idleMB   = "idle 1000 MB"
	probeP99 = "probe p99 ms"
)

// bars prints each bar of the project beside what was measured.
func bars(relays []*relay) {
	by := map[string]*relay{}
	for _, r := range relays {
		by[r.name] = r
	}
	plain, mux, bare, stunnel, haproxy := by["ours plain"], by["ours mux"], by["bare crypto/tls"], by["stunnel"], by["haproxy"]
	median := func(v []float64) float64 { v = slices.Sorted(slices.Values(v)); return v[len(v)/2] }
	// ratio is the median over rounds of ours to the best of the peers.
	ratio := func(what string, best func(...float64) float64, ours *relay, peers ...*relay) float64 {
		var v []float64
		for i := range ours.got[what] {
			var of []float64
			for _, p := range peers {
				of = append(of, p.got[what][i])
			}
			v = append(v, ours.got[what][i]/best(of...))
		}
		return median(v)
	}
	most := func(v ...float64) float64 { return slices.Max(v) }
	least := func(v ...float64) float64 { return slices.Min(v) }
	for _, b := range []struct {
		name   string
		got    float64
		target float64
		atMost bool
	}{
		{"bulk over 1 connection, ours plain to the best of the peers", ratio(bulk1, most, plain, bare, stunnel, haproxy), 1.15, false},
		{"bulk over 64 connections, ours plain to the best of the peers", ratio(bulk64, most, plain, bare, stunnel, haproxy), 1.25, false},
		{"CPU per GB over 1 connection, ours plain to stunnel", ratio(cpu1, least, plain, stunnel), 0.8, true},
		{"CPU per GB over 64 connections, ours plain to stunnel", ratio(cpu64, least, plain, stunnel), 0.8, true},
		{"CPU per GB over 1 connection, ours plain to the bare relay", ratio(cpu1, least, plain, bare), 0.95, true},
		{"CPU per GB over 64 connections, ours plain to the bare relay", ratio(cpu64, least, plain, bare), 0.95, true},
		{"bulk over 1 connection, ours multiplexed to the bare relay", ratio(bulk1, most, mux, bare), 0.9, false},
		{"bulk over 64 connections, ours multiplexed to the bare relay", ratio(bulk64, most, mux, bare), 0.9, false},
		{"new connections a second, ours multiplexed to the bare relay", ratio(conns, most, mux, bare), 4, false},
		{"new connections a second, ours multiplexed to stunnel", ratio(conns, most, mux, stunnel), 7, false},
		{"request/response p50, ours plain to the best of the peers", ratio(rrP50, least, plain, bare, stunnel, haproxy), 1.1, true},
		{"request/response p50, ours multiplexed to the best of the peers", ratio(rrP50, least, mux, bare, stunnel, haproxy), 1.1, true},
		{"1,000 idle connections, ours plain, both ends, MB", median(plain.got[idleMB]), 100, true},
		{"1,000 idle connections, ours multiplexed, both ends, MB", median(mux.got[idleMB]), 100, true},
		{"probe stream beside four bulk streams, p99, ms", median(mux.got[probeP99]), 25, true},
	} {
		sign, met := ">=", b.got >= b.target
		if b.atMost {
			sign, met = "<=", b.got <= b.target
		}
		word := "missed"
		if met {
			word = "met"
		}
		fmt.Printf("bar %-62s %8.2f  target %s %.2f  %s\n", b.name, b.got, sign, b.target, word)
	}
}

// probe returns the 99th percentile in ms of a small request/response on one
// stream while four others carry bulk.
func probe(t testing.TB, address string) float64 {
	t.Helper()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			b := make([]byte, 128<<10)
			b[0] = 's'
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	times := roundTrips(t, address, 500)
	close(stop)
	wg.Wait()
	return times[len(times)*99/100] / 1000
}

// roundTrips returns sorted times in µs.
func roundTrips(t testing.TB, address string, n int) []float64 {
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer c.Close()
	_, _ = c.Write([]byte("e"))
	var times []float64
	b := make([]byte, 64)
	for range n {
		began := time.Now()
		_, _ = c.Write(b)
		_, err := io.ReadFull(c, b)
		require.NoError(t, err)
		times = append(times, float64(time.Since(began).Nanoseconds())/1000)
	}
	slices.Sort(times)
	return times
}

// load is the destination: the first byte says what a connection is for.
func load(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 4<<10)
				if _, err := io.ReadFull(c, b[:1]); err != nil {
					return
				}
				if b[0] == 'e' { // echo
					for {
						n, err := c.Read(b)
						if err != nil {
							return
						}
						_, _ = c.Write(b[:n])
					}
				}
				if b[0] == 'S' { // says that it is there
					_, _ = c.Write(b[:1])
				}
				b = make([]byte, 256<<10)
				for { // sink, a byte when all of it is there
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if b[n-1] == 'z' {
						_, _ = c.Write(b[:1])
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func measure(t testing.TB, address string, pids []int) map[string]float64 {
	t.Helper()
	got := map[string]float64{}
	for n, names := range map[int][2]string{1: {bulk1, cpu1}, 64: {bulk64, cpu64}} {
		const total = 512 << 20
		var open []net.Conn
		for range n { // handshakes are measured by themselves
			c, err := net.Dial("tcp", address)
			require.NoError(t, err)
			defer c.Close()
			_, _ = c.Write([]byte("S"))
			_, err = io.ReadFull(c, make([]byte, 1))
			require.NoError(t, err)
			open = append(open, c)
		}
		cpu, began := cpuSeconds(pids), time.Now()
		var wg sync.WaitGroup
		for _, c := range open {
			wg.Go(func() {
				b := make([]byte, 128<<10)
				for range total / n / len(b) {
					_, _ = c.Write(b)
				}
				_, _ = c.Write([]byte("z"))
				if _, err := io.ReadFull(c, b[:1]); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		gb := float64(total) / 1e9
		got[names[0]] = gb / time.Since(began).Seconds()
		got[names[1]] = (cpuSeconds(pids) - cpu) / gb
	}
	times := roundTrips(t, address, 1500)
	got[rrP50], got[rrP99] = times[len(times)/2], times[len(times)*99/100]
	var wg sync.WaitGroup
	const each, workers = 40, 16
	cpu, began := cpuSeconds(pids), time.Now()
	for range workers {
		wg.Go(func() {
			for range each {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = c.Write([]byte("ex"))
				_, err = io.ReadFull(c, make([]byte, 1))
				if err != nil {
					t.Error(err)
				}
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	got[conns] = each * workers / time.Since(began).Seconds()
	got[cpuConn] = (cpuSeconds(pids) - cpu) * 1e6 / (each * workers)
	return got
}

// idle opens 1,000 connections that did one round trip and returns what both
// ends hold, in MB.
func idle(t testing.TB, address string, pids []int) float64 {
	var open []net.Conn
	for range 1000 {
		c, err := net.Dial("tcp", address)
		require.NoError(t, err)
		open = append(open, c)
		_, _ = c.Write([]byte("ex"))
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err = io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Logf("idle connection %d: %v", len(open), err)
			break
		}
	}
	time.Sleep(time.Second)
	var kb float64
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 1 && f[0] == "VmRSS:" {
				v, _ := strconv.ParseFloat(f[1], 64)
				kb += v
			}
		}
	}
	for _, c := range open {
		_ = c.Close()
	}
	return kb / 1000
}

// cpuSeconds is what the processes have used, by /proc/PID/stat.
func cpuSeconds(pids []int) float64 {
	var ticks float64
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(b), ") ")
		if f := strings.Fields(rest); len(f) > 12 {
			u, _ := strconv.ParseFloat(f[11], 64)
			s, _ := strconv.ParseFloat(f[12], 64)
			ticks += u + s
		}
	}
	return ticks / 100
}
