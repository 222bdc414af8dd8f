package interop_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tunnel")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "tunnel")
	cmd := exec.Command("go", "build", "-o", bin, "./examples/tunnel")
	cmd.Dir = testenv.Repo()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// pki writes a CA and certificates as PEM files.
type pki struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newPKI(t testing.TB) *pki {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "interop CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	p := &pki{t: t, dir: t.TempDir(), cert: cert, key: key, n: 1}
	p.write("ca.pem", "CERTIFICATE", der)
	p.leaf("server", "spiffe://city.example/gateway/1")
	p.leaf("client", "spiffe://city.example/node/17")
	return p
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) write(name, typ string, der []byte) {
	require.NoError(p.t, os.WriteFile(p.path(name), pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600))
}

func (p *pki) leaf(name, id string) {
	u, err := url.Parse(id)
	require.NoError(p.t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(p.t, err)
	p.n++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(p.n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, URIs: []*url.URL{u}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, p.cert, key.Public(), p.key)
	require.NoError(p.t, err)
	p.write(name+".pem", "CERTIFICATE", der)
	k, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(p.t, err)
	p.write(name+".key", "PRIVATE KEY", k)
}

func (p *pki) crl(number int64, serials ...int64) {
	t := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, s := range serials {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, p.cert, p.key)
	require.NoError(p.t, err)
	p.write("crl.pem", "X509 CRL", der)
}

func freePort(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

// process is a program that is killed at the test's end.
type process struct {
	*exec.Cmd
	out  *syncBuffer
	done chan struct{}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs a program and waits until it listens on address.
func start(t testing.TB, address, bin string, args ...string) *process {
	t.Helper()
	p := &process{exec.Command(bin, args...), &syncBuffer{}, make(chan struct{})}
	p.Stdout, p.Stderr = p.out, p.out
	p.WaitDelay = time.Second // a child of it may hold its output open
	require.NoError(t, p.Start())
	go func() { _ = p.Wait(); close(p.done) }()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s %s:\n%s", filepath.Base(bin), strings.Join(args, " "), p.out.String())
		}
	})
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 15*time.Second, 10*time.Millisecond, "%s does not listen on %s", bin, address)
	return p
}

func (p *pki) tunnel(mode, listen, target string, more ...string) *process {
	p.t.Helper()
	bin, err := build()
	require.NoError(p.t, err)
	name, allow := "server", "spiffe://city.example/node/*"
	if mode == "client" {
		name, allow = "client", "spiffe://city.example/gateway/*"
	}
	return start(p.t, listen, bin, append([]string{mode, "-v", "-listen", listen, "-target", target, "-cacert", p.path("ca.pem"), "-cert", p.path(name + ".pem"), "-key", p.path(name + ".key"), "-allow-uri", allow}, more...)...)
}

// ended says how an upload ended; a nil error is a clean end of file.
type ended struct {
	n   int64
	err error
}

// upload waits for the end of the upload of n bytes.
func upload(t *testing.T, ends chan ended, n int64) error {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case e := <-ends:
			if e.n == n {
				return e.err
			}
		case <-timeout:
			t.Fatal("the destination heard nothing")
		}
	}
}

// backend echoes after the end of file, and reports how uploads ended.
func backend(t *testing.T) (string, chan ended) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ends := make(chan ended, 256)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				n, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				if err == nil {
					_ = c.(*net.TCPConn).CloseWrite()
				}
				ends <- ended{n, err}
			}()
		}
	}()
	t.Cleanup(func() { _ = ln.Close() })
	return ln.Addr().String(), ends
}

func echo(t *testing.T, address string, size int) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	msg := make([]byte, size)
	_, _ = rand.Read(msg)
	go func() {
		_, _ = c.Write(msg)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	back, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(msg), sha256.Sum256(back), "%d bytes of %d", len(back), size)
}

func modes(t *testing.T, do func(t *testing.T, more ...string)) {
	t.Run("plain", func(t *testing.T) { do(t) })
	t.Run("multiplexed", func(t *testing.T) { do(t, "-mux") })
}

