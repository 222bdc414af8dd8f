package interop_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
// interleaved rounds, and logs medians: bulk over one connection and over 64,
// CPU seconds per GB, request/response, new connections a second, memory of
// 1,000 idle connections. It asserts no time. TRUSTTREE_LONG=1 runs it.
func TestBesidePeers(t *testing.T) {
	if !testenv.Long() {
		t.Skip("full figures: TRUSTTREE_LONG=1")
	}
	rounds := 10
	if n, err := strconv.Atoi(os.Getenv("TLSCONN_ROUNDS")); err == nil {
		rounds = n
	}
	p := newPKI(t)
	sink := load(t)
	bare := filepath.Join(t.TempDir(), "barerelay")
	cmd := exec.Command("go", "build", "-o", bare, "./tlsconn/internal/interop/barerelay")
	cmd.Dir = testenv.Repo()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	type relay struct {
		name  string
		local string
		pids  []int
		got   map[string][]float64
	}
	var relays []*relay
	add := func(name string, up func(gw, local string) (*process, *process)) {
		gw, local := freePort(t), freePort(t)
		a, b := up(gw, local)
		relays = append(relays, &relay{name, local, []int{a.Process.Pid, b.Process.Pid}, map[string][]float64{}})
	}
	ours := func(more ...string) func(gw, local string) (*process, *process) {
		return func(gw, local string) (*process, *process) {
			quiet := append([]string{"-v=false"}, more...)
			return p.tunnel("server", gw, sink, quiet...), p.tunnel("client", local, gw, quiet...)
		}
	}
	add("ours plain", ours())
	add("ours mux", ours("-mux"))
	add("bare crypto/tls", func(gw, local string) (*process, *process) {
		args := func(m, l, to, n string) []string {
			return []string{m, l, to, p.path("ca.pem"), p.path(n + ".pem"), p.path(n + ".key")}
		}
		return start(t, gw, bare, args("server", gw, sink, "server")...), start(t, local, bare, args("client", local, gw, "client")...)
	})
	stunnel := testenv.Tool(t, "stunnel4", "stunnel4")
	add("stunnel", func(gw, local string) (*process, *process) {
		conf := func(name, listen, to, cert, more string) string {
			require.NoError(t, os.WriteFile(p.path(name), []byte(fmt.Sprintf("foreground = yes\npid =\nsyslog = no\ndebug = 3\nsessionCacheSize = 1\n[s]\n%saccept = %s\nconnect = %s\ncert = %s\nkey = %s\nCAfile = %s\nverifyChain = yes\n", more, listen, to, p.path(cert+".pem"), p.path(cert+".key"), p.path("ca.pem"))), 0o600))
			return p.path(name)
		}
		return start(t, gw, stunnel, conf("bs.conf", gw, sink, "server", "")), start(t, local, stunnel, conf("bc.conf", local, gw, "client", "client = yes\n"))
	})
	haproxy := testenv.Tool(t, "haproxy", "haproxy")
	add("haproxy", func(gw, local string) (*process, *process) {
		for _, n := range []string{"server", "client"} {
			a, _ := os.ReadFile(p.path(n + ".pem"))
			b, _ := os.ReadFile(p.path(n + ".key"))
			require.NoError(t, os.WriteFile(p.path(n+".both"), append(a, b...), 0o600))
		}
		conf := func(name, bind, server string) string {
			require.NoError(t, os.WriteFile(p.path(name), []byte("global\n maxconn 4000\n tune.ssl.cachesize 0\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\nlisten l\n bind "+bind+"\n server s "+server+"\n"), 0o600))
			return p.path(name)
		}
		return start(t, gw, haproxy, "-db", "-f", conf("hs.cfg", gw+" ssl crt "+p.path("server.both")+" ca-file "+p.path("ca.pem")+" verify required ssl-min-ver TLSv1.3 no-tls-tickets", sink)),
			start(t, local, haproxy, "-db", "-f", conf("hc.cfg", local, gw+" ssl crt "+p.path("client.both")+" ca-file "+p.path("ca.pem")+" verify required ssl-min-ver TLSv1.3 no-ssl-reuse"))
	})
	for round := range rounds {
		for i := range relays {
			r := relays[(i+round)%len(relays)]
			for name, v := range measure(t, r.local, r.pids) {
				r.got[name] = append(r.got[name], v)
			}
		}
	}
	for _, r := range relays {
		r.got["idle1000 MB"] = []float64{idle(t, r.local, r.pids)}
	}
	for _, what := range []string{"bulk1 GB/s", "bulk64 GB/s", "CPU1 s/GB", "CPU64 s/GB", "rr p50 µs", "rr p99 µs", "conn/s", "idle1000 MB"} {
		for _, r := range relays {
			v := slices.Sorted(slices.Values(r.got[what]))
			t.Logf("%-12s %-16s %8.2f  [%.2f–%.2f]", what, r.name, v[len(v)/2], v[0], v[len(v)-1])
		}
	}
}

// load is the destination: the first byte says what a connection is for.
func load(t *testing.T) string {
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
				b := make([]byte, 256<<10)
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

func measure(t *testing.T, address string, pids []int) map[string]float64 {
	t.Helper()
	got := map[string]float64{}
	for _, n := range []int{1, 64} {
		const total = 512 << 20
		cpu, began := cpuSeconds(pids), time.Now()
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				b := make([]byte, 128<<10)
				b[0] = 's'
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
		got[fmt.Sprintf("bulk%d GB/s", n)] = gb / time.Since(began).Seconds()
		got[fmt.Sprintf("CPU%d s/GB", n)] = (cpuSeconds(pids) - cpu) / gb
	}
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	_, _ = c.Write([]byte("e"))
	var times []float64
	b := make([]byte, 64)
	for range 1500 {
		began := time.Now()
		_, _ = c.Write(b)
		_, err := io.ReadFull(c, b)
		require.NoError(t, err)
		times = append(times, float64(time.Since(began).Microseconds()))
	}
	_ = c.Close()
	slices.Sort(times)
	got["rr p50 µs"], got["rr p99 µs"] = times[len(times)/2], times[len(times)*99/100]
	var wg sync.WaitGroup
	const each, workers = 40, 16
	began := time.Now()
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
	got["conn/s"] = each * workers / time.Since(began).Seconds()
	return got
}

// idle opens 1,000 connections that did one round trip and returns what both
// ends hold, in MB.
func idle(t *testing.T, address string, pids []int) float64 {
	var conns []net.Conn
	for range 1000 {
		c, err := net.Dial("tcp", address)
		require.NoError(t, err)
		conns = append(conns, c)
		_, _ = c.Write([]byte("ex"))
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err = io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Logf("idle connection %d: %v", len(conns), err)
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
	for _, c := range conns {
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
