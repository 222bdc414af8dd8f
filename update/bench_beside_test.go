package update_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/boot"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// randomImage is an image of n random bytes, which nobody compresses away.
func randomImage(b *testing.B, n int64) string {
	b.Helper()
	name := filepath.Join(b.TempDir(), "rootfs.img")
	f, err := os.Create(name)
	require.NoError(b, err)
	_, err = io.CopyN(f, rand.Reader, n)
	require.NoError(b, err)
	require.NoError(b, f.Sync())
	require.NoError(b, f.Close())
	return name
}

// BenchmarkInstallBesideRAUC installs the same image into a slot that is a file:
// ours from a local TUF repository, RAUC's service from its bundle.
func BenchmarkInstallBesideRAUC(b *testing.B) {
	size := int64(testenv.N(64, 500)) << 20
	image := randomImage(b, size)
	b.Run("trusttree", func(b *testing.B) {
		dir := b.TempDir()
		k := newKey(b)
		repo, err := repository.Create(b.Context(), repository.DirStore(dir), repository.Config{Root: role(k), Targets: role(k), Snapshot: role(k), Timestamp: role(k)}, k)
		require.NoError(b, err)
		f, err := os.Open(image)
		require.NoError(b, err)
		defer f.Close()
		rel := manifest.Release{Name: "os-2", Version: "2", Channel: "stable", Hardware: []string{"lamp-2"}}
		require.NoError(b, repo.Edit(b.Context(), func(tx *repository.Tx) error {
			if err := tx.AddRelease(rel, repository.Content{Name: "rootfs", Reader: f}); err != nil {
				return err
			}
			return tx.SetRollout("stable", "os-2", manifest.Rollout{Nodes: []string{"n"}})
		}, k))
		root, err := repo.Root(b.Context())
		require.NoError(b, err)
		slots := b.TempDir()
		b.SetBytes(size)
		measure(b, func() {
			tmp := b.TempDir()
			c, err := update.NewClient(update.ClientConfig{Root: root, Dir: tmp, Images: update.FSSource(os.DirFS(dir)), Floors: update.FileFloors(tmp)})
			require.NoError(b, err)
			loader, err := boot.NewFile(filepath.Join(tmp, "boot.json"), "a", "b")
			require.NoError(b, err)
			in, err := update.NewInstaller(update.InstallerConfig{Client: c, Boot: loader, Slots: boot.FileSlots{Dir: slots, Capacity: size},
				Dir: filepath.Join(tmp, "in"), Preflight: update.NoPreflight})
			require.NoError(b, err)
			_, err = c.Refresh(b.Context())
			require.NoError(b, err)
			sel, err := c.Select(b.Context(), update.Node{ID: "n", Hardware: "lamp-2", Channel: "stable", Version: "1"})
			require.NoError(b, err)
			require.NoError(b, in.Install(b.Context(), sel))
		})
		require.NoError(b, same(image, filepath.Join(slots, "b", "rootfs")))
	})
	b.Run("rauc", func(b *testing.B) {
		r := startRAUC(b, image, size)
		b.SetBytes(size)
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", r.pid), []byte("5"), 0)
		before, client := r.cpu(b), time.Duration(0)
		for b.Loop() {
			client += r.install(b)
		}
		b.ReportMetric(float64((r.cpu(b)-before+client).Milliseconds())/float64(b.N), "cpu-ms/op")
		b.ReportMetric(r.peak(b), "peak-MiB")
		require.NoError(b, same(image, r.slot))
	})
}

// same compares two files.
func same(a, b string) error {
	x, err := os.ReadFile(a)
	if err != nil {
		return err
	}
	y, err := os.ReadFile(b)
	if err == nil && !bytes.Equal(x, y) {
		err = fmt.Errorf("%s is not %s", b, a)
	}
	return err
}

// rauc is a RAUC service on a message bus of its own.
type rauc struct {
	tool, bundle, slot string
	env                []string
	pid                int
}

