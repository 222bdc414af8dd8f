package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/internal/testenv"
)

// isolated runs the test again in a network and mount namespace of its own, so
// that nothing it does reaches the machine's network and all of it ends with
// it. It returns false in the outer process, which has nothing left to do.
func isolated(t *testing.T) bool {
	testenv.Root(t)
	unshare := testenv.Tool(t, "unshare", "util-linux")
	testenv.Tool(t, "ip", "iproute2")
	if out, err := exec.CommandContext(t.Context(), unshare, "--net", "--mount", "true").CombinedOutput(); err != nil {
		testenv.Missing(t, "the right to make namespaces: "+string(out))
	}
	if os.Getenv("TRUSTTREE_ISOLATED") == t.Name() {
		must(t, os.MkdirAll("/run/netns", 0o755))
		must(t, unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, ""))
		return true
	}
	cmd := exec.CommandContext(t.Context(), unshare, "--net", "--mount", "--propagation", "private",
		os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "30m")
	cmd.Env = append(os.Environ(), "TRUSTTREE_ISOLATED="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, os.Stdout), os.Stderr
	require.NoError(t, cmd.Run())
	require.NotContains(t, out.String(), "--- SKIP", "the isolated test was skipped")
	return false
}

// network is a bridge with a namespace for each host on it.
type network struct {
	hosts map[string]string // name to address
	home  int               // file descriptor of the test's own namespace
}

const hubAddress = "10.77.255.254"

func newNetwork(t *testing.T) *network {
	n := &network{hosts: map[string]string{}}
	var err error
	n.home, err = unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for _, args := range []string{"link set lo up", "link add hub type bridge", "addr add " + hubAddress + "/16 dev hub", "link set hub up"} {
		n.ip(t, args)
	}
	return n
}

func (n *network) ip(t testing.TB, args string) {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	require.NoError(t, err, "ip %s: %s", args, out)
}

// add makes a host's namespace. Its number is part of its address.
func (n *network) add(t testing.TB, name string, number int) {
	address := fmt.Sprintf("10.77.%d.%d", number/200, 1+number%200)
	for _, args := range []string{
		"netns add " + name,
		fmt.Sprintf("link add veth%d type veth peer name eth0 netns %s", number, name),
		fmt.Sprintf("link set veth%d master hub up", number),
		"-n " + name + " addr add " + address + "/16 dev eth0",
		"-n " + name + " link set eth0 up",
		"-n " + name + " link set lo up",
	} {
		n.ip(t, args)
	}
	n.hosts[name] = address
}

// cut takes a host's link down, or up again.
func (n *network) cut(t testing.TB, name string, down bool) {
	state := "up"
	if down {
		state = "down"
	}
	n.ip(t, "-n "+name+" link set eth0 "+state)
}

func (n *network) host(name string) string { return n.hosts[name] }

// command runs a binary on a host.
func (n *network) command(name, binary string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", name, binary}, args...)...)
}

// listen opens a listener on a host, for parts that the test emulates.
func (n *network) listen(name, address string) (ln net.Listener, err error) {
	err = n.on(name, func() error {
		ln, err = net.Listen("tcp", address)
		return err
	})
	return ln, err
}

// dial connects from a host.
func (n *network) dial(name string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = n.on(name, func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// on runs f with its thread in a host's namespace. The thread comes home
// afterwards: children that it started would die with it.
func (n *network) on(name string, f func() error) error {
	runtime.LockOSThread()
	fd, err := unix.Open(filepath.Join("/run/netns", name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if home := unix.Setns(n.home, unix.CLONE_NEWNET); home != nil {
		return errors.Join(err, home) // the thread stays locked, and nobody else gets it
	}
	runtime.UnlockOSThread()
	return err
}

func must(t testing.TB, err error) {
	t.Helper()
	require.NoError(t, err)
}
