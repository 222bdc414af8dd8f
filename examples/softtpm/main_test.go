package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// serving runs the command until the test ends and returns its socket.
func serving(t *testing.T, dir string) (socket string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	out, w := io.Pipe()
	var stderr bytes.Buffer
	go func() {
		done <- command(ctx, []string{"-dir", dir}, nil, w, &stderr)
		_ = w.Close()
	}()
	line := make([]byte, 512)
	n, err := out.Read(line)
	require.NoError(t, err, stderr.String())
	assert.Contains(t, string(line[:n]), "pin ")
	return filepath.Join(dir, "tpm.sock"), func() {
		cancel()
		assert.Zero(t, <-done, stderr.String())
	}
}

func TestTPMKeepsItsStateAndForgetsItsClients(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for range 2 {
		socket, stop := serving(t, dir)
		for range 4 { // each leaves a key loaded, and three fit
			tpm, err := linuxudstpm.Open(socket)
			require.NoError(t, err)
			require.Eventually(t, func() bool { // until the server has seen the end of those before
				k, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
				if err == nil {
					names = append(names, string(k.Name.Buffer))
				}
				return err == nil
			}, 10*time.Second, 5*time.Millisecond)
			require.NoError(t, tpm.Close())
		}
		stop()
	}
	for _, n := range names {
		assert.Equal(t, names[0], n)
	}
}

func TestBadUsageSaysWhatToDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "say either -dir"},
		{[]string{"-dir", "a", "-connect", "b"}, 2, "say either -dir"},
		{[]string{"-nonsense"}, 2, "nonsense"},
		{[]string{"-connect", filepath.Join(t.TempDir(), "none")}, 4, "is softtpm serving there?"},
		{[]string{"-dir", t.TempDir(), "-socket", file}, 1, "choose another -socket"},
	} {
		var stderr bytes.Buffer
		assert.Equal(t, c.code, command(t.Context(), c.args, strings.NewReader(""), io.Discard, &stderr), "%v", c.args)
		assert.Contains(t, stderr.String(), c.says)
	}
	left, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(left))
}

func TestSocketOfALivingServerIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	_, stop := serving(t, dir)
	defer stop()
	var stderr bytes.Buffer
	assert.Equal(t, 1, command(t.Context(), []string{"-dir", dir}, nil, io.Discard, &stderr))
	assert.Contains(t, stderr.String(), "being served already")
}

func TestSocketOfADeadServerIsTaken(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "tpm.sock"), Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	_, stop := serving(t, dir)
	stop()
}

func TestTPM2ToolsWorkWithIt(t *testing.T) {
	testenv.Tool(t, "tpm2_quote", "tpm2-tools")
	testenv.Tool(t, "openssl", "openssl")
	bash := testenv.Tool(t, "bash", "bash")
	dir := t.TempDir()
	binary := filepath.Join(dir, "softtpm")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	socket, stop := serving(t, filepath.Join(dir, "state"))
	defer stop()
	c := exec.Command(bash, "testdata/tools.sh", t.TempDir())
	c.Env = append(os.Environ(), "TPM2TOOLS_TCTI=cmd:"+binary+" -connect "+socket)
	out, err = c.CombinedOutput()
	require.NoError(t, err, string(out))
	t.Logf("%s", out)
}