// startRAUC makes a signed bundle of the image and starts the service. Slots
// are files, the boot chooser is RAUC's noop.
func startRAUC(b *testing.B, image string, size int64) *rauc {
	b.Helper()
	tool := testenv.Tool(b, "rauc", "rauc")
	bus, openssl := testenv.Tool(b, "dbus-daemon", "dbus"), testenv.Tool(b, "openssl", "openssl")
	testenv.Tool(b, "mksquashfs", "squashfs-tools")
	testenv.Root(b) // it mounts the bundle
	dir := b.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(name string, args ...string) {
		out, err := exec.Command(name, args...).CombinedOutput()
		require.NoError(b, err, "%s: %s", name, out)
	}
	must(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", at("key.pem"), "-out", at("cert.pem"), "-subj", "/CN=bench", "-days", "2")
	require.NoError(b, os.Mkdir(at("content"), 0o700))
	require.NoError(b, os.Link(image, at("content/rootfs.img")))
	require.NoError(b, os.WriteFile(at("content/manifest.raucm"), []byte("[update]\ncompatible=lamp-2\nversion=2\n\n[image.rootfs]\nfilename=rootfs.img\n"), 0o600))
	must(tool, "bundle", "--cert="+at("cert.pem"), "--key="+at("key.pem"), "--mksquashfs-args=-noD -noF", at("content"), at("os-2.raucb"))
	require.NoError(b, os.Mkdir(at("mnt"), 0o700))
	for _, s := range []string{"a", "b"} {
		require.NoError(b, os.WriteFile(at(s), nil, 0o600))
		require.NoError(b, os.Truncate(at(s), size))
	}
	conf := fmt.Sprintf("[system]\ncompatible=lamp-2\nbootloader=noop\nstatusfile=%[1]s/status\nmountprefix=%[1]s/mnt\n[keyring]\npath=%[1]s/cert.pem\n"+
		"[slot.rootfs.0]\ndevice=%[1]s/a\ntype=raw\nbootname=a\n[slot.rootfs.1]\ndevice=%[1]s/b\ntype=raw\nbootname=b\n", dir)
	require.NoError(b, os.WriteFile(at("system.conf"), []byte(conf), 0o600))

	address := "unix:path=" + at("bus")
	r := &rauc{tool: tool, bundle: at("os-2.raucb"), slot: at("b"), env: append(os.Environ(), "DBUS_STARTER_BUS_TYPE=session", "DBUS_SESSION_BUS_ADDRESS="+address)}
	for _, args := range [][]string{
		{bus, "--session", "--nofork", "--nopidfile", "--address=" + address},
		{tool, "service", "--conf=" + at("system.conf"), "--override-boot-slot=a"},
	} {
		var out bytes.Buffer
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env, cmd.Stdout, cmd.Stderr = r.env, &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		require.NoError(b, cmd.Start())
		b.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
			if b.Failed() {
				b.Logf("%s:\n%s", args[0], out.String())
			}
		})
		r.pid = cmd.Process.Pid
		if args[0] == bus {
			require.Eventually(b, func() bool { _, err := os.Stat(at("bus")); return err == nil }, time.Minute, 10*time.Millisecond)
		}
	}
	require.Eventually(b, func() bool { // the service answers
		cmd := exec.Command(tool, "status")
		cmd.Env = r.env
		return cmd.Run() == nil
	}, time.Minute, 50*time.Millisecond)
	return r
}

// install installs once and returns the client's processor time.
func (r *rauc) install(b *testing.B) time.Duration {
	cmd := exec.Command(r.tool, "install", r.bundle)
	cmd.Env = r.env
	out, err := cmd.CombinedOutput()
	require.NoError(b, err, "%s", out)
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// cpu is the service's processor time, its threads' with it.
func (r *rauc) cpu(b *testing.B) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.pid))
	require.NoError(b, err)
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	require.Greater(b, len(f), 14)
	var ticks int
	for _, s := range f[11:15] { // user, system, and the same of children
		n, err := strconv.Atoi(s)
		require.NoError(b, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// peak is the service's, in MiB.
func (r *rauc) peak(b *testing.B) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pid))
	require.NoError(b, err)
	for line := range strings.Lines(string(data)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	return 0
}

const warmPeer = "TRUSTTREE_TEST_WARM_PEER"

// TestWarmPeer is go-tuf's updater as the node of BenchmarkRefreshBesideGoTUF.
func TestWarmPeer(t *testing.T) {
	dir := os.Getenv(warmPeer)
	if dir == "" {
		t.Skip("run by BenchmarkRefreshBesideGoTUF")
	}
	root, err := os.ReadFile(filepath.Join(dir, "metadata", "1.root.json"))
	require.NoError(t, err)
	cfg, err := config.New("https://example.invalid/metadata", root)
	require.NoError(t, err)
	cfg.LocalMetadataDir, cfg.LocalTargetsDir = filepath.Join(dir, "peer"), filepath.Join(dir, "peer-targets")
	cfg.RemoteTargetsURL, cfg.Fetcher, cfg.PrefixTargetsWithHash = "https://example.invalid/targets", peerFetcher(dir), true
	require.NoError(t, os.MkdirAll(cfg.LocalMetadataDir, 0o700))
	require.NoError(t, os.MkdirAll(cfg.LocalTargetsDir, 0o700))
	u, err := updater.New(cfg)
	require.NoError(t, err)
	require.NoError(t, u.Refresh())
	_, err = u.GetTargetInfo("nodes/lamp-77.json")
	require.NoError(t, err)
	fmt.Printf("peak MiB: %.2f\n", hwm(t))
}

// BenchmarkRefreshBesideGoTUF: a node with a warm cache asks for its target, of
// 100,000, ours and go-tuf's updater each in a process of its own.
func BenchmarkRefreshBesideGoTUF(b *testing.B) {
	dir, _ := manyTargets(b, testenv.N(10_000, 100_000), testenv.N(5, 8))
	for _, who := range []struct{ name, test, env string }{{"trusttree", "TestWarmNode", warmDir}, {"go-tuf", "TestWarmPeer", warmPeer}} {
		b.Run(who.name, func(b *testing.B) {
			var used time.Duration
			var peak float64
			run := func() {
				cmd := exec.Command(os.Args[0], "-test.run", "^"+who.test+"$")
				cmd.Env = append(os.Environ(), who.env+"="+dir)
				out, err := cmd.CombinedOutput()
				require.NoError(b, err, "%s", out)
				used += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				_, line, _ := strings.Cut(string(out), "peak MiB: ")
				var mib float64
				_, err = fmt.Sscan(line, &mib)
				require.NoError(b, err)
				peak = max(peak, mib)
			}
			run() // fills the cache
			used, peak = 0, 0
			for b.Loop() {
				run()
			}
			b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op") // start of the process included
			b.ReportMetric(peak, "peak-MiB")
		})
	}
}
