package interop_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

func TestResetOfTheApplicationReachesTheDestination(t *testing.T) {
	modes(t, func(t *testing.T, more ...string) {
		p := newPKI(t)
		dst, ends := backend(t)
		gw, local := freePort(t), freePort(t)
		p.tunnel("server", gw, dst, more...)
		p.tunnel("client", local, gw, more...)
		c, err := net.Dial("tcp", local)
		require.NoError(t, err)
		_, err = c.Write(make([]byte, 300_000))
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 300_000))
		require.NoError(t, err)
		require.NoError(t, c.(*net.TCPConn).SetLinger(0))
		require.NoError(t, c.Close())
		assert.Error(t, upload(t, ends, 300_000), "an aborted upload looked complete")
	})
}

func TestParallelConnectionsStayApart(t *testing.T) {
	modes(t, func(t *testing.T, more ...string) {
		p := newPKI(t)
		dst, _ := backend(t)
		gw, local := freePort(t), freePort(t)
		p.tunnel("server", gw, dst, more...)
		p.tunnel("client", local, gw, more...)
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() { echo(t, local, 100_000) })
		}
		wg.Wait()
	})
}

// TestReloadOfABadFileKeepsTheOld: one bad file of several, and nothing changes.
func TestReloadOfABadFileKeepsTheOld(t *testing.T) {
	p := newPKI(t)
	p.crl(5)
	dst, _ := backend(t)
	gw, local := freePort(t), freePort(t)
	server := p.tunnel("server", gw, dst, "-crl", p.path("crl.pem"), "-crl-state", p.path("crls"))
	p.tunnel("client", local, gw)
	echo(t, local, 1000)
	good, err := os.ReadFile(p.path("server.pem"))
	require.NoError(t, err)
	for what, spoil := range map[string]func(){
		"no certificate": func() { require.NoError(t, os.WriteFile(p.path("server.pem"), []byte("torn"), 0o600)) },
		"CRL rolled back": func() {
			require.NoError(t, os.WriteFile(p.path("server.pem"), good, 0o600))
			p.crl(4)
		},
	} {
		spoil()
		before := strings.Count(server.out.String(), "reload.failed")
		require.NoError(t, server.Process.Signal(syscall.SIGHUP))
		require.Eventually(t, func() bool { return strings.Count(server.out.String(), "reload.failed") > before }, 10*time.Second, 10*time.Millisecond, what)
		echo(t, local, 1000)
		require.NoError(t, os.WriteFile(p.path("server.pem"), good, 0o600))
		p.crl(5)
	}
	_ = server.Process.Kill()
	<-server.done
	p.crl(4)
	bin, err := build()
	require.NoError(t, err)
	out, err := exec.Command(bin, "server", "-listen", gw, "-target", dst, "-cacert", p.path("ca.pem"), "-cert", p.path("server.pem"), "-key", p.path("server.key"), "-allow-uri", "spiffe://city.example/node/*",
		"-crl", p.path("crl.pem"), "-crl-state", p.path("crls")).CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "older than 5", "a restart forgets nothing")
}

// TestFilesOfAnySizeAreRefused: an empty file or one of gigabytes stops the start
// with its name.
func TestFilesOfAnySizeAreRefused(t *testing.T) {
	p := newPKI(t)
	p.crl(1)
	bin, err := build()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(p.path("policy.json"), []byte(`{"version":1,"serial":1,"rules":[]}`), 0o600))
	for _, size := range []int64{0, 5 << 30} {
		bad := p.path("bad-file")
		require.NoError(t, os.WriteFile(bad, nil, 0o600))
		require.NoError(t, os.Truncate(bad, size)) // a hole, where the file system has them
		for _, flag := range []string{"-cacert", "-cert", "-key", "-policy", "-crl"} {
			out, err := exec.Command(bin, "server", "-listen", freePort(t), "-target", freePort(t), "-cacert", p.path("ca.pem"), "-cert", p.path("server.pem"), "-key", p.path("server.key"),
				"-allow-uri", "spiffe://city.example/node/*", "-policy", p.path("policy.json"), "-crl", p.path("crl.pem"), flag, bad).CombinedOutput()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit, flag)
			assert.Equal(t, 1, exit.ExitCode(), "%s of %d bytes: %s", flag, size, out)
			assert.Contains(t, string(out), "bad-file", flag)
		}
	}
}

