package interop_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// kind is a relay of somebody: up starts its two ends, of which the first
// listens on gw and the second on local.
type kind struct {
	name     string
	optional bool // no package of the machines that tests run on has it
	up       func(t testing.TB, gw, local string) (*process, *process)
}

// kinds are the relays that are measured beside one another, to sink.
func kinds(t testing.TB, p *pki, sink string) []kind {
	t.Helper()
	bare := filepath.Join(t.TempDir(), "barerelay")
	cmd := exec.Command("go", "build", "-o", bare, "./tlsconn/internal/interop/barerelay")
	cmd.Dir = testenv.Repo()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	ours := func(more ...string) func(t testing.TB, gw, local string) (*process, *process) {
		return func(_ testing.TB, gw, local string) (*process, *process) {
			quiet := append([]string{"-v=false"}, more...)
			return p.tunnel("server", gw, sink, quiet...), p.tunnel("client", local, gw, quiet...)
		}
	}
	return []kind{
		{name: "ours plain", up: ours()},
		{name: "ours mux", up: ours("-mux")},
		{name: "bare crypto/tls", up: func(t testing.TB, gw, local string) (*process, *process) {
			args := func(m, l, to, n string) []string {
				return []string{m, l, to, p.path("ca.pem"), p.path(n + ".pem"), p.path(n + ".key")}
			}
			return start(t, gw, bare, args("server", gw, sink, "server")...), start(t, local, bare, args("client", local, gw, "client")...)
		}},
		{name: "stunnel", up: func(t testing.TB, gw, local string) (*process, *process) {
			stunnel := testenv.Tool(t, "stunnel4", "stunnel4")
			conf := func(name, listen, to, cert, more string) string {
				require.NoError(t, os.WriteFile(p.path(name), []byte(fmt.Sprintf("foreground = yes\npid =\nsyslog = no\ndebug = 3\nsessionCacheSize = 1\n[s]\n%saccept = %s\nconnect = %s\ncert = %s\nkey = %s\nCAfile = %s\nverifyChain = yes\n", more, listen, to, p.path(cert+".pem"), p.path(cert+".key"), p.path("ca.pem"))), 0o600))
				return p.path(name)
			}
			return start(t, gw, stunnel, conf("bs.conf", gw, sink, "server", "")), start(t, local, stunnel, conf("bc.conf", local, gw, "client", "client = yes\n"))
		}},
		{name: "haproxy", up: func(t testing.TB, gw, local string) (*process, *process) {
			haproxy := testenv.Tool(t, "haproxy", "haproxy")
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
		}},
		{name: "ghostunnel", optional: true, up: func(t testing.TB, gw, local string) (*process, *process) {
			ghostunnel := testenv.Tool(t, "ghostunnel", "ghostunnel, where a distribution has it")
			args := func(mode, listen, to, n string, more ...string) []string {
				return append([]string{mode, "--quiet=all", "--listen", listen, "--target", to, "--cert", p.path(n + ".pem"), "--key", p.path(n + ".key"), "--cacert", p.path("ca.pem")}, more...)
			}
			return start(t, gw, ghostunnel, args("server", gw, sink, "server", "--allow-uri", "spiffe://city.example/node/*")...),
				start(t, local, ghostunnel, args("client", local, gw, "client", "--verify-uri", "spiffe://city.example/gateway/*")...)
		}},
	}
}
