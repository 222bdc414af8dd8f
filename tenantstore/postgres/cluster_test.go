package postgres_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// cluster is a PostgreSQL server of the test's own, in a temporary directory.
type cluster struct {
	dir, data, socket, admin string
	port                     int
}

var (
	shared     *cluster
	sharedErr  error
	sharedOnce sync.Once
	stops      []func()
)

func TestMain(m *testing.M) {
	code := m.Run()
	for _, stop := range stops {
		stop()
	}
	os.Exit(code)
}

// unprivileged makes a command run as another user when the test runs as root,
// which the server refuses.
func unprivileged(tb testing.TB, cmd *exec.Cmd, dirs ...string) {
	tb.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Dir = "/"
	if os.Geteuid() != 0 {
		return
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	require.NoError(tb, err)
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	for _, d := range dirs {
		require.NoError(tb, filepath.WalkDir(d, func(p string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(p, uid, gid)
		}))
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func freePort(tb testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func server(tb testing.TB) *cluster {
	tb.Helper()
	testenv.Tool(tb, "postgres", "postgresql")
	sharedOnce.Do(func() { shared, sharedErr = startCluster(tb) })
	require.NoError(tb, sharedErr)
	return shared
}

func startCluster(tb testing.TB) (*cluster, error) {
	initdb, postgres := testenv.Tool(tb, "initdb", "postgresql"), testenv.Tool(tb, "postgres", "postgresql")
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, data: filepath.Join(dir, "data"), socket: filepath.Join(dir, "s"), port: freePort(tb)}
	for _, d := range []string{c.data, c.socket} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	pwfile := filepath.Join(c.socket, "pw")
	if err := os.WriteFile(pwfile, []byte("admin-test"), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(initdb, "-D", c.data, "-U", "admin", "--auth=scram-sha-256", "--pwfile="+pwfile, "--no-sync", "-E", "UTF8", "--locale=C")
	unprivileged(tb, cmd, c.data, c.socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	cmd = exec.Command(postgres, "-D", c.data, "-k", c.socket, "-h", "127.0.0.1", "-p", strconv.Itoa(c.port),
		"-c", "max_connections=50", "-c", "shared_buffers=32MB", "-c", "log_statement=all")
	unprivileged(tb, cmd)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stops = append(stops, func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	})
	c.admin = fmt.Sprintf("host=127.0.0.1 port=%d user=admin password=admin-test dbname=postgres sslmode=disable", c.port)
	deadline := time.Now().Add(30 * time.Second)
	for {
		conn, err := pgx.Connect(context.Background(), c.admin)
		if err == nil {
			return c, conn.Close(context.Background())
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("server does not start: %w: %s", err, b)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// bouncer starts pgbouncer in transaction mode before the server and returns
// the connection string for tenants.
func bouncer(tb testing.TB, c *cluster) string {
	tb.Helper()
	path := testenv.Tool(tb, "pgbouncer", "pgbouncer")
	dir, err := os.MkdirTemp("", "pgb")
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	port := freePort(tb)
	ini := fmt.Sprintf(`[databases]
* = host=127.0.0.1 port=%d
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
`, c.port, port, dir, dir)
	require.NoError(tb, os.WriteFile(filepath.Join(dir, "ini"), []byte(ini), 0o600))
	require.NoError(tb, os.WriteFile(filepath.Join(dir, "users"), []byte("\"admin\" \"admin-test\"\n"), 0o600))
	cmd := exec.Command(path, "-q", filepath.Join(dir, "ini"))
	unprivileged(tb, cmd, dir)
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
	}, 20*time.Second, 50*time.Millisecond, "pgbouncer does not answer")
	return dsn
}
