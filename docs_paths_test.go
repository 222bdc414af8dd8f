package trusttree_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
	for name, ends := range map[string]string{
		"enrol":   "identity       ok",
		"volume":  "a reading",
		"release": "# the same, from a mirror that was broken into",
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), sh, filepath.Join("docs", "paths", name+".sh"))
			cmd.Env = append(os.Environ(), "BIN="+bin, "DIR="+filepath.Join(dir, name), fmt.Sprintf("PORT=%d", freePorts(t, 3)))
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			assert.Contains(t, string(out), ends)
		})
	}
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
