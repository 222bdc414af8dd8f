// Package testpg starts a PostgreSQL server of a test's own.
package testpg

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trusttree/trusttree/internal/testenv"
)

// Server is a running server. It ends with the test.
type Server struct {
	// Admin is the connection string of its administrator, over a unix socket.
	Admin string

	cmd *exec.Cmd
	log string
}

// Start makes a cluster in a temporary directory and starts its server, which
// listens on a unix socket alone. Without PostgreSQL the test skips (fails
// under CI).
func Start(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	initdb, postgres := testenv.Tool(tb, "initdb", "postgresql"), testenv.Tool(tb, "postgres", "postgresql")
	dir, err := os.MkdirTemp("", "pg")
	must(tb, err)
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(tb, os.Chmod(dir, 0o755))
	data, socket := filepath.Join(dir, "data"), filepath.Join(dir, "s")
	for _, d := range []string{data, socket} {
		must(tb, os.Mkdir(d, 0o700))
	}
	password := filepath.Join(socket, "pw")
	must(tb, os.WriteFile(password, []byte("admin-test"), 0o600))
	cmd := exec.Command(initdb, "-D", data, "-U", "admin", "--auth=scram-sha-256", "--pwfile="+password, "--no-sync", "-E", "UTF8", "--locale=C")
	unprivileged(tb, cmd, data, socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("initdb: %v: %s", err, out)
	}
	s := &Server{log: filepath.Join(dir, "log"), Admin: fmt.Sprintf("host=%s user=admin password=admin-test dbname=postgres", socket)}
	log, err := os.Create(s.log)
	must(tb, err)
	defer log.Close()
	args := []string{"-D", data, "-k", socket, "-h", "", "-c", "shared_buffers=32MB"}
	for _, v := range settings {
		args = append(args, "-c", v)
	}
	s.cmd = exec.Command(postgres, args...)
	unprivileged(tb, s.cmd)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	must(tb, s.cmd.Start())
	tb.Cleanup(func() {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		_ = s.cmd.Wait()
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := pgx.Connect(context.Background(), s.Admin)
		if err == nil {
			must(tb, conn.Close(context.Background()))
			return s
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(s.log)
			tb.Fatalf("PostgreSQL does not start: %v: %s", err, text)
		}
	}
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
	must(tb, err)
	uid, err := strconv.Atoi(u.Uid)
	must(tb, err)
	gid, err := strconv.Atoi(u.Gid)
	must(tb, err)
	for _, d := range dirs {
		must(tb, filepath.WalkDir(d, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(p, uid, gid)
		}))
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
