package postgres_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/testpg"
)

// The tests share one server, which ends with the last of them.
var (
	shared     *testpg.Server
	sharedErr  error
	sharedOnce sync.Once
)

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		shared.Stop()
	}
	os.Exit(code)
}

func server(tb testing.TB) *testpg.Server {
	tb.Helper()
	initdb, postgres := testenv.Tool(tb, "initdb", "postgresql"), testenv.Tool(tb, "postgres", "postgresql")
	sharedOnce.Do(func() {
		shared, sharedErr = testpg.Launch(initdb, postgres, "max_connections=50", "log_statement=all", "fsync=off")
	})
	require.NoError(tb, sharedErr)
	return shared
}

// bouncer starts pgbouncer in transaction mode before the server and returns
// the connection string for tenants.
func bouncer(tb testing.TB, c *testpg.Server) string {
	tb.Helper()
	path := testenv.Tool(tb, "pgbouncer", "pgbouncer")
	dir, err := os.MkdirTemp("", "pgb")
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	port := freePort(tb)
	ini := fmt.Sprintf(`[databases]
* = host=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s/users
auth_user = admin
auth_query = SELECT usename, passwd FROM pg_shadow WHERE usename=$1
pool_mode = transaction
server_login_retry = 1
query_wait_timeout = 5
default_pool_size = 2
logfile = %s/log
pidfile =
`, c.Socket, port, dir, dir)
	require.NoError(tb, os.WriteFile(filepath.Join(dir, "ini"), []byte(ini), 0o600))
	require.NoError(tb, os.WriteFile(filepath.Join(dir, "users"), []byte("\"admin\" \"admin-test\"\n"), 0o600))
	cmd := exec.Command(path, "-q", filepath.Join(dir, "ini"))
	require.NoError(tb, testpg.Unprivileged(cmd, dir))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(tb, cmd.Start())
	tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	dsn := fmt.Sprintf("host=127.0.0.1 port=%d user=admin password=admin-test dbname=postgres sslmode=disable default_query_exec_mode=exec", port)
	require.Eventually(tb, func() bool {
		conn, err := pgx.Connect(context.Background(), dsn)
		if err != nil {
			return false
		}
		_ = conn.Close(context.Background())
		return true
	}, 60*time.Second, 50*time.Millisecond, "pgbouncer does not answer")
	return dsn
}

func freePort(tb testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
