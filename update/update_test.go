package update_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/repository"
)

func TestReleaseIsInstalledTriedAndCommitted(t *testing.T) {
	p := newPublisher(t)
	img := image("2.0", 3<<20)
	p.release("2.0", 5, img)
	var preflight map[string][]byte
	d := newDevice(t, p, func(_ *update.ClientConfig, ic *update.InstallerConfig) {
		ic.Preflight = func(_ context.Context, parts map[string][]byte) error { preflight = parts; return nil }
	})
	st, err := d.in.Resume(t.Context())
	require.NoError(t, err)
	assert.Equal(t, update.Idle, st.Phase)

	require.NoError(t, d.install())
	assert.Equal(t, "policy of 2.0", string(preflight["pcr-policy"]))
	assert.Equal(t, update.Slot("a"), d.running().Slot)
	assert.Equal(t, img, d.slot("b", len(img)))

	st = d.reboot()
	require.Equal(t, update.Trial, st.Phase)
	assert.Equal(t, update.Slot("b"), d.running().Slot)
	f, err := d.floors.Load(t.Context())
	require.NoError(t, err)
	assert.Zero(t, f.Security, "floors must not rise before the commit")
	require.NoError(t, d.in.Confirm(t.Context()))

	st, err = d.in.State(t.Context())
	require.NoError(t, err)
	assert.Equal(t, update.Committed, st.Phase)
	assert.Equal(t, "2.0", st.Slots["b"].Version)
	f, err = d.floors.Load(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 5, f.Security)
	assert.EqualValues(t, 1, f.Images.Root)
	parts, err := d.in.Parts(t.Context(), "b")
	require.NoError(t, err)
	assert.Equal(t, "policy of 2.0", string(parts["pcr-policy"]))

	d.version = "2.0"
	_, err = d.choose()
	require.ErrorIs(t, err, update.ErrNoUpdate)
}

func TestBadReleaseHealsItself(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 5, image("2.0", 1<<20))
	for name, fail := range map[string]func(d *device) update.State{
		"health check fails": func(d *device) update.State {
			require.Equal(t, update.Trial, d.reboot().Phase)
			d.healthy = errors.New("camera is dark")
			require.ErrorIs(t, d.in.Confirm(t.Context()), update.ErrHealth)
			return d.reboot()
		},
		"crash loop": func(d *device) update.State {
			for range 3 {
				require.Equal(t, update.Trial, d.reboot().Phase)
			}
			return d.reboot()
		},
		"crashes before it can resume": func(d *device) update.State {
			for range 3 {
				_, err := d.boot.Boot(t.Context())
				require.NoError(t, err)
			}
			return d.reboot()
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t, p)
			require.NoError(t, d.install())
			st := fail(d)
			assert.Equal(t, update.RolledBack, st.Phase)
			assert.Equal(t, update.Slot("a"), d.running().Slot)
			assert.NotEmpty(t, st.Failed)
			f, err := d.floors.Load(t.Context())
			require.NoError(t, err)
			assert.Zero(t, f.Security)
			require.ErrorIs(t, d.install(), update.ErrFailedBefore)
			require.NoError(t, d.in.ClearFailed(t.Context()))
			require.NoError(t, d.install())
		})
	}
}

func TestForgedAndRolledBackRepositoriesAreRefused(t *testing.T) {
	p := newPublisher(t)
	p.release("1.5", 3, image("1.5", 1<<10))
	old := t.TempDir()
	p.copyTo(old)
	p.release("2.0", 5, image("2.0", 1<<10))

	forged := newPublisher(t)
	forged.release("9.9", 99, image("9.9", 1<<10))

	d := newDevice(t, p)
	require.NoError(t, d.install())
	require.Equal(t, update.Trial, d.reboot().Phase)
	require.NoError(t, d.in.Confirm(t.Context()))
	d.version = "2.0"

	d.cfg.Images = forged.source()
	d.restart()
	_, err := d.choose()
	require.ErrorIs(t, err, update.ErrSignature)

	q := &publisher{dir: old}
	d.cfg.Images = q.source()
	d.restart()
	_, err = d.choose()
	require.ErrorIs(t, err, update.ErrRollback)

	// Without the cache the floors still know.
	d.cfg.Dir = filepath.Join(d.dir, "fresh")
	d.restart()
	_, err = d.choose()
	require.ErrorIs(t, err, update.ErrRollback)
}

func TestFloorsInTheTPM(t *testing.T) {
	dev, _ := tpmtest.New(t)
	dir := t.TempDir()
	open := func(provision bool) update.FloorStore {
		s, err := update.TPMFloors(update.TPMFloorsConfig{TPM: dev, Dir: dir, Provision: provision})
		require.NoError(t, err)
		return s
	}
	_, err := open(false).Load(t.Context())
	require.ErrorIs(t, err, update.ErrStateRolledBack, "unprovisioned")
	_, err = open(true).Load(t.Context())
	require.NoError(t, err)
	s := open(false)
	require.NoError(t, s.Raise(t.Context(), update.Floors{Security: 3}))
	old := snapshotDir(t, dir)
	require.NoError(t, s.Raise(t.Context(), update.Floors{Security: 7}))
	f, err := s.Load(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 7, f.Security)
	assert.Equal(t, "tpm", s.Kind())
	now := snapshotDir(t, dir)

	t.Run("restored state file", func(t *testing.T) {
		defer restoreDir(t, dir, now)
		restoreDir(t, dir, old)
		_, err := s.Load(t.Context())
		require.ErrorIs(t, err, update.ErrStateRolledBack)
		require.ErrorIs(t, s.Raise(t.Context(), update.Floors{Security: 9}), update.ErrStateRolledBack)
	})
	t.Run("deleted state file", func(t *testing.T) {
		defer restoreDir(t, dir, now)
		restoreDir(t, dir, nil)
		_, err := s.Load(t.Context())
		require.ErrorIs(t, err, update.ErrStateRolledBack)
		_, err = open(true).Load(t.Context())
		require.ErrorIs(t, err, update.ErrStateRolledBack, "provisioning again must not help")
	})
	t.Run("one copy lost heals", func(t *testing.T) {
		restoreDir(t, dir, map[string][]byte{"floors-1.state": now["floors-1.state"]})
		f, err := s.Load(t.Context())
		require.NoError(t, err)
		assert.EqualValues(t, 7, f.Security)
		assert.Len(t, snapshotDir(t, dir), 2)
	})
}

func TestRootKeyRotationReachesOldNodes(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2.0", 1<<10))
	old := p.tstamp
	p.tstamp = newKey(t)
	p.edit(func(tx *repository.Tx) error { return tx.SetRole("timestamp", role(p.tstamp)) })
	oldRoot := p.root
	p.root = newKey(t)
	require.NoError(t, p.repo.Edit(t.Context(), func(tx *repository.Tx) error { return tx.SetRole("root", role(p.root)) },
		append(p.all(), oldRoot)...))
	d := newDevice(t, p)
	st, err := d.client.Refresh(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 3, st.Root)
	require.ErrorIs(t, p.repo.Refresh(t.Context(), p.snapshot, old), repository.ErrThreshold)

	// What was published can be opened and edited again.
	p.repo, err = repository.Open(t.Context(), repository.DirStore(p.dir), func() time.Time { return p.now })
	require.NoError(t, err)
	p.release("3.0", 1, image("3.0", 1<<10))
	_, err = d.choose()
	require.NoError(t, err)
}
