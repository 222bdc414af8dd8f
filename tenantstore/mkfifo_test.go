package tenantstore_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func mkfifo(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, unix.Mkfifo(name, 0o600))
}
