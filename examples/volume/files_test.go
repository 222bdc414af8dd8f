package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMain also serves as the command, for tests that send it signals.
func TestMain(m *testing.M) {
	if os.Getenv("VOLUME_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// process starts the command in a process of its own.
func process(t *testing.T, in io.Reader, args ...string) (cmd *exec.Cmd, errs *bytes.Buffer) {
	self, err := os.Executable()
	require.NoError(t, err)
	cmd = exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "VOLUME_TEST_MAIN=1")
	errs = new(bytes.Buffer)
	cmd.Stdin, cmd.Stderr = in, errs
	require.NoError(t, cmd.Start())
	return cmd, errs
}

// passVolume is a volume that a passphrase opens.
func passVolume(t *testing.T, more ...string) (dir string, flags func(...string) []string) {
	dir = t.TempDir()
	pass := filepath.Join(t.TempDir(), "pass")
	require.NoError(t, os.WriteFile(pass, []byte("a passphrase"), 0o600))
	d := filepath.Join(dir, "v")
	flags = func(args ...string) []string {
		return append([]string{args[0], "-dir", d, "-passphrase-file", pass}, args[1:]...)
	}
	code, _, errs := volume(t, "", flags(append([]string{"create", "-label", "data", "-unsafe-no-freshness", "-work-factor", "10"}, more...)...)...)
	require.Equal(t, 0, code, errs)
	return d, flags
}

// TestInterruptedBulkPutGoesOn sends SIGINT while a directory is stored.
func TestInterruptedBulkPutGoesOn(t *testing.T) {
	dir, flags := passVolume(t)
	src := filepath.Join(t.TempDir(), "src")
	require.NoError(t, os.MkdirAll(filepath.Join(src, "sub"), 0o700))
	const total = 300
	for i := range total {
		name := fmt.Sprintf("%d", i)
		if i%2 == 0 {
			name = "sub/" + name
		}
		require.NoError(t, os.WriteFile(filepath.Join(src, name), bytes.Repeat([]byte{byte(i)}, 20_000), 0o600))
	}
	require.NoError(t, os.Symlink("0", filepath.Join(src, "link")))
	cmd, errs := process(t, nil, flags("put", "-file", src, "-name", "bulk")...)
	require.Eventually(t, func() bool {
		m, err := os.ReadDir(filepath.Join(dir, ".fscrypt", "objects"))
		return err == nil && len(m) > 10
	}, 60*time.Second, 5*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	start := time.Now()
	var ee *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &ee)
	assert.Equal(t, 1, ee.ExitCode(), "a signal ends it in order")
	assert.Contains(t, errs.String(), "-resume")
	assert.Less(t, time.Since(start), 30*time.Second)

	var d done
	code, out, text := volume(t, "", flags("put", "-json", "-resume", "-file", src, "-name", "bulk")...)
	require.Equal(t, 0, code, text)
	require.NoError(t, json.Unmarshal([]byte(out), &d))
	assert.Equal(t, total, d.Files+d.Present)
	assert.GreaterOrEqual(t, d.Present, 10)
	assert.Len(t, d.Skipped, 1)

	// recover goes on, too, and leaves no half file under its name.
	to := filepath.Join(t.TempDir(), "to")
	cmd, errs = process(t, nil, flags("recover", "-to", to)...)
	require.Eventually(t, func() bool {
		m, err := filepath.Glob(filepath.Join(to, "bulk", "*"))
		return err == nil && len(m) > 10
	}, 60*time.Second, 5*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.ErrorAs(t, cmd.Wait(), &ee)
	assert.Equal(t, 1, ee.ExitCode())
	assert.Contains(t, errs.String(), "-resume")
	partial, err := filepath.Glob(filepath.Join(to, "bulk", "*.partial"))
	require.NoError(t, err)
	assert.Empty(t, partial)
	code, _, _ = volume(t, "", flags("recover", "-to", to)...)
	assert.Equal(t, 1, code, "the directory exists")
	code, out, text = volume(t, "", flags("recover", "-json", "-resume", "-to", to)...)
	require.Equal(t, 0, code, text)
	d = done{}
	require.NoError(t, json.Unmarshal([]byte(out), &d))
	assert.Equal(t, total, d.Files+d.Present)
	assert.Positive(t, d.Present)
	b, err := os.ReadFile(filepath.Join(to, "bulk", "sub", "42"))
	require.NoError(t, err)
	assert.Equal(t, bytes.Repeat([]byte{42}, 20_000), b)
}

// TestInterruptWhileInputSaysNothing: a put that waits for its input ends at
// once, and stores nothing.
func TestInterruptWhileInputSaysNothing(t *testing.T) {
	_, flags := passVolume(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	_, err = w.WriteString("half of it")
	require.NoError(t, err)
	cmd, _ := process(t, r, flags("put", "-v", "-name", "x")...)
	time.Sleep(300 * time.Millisecond)
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		require.Error(t, err)
	case <-time.After(20 * time.Second):
		require.NoError(t, cmd.Process.Kill())
		t.Fatal("the command does not end")
	}
	code, out, _ := volume(t, "", flags("ls", "-json")...)
	assert.Equal(t, 0, code)
	assert.Equal(t, "[]\n", out)
}

// TestKernelModeCommands keeps a kernel mode volume open from unlock to lock,
// also across commands that look at it.
func TestKernelModeCommands(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "root privileges")
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		if mkfs = "/usr/sbin/mkfs.ext4"; exec.Command(mkfs, "-V").Run() != nil {
			missing(t, "mkfs.ext4 (apt-get install e2fsprogs)")
		}
	}
	image, mount := filepath.Join(t.TempDir(), "image"), t.TempDir()
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 32<<20))
	require.NoError(t, exec.Command(mkfs, "-q", "-F", "-O", "encrypt", image).Run())
	if out, err := exec.Command("mount", "-o", "loop", image, mount).CombinedOutput(); err != nil {
		missing(t, "loop mounts: "+string(out))
	}
	t.Cleanup(func() { _ = exec.Command("umount", mount).Run() })
	pass := filepath.Join(t.TempDir(), "pass")
	require.NoError(t, os.WriteFile(pass, []byte("a passphrase"), 0o600))
	d := filepath.Join(mount, "v")
	do := func(want int, args ...string) (string, string) {
		t.Helper()
		code, out, errs := volume(t, "x", append([]string{args[0], "-dir", d}, args[1:]...)...)
		require.Equal(t, want, code, "%v: %s", args, errs)
		return out, errs
	}
	code, _, errs := volume(t, "", "create", "-dir", d, "-label", "data", "-kernel", "-unsafe-no-freshness", "-work-factor", "10", "-passphrase-file", pass)
	if strings.Contains(errs, "not available") {
		missing(t, "kernel with CONFIG_FS_ENCRYPTION")
	}
	require.Equal(t, 0, code, errs)
	name := filepath.Join(d, "tree", "config")
	out, _ := do(0, "status", "-json")
	assert.Contains(t, out, `"key": "absent"`)
	out, _ = do(0, "unlock", "-json", "-passphrase-file", pass)
	assert.Contains(t, out, `"key": "present"`)
	require.NoError(t, os.WriteFile(name, []byte("content"), 0o600))
	do(0, "protect", "-json", "-passphrase-file", pass, "-name", "config")
	do(0, "verify", "-json", "-passphrase-file", pass)
	out, _ = do(0, "status", "-passphrase-file", pass)
	assert.Contains(t, out, "key present")
	out, _ = do(0, "ls", "-passphrase-file", pass)
	assert.Contains(t, out, "config")
	assert.NotContains(t, out, "anchor")
	_, errs = do(1, "put", "-passphrase-file", pass, "-name", "x")
	assert.Contains(t, errs, "used through its directory")
	b, err := os.ReadFile(name)
	require.NoError(t, err, "commands that look at the volume leave it open")
	assert.Equal(t, "content", string(b))
	require.NoError(t, os.WriteFile(name, []byte("changed"), 0o600))
	do(3, "verify", "-passphrase-file", pass)
	do(0, "recover", "-json", "-passphrase-file", pass, "-to", filepath.Join(t.TempDir(), "out"))
	renewed := filepath.Join(t.TempDir(), "pass")
	require.NoError(t, os.WriteFile(renewed, []byte("another passphrase"), 0o600))
	rotate := []string{"rotate", "-json", "-passphrase-file", pass, "-new-work-factor", "10", "-new-passphrase-file", renewed}
	f, err := os.Open(name)
	require.NoError(t, err)
	_, errs = do(4, rotate...)
	assert.Contains(t, errs, "/config", "who holds the directory")
	require.NoError(t, f.Close())
	do(3, rotate...)
	do(0, "protect", "-json", "-passphrase-file", pass, "-name", "config")
	do(0, rotate...)
	do(3, "status", "-passphrase-file", pass)
	pass = renewed
	b, err = os.ReadFile(name)
	require.NoError(t, err, "rotate leaves it open")
	assert.Equal(t, "changed", string(b))
	do(0, "verify", "-passphrase-file", pass)
	_, errs = do(1, "rotate", "-passphrase-file", pass)
	assert.Contains(t, errs, "no rotation to go on with")
	f, err = os.Open(name)
	require.NoError(t, err)
	_, errs = do(4, "lock")
	assert.Contains(t, errs, "/config")
	require.NoError(t, f.Close())
	do(0, "lock", "-json")
	_, err = os.ReadFile(name)
	require.Error(t, err)
	do(0, "ls", "-passphrase-file", pass)
	out, _ = do(0, "status")
	assert.Contains(t, out, "key absent", "what was locked is locked again")
	do(0, "destroy", "-passphrase-file", pass, "-yes")
}
