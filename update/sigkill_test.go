//go:build linux

package update_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/boot"
)

const killDir = "TRUSTTREE_TEST_KILL_DIR"

// killNode makes the objects of the node that is killed, over files in dir.
func killNode(dir string) (*boot.File, *update.Client, *update.Installer, error) {
	root, err := os.ReadFile(filepath.Join(dir, "root.json"))
	if err != nil {
		return nil, nil, nil, err
	}
	client, err := update.NewClient(update.ClientConfig{Root: root, Dir: filepath.Join(dir, "tuf"), Images: update.FSSource(os.DirFS(filepath.Join(dir, "repo"))),
		Floors: update.FileFloors(filepath.Join(dir, "floors")), Now: func() time.Time { return time.Date(2026, 11, 1, 13, 0, 0, 0, time.UTC) }})
	if err != nil {
		return nil, nil, nil, err
	}
	loader, err := boot.NewFile(filepath.Join(dir, "boot.json"), "a", "b")
	if err != nil {
		return nil, nil, nil, err
	}
	in, err := update.NewInstaller(update.InstallerConfig{Client: client, Boot: loader, Slots: boot.FileSlots{Dir: filepath.Join(dir, "slots"), Capacity: 8 << 20},
		Dir: filepath.Join(dir, "installer"), Preflight: update.NoPreflight})
	return loader, client, in, err
}

// TestKilledNode is the process that TestSIGKILLAtAnyMoment kills: it updates
// between 2.0 and 3.0 for ever.
func TestKilledNode(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		t.Skip("run by TestSIGKILLAtAnyMoment")
	}
	ctx := context.Background()
	for {
		loader, client, in, err := killNode(dir)
		require.NoError(t, err)
		st, err := in.Resume(ctx)
		require.NoError(t, err)
		switch {
		case st.RebootNeeded || st.Phase == update.Armed:
			_, err := loader.Boot(ctx)
			require.NoError(t, err)
		case st.Phase == update.Trial:
			require.NoError(t, in.Confirm(ctx))
		default:
			_, err := client.Refresh(ctx)
			require.NoError(t, err)
			version := map[string]string{"os-2.0": "2.0", "os-3.0": "3.0"}[st.Release.Name]
			if st.Phase != update.Committed || version == "" {
				version = "3.0"
				if slots := st.Slots; len(slots) > 0 {
					for _, s := range slots {
						version = s.Version
					}
				}
			}
			sel, err := client.Select(ctx, update.Node{ID: "n", Hardware: "lamp-2", Channel: "stable", Version: version})
			require.NoError(t, err)
			if err := in.Install(ctx, sel); errors.Is(err, update.ErrFailedBefore) {
				require.NoError(t, in.ClearFailed(ctx)) // kills burnt its tries
			} else {
				require.NoError(t, err)
			}
		}
	}
}

func TestSIGKILLAtAnyMoment(t *testing.T) {
	testenv.Root(t)
	mkfs := testenv.Tool(t, "mkfs.ext4", "e2fsprogs")
	tmp := t.TempDir()
	disk, dir := filepath.Join(tmp, "disk.img"), filepath.Join(tmp, "mnt")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 64<<20))
	for _, c := range [][]string{{mkfs, "-q", disk}, {"mount", "-o", "loop", disk, dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			testenv.Missing(t, "a loop-mounted ext4: "+string(out))
		}
	}
	defer func() { require.NoError(t, exec.Command("umount", dir).Run()) }()

	p := newPublisher(t)
	images := map[string][]byte{"2.0": image("2.0", 3<<20), "3.0": image("3.0", 3<<20), "1.0": image("1.0", 3<<20)}
	p.release("2.0", 5, images["2.0"], downFrom("3.0"))
	p.release("3.0", 5, images["3.0"], downFrom("2.0"))
	p.copyTo(filepath.Join(dir, "repo"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "root.json"), p.firstRoot, 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "slots", "a"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "slots", "a", "rootfs"), images["1.0"], 0o600))

	phases := map[update.Phase]int{}
	for round := range testenv.N(20, 200) {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledNode$")
		cmd.Env = append(os.Environ(), killDir+"="+dir)
		var out bytes.Buffer
		cmd.Stdout = &out
		require.NoError(t, cmd.Start())
		time.Sleep(time.Duration(20+(round*37)%180) * time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		require.NotContains(t, out.String(), "FAIL")

		loader, _, in, err := killNode(dir)
		require.NoError(t, err)
		_, err = loader.Boot(t.Context())
		require.NoError(t, err, "the node boots")
		slots, err := loader.Slots(t.Context())
		require.NoError(t, err)
		for _, s := range slots {
			if !s.Good && s.Tries == 0 && !s.Running {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, "slots", string(s.Slot), "rootfs"))
			require.NoError(t, err)
			whole := false
			for _, img := range images {
				whole = whole || bytes.Equal(data, img)
			}
			require.True(t, whole, "round %d: slot %+v can be booted but is not whole", round, s)
		}
		st, err := in.Resume(t.Context())
		require.NoError(t, err)
		phases[st.Phase]++
	}
	t.Logf("phases met after the kills: %v", phases)
}