func TestTunnelToTunnel(t *testing.T) {
	modes(t, func(t *testing.T, more ...string) {
		p := newPKI(t)
		dst, _ := backend(t)
		gw, local, status := freePort(t), freePort(t), freePort(t)
		p.tunnel("server", gw, dst, append(more, "-status", status)...)
		p.tunnel("client", local, gw, more...)
		for _, size := range []int{0, 1, 3 << 20} {
			echo(t, local, size)
		}
		for path, want := range map[string]string{"/_status": "spiffe://city.example/gateway/1", "/metrics": `tunnel_flows_total{end="ok",verdict="allowed"}`} {
			require.Eventually(t, func() bool {
				resp, err := http.Get("http://" + status + path)
				if err != nil {
					return false
				}
				defer resp.Body.Close()
				b, _ := io.ReadAll(resp.Body)
				return strings.Contains(string(b), want)
			}, 5*time.Second, 20*time.Millisecond, path)
		}
	})
}

func TestKilledClientIsAResetAtTheDestination(t *testing.T) {
	modes(t, func(t *testing.T, more ...string) {
		p := newPKI(t)
		dst, ends := backend(t)
		gw, local := freePort(t), freePort(t)
		p.tunnel("server", gw, dst, more...)
		client := p.tunnel("client", local, gw, more...)
		echo(t, local, 1000)
		c, err := net.Dial("tcp", local)
		require.NoError(t, err)
		defer c.Close()
		_, err = c.Write(make([]byte, 300_000))
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 300_000))
		require.NoError(t, err)
		require.NoError(t, client.Process.Kill())
		assert.Error(t, upload(t, ends, 300_000), "a cut upload looked complete")
	})
}

func TestReloadCutsWhatIsNoLongerAllowed(t *testing.T) {
	policy := func(serial int, peers string) string {
		return fmt.Sprintf(`{"version":1,"serial":%d,"rules":[{"name":"nodes","action":"allow","peers":[%q],"direction":"to-cloud","proto":"tcp","services":["target"]}]}`, serial, peers)
	}
	for name, change := range map[string]func(p *pki){
		"policy": func(p *pki) {
			require.NoError(p.t, os.WriteFile(p.path("policy.json"), []byte(policy(2, "spiffe://city.example/node/18")), 0o600))
		},
		"CRL": func(p *pki) { p.crl(2, 3) },
	} {
		t.Run(name, func(t *testing.T) {
			modes(t, func(t *testing.T, more ...string) {
				p := newPKI(t)
				p.crl(1)
				require.NoError(t, os.WriteFile(p.path("policy.json"), []byte(policy(1, "spiffe://city.example/node/*")), 0o600))
				dst, ends := backend(t)
				gw, local := freePort(t), freePort(t)
				server := p.tunnel("server", gw, dst, append(more, "-policy", p.path("policy.json"), "-crl", p.path("crl.pem"))...)
				p.tunnel("client", local, gw, more...)
				echo(t, local, 1000)
				c, err := net.Dial("tcp", local)
				require.NoError(t, err)
				defer c.Close()
				_, _ = c.Write([]byte("live"))
				_, err = io.ReadFull(c, make([]byte, 4))
				require.NoError(t, err)
				change(p)
				require.NoError(t, server.Process.Signal(syscall.SIGHUP))
				began := time.Now()
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				_, err = c.Read(make([]byte, 1))
				t.Logf("cut after %s", time.Since(began).Round(time.Millisecond))
				require.Error(t, err)
				assert.False(t, errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
				assert.Error(t, upload(t, ends, 4))
			})
		})
	}
}

func TestDrainOnSIGTERM(t *testing.T) {
	modes(t, func(t *testing.T, more ...string) {
		p := newPKI(t)
		dst, _ := backend(t)
		gw, local := freePort(t), freePort(t)
		server := p.tunnel("server", gw, dst, more...)
		p.tunnel("client", local, gw, more...)
		c, err := net.Dial("tcp", local)
		require.NoError(t, err)
		defer c.Close()
		_, _ = c.Write([]byte("live"))
		_, err = io.ReadFull(c, make([]byte, 4))
		require.NoError(t, err)
		require.NoError(t, server.Process.Signal(syscall.SIGTERM))
		time.Sleep(300 * time.Millisecond)
		_, _ = c.Write([]byte(" on"))
		require.NoError(t, c.(*net.TCPConn).CloseWrite())
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, " on", string(b))
		select {
		case <-server.done:
			assert.Equal(t, 0, server.ProcessState.ExitCode())
		case <-time.After(15 * time.Second):
			t.Fatal("the server did not end after its last flow")
		}
	})
}

