package update_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/boot"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// cpu is the CPU time that this process has used; hwm its peak memory since
// resetHWM.
func cpu(b *testing.B) time.Duration {
	var ru syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &ru))
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func resetHWM() {
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

func hwm(b testing.TB) float64 {
	data, err := os.ReadFile("/proc/self/status")
	require.NoError(b, err)
	for line := range strings.Lines(string(data)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	return 0
}

// measure runs f b.N times and reports its CPU time and peak memory.
func measure(b *testing.B, f func()) {
	resetHWM()
	start := cpu(b)
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64((cpu(b)-start).Milliseconds())/float64(b.N), "cpu-ms/op")
	b.ReportMetric(hwm(b), "peak-MiB")
}

// manyTargets is a repository of n targets in 2^bins bins.
func manyTargets(b *testing.B, n, bins int) (dir string, root []byte) {
	b.Helper()
	dir = b.TempDir()
	k := newKey(b)
	ctx := context.Background()
	cfg := repository.Config{Root: role(k), Targets: role(k), Snapshot: role(k), Timestamp: role(k), Bins: bins, Bin: role(k)}
	repo, err := repository.Create(ctx, memStore{repository.DirStore(dir)}, cfg, k)
	require.NoError(b, err)
	require.NoError(b, repo.Edit(ctx, func(tx *repository.Tx) error {
		for i := range n {
			if err := tx.AddTarget(fmt.Sprintf("nodes/lamp-%d.json", i), strings.NewReader("x"), nil); err != nil {
				return err
			}
		}
		return nil
	}, k))
	root, err = repo.Root(ctx)
	require.NoError(b, err)
	return dir, root
}

// memStore throws the contents of targets away.
type memStore struct{ repository.Store }

func (s memStore) Put(ctx context.Context, name string, r io.Reader, replace bool) error {
	if strings.HasPrefix(name, "targets/") {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	return s.Store.Put(ctx, name, r, replace)
}

const warmDir = "TRUSTTREE_TEST_WARM_DIR"

// TestWarmNode is the node of BenchmarkWarmRefresh100kTargets, in a process of
// its own so that the publisher's memory is not counted.
func TestWarmNode(t *testing.T) {
	dir := os.Getenv(warmDir)
	if dir == "" {
		t.Skip("run by BenchmarkWarmRefresh100kTargets")
	}
	root, err := os.ReadFile(filepath.Join(dir, "metadata", "1.root.json"))
	require.NoError(t, err)
	cache := filepath.Join(dir, "node")
	c, err := update.NewClient(update.ClientConfig{Root: root, Dir: cache, Images: update.FSSource(os.DirFS(dir)), Floors: update.FileFloors(cache)})
	require.NoError(t, err)
	_, err = c.Refresh(t.Context())
	require.NoError(t, err)
	_, err = c.Target(t.Context(), "nodes/lamp-77.json")
	require.NoError(t, err)
	fmt.Printf("peak MiB: %.2f\n", hwm(t))
}

func BenchmarkWarmRefresh100kTargets(b *testing.B) {
	dir, _ := manyTargets(b, testenv.N(10_000, 100_000), testenv.N(5, 8))
	var used time.Duration
	var peak float64
	run := func() {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestWarmNode$")
		cmd.Env = append(os.Environ(), warmDir+"="+dir)
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
}

// bigTarget is a repository with one target of n bytes.
func bigTarget(b *testing.B, n int64) (dir string, root []byte) {
	b.Helper()
	dir = b.TempDir()
	k := newKey(b)
	repo, err := repository.Create(b.Context(), repository.DirStore(dir), repository.Config{Root: role(k), Targets: role(k), Snapshot: role(k), Timestamp: role(k)}, k)
	require.NoError(b, err)
	file := filepath.Join(b.TempDir(), "big")
	require.NoError(b, os.WriteFile(file, nil, 0o600))
	require.NoError(b, os.Truncate(file, n))
	f, err := os.Open(file)
	require.NoError(b, err)
	defer f.Close()
	rel := manifest.Release{Name: "os-2", Version: "2", Channel: "stable", Hardware: []string{"lamp-2"}}
	require.NoError(b, repo.Edit(b.Context(), func(tx *repository.Tx) error {
		if err := tx.AddRelease(rel, repository.Content{Name: "rootfs", Reader: f}); err != nil {
			return err
		}
		return tx.SetRollout("stable", "os-2", manifest.Rollout{Nodes: []string{"n"}})
	}, k))
	root, err = repo.Root(b.Context())
	require.NoError(b, err)
	return dir, root
}

// Download, write to the slot, sync, read back, compare, arm.
func BenchmarkInstall500MiB(b *testing.B) {
	size := int64(testenv.N(64, 500)) << 20
	dir, root := bigTarget(b, size)
	b.SetBytes(size)
	measure(b, func() {
		tmp := b.TempDir()
		c, err := update.NewClient(update.ClientConfig{Root: root, Dir: tmp, Images: update.FSSource(os.DirFS(dir)), Floors: update.FileFloors(tmp)})
		require.NoError(b, err)
		loader, err := boot.NewFile(filepath.Join(tmp, "boot.json"), "a", "b")
		require.NoError(b, err)
		in, err := update.NewInstaller(update.InstallerConfig{Client: c, Boot: loader, Slots: boot.FileSlots{Dir: tmp, Capacity: size},
			Dir: filepath.Join(tmp, "in"), Preflight: update.NoPreflight})
		require.NoError(b, err)
		_, err = c.Refresh(b.Context())
		require.NoError(b, err)
		sel, err := c.Select(b.Context(), update.Node{ID: "n", Hardware: "lamp-2", Channel: "stable", Version: "1"})
		require.NoError(b, err)
		require.NoError(b, in.Install(b.Context(), sel))
		require.NoError(b, os.RemoveAll(filepath.Join(tmp, "b")))
	})
}

// Download to a file that appears whole: verified on the way, synced, renamed.
func BenchmarkDownloadFile500MiB(b *testing.B) {
	size := int64(testenv.N(64, 500)) << 20
	dir, root := bigTarget(b, size)
	c, err := update.NewClient(update.ClientConfig{Root: root, Dir: b.TempDir(), Images: update.FSSource(os.DirFS(dir)), Floors: update.FileFloors(b.TempDir())})
	require.NoError(b, err)
	_, err = c.Refresh(b.Context())
	require.NoError(b, err)
	tgt, err := c.Target(b.Context(), "parts/stable/os-2/rootfs")
	require.NoError(b, err)
	b.SetBytes(size)
	file := filepath.Join(b.TempDir(), "out")
	measure(b, func() {
		require.NoError(b, c.DownloadFile(b.Context(), tgt, file, nil))
		require.NoError(b, os.Remove(file))
	})
}

// The peer: go-tuf's updater downloads the same target.
func BenchmarkGoTUFDownload500MiB(b *testing.B) {
	size := int64(testenv.N(64, 500)) << 20
	dir, root := bigTarget(b, size)
	b.SetBytes(size)
	measure(b, func() {
		cfg, err := config.New("https://example.invalid/metadata", root)
		require.NoError(b, err)
		cfg.LocalMetadataDir, cfg.LocalTargetsDir = b.TempDir(), b.TempDir()
		cfg.RemoteTargetsURL, cfg.Fetcher, cfg.PrefixTargetsWithHash = "https://example.invalid/targets", peerFetcher(dir), true
		u, err := updater.New(cfg)
		require.NoError(b, err)
		require.NoError(b, u.Refresh())
		info, err := u.GetTargetInfo("parts/stable/os-2/rootfs")
		require.NoError(b, err)
		path, _, err := u.DownloadTarget(info, filepath.Join(cfg.LocalTargetsDir, "out"), "")
		require.NoError(b, err)
		require.NoError(b, os.Remove(path))
	})
}

type peerFetcher string

func (d peerFetcher) DownloadFile(url string, _ int64, _ time.Duration) ([]byte, error) {
	name, _ := strings.CutPrefix(url, "https://example.invalid/")
	data, err := os.ReadFile(filepath.Join(string(d), filepath.FromSlash(name)))
	if os.IsNotExist(err) {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: 404, URL: url}
	}
	return data, err
}

// A 5 GiB target in bounded memory: run with GOMEMLIMIT=64MiB.
func BenchmarkStream5GiB(b *testing.B) {
	size := int64(testenv.N(256, 5<<10)) << 20
	h := sha256.New()
	_, err := io.CopyN(struct{ io.Writer }{h}, zeros{}, size)
	require.NoError(b, err)
	sum := h.Sum(nil)
	b.SetBytes(size)
	f := newForge(&testing.T{})
	f.publish(obj{"targets": obj{"big": obj{"length": size, "hashes": obj{"sha256": fmt.Sprintf("%x", sum)}}}})
	dir := b.TempDir()
	c, err := update.NewClient(update.ClientConfig{Root: f.files["metadata/1.root.json"], Dir: dir, Images: endless{Source: f, n: size},
		Floors: update.FileFloors(dir), Now: func() time.Time { return f.now }})
	require.NoError(b, err)
	_, err = c.Refresh(b.Context())
	require.NoError(b, err)
	tgt, err := c.Target(b.Context(), "big")
	require.NoError(b, err)
	measure(b, func() { require.NoError(b, c.Download(b.Context(), tgt, io.Discard)) })
}