// TestSilentNetworkCutIsAReset: the wire between the two ends goes away without a
// word; the destination sees a reset within a minute.
func TestSilentNetworkCutIsAReset(t *testing.T) {
	if len(os.Args) > 1 && os.Getenv("TUNNEL_BACKEND") != "" {
		ln, err := net.Listen("tcp", os.Getenv("TUNNEL_BACKEND"))
		require.NoError(t, err)
		for {
			c, err := ln.Accept()
			require.NoError(t, err)
			go func() {
				n, err := io.Copy(io.Discard, c)
				fmt.Printf("upload of %d bytes ended: clean=%v\n", n, err == nil)
			}()
		}
	}
	if to := os.Getenv("TUNNEL_APP"); to != "" {
		c, err := net.Dial("tcp", to)
		require.NoError(t, err)
		b := make([]byte, 300_000)
		_, _ = rand.Read(b)
		_, err = c.Write(b)
		require.NoError(t, err)
		time.Sleep(5 * time.Minute)
		return
	}
	if !testenv.Long() {
		t.Skip("waits for dead connections: TRUSTTREE_LONG=1")
	}
	testenv.Root(t)
	testenv.Tool(t, "ip", "iproute2")
	modes(t, func(t *testing.T, more ...string) {
		t.Parallel()
		p := newPKI(t)
		bin, err := build()
		require.NoError(t, err)
		tag := fmt.Sprintf("%d%d", os.Getpid()%10000, len(more))
		node, cloud := "ttx"+tag, "tty"+tag
		ip := func(args ...string) {
			out, err := exec.Command("ip", args...).CombinedOutput()
			require.NoError(t, err, "%v: %s", args, out)
		}
		for _, ns := range []string{node, cloud} {
			ip("netns", "add", ns)
			t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
			ip("-n", ns, "link", "set", "lo", "up")
		}
		ip("link", "add", "v0", "netns", node, "type", "veth", "peer", "name", "v1", "netns", cloud)
		ip("-n", node, "addr", "add", "10.78.0.2/24", "dev", "v0")
		ip("-n", cloud, "addr", "add", "10.78.0.1/24", "dev", "v1")
		ip("-n", node, "link", "set", "v0", "up")
		ip("-n", cloud, "link", "set", "v1", "up")
		in := func(ns string, env []string, args ...string) *process {
			c := &process{exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...), &syncBuffer{}, make(chan struct{})}
			c.Env = append(os.Environ(), env...)
			c.Stdout, c.Stderr, c.WaitDelay = c.out, c.out, time.Second
			require.NoError(t, c.Start())
			go func() { _ = c.Wait(); close(c.done) }()
			t.Cleanup(func() {
				_ = c.Process.Kill()
				<-c.done
				if t.Failed() {
					t.Log(c.out.String())
				}
			})
			return c
		}
		self := []string{os.Args[0], "-test.run=^TestSilentNetworkCutIsAReset$", "-test.timeout=10m"}
		dst := in(cloud, []string{"TUNNEL_BACKEND=127.0.0.1:9000"}, self...)
		files := func(n string) []string {
			return append([]string{"-v", "-cacert", p.path("ca.pem"), "-cert", p.path(n + ".pem"), "-key", p.path(n + ".key")}, more...)
		}
		server := in(cloud, nil, append([]string{bin, "server", "-listen", "10.78.0.1:8443", "-target", "127.0.0.1:9000", "-allow-uri", "spiffe://city.example/node/*"}, files("server")...)...)
		client := in(node, nil, append([]string{bin, "client", "-listen", "127.0.0.1:8000", "-target", "10.78.0.1:8443", "-allow-uri", "spiffe://city.example/gateway/*"}, files("client")...)...)
		require.Eventually(t, func() bool {
			return strings.Contains(server.out.String(), "tunnel.listening") && strings.Contains(client.out.String(), "tunnel.listening")
		}, 20*time.Second, 10*time.Millisecond)
		time.Sleep(time.Second)
		in(node, []string{"TUNNEL_APP=127.0.0.1:8000"}, self...)
		time.Sleep(5 * time.Second) // all of it has arrived
		ip("-n", cloud, "link", "set", "v1", "down")
		began := time.Now()
		require.Eventually(t, func() bool { return strings.Contains(dst.out.String(), "ended: clean=") }, 2*time.Minute, 100*time.Millisecond)
		t.Logf("seen after %s", time.Since(began).Round(time.Second))
		assert.Contains(t, dst.out.String(), "upload of 300000 bytes ended: clean=false")
	})
}
