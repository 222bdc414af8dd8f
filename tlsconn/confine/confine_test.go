package confine_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/tlsconn/confine"
)

func TestNFTablesNamesWhatItLetsOut(t *testing.T) {
	uid := uint32(990)
	out, err := confine.NFTables(confine.Rules{UID: &uid, Gateways: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.7:8443"), netip.MustParseAddrPort("[2001:db8::7]:8443")},
		DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, NTP: []netip.Addr{netip.MustParseAddr("192.0.2.123")}})
	require.NoError(t, err)
	want, err := os.ReadFile("testdata/node.nft")
	require.NoError(t, err)
	assert.Equal(t, string(want), string(out))
	for name, r := range map[string]confine.Rules{
		"any address": {Gateways: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:1")}},
		"no port":     {Gateways: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:0")}},
		"zone":        {DNS: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}},
		"multicast":   {NTP: []netip.Addr{netip.MustParseAddr("224.0.1.1")}},
		"everybody":   {SSHFrom: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
	} {
		_, err := confine.NFTables(r)
		assert.Error(t, err, name)
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	require.NoError(t, err, "ip %s: %s", strings.Join(args, " "), out)
}

// TestCodeThatGoesRoundTheLibraryIsStoppedByTheKernel: a captured node's own
// programs try to reach others from a network namespace; a packet capture on
// the street's side of the wire sees the gateway's connection and nothing else.
func TestCodeThatGoesRoundTheLibraryIsStoppedByTheKernel(t *testing.T) {
	testenv.Root(t)
	testenv.Tool(t, "ip", "iproute2")
	nft := testenv.Tool(t, "nft", "nftables")
	tcpdump := testenv.Tool(t, "tcpdump", "tcpdump")
	node, street := fmt.Sprintf("ttn%d", os.Getpid()), fmt.Sprintf("tts%d", os.Getpid())
	for _, ns := range []string{node, street} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			testenv.Missing(t, "network namespaces: "+string(out))
		}
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	}
	ip(t, "link", "add", "v0", "netns", node, "type", "veth", "peer", "name", "v1", "netns", street)
	for _, l := range [][3]string{{node, "v0", "10.77.0.2/24"}, {street, "v1", "10.77.0.1/24"}} {
		ip(t, "-n", l[0], "addr", "add", l[2], "dev", l[1])
		ip(t, "-n", l[0], "link", "set", "lo", "up")
		ip(t, "-n", l[0], "link", "set", l[1], "up")
	}
	ip(t, "-n", street, "addr", "add", "10.77.0.9/24", "dev", "v1") // the victim
	ip(t, "-n", node, "route", "add", "default", "via", "10.77.0.1")

	pcap := filepath.Join(t.TempDir(), "street.pcap")
	dump := exec.Command("ip", "netns", "exec", street, tcpdump, "-i", "v1", "-n", "-U", "--immediate-mode", "-Z", "root", "-w", pcap, "ip")
	var said syncBuffer
	dump.Stderr = &said
	require.NoError(t, dump.Start())
	t.Cleanup(func() { _ = dump.Process.Kill(); _ = dump.Wait() })
	require.Eventually(t, func() bool { return strings.Contains(said.String(), "listening on") }, 10*time.Second, 10*time.Millisecond)

	script, err := confine.NFTables(confine.Rules{Gateways: []netip.AddrPort{netip.MustParseAddrPort("10.77.0.1:8443")}})
	require.NoError(t, err)
	for range 2 { // loading again replaces
		load := exec.Command("ip", "netns", "exec", node, nft, "-f", "-")
		load.Stdin = bytes.NewReader(script)
		out, err := load.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	bash := testenv.Tool(t, "bash", "bash")
	try := func(command string) (string, error) {
		out, err := exec.Command("ip", "netns", "exec", node, "timeout", "1", bash, "-c", command).CombinedOutput()
		return string(out), err
	}
	for _, c := range []string{"exec 3<>/dev/tcp/10.77.0.9/8443", "exec 3<>/dev/tcp/10.77.0.1/22", "exec 3<>/dev/tcp/10.77.0.9/80", "echo x >/dev/udp/10.77.0.9/53", "echo x >/dev/udp/10.77.0.1/123", "echo x >/dev/udp/8.8.8.8/53"} {
		_, err := try(c)
		assert.Error(t, err, c)
	}
	out, _ := try("exec 3<>/dev/tcp/10.77.0.1/8443") // nobody listens: refused by the gateway, not dropped
	assert.Contains(t, out, "refused")
	time.Sleep(200 * time.Millisecond)
	_ = dump.Process.Signal(os.Interrupt)
	_ = dump.Wait()
	text, err := exec.Command(tcpdump, "-n", "-r", pcap).CombinedOutput()
	require.NoError(t, err, string(text))
	gateway := 0
	for _, l := range strings.Split(string(text), "\n") {
		switch {
		case !strings.Contains(l, " IP "):
		case strings.Contains(l, "10.77.0.1.8443"):
			gateway++
		default:
			t.Errorf("left the node: %s", l)
		}
	}
	assert.Positive(t, gateway, "the gateway was reached")
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

// TestProcessConnectsNowhereElse confines a copy of this test.
func TestProcessConnectsNowhereElse(t *testing.T) {
	if allowed := os.Getenv("CONFINE_ALLOWED"); allowed != "" {
		a, f := netip.MustParseAddrPort(allowed), os.Getenv("CONFINE_FORBIDDEN")
		if err := confine.Process(a.Port()); err != nil {
			if errors.Is(err, confine.ErrUnsupported) {
				fmt.Println("UNSUPPORTED", err)
				os.Exit(9)
			}
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", allowed)
		require.NoError(t, err)
		_ = c.Close()
		_, err = net.Dial("tcp", f)
		require.ErrorIs(t, err, os.ErrPermission)
		return
	}
	if runtime.GOOS != "linux" {
		assert.ErrorIs(t, confine.Process(1), confine.ErrUnsupported)
		return
	}
	assert.Error(t, confine.Process(0))
	var addrs []string
	for range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestProcessConnectsNowhereElse$")
	cmd.Env = append(os.Environ(), "CONFINE_ALLOWED="+addrs[0], "CONFINE_FORBIDDEN="+addrs[1])
	out, err := cmd.CombinedOutput()
	var ee *exec.ExitError
	if errors.As(err, &ee) && ee.ExitCode() == 9 {
		t.Skipf("missing: %s", out) // the kernel decides, not the installation
	}
	require.NoError(t, err, string(out))
}
