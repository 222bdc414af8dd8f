package tenantstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// breakAudit makes writes to the open audit log fail, as a full disk does: it
// puts /dev/full in place of the file behind the descriptor.
func breakAudit(t *testing.T, dir string) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	require.NoError(t, err)
	defer full.Close()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && strings.HasPrefix(target, dir) && filepath.Base(target) == "entries" {
			var n int
			_, err := fmt.Sscan(fd.Name(), &n)
			require.NoError(t, err)
			require.NoError(t, unix.Dup3(int(full.Fd()), n, unix.O_CLOEXEC))
			return
		}
	}
	t.Fatal("audit log is not open")
}
