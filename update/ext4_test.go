//go:build linux

package update_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/boot"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// writeRandom writes n bytes that differ by name into a file.
func writeRandom(t *testing.T, file, name string, n int64) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	f, err := os.Create(file)
	require.NoError(t, err)
	_, err = io.CopyN(f, rand.NewChaCha8(sha256.Sum256([]byte(name))), n)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// A real ext4 image of which one program was rebuilt and some small files were
// edited: the block index brings the new one with little on the wire. In full,
// 925 MiB with a program of 16 MB take at most 20 MiB.
func TestDeltaOfAnExt4Image(t *testing.T) {
	testenv.Root(t)
	mkfs, cp, cmp := testenv.Tool(t, "mkfs.ext4", "e2fsprogs"), testenv.Tool(t, "cp", "coreutils"), testenv.Tool(t, "cmp", "diffutils")
	mount, umount := testenv.Tool(t, "mount", "mount"), testenv.Tool(t, "umount", "mount")
	size, program := int64(testenv.N(48, 925))<<20, int64(testenv.N(1, 16))*1e6
	most := int64(testenv.N(2, 20)) << 20
	tmp := t.TempDir()
	tree, mnt := filepath.Join(tmp, "tree"), filepath.Join(tmp, "mnt")
	slots := filepath.Join(tmp, "slots")
	require.NoError(t, os.MkdirAll(filepath.Join(slots, "a"), 0o700))
	require.NoError(t, os.Mkdir(mnt, 0o700))
	oldImage, newImage := filepath.Join(slots, "a", "rootfs"), filepath.Join(tmp, "new.img")
	files := int(size * 7 / 10 / (1 << 20))
	for i := range files {
		writeRandom(t, filepath.Join(tree, fmt.Sprintf("usr/lib/%d/lib%d.so", i%20, i)), fmt.Sprint(i), 1<<20-4096)
	}
	writeRandom(t, filepath.Join(tree, "usr/bin/app"), "app 1", program)
	for i := range 200 {
		writeRandom(t, filepath.Join(tree, fmt.Sprintf("etc/%d.conf", i)), fmt.Sprintf("conf %d", i), 900)
	}
	command := func(name string, args ...string) {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	require.NoError(t, os.WriteFile(oldImage, nil, 0o600))
	require.NoError(t, os.Truncate(oldImage, size))
	command(mkfs, "-q", "-F", "-m", "0", "-b", "4096", "-d", tree, oldImage)
	require.NoError(t, os.RemoveAll(tree))
	command(cp, "--sparse=always", oldImage, newImage)
	if out, err := exec.Command(mount, "-o", "loop", newImage, mnt).CombinedOutput(); err != nil {
		testenv.Missing(t, "a loop-mounted ext4: "+string(out))
	}
	mounted := true
	t.Cleanup(func() {
		if mounted {
			_ = exec.Command(umount, mnt).Run() // the test has failed already
		}
	})
	writeRandom(t, filepath.Join(mnt, "usr/bin/app.new"), "app 2", program)
	require.NoError(t, os.Rename(filepath.Join(mnt, "usr/bin/app.new"), filepath.Join(mnt, "usr/bin/app")))
	for i := range 20 {
		writeRandom(t, filepath.Join(mnt, fmt.Sprintf("etc/%d.conf", i)), fmt.Sprintf("new conf %d", i), 900)
	}
	command(umount, mnt)
	mounted = false

	p := newPublisher(t)
	img, err := os.Open(newImage)
	require.NoError(t, err)
	defer img.Close()
	rel := manifest.Release{Name: "os-2.0", Version: "2.0", Channel: "stable", Hardware: []string{"lamp-2"}}
	p.edit(func(tx *repository.Tx) error {
		if err := tx.AddRelease(rel, repository.Content{Name: "rootfs", Reader: img, Index: true}); err != nil {
			return err
		}
		return tx.SetRollout("stable", rel.Name, manifest.Rollout{Nodes: []string{"node-1"}})
	})
	spy := &spySource{Source: p.source()}
	d := newDevice(t, p, func(c *update.ClientConfig, ic *update.InstallerConfig) {
		c.Images, ic.Slots = spy, boot.FileSlots{Dir: slots, Capacity: size}
	})
	require.NoError(t, d.install())
	t.Logf("%.1f MiB on the wire of %d MiB (bar at 925 MiB: 20 MiB)", float64(spy.bytes)/(1<<20), size>>20)
	assert.LessOrEqual(t, spy.bytes, most)
	require.NoError(t, exec.Command(cmp, newImage, filepath.Join(slots, "b", "rootfs")).Run())
}
