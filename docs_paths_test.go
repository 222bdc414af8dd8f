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