func TestStunnel(t *testing.T) {
	stunnel := testenv.Tool(t, "stunnel4", "stunnel4")
	p := newPKI(t)
	dst, _ := backend(t)
	conf := func(name, service string) string {
		require.NoError(t, os.WriteFile(p.path(name), []byte("foreground = yes\npid =\nsyslog = no\n[s]\n"+service), 0o600))
		return p.path(name)
	}
	t.Run("stunnel client to our server", func(t *testing.T) {
		gw, local := freePort(t), freePort(t)
		p.tunnel("server", gw, dst)
		start(t, local, stunnel, conf("c.conf", fmt.Sprintf("client = yes\naccept = %s\nconnect = %s\ncert = %s\nkey = %s\nCAfile = %s\nverifyChain = yes\n", local, gw, p.path("client.pem"), p.path("client.key"), p.path("ca.pem"))))
		echo(t, local, 3<<20)
	})
	t.Run("our client to stunnel server", func(t *testing.T) {
		gw, local := freePort(t), freePort(t)
		start(t, gw, stunnel, conf("s.conf", fmt.Sprintf("accept = %s\nconnect = %s\ncert = %s\nkey = %s\nCAfile = %s\nverifyChain = yes\n", gw, dst, p.path("server.pem"), p.path("server.key"), p.path("ca.pem"))))
		p.tunnel("client", local, gw)
		echo(t, local, 3<<20)
	})
}

func TestOpenSSL(t *testing.T) {
	openssl := testenv.Tool(t, "openssl", "openssl")
	p := newPKI(t)
	dst, _ := backend(t)
	t.Run("s_client to our server", func(t *testing.T) {
		gw := freePort(t)
		p.tunnel("server", gw, dst)
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, openssl, "s_client", "-quiet", "-connect", gw, "-cert", p.path("client.pem"), "-key", p.path("client.key"), "-CAfile", p.path("ca.pem"), "-verify_return_error")
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, _ = io.WriteString(in, "hello tunnel\n")
		b := make([]byte, 13)
		_, err = io.ReadFull(out, b)
		require.NoError(t, err)
		assert.Equal(t, "hello tunnel\n", string(b))
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Run("without a certificate", func(t *testing.T) {
		gw := freePort(t)
		p.tunnel("server", gw, dst)
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		out, _ := exec.CommandContext(ctx, "sh", "-c", fmt.Sprintf("(echo hello; sleep 1) | %s s_client -quiet -connect %s -CAfile %s", openssl, gw, p.path("ca.pem"))).CombinedOutput()
		assert.NotContains(t, string(out), "hello")
		assert.Contains(t, string(out), "alert")
	})
	t.Run("our client to s_server", func(t *testing.T) {
		gw, local := freePort(t), freePort(t)
		start(t, gw, openssl, "s_server", "-accept", gw, "-rev", "-Verify", "1", "-cert", p.path("server.pem"), "-key", p.path("server.key"), "-CAfile", p.path("ca.pem"))
		p.tunnel("client", local, gw)
		var got string
		require.Eventually(t, func() bool { // s_server serves one at a time; the port probe may be first
			c, err := net.Dial("tcp", local)
			if err != nil {
				return false
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(3 * time.Second))
			_, _ = io.WriteString(c, "drow\n")
			b := make([]byte, 5)
			_, err = io.ReadFull(c, b)
			got = string(b)
			return err == nil
		}, 15*time.Second, 100*time.Millisecond)
		assert.Equal(t, "word\n", got)
	})
}

func TestCurlAndNginx(t *testing.T) {
	curl := testenv.Tool(t, "curl", "curl")
	p := newPKI(t)
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		fmt.Fprintf(w, "%d bytes", len(b))
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = web.Serve(ln) }()
	t.Cleanup(func() { _ = web.Close() })
	require.NoError(t, os.WriteFile(p.path("body"), make([]byte, 2<<20), 0o600))
	run := func(t *testing.T, url string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, curl, "-sS", "--cacert", p.path("ca.pem"), "--cert", p.path("client.pem"), "--key", p.path("client.key"), "--data-binary", "@"+p.path("body"), url).CombinedOutput()
		require.NoError(t, err, string(out))
		return string(out)
	}
	t.Run("curl to our server", func(t *testing.T) {
		gw := freePort(t)
		p.tunnel("server", gw, ln.Addr().String())
		assert.Equal(t, "2097152 bytes", run(t, "https://"+gw+"/"))
	})
	t.Run("our client to nginx", func(t *testing.T) {
		nginx := testenv.Tool(t, "nginx", "nginx-light")
		gw, local := freePort(t), freePort(t)
		conf := fmt.Sprintf("daemon off; master_process off; pid %[1]s/nginx.pid; error_log stderr; events {} http { access_log off; client_max_body_size 8m; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s; "+
			"server { listen %[2]s ssl; ssl_certificate %[1]s/server.pem; ssl_certificate_key %[1]s/server.key; ssl_client_certificate %[1]s/ca.pem; ssl_verify_client on; ssl_protocols TLSv1.3; location / { proxy_pass http://%[3]s; } } }", p.dir, gw, ln.Addr())
		if os.Geteuid() == 0 {
			conf = "user root; " + conf
		}
		require.NoError(t, os.WriteFile(p.path("nginx.conf"), []byte(conf), 0o600))
		start(t, gw, nginx, "-c", p.path("nginx.conf"), "-p", p.dir, "-e", "stderr")
		p.tunnel("client", local, gw)
		assert.Equal(t, "2097152 bytes", run(t, "http://"+local+"/"))
	})
}

