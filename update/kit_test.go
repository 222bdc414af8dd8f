package update_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/boot"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// publisher is a repository on disk with one key for each role.
type publisher struct {
	t                               *testing.T
	dir                             string
	root, targets, snapshot, tstamp crypto.Signer
	repo                            *repository.Repository
	now                             time.Time
	firstRoot                       []byte
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return k
}

func role(keys ...crypto.Signer) repository.Role {
	r := repository.Role{Threshold: len(keys)}
	for _, k := range keys {
		r.Keys = append(r.Keys, k.Public())
	}
	return r
}

func newPublisher(t *testing.T, change ...func(*repository.Config)) *publisher {
	t.Helper()
	p := &publisher{t: t, dir: t.TempDir(), root: newKey(t), targets: newKey(t), snapshot: newKey(t), tstamp: newKey(t),
		now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
	cfg := repository.Config{Root: role(p.root), Targets: role(p.targets), Snapshot: role(p.snapshot), Timestamp: role(p.tstamp),
		Now: func() time.Time { return p.now }}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	p.repo, err = repository.Create(t.Context(), repository.DirStore(p.dir), cfg, p.all()...)
	require.NoError(t, err)
	p.firstRoot, err = p.repo.Root(t.Context())
	require.NoError(t, err)
	return p
}

func (p *publisher) all() []crypto.Signer {
	return []crypto.Signer{p.root, p.targets, p.snapshot, p.tstamp}
}

func (p *publisher) edit(f func(*repository.Tx) error) {
	p.t.Helper()
	require.NoError(p.t, p.repo.Edit(p.t.Context(), f, p.all()...))
}

func (p *publisher) release(version string, security uint64, image []byte, change ...func(*manifest.Release)) manifest.Release {
	p.t.Helper()
	rel := manifest.Release{Name: "os-" + version, Version: version, Security: security, Channel: "stable", Hardware: []string{"lamp-2"}}
	for _, f := range change {
		f(&rel)
	}
	p.edit(func(tx *repository.Tx) error {
		err := tx.AddRelease(rel, repository.Content{Name: "rootfs", Reader: bytes.NewReader(image)},
			repository.Content{Name: "pcr-policy", Opaque: true, Reader: bytes.NewReader([]byte("policy of " + version))})
		if err != nil {
			return err
		}
		return tx.SetRollout("stable", rel.Name, manifest.Rollout{Waves: []manifest.Wave{{Start: p.now, Permille: 1000}}})
	})
	return rel
}

// source reads the publisher's directory.
func (p *publisher) source() update.Source { return update.FSSource(os.DirFS(p.dir)) }

// copyTo copies the repository as it is now.
func (p *publisher) copyTo(dir string) {
	p.t.Helper()
	require.NoError(p.t, os.CopyFS(dir, os.DirFS(p.dir)))
}

// device is a node with two slots.
type device struct {
	t       *testing.T
	dir     string
	now     time.Time
	client  *update.Client
	in      *update.Installer
	boot    *boot.File
	floors  update.FloorStore
	version string
	healthy error
	cfg     update.ClientConfig
	icfg    update.InstallerConfig
}

func newDevice(t *testing.T, p *publisher, change ...func(*update.ClientConfig, *update.InstallerConfig)) *device {
	t.Helper()
	d := &device{t: t, dir: t.TempDir(), now: p.now.Add(time.Hour), version: "1.0"}
	d.floors = update.FileFloors(filepath.Join(d.dir, "floors"))
	d.cfg = update.ClientConfig{Root: p.firstRoot, Dir: filepath.Join(d.dir, "tuf"), Images: p.source(), Floors: d.floors,
		Now: func() time.Time { return d.now }}
	var err error
	d.boot, err = boot.NewFile(filepath.Join(d.dir, "boot.json"), "a", "b")
	require.NoError(t, err)
	d.icfg = update.InstallerConfig{Boot: d.boot, Slots: boot.FileSlots{Dir: filepath.Join(d.dir, "slots"), Capacity: 64 << 20},
		Dir: filepath.Join(d.dir, "installer"), Preflight: update.NoPreflight,
		Health: []update.Check{{Name: "app", Run: func(context.Context) error { return d.healthy }}}}
	for _, f := range change {
		f(&d.cfg, &d.icfg)
	}
	d.floors = d.cfg.Floors
	d.restart()
	return d
}

// restart makes new objects over the same files, as a reboot does.
func (d *device) restart() {
	d.t.Helper()
	var err error
	d.client, err = update.NewClient(d.cfg)
	require.NoError(d.t, err)
	icfg := d.icfg
	icfg.Client = d.client
	d.in, err = update.NewInstaller(icfg)
	require.NoError(d.t, err)
}

// reboot lets the boot loader choose and resumes.
func (d *device) reboot() update.State {
	d.t.Helper()
	_, err := d.boot.Boot(d.t.Context())
	require.NoError(d.t, err)
	d.restart()
	st, err := d.in.Resume(d.t.Context())
	require.NoError(d.t, err)
	return st
}

func (d *device) node() update.Node {
	return update.Node{ID: "node-1", Hardware: "lamp-2", Channel: "stable", Version: d.version}
}

func (d *device) choose() (*update.Selection, error) {
	if _, err := d.client.Refresh(d.t.Context()); err != nil {
		return nil, err
	}
	return d.client.Select(d.t.Context(), d.node())
}

func (d *device) install() error {
	sel, err := d.choose()
	if err != nil {
		return err
	}
	return d.in.Install(d.t.Context(), sel)
}

func (d *device) running() update.SlotStatus {
	d.t.Helper()
	slots, err := d.boot.Slots(d.t.Context())
	require.NoError(d.t, err)
	for _, s := range slots {
		if s.Running {
			return s
		}
	}
	d.t.Fatal("no slot runs")
	return update.SlotStatus{}
}

func (d *device) slot(slot update.Slot, n int) []byte {
	d.t.Helper()
	data, err := os.ReadFile(filepath.Join(d.dir, "slots", string(slot), "rootfs"))
	require.NoError(d.t, err)
	return data[:min(n, len(data))]
}

// image makes n bytes that differ by name and are the same in each run.
func image(name string, n int) []byte {
	out := make([]byte, n)
	_, _ = mrand.NewChaCha8(sha256.Sum256([]byte(name))).Read(out) // never fails
	return out
}

func snapshotDir(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		if e.Type().IsRegular() {
			files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
		}
	}
	return files
}

func restoreDir(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name := range snapshotDir(t, dir) {
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
	}
	for name, data := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
}

func sha256Hex(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func downFrom(version string) func(*manifest.Release) {
	return func(r *manifest.Release) { r.DowngradeFrom = []string{version} }
}

// other is the slot that is not running.
func (d *device) other() update.SlotStatus {
	d.t.Helper()
	slots, err := d.boot.Slots(d.t.Context())
	require.NoError(d.t, err)
	for _, s := range slots {
		if !s.Running {
			return s
		}
	}
	return update.SlotStatus{}
}
