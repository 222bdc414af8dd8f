package update_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// What was signed for this node yesterday and taken back today is not installed
// by who selected it yesterday.
func TestReleaseWithdrawnAfterSelection(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2.0", 1000))
	d := newDevice(t, p)
	withdraw := func() {
		p.edit(func(tx *repository.Tx) error {
			return tx.SetRollout("stable", "os-2.0", manifest.Rollout{Withdrawn: "burns out lamps"})
		})
	}
	sel, err := d.choose()
	require.NoError(t, err)
	withdraw()
	_, err = d.client.Refresh(t.Context())
	require.NoError(t, err)
	err = d.in.Install(t.Context(), sel)
	require.ErrorIs(t, err, update.ErrWithdrawn)
	assert.ErrorContains(t, err, "burns out lamps")

	t.Run("while it is fetched", func(t *testing.T) {
		p := newPublisher(t)
		p.release("2.0", 1, image("2.0", 1000))
		var d *device
		d = newDevice(t, p, func(_ *update.ClientConfig, ic *update.InstallerConfig) {
			ic.Preflight = func(ctx context.Context, _ map[string][]byte) error {
				p.edit(func(tx *repository.Tx) error {
					return tx.SetRollout("stable", "os-2.0", manifest.Rollout{Withdrawn: "burns out lamps"})
				})
				_, err := d.client.Refresh(ctx)
				return err
			}
		})
		require.ErrorIs(t, d.install(), update.ErrWithdrawn)
		st, err := d.in.State(t.Context())
		require.NoError(t, err)
		assert.Equal(t, update.Writing, st.Phase)
		assert.Zero(t, d.other().Tries)
	})
	t.Run("removed", func(t *testing.T) {
		p := newPublisher(t)
		p.release("2.0", 1, image("2.0", 1000))
		d := newDevice(t, p)
		sel, err := d.choose()
		require.NoError(t, err)
		p.edit(func(tx *repository.Tx) error { return tx.RemoveTarget(manifest.ReleaseTarget("stable", "os-2.0")) })
		_, err = d.client.Refresh(t.Context())
		require.NoError(t, err)
		require.ErrorIs(t, d.in.Install(t.Context(), sel), update.ErrWithdrawn)
	})
}

// Who signs a release can stop it, whoever assigns it.
func TestPausedReleaseStaysPausedThoughAssigned(t *testing.T) {
	vendor, city, d := twoParties(t)
	city.edit(func(tx *repository.Tx) error {
		return tx.Assign(manifest.Assignment{Node: "node-1", Releases: []manifest.AssignedRelease{vendor.assigned("2.0")}})
	})
	_, err := d.choose()
	require.NoError(t, err)
	vendor.edit(func(tx *repository.Tx) error {
		return tx.SetRollout("stable", "os-2.0", manifest.Rollout{Paused: true})
	})
	_, err = d.choose()
	require.ErrorIs(t, err, update.ErrNoUpdate)
}

// A delegated role that expires between two refreshes is not trusted on.
func TestDelegatedRoleExpiresBetweenRefreshes(t *testing.T) {
	f := newForge(t)
	key := newKey(t)
	keys, role := f.delegation("maker", []any{"modules/*"}, key)
	signed := f.signed("targets", 1, obj{"targets": obj{"modules/x": f.addTarget("modules/x", []byte("x"))}})
	signed["expires"] = f.now.Add(2 * time.Hour).Format(time.RFC3339)
	f.publish(obj{"targets": obj{}, "delegations": obj{"keys": keys, "roles": []any{role}}}, obj{"name": "maker", "data": f.envelope(signed, key)})
	now := f.now.Add(time.Hour)
	c := newTUF(t, f, func(c *update.ClientConfig) { c.Now = func() time.Time { return now } })
	require.NoError(t, c.refresh())
	_, err := c.Target(t.Context(), "modules/x")
	require.NoError(t, err)
	now = f.now.Add(3 * time.Hour)
	_, err = c.Target(t.Context(), "modules/x")
	require.ErrorIs(t, err, update.ErrExpired)
}

// What lies in the directories and is no regular file is never waited for.
func TestPipesInTheStateDirectoriesAreNotRead(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2.0", 1000))
	d := newDevice(t, p)
	_, err := d.choose()
	require.NoError(t, err)
	for _, name := range []string{"tuf/timestamp.json", "tuf/root_history/2.root.json", "tuf/targets.json"} {
		name = filepath.Join(d.dir, name)
		require.NoError(t, os.RemoveAll(name))
		require.NoError(t, syscall.Mkfifo(name, 0o600))
	}
	objects, err := filepath.Glob(filepath.Join(d.dir, "tuf/objects/*"))
	require.NoError(t, err)
	require.NotEmpty(t, objects)
	for _, name := range objects {
		require.NoError(t, os.Remove(name))
		require.NoError(t, syscall.Mkfifo(name, 0o600))
	}
	done := make(chan error, 1)
	go func() {
		d.restart()
		done <- d.install()
	}()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(time.Minute):
		require.Fail(t, "waits for a pipe")
	}
	require.NoError(t, os.MkdirAll(filepath.Join(d.dir, "floors"), 0o700))
	require.NoError(t, syscall.Mkfifo(filepath.Join(d.dir, "floors", "floors-0.state"), 0o600))
	_, err = d.floors.Load(t.Context())
	require.ErrorIs(t, err, update.ErrStateRolledBack)
}

// The cache of releases and assignments does not grow for ever.
func TestObjectsThatAreGoneAreForgotten(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2.0", 1000))
	d := newDevice(t, p)
	dir := filepath.Join(d.dir, "tuf", "objects")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for i := range 1100 {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%064x", i)), nil, 0o600))
	}
	_, err := d.choose()
	require.NoError(t, err)
	assert.Len(t, entries(t, dir), 1)
}

// A full disk under the state directories is named too, and what was trusted
// stays.
func TestFullDiskUnderTheState(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64k", "none", dir).CombinedOutput(); err != nil {
		testenv.Missing(t, "a small tmpfs: "+string(out))
	}
	defer func() { require.NoError(t, exec.Command("umount", dir).Run()) }()
	p := newPublisher(t)
	p.release("2.0", 1, image("2.0", 1000))
	d := newDevice(t, p, func(c *update.ClientConfig, ic *update.InstallerConfig) {
		c.Dir, ic.Dir, c.Floors = filepath.Join(dir, "tuf"), filepath.Join(dir, "installer"), update.FileFloors(filepath.Join(dir, "floors"))
	})
	fill := filepath.Join(dir, "fill")
	full := func() {
		f, err := os.Create(fill)
		require.NoError(t, err)
		for err == nil {
			_, err = f.Write(make([]byte, 512))
		}
		require.NoError(t, f.Close())
	}
	full()
	_, err := d.client.Refresh(t.Context())
	require.ErrorIs(t, err, update.ErrNoSpace)
	require.NoError(t, os.Remove(fill))
	sel, err := d.choose()
	require.NoError(t, err)
	full()
	require.ErrorIs(t, d.in.Install(t.Context(), sel), update.ErrNoSpace)
	require.ErrorIs(t, d.floors.Raise(t.Context(), update.Floors{Security: 1}), update.ErrNoSpace)
	assert.True(t, d.running().Good)
	assert.Zero(t, d.other().Tries)
	require.NoError(t, os.Remove(fill))
	require.NoError(t, d.install())
}
