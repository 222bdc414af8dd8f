// Package testpg starts a PostgreSQL server of a test's own.
package testpg

import (
	"context"
	"errors"
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

// Server is a running server.
type Server struct {
	// Admin is the connection string of its administrator, over a unix socket.
	Admin string
	// Dir holds all that the server writes, and Socket, the socket's directory.
	Dir, Socket string

	cmd *exec.Cmd
	log string
}

// Start makes a cluster in a temporary directory and starts its server, which
// listens on a unix socket alone and ends with the test. Without PostgreSQL the
// test skips (fails under CI).
func Start(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	s, err := Launch(testenv.Tool(tb, "initdb", "postgresql"), testenv.Tool(tb, "postgres", "postgresql"), settings...)
	must(tb, err)
	tb.Cleanup(s.Stop)
	return s
}

// Launch is Start for a server that several tests share, by the paths of two
// programs: Stop ends it.
func Launch(initdb, postgres string, settings ...string) (s *Server, err error) {
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		return nil, err
	}
	s = &Server{Dir: dir, Socket: filepath.Join(dir, "s"), log: filepath.Join(dir, "log")}
	s.Admin = fmt.Sprintf("host=%s user=admin password=%s dbname=postgres", s.Socket, password)
	defer func() {
		if err != nil {
			s.Stop()
		}
	}()
	data := filepath.Join(dir, "data")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(data, 0o700), os.Mkdir(s.Socket, 0o700)); err != nil {
		return nil, err
	}
	pwfile := filepath.Join(s.Socket, "pw")
	if err := os.WriteFile(pwfile, []byte(password), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(initdb, "-D", data, "-U", "admin", "--auth=scram-sha-256", "--pwfile="+pwfile, "--no-sync", "-E", "UTF8", "--locale=C")
	if err := Unprivileged(cmd, data, s.Socket); err != nil {
		return nil, err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"-D", data, "-k", s.Socket, "-h", "", "-c", "shared_buffers=32MB"}
	for _, v := range settings {
		args = append(args, "-c", v)
	}
	cmd = exec.Command(postgres, args...)
	if err := Unprivileged(cmd); err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.cmd = cmd
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := pgx.Connect(context.Background(), s.Admin)
		if err == nil {
			return s, conn.Close(context.Background())
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(s.log)
			return nil, fmt.Errorf("PostgreSQL does not start: %w: %s", err, text)
		}
	}
}

const password = "admin-test" // of the administrator

// Stop ends the server, at once, and removes its directory.
func (s *Server) Stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		_ = s.cmd.Wait()
	}
	_ = os.RemoveAll(s.Dir)
}

// Unprivileged makes a command run as another user when the test runs as root,
// which the server and its pooler refuse, and gives that user the directories.
// The command ends with the test's process.
func Unprivileged(cmd *exec.Cmd, dirs ...string) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Dir = "/"
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := filepath.WalkDir(d, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(p, uid, gid)
		}); err != nil {
			return err
		}
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return nil
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