func TestBadInputIsToldAndCoded(t *testing.T) {
	bin, err := build()
	require.NoError(t, err)
	p := newPKI(t)
	good := []string{"-cacert", p.path("ca.pem"), "-cert", p.path("client.pem"), "-key", p.path("client.key"), "-allow-uri", "spiffe://a/b"}
	require.NoError(t, os.WriteFile(p.path("bad.json"), []byte(`{"version":1,"serial":1,"rulez":[]}`), 0o600))
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing":               {nil, 2, "server or client"},
		"missing flag":          {[]string{"client", "-listen", "127.0.0.1:0"}, 2, "-target is required"},
		"unknown flag":          {[]string{"client", "-nope"}, 2, "nope"},
		"plain text beyond":     {append([]string{"client", "-listen", "0.0.0.0:0", "-target", "x:1"}, good...), 2, "not a loopback address"},
		"no such certificate":   {append([]string{"client", "-listen", "127.0.0.1:0", "-target", "x:1", "-cert", "/nonexistent"}, good[:2]...), 2, "-key is required"},
		"key of another":        {append(append([]string{"client", "-listen", "127.0.0.1:0", "-target", "x:1"}, good...), "-key", p.path("server.key")), 1, "private key does not match"},
		"bad pattern":           {append(append([]string{"client", "-listen", "127.0.0.1:0", "-target", "x:1"}, good...), "-allow-uri", "spiffe://a/b*"), 1, "peer pattern"},
		"unknown policy field":  {append(append([]string{"client", "-listen", "127.0.0.1:0", "-target", "x:1"}, good...), "-policy", p.path("bad.json")), 1, "rulez"},
		"CRL that is not one":   {append(append([]string{"client", "-listen", "127.0.0.1:0", "-target", "x:1"}, good...), "-crl", p.path("ca.pem")), 1, "CRL"},
		"address not available": {append([]string{"client", "-listen", "127.0.0.1:1x", "-target", "x:1"}, good...), 4, "listen"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command(bin, c.args...).CombinedOutput()
			var ee *exec.ExitError
			require.ErrorAs(t, err, &ee, string(out))
			assert.Equal(t, c.code, ee.ExitCode(), string(out))
			assert.Contains(t, string(out), c.says)
		})
	}
}

// TestClientsThatBringDependencies runs the module of gRPC and MQTT clients.
func TestClientsThatBringDependencies(t *testing.T) {
	if !testenv.Long() {
		t.Skip("builds another module's dependencies: TRUSTTREE_LONG=1")
	}
	cmd := exec.Command("go", "test", "-count=1", "./...")
	cmd.Dir = filepath.Join(testenv.Repo(), "tlsconn/internal/interop/clients")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}
