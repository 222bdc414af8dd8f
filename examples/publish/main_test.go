package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
)

func TestFromKeyToNode(t *testing.T) {
	dir := t.TempDir()
	f := func(name string) string { return filepath.Join(dir, name) }
	var out, errw bytes.Buffer
	publish := func(want int, args ...string) {
		t.Helper()
		out.Reset()
		errw.Reset()
		require.Equal(t, want, run(t.Context(), args, &out, &errw), "%v: %s%s", args, out.String(), errw.String())
	}
	for _, k := range []string{"r1", "r2", "t", "o", "o2"} {
		publish(0, "key", "-out", f(k))
	}
	publish(1, "key", "-out", f("r1")) // a key is never replaced
	publish(0, "init", "-repo", f("repo"), "-root", f("r1.pub")+","+f("r2.pub"), "-root-threshold", "2", "-targets", f("t.pub"), "-online", f("o.pub"),
		"-key", f("r1"), "-key", f("r2"), "-key", f("t"), "-key", f("o"))
	publish(1, "init", "-repo", f("repo"), "-root", f("r1.pub"), "-targets", f("t.pub"), "-online", f("o.pub"), "-key", f("r1"))
	require.NoError(t, os.WriteFile(f("img"), []byte("image"), 0o600))
	require.NoError(t, os.WriteFile(f("pol"), []byte("policy"), 0o600))
	rel := []string{"release", "-repo", f("repo"), "-name", "os-2.0", "-version", "2.0", "-security", "5", "-hardware", "lamp-2", "-part", "rootfs=" + f("img"), "-opaque", "pcr-policy=" + f("pol")}
	publish(3, append(rel, "-key", f("o"))...)
	assert.Contains(t, errw.String(), "-propose")
	publish(0, append(rel, "-key", f("o"), "-key", f("t"))...)

	// The rollout goes through a ceremony: the targets key is offline.
	publish(0, "rollout", "-repo", f("repo"), "-name", "os-2.0", "-wave", "now=1000", "-propose")
	assert.Contains(t, out.String(), "targets: 0 signed, 1 needed")
	publish(3, "publish-draft", "-repo", f("repo"), "-key", f("o"))
	publish(0, "payload", "-repo", f("repo"), "-role", "targets", "-out", f("payload"))
	publish(0, "sign", "-key", f("t"), "-in", f("payload"), "-out", f("sig"))
	publish(0, "signature", "-repo", f("repo"), "-role", "targets", "-pub", f("t.pub"), "-in", f("sig"))
	publish(0, "draft", "-repo", f("repo"))
	assert.Contains(t, out.String(), "targets: 1 signed, 1 needed")
	publish(0, "publish-draft", "-repo", f("repo"), "-key", f("o"))
	publish(1, "draft", "-repo", f("repo"))

	publish(0, "root", "-repo", f("repo"), "-out", f("root.json"))
	publish(0, "role", "-repo", f("repo"), "-name", "timestamp", "-keys", f("o2.pub"), "-key", f("r1"), "-key", f("r2"), "-key", f("o"), "-key", f("o2"))
	publish(0, "refresh", "-repo", f("repo"), "-key", f("o"), "-key", f("o2"))
	publish(3, "refresh", "-repo", f("repo"), "-key", f("o"))
	publish(0, "check", "-repo", f("repo"), "-json")
	assert.True(t, strings.HasPrefix(out.String(), "[{"))
	img, err := filepath.Glob(filepath.Join(f("repo"), "targets/parts/stable/os-2.0/*rootfs"))
	require.NoError(t, err)
	require.Len(t, img, 1)
	require.NoError(t, os.Rename(img[0], f("gone")))
	publish(1, "check", "-repo", f("repo"))
	publish(1, "check", "-repo", f("repo"), "-json") // what is urgent fails in either form
	assert.Contains(t, out.String(), "missing from the store")
	require.NoError(t, os.Rename(f("gone"), img[0]))
	t.Chdir(dir)
	publish(0, "export", "-repo", f("repo"), "-out", f("stick.tar"), "releases/", "parts/")

	// A city directs.
	publish(0, "init", "-repo", f("city"), "-root", f("r1.pub"), "-targets", f("t.pub"), "-online", f("o.pub"), "-bins", "2", "-key", f("r1"), "-key", f("t"), "-key", f("o"))
	publish(0, "assign", "-repo", f("city"), "-node", "lamp-17", "-images", f("repo"), "-release", "stable/os-2.0", "-key", f("o"))
	publish(0, "root", "-repo", f("city"), "-out", f("city.json"))

	embedded, err := os.ReadFile(f("root.json"))
	require.NoError(t, err)
	city, err := os.ReadFile(f("city.json"))
	require.NoError(t, err)
	c, err := update.NewClient(update.ClientConfig{Root: embedded, Dir: f("tuf"), Images: update.FSSource(os.DirFS(f("repo"))),
		DirectorRoot: city, Director: update.FSSource(os.DirFS(f("city"))), Floors: update.FileFloors(f("floors"))})
	require.NoError(t, err)
	_, err = c.Refresh(context.Background())
	require.NoError(t, err)
	sel, err := c.Select(t.Context(), update.Node{ID: "lamp-17", Hardware: "lamp-2", Channel: "stable", Version: "1.0"})
	require.NoError(t, err)
	assert.Equal(t, "os-2.0", sel.Release().Name)

	// A maker's share, and a share of that share.
	require.NoError(t, os.WriteFile(f("fw"), []byte("firmware"), 0o600))
	publish(0, "key", "-out", f("m"))
	publish(0, "delegate", "-repo", f("repo"), "-name", "maker", "-keys", f("m.pub"), "-path", "modules/*", "-key", f("t"), "-key", f("o"), "-key", f("o2"), "-key", f("m"))
	publish(0, "delegate", "-repo", f("repo"), "-from", "maker", "-name", "camera", "-keys", f("o2.pub"), "-path", "modules/cam*", "-key", f("m"), "-key", f("o"), "-key", f("o2"))
	publish(1, "target", "-repo", f("repo"), "-role", "camera", "-name", "modules/radio", "-file", f("fw"), "-key", f("o"), "-key", f("o2"))
	publish(0, "target", "-repo", f("repo"), "-role", "camera", "-name", "modules/camera", "-file", f("fw"), "-key", f("o"), "-key", f("o2"))
	_, err = c.Refresh(t.Context())
	require.NoError(t, err)
	fw, err := c.Target(t.Context(), "modules/camera")
	require.NoError(t, err)
	assert.EqualValues(t, 8, fw.Length())
	publish(0, "delegate", "-repo", f("repo"), "-name", "maker", "-revoke", "-key", f("t"), "-key", f("o"), "-key", f("o2"))
	_, err = c.Refresh(t.Context())
	require.NoError(t, err)
	_, err = c.Target(t.Context(), "modules/camera")
	require.ErrorIs(t, err, update.ErrNotInRepository)

	// Aids.
	require.NoError(t, os.WriteFile(f("img3"), append(bytes.Repeat([]byte("x"), 100_000), "image"...), 0o600))
	rel3 := []string{"release", "-repo", f("repo"), "-name", "os-3.0", "-version", "3.0", "-hardware", "lamp-2", "-part", "rootfs=" + f("img3"), "-key", f("o"), "-key", f("o2"), "-key", f("t")}
	publish(2, append(rel3, "-index", "kernel")...)
	publish(2, append(rel3, "-patch-from", "rootfs")...)
	publish(1, append(rel3, "-patch-from", "rootfs="+f("nowhere"))...)
	publish(0, append(rel3, "-index", "rootfs", "-patch-from", "rootfs="+f("img"))...)
	publish(0, "rollout", "-repo", f("repo"), "-name", "os-3.0", "-wave", "now=1000", "-key", f("o"), "-key", f("o2"), "-key", f("t"))
	alone, err := update.NewClient(update.ClientConfig{Root: embedded, Dir: f("tuf2"), Images: update.FSSource(os.DirFS(f("repo"))), Floors: update.FileFloors(f("floors2"))})
	require.NoError(t, err)
	_, err = alone.Refresh(t.Context())
	require.NoError(t, err)
	sel, err = alone.Select(t.Context(), update.Node{ID: "lamp-17", Hardware: "lamp-2", Channel: "stable", Version: "2.0"})
	require.NoError(t, err)
	require.Equal(t, "os-3.0", sel.Release().Name)
	assert.NotNil(t, sel.Release().Parts[0].Index)
	assert.Len(t, sel.Release().Parts[0].Patches, 1)

	for _, bad := range [][]string{{}, {"frobnicate"}, {"delegate"}, {"delegate", "-name", "x"}, {"target"}, {"release", "-x"}, {"release"}, {"rollout", "-wave", "x"}, {"sign"}, {"check"}, {"export", "-repo", "x"}} {
		publish(2, bad...)
		assert.NotEmpty(t, errw.String())
	}
	publish(1, "check", "-repo", f("nowhere"))
	assert.Contains(t, errw.String(), "publish init")
}
