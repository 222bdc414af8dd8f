package trusttree_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// TestNewcomerPaths runs the scripts in docs/paths as a newcomer does: each
// ends by itself, and checks its own results.
func TestNewcomerPaths(t *testing.T) {
	sh := testenv.Tool(t, "sh", "dash")
	dir, err := os.MkdirTemp("", "paths") // short: a socket's path has at most 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	bin := filepath.Join(dir, "bin")
	require.NoError(t, os.Mkdir(bin, 0o700))
	built, err := exec.CommandContext(t.Context(), "go", append([]string{"build", "-o", bin}, builtByPaths(t)...)...).CombinedOutput()
	require.NoError(t, err, "%s", built)
	for name, c := range map[string]struct {
		ends  string
		env   string
		tools map[string]string // and their packages
	}{
		"enrol":      {ends: "identity       ok"},
		"volume":     {ends: "a reading"},
		"release":    {ends: "# the same, from a mirror that was broken into"},
		"quickstart": {ends: "telemetry lamp  ok", env: "TPM=swtpm", tools: map[string]string{"curl": "curl", "swtpm": "swtpm", "swtpm_setup": "swtpm-tools"}},
	} {
		ends := c.ends
		t.Run(name, func(t *testing.T) {
			for tool, pkg := range c.tools {
				testenv.Tool(t, tool, pkg)
			}
			cmd := exec.CommandContext(t.Context(), sh, filepath.Join("docs", "paths", name+".sh"))
			cmd.Env = append(os.Environ(), "BIN="+bin, "DIR="+filepath.Join(dir, name), fmt.Sprintf("PORT=%d", freePorts(t, 4)), c.env)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Contains(t, string(out), ends)
		})
	}
}

// TestQuickstartAsWritten types what docs/quickstart.md shows, in its order, and
// gets a tenant's records: with free ports, and with an end.
func TestQuickstartAsWritten(t *testing.T) {
	sh := testenv.Tool(t, "bash", "bash")
	testenv.Tool(t, "curl", "curl")
	text, err := os.ReadFile("docs/quickstart.md")
	require.NoError(t, err)
	script := "set -e\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"
	for _, block := range strings.Split(string(text), "```sh\n")[1:] {
		block, _, ok := strings.Cut(block, "```")
		require.True(t, ok)
		script += block
	}
	port := freePorts(t, 4)
	for i := range 4 {
		script = strings.ReplaceAll(script, fmt.Sprint("127.0.0.1:", 8440+i), fmt.Sprint("127.0.0.1:", port+i))
	}
	script = strings.ReplaceAll(script, "-host 127.0.0.1\n", fmt.Sprintf("-host 127.0.0.1 -enroll-port %d -gateway-port %d -api-port %d\n", port, port+1, port+2))
	dir, err := os.MkdirTemp("", "quick") // short: a socket's path has at most 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute) // it waits for what it shows
	defer cancel()
	cmd := exec.CommandContext(ctx, sh, "-c", script)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), `"value":"`)
}

// builtByPaths returns what docs/paths/common.sh builds.
func builtByPaths(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("docs/paths/common.sh")
	require.NoError(t, err)
	var out []string
	for _, w := range strings.Fields(string(text)) {
		w = strings.TrimSuffix(w, ")")
		if strings.HasPrefix(w, "./examples/") || strings.HasPrefix(w, "./docs/") || strings.HasPrefix(w, "filippo.io/") {
			out = append(out, w)
		}
	}
	require.Len(t, out, 8)
	return out
}

// freePorts returns the first of n ports in a row on which nobody listens.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port, free := first.Addr().(*net.TCPAddr).Port, true
		open := []net.Listener{first}
		for i := 1; i < n && free; i++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+i))
			if free = err == nil; free {
				open = append(open, l)
			}
		}
		for _, l := range open {
			require.NoError(t, l.Close())
		}
		if free {
			return port
		}
	}
	t.Fatal("no free ports")
	return 0
}

// TestHardwareCheck gives docs/hardware-check.sh the recording of a real boot
// in the place of /sys, and then one in which the log was altered.
func TestHardwareCheck(t *testing.T) {
	sh := testenv.Tool(t, "sh", "dash")
	bin, sys := t.TempDir(), t.TempDir()
	built, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./examples/bootcheck", "./examples/volume").CombinedOutput()
	require.NoError(t, err, "%s", built)
	put := func(name string, data []byte) {
		name = filepath.Join(sys, "sys", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o700))
		require.NoError(t, os.WriteFile(name, data, 0o600))
	}
	recorded := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join("secureboot/testdata/vm/uki-sb-on", name))
		require.NoError(t, err)
		return data
	}
	put("class/tpm/tpm0/tpm_version_major", []byte("2\n"))
	for line := range strings.Lines(string(recorded("pcrs.txt"))) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "sha256" {
			put("class/tpm/tpm0/pcr-sha256/"+f[1], []byte(strings.ToUpper(f[2])+"\n"))
		}
	}
	log := recorded("binary_bios_measurements")
	put("kernel/security/tpm0/binary_bios_measurements", log)
	put("firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", []byte{6, 0, 0, 0, 1})
	put("firmware/efi/efivars/SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c", []byte{6, 0, 0, 0, 0})
	run := func() string {
		cmd := exec.CommandContext(t.Context(), sh, "docs/hardware-check.sh", "-d", t.TempDir())
		cmd.Env = append(os.Environ(), "BIN="+bin, "SYSROOT="+sys)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	out := run()
	for _, line := range []string{"met        TPM 2.0", "met        bank sha256", "not met    bank sha384", "met        event log sha256",
		"met        Secure Boot", "met        user mode", "not asked  crypto chips", "met        portable volumes"} {
		assert.Contains(t, out, "\n"+line)
	}
	log[len(log)/2] ^= 1
	put("kernel/security/tpm0/binary_bios_measurements", log)
	assert.Contains(t, run(), "\nnot met    event log sha256")
}
