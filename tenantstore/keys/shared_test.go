package keys_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/tenantstore"
	"github.com/trusttree/trusttree/tenantstore/keys"
)

const otherProcess = "TRUSTTREE_TEST_KEYS_OF"

// TestOtherProcess is the other process of the test below: it opens the
// directory when it is told to, and makes, uses and destroys keys in it.
func TestOtherProcess(t *testing.T) {
	dir, who, ok := strings.Cut(os.Getenv(otherProcess), "|")
	if !ok {
		t.Skip("run by TestDirIsSharedByProcesses")
	}
	fmt.Println("ready")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	require.NoError(t, err)
	d, err := keys.OpenDir(t.Context(), dir, nil)
	require.NoError(t, err)
	for i := range 20 {
		id := fmt.Sprintf("key-%s-%d", who, i)
		require.NoError(t, d.Create(t.Context(), id))
		wrapped, err := d.Wrap(t.Context(), id, key, tenantstore.KeyContext{Generation: 1})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "..", id), wrapped, 0o600))
		require.NoError(t, d.Create(t.Context(), "common"))
		_, err = d.Wrap(t.Context(), "common", key, tenantstore.KeyContext{})
		require.NoError(t, err)
		gone := fmt.Sprintf("gone-%d", i)
		err = d.Create(t.Context(), gone)
		if err == nil {
			_, err = d.Wrap(t.Context(), gone, key, tenantstore.KeyContext{})
		}
		if err == nil {
			err = d.Destroy(t.Context(), gone)
		}
		if err != nil { // whoever comes second finds it destroyed, and never half of it
			require.ErrorIs(t, err, tenantstore.ErrKeyDestroyed)
		}
	}
}

// TestDirIsSharedByProcesses starts processes on one directory that is not yet
// made: they agree on one master key, and what each made each opens.
func TestDirIsSharedByProcesses(t *testing.T) {
	const processes = 3
	root := t.TempDir()
	dir := filepath.Join(root, "kek")
	var cmds []*exec.Cmd
	var starts []*os.File
	for i := range processes {
		cmd := exec.Command(os.Args[0], "-test.run=^TestOtherProcess$", "-test.v")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%d", otherProcess, dir, i))
		r, w, err := os.Pipe()
		require.NoError(t, err)
		cmd.Stdin = r
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		require.NoError(t, r.Close())
		t.Cleanup(func() { _ = w.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
		for sc := bufio.NewScanner(out); sc.Scan() && !strings.HasSuffix(sc.Text(), "ready"); {
		}
		go func() { // so that it never waits for who reads its report
			for sc := bufio.NewScanner(out); sc.Scan(); {
				if strings.Contains(sc.Text(), "Error") || strings.Contains(sc.Text(), "keys:") {
					fmt.Fprintln(os.Stderr, sc.Text())
				}
			}
		}()
		cmds, starts = append(cmds, cmd), append(starts, w)
	}
	for _, w := range starts {
		_, err := w.WriteString("go\n")
		require.NoError(t, err)
	}
	for _, cmd := range cmds {
		require.NoError(t, cmd.Wait())
	}
	d, err := keys.OpenDir(t.Context(), dir, nil)
	require.NoError(t, err)
	for who := range processes {
		for i := range 20 {
			id := fmt.Sprintf("key-%d-%d", who, i)
			wrapped, err := os.ReadFile(filepath.Join(root, id))
			require.NoError(t, err)
			got, err := d.Unwrap(t.Context(), id, wrapped, tenantstore.KeyContext{Generation: 1})
			require.NoError(t, err, "%s is lost", id)
			assert.Equal(t, key, got)
			_, err = d.Wrap(t.Context(), fmt.Sprintf("gone-%d", i), key, tenantstore.KeyContext{})
			require.ErrorIs(t, err, tenantstore.ErrKeyDestroyed)
		}
	}
}

// TestReplacedDirTakesNoKeys puts another master key in place of the one that
// is open: a key made under the old one would be lost with the next restart.
func TestReplacedDirTakesNoKeys(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	d, err := keys.OpenDir(ctx, dir, nil)
	require.NoError(t, err)
	require.NoError(t, d.Create(ctx, "before"))
	require.NoError(t, os.Remove(filepath.Join(dir, "master.json")))
	_, err = keys.OpenDir(ctx, dir, nil)
	require.NoError(t, err)
	err = d.Create(ctx, "after")
	require.ErrorIs(t, err, tenantstore.ErrKeyUnavailable)
	require.ErrorContains(t, err, dir)
}

// TestLockedDirIsAnError holds the lock as a stuck process would.
func TestLockedDirIsAnError(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	d, err := keys.OpenDir(ctx, dir, nil)
	require.NoError(t, err)
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	over, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, d.Destroy(over, "k"), context.Canceled)
	err = d.Create(ctx, "k")
	require.ErrorIs(t, err, tenantstore.ErrKeyUnavailable)
	require.ErrorContains(t, err, dir)
	require.ErrorContains(t, err, "a directory for each instance")
}
