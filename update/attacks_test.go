package update_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

func TestUnsignedMetadataIsRefused(t *testing.T) {
	for name, forgeIt := range map[string]func(f *forge){
		"timestamp by a stranger":   func(f *forge) { f.keys["timestamp"] = []crypto.Signer{newKey(t)}; f.publish(obj{}) },
		"snapshot by a stranger":    func(f *forge) { f.keys["snapshot"] = []crypto.Signer{newKey(t)}; f.publish(obj{}) },
		"targets by a stranger":     func(f *forge) { f.keys["targets"] = []crypto.Signer{newKey(t)}; f.publish(obj{}) },
		"targets by the online key": func(f *forge) { f.keys["targets"] = f.keys["timestamp"]; f.publish(obj{}) },
		"root by itself only":       func(f *forge) { f.keys["root"] = []crypto.Signer{newKey(t)}; f.putRoot() },
		"root not by itself": func(f *forge) {
			old := f.keys["root"][0]
			f.keys["root"] = []crypto.Signer{newKey(t)}
			f.putRoot(old)
			strip(f)
		},
		"no signatures on the targets": func(f *forge) { f.keys["targets"] = nil; f.publish(obj{}) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newForge(t)
			c := newTUF(t, f)
			require.NoError(t, c.refresh())
			before := snapshotDir(t, c.dir)
			forgeIt(f)
			require.ErrorIs(t, c.refresh(), update.ErrSignature)
			if name != "targets by a stranger" && name != "targets by the online key" && name != "no signatures on the targets" && name != "snapshot by a stranger" {
				assert.Equal(t, before, snapshotDir(t, c.dir), "cache unchanged")
			} else {
				assert.Equal(t, before["targets.json"], snapshotDir(t, c.dir)["targets.json"])
			}
			_, err := c.Target(t.Context(), "x")
			require.ErrorIs(t, err, update.ErrUnavailable)
		})
	}
}

// strip takes the last signature, its own, from the newest root.
func strip(f *forge) {
	name := fmt.Sprintf("metadata/%d.root.json", f.version["root"])
	i := bytes.LastIndex(f.files[name], []byte(`,{"keyid"`))
	if j := bytes.Index(f.files[name], []byte(`},"`)); i < 0 || j < 0 {
		panic("unexpected layout")
	}
	s := string(f.files[name])
	start := strings.Index(s, `"signatures":[`) + len(`"signatures":[`)
	first := s[start : strings.Index(s[start:], "}")+start+1]
	end := strings.Index(s[start:], "]") + start
	f.files[name] = []byte(s[:start] + first + s[end:])
}

func TestUnderThreshold(t *testing.T) {
	f := newForge(t)
	both := []crypto.Signer{newKey(t), newKey(t)}
	f.keys["targets"] = both
	f.putRoot()
	f.publish(obj{})
	c := newTUF(t, f)
	require.NoError(t, c.refresh())
	f.keys["targets"] = both[:1]
	f.publish(obj{})
	require.ErrorIs(t, c.refresh(), update.ErrSignature)
}

func TestEndlessDataIsCut(t *testing.T) {
	f := newForge(t)
	for name, file := range map[string]string{"root": "metadata/2.root.json", "timestamp": "metadata/timestamp.json"} {
		t.Run(name, func(t *testing.T) {
			c := newTUF(t, f, func(c *update.ClientConfig) { c.Images = endlessFile{f, file} })
			require.ErrorIs(t, c.refresh(), update.ErrTooLarge)
		})
	}
	for role, file := range map[string]string{"snapshot": "metadata/1.snapshot.json", "targets": "metadata/1.targets.json"} {
		t.Run(role, func(t *testing.T) {
			c := newTUF(t, f, func(c *update.ClientConfig) { c.Images = endlessFile{f, file} })
			require.ErrorIs(t, c.refresh(), update.ErrTooLarge)
		})
	}
}

type endlessFile struct {
	*forge
	name string
}

func (s endlessFile) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if name == s.name {
		return io.NopCloser(zeros{}), nil
	}
	return s.forge.Open(ctx, name, off, n)
}

func TestFreezeIsNoticed(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 1000))
	d := newDevice(t, p)
	_, err := d.client.Refresh(t.Context())
	require.NoError(t, err)
	d.now = p.now.AddDate(0, 0, 8) // the timestamp is good for 7 days
	_, err = d.client.Select(t.Context(), d.node())
	require.ErrorIs(t, err, update.ErrExpired, "expired since the refresh")
	_, err = d.client.Refresh(t.Context())
	require.ErrorIs(t, err, update.ErrExpired)
	require.NoError(t, p.repo.Refresh(t.Context(), p.all()...)) // at an old time: still expired
	_, err = d.client.Refresh(t.Context())
	require.ErrorIs(t, err, update.ErrExpired)
	p.now = d.now
	require.NoError(t, p.repo.Refresh(t.Context(), p.all()...))
	_, err = d.client.Refresh(t.Context())
	require.NoError(t, err)
}

func TestRollbackOfEachRole(t *testing.T) {
	f := newForge(t)
	f.publish(obj{})
	old := f.clone()
	f.publish(obj{})
	c := newTUF(t, f)
	require.NoError(t, c.refresh())
	c.cfg.Images = old
	c.reopen(t)
	require.ErrorIs(t, c.refresh(), update.ErrRollback, "timestamp")

	// The online key is stolen: newer timestamp and snapshot, older targets.
	old.version["timestamp"], old.version["snapshot"] = 90, 90
	data := old.files["metadata/2.targets.json"]
	old.putSnapshot(old.signed("snapshot", 91, obj{"meta": obj{"targets.json": meta(2, data)}}))
	require.ErrorIs(t, c.refresh(), update.ErrRollback, "targets by a stolen online key")

	// A role that was there disappears from the snapshot.
	s := newKey(t)
	keys, role := f.delegation("maker", []any{"*"}, s)
	f.publish(obj{"delegations": obj{"keys": keys, "roles": []any{role}}},
		obj{"name": "maker", "data": f.envelope(f.signed("targets", 1, obj{"targets": obj{}}), s)})
	c = newTUF(t, f)
	require.NoError(t, c.refresh())
	f.publish(obj{})
	require.Error(t, c.refresh(), "role removed from the snapshot")
}

func TestFastForwardRecoversByKeyRotation(t *testing.T) {
	f := newForge(t)
	c := newTUF(t, f)
	f.version["timestamp"], f.version["snapshot"], f.version["targets"] = 1_000_000, 1_000_000, 1_000_000
	f.publish(obj{})
	require.NoError(t, c.refresh())
	st, err := c.Refresh(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1_000_001, st.Timestamp)
	require.NoError(t, c.cfg.Floors.Raise(t.Context(), floorsOf(f, st)))

	f.version["timestamp"], f.version["snapshot"], f.version["targets"] = 5, 5, 5
	f.publish(obj{})
	require.ErrorIs(t, c.refresh(), update.ErrRollback)
	f.putRoot() // a new root with the same keys changes nothing
	f.publish(obj{})
	require.ErrorIs(t, c.refresh(), update.ErrRollback)
	f.keys["timestamp"], f.keys["snapshot"] = []crypto.Signer{newKey(t)}, []crypto.Signer{newKey(t)}
	f.putRoot()
	f.publish(obj{})
	require.NoError(t, c.refresh())
}

// floorsOf are the floors that a commit at this status would set.
func floorsOf(f *forge, st update.Status) update.Floors {
	return update.Floors{Images: update.RepositoryFloors{Root: st.Root, Timestamp: st.Timestamp, Snapshot: st.Snapshot, Targets: st.Targets, Keys: keySets(f)}}
}

func TestMixAndMatch(t *testing.T) {
	f := newForge(t)
	other := f.clone()
	other.publish(obj{"x": "1"})
	f.publish(obj{"x": "2"})
	f.files["metadata/2.targets.json"] = other.files["metadata/2.targets.json"] // rightly signed, same version
	require.ErrorIs(t, newTUF(t, f).refresh(), update.ErrMixAndMatch)

	f = newForge(t)
	f.files["metadata/1.targets.json"] = f.envelope(f.signed("targets", 7, obj{"targets": obj{}}), f.keys["targets"]...)
	f.putSnapshot(f.signed("snapshot", 2, obj{"meta": obj{"targets.json": obj{"version": 1}}}))
	require.ErrorIs(t, newTUF(t, f).refresh(), update.ErrMixAndMatch)
}

func TestDelegationsAreBounded(t *testing.T) {
	s := newKey(t)
	f := newForge(t)
	chain := func(n int, last obj) []obj {
		var roles []obj
		for i := range n {
			more := obj{"targets": obj{}}
			if i == n-1 {
				more["targets"] = last
			} else {
				keys, role := f.delegation(fmt.Sprint("r", i+1), []any{"*"}, s)
				more["delegations"] = obj{"keys": keys, "roles": []any{role}}
			}
			roles = append(roles, obj{"name": fmt.Sprint("r", i), "data": f.envelope(f.signed("targets", 1, more), s)})
		}
		return roles
	}
	keys, role := f.delegation("r0", []any{"*"}, s)
	top := obj{"delegations": obj{"keys": keys, "roles": []any{role}}}
	target := obj{"x": f.addTarget("x", []byte("x"))}
	f.publish(top, chain(31, target)...)
	c := newTUF(t, f)
	require.NoError(t, c.refresh())
	_, err := c.Target(t.Context(), "x")
	require.NoError(t, err)
	f.publish(top, chain(32, target)...)
	c = newTUF(t, f)
	require.NoError(t, c.refresh())
	_, err = c.Target(t.Context(), "x")
	require.ErrorIs(t, err, update.ErrNotInRepository, "33 roles")

	t.Run("cycle", func(t *testing.T) {
		f := newForge(t)
		k, r := f.delegation("a", []any{"*"}, s)
		kb, rb := f.delegation("b", []any{"*"}, s)
		a := f.envelope(f.signed("targets", 1, obj{"targets": obj{}, "delegations": obj{"keys": kb, "roles": []any{rb}}}), s)
		b := f.envelope(f.signed("targets", 1, obj{"targets": obj{}, "delegations": obj{"keys": k, "roles": []any{r}}}), s)
		f.publish(obj{"delegations": obj{"keys": k, "roles": []any{r}}}, obj{"name": "a", "data": a}, obj{"name": "b", "data": b})
		c := newTUF(t, f)
		require.NoError(t, c.refresh())
		_, err := c.Target(t.Context(), "x")
		require.ErrorIs(t, err, update.ErrNotInRepository)
	})
	t.Run("path outside the delegation", func(t *testing.T) {
		f := newForge(t)
		k, r := f.delegation("maker", []any{"modules/*"}, s)
		data := f.envelope(f.signed("targets", 1, obj{"targets": obj{"rootfs": f.addTarget("rootfs", []byte("x")), "modules/a/b": f.addTarget("modules/a/b", []byte("x"))}}), s)
		f.publish(obj{"delegations": obj{"keys": k, "roles": []any{r}}}, obj{"name": "maker", "data": data})
		c := newTUF(t, f)
		require.NoError(t, c.refresh())
		for _, name := range []string{"rootfs", "modules/a/b"} {
			_, err := c.Target(t.Context(), name)
			require.ErrorIs(t, err, update.ErrNotInRepository, name)
		}
	})
}

func TestWrongSoftwareIsNotSelected(t *testing.T) {
	for name, tc := range map[string]struct {
		rel  func(*manifest.Release)
		node func(*update.Node)
		text string
	}{
		"other hardware":    {func(r *manifest.Release) { r.Hardware = []string{"lamp-3"} }, nil, "for hardware"},
		"hardware unknown":  {nil, func(n *update.Node) { n.Hardware = "" }, "for hardware"},
		"other tenant":      {func(r *manifest.Release) { r.Tenants = []string{"harbour"} }, nil, "tenant"},
		"other channel":     {nil, func(n *update.Node) { n.Channel = "beta" }, "0 releases"},
		"from too old":      {func(r *manifest.Release) { r.MinFrom = "1.5" }, nil, "needs version 1.5"},
		"lower version":     {nil, func(n *update.Node) { n.Version = "3.0" }, "lower than"},
		"same version":      {nil, func(n *update.Node) { n.Version = "2" }, "runs already"},
		"version unknown":   {func(r *manifest.Release) { r.MinFrom = "1.5" }, func(n *update.Node) { n.Version = "" }, "needs version"},
		"allowed downgrade": {func(r *manifest.Release) { r.DowngradeFrom = []string{"3.0"} }, func(n *update.Node) { n.Version = "3.0" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPublisher(t)
			var changes []func(*manifest.Release)
			if tc.rel != nil {
				changes = append(changes, tc.rel)
			}
			p.release("2.0", 1, image("2", 100), changes...)
			d := newDevice(t, p)
			_, err := d.client.Refresh(t.Context())
			require.NoError(t, err)
			n := d.node()
			if tc.node != nil {
				tc.node(&n)
			}
			_, err = d.client.Select(t.Context(), n)
			if tc.text == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, update.ErrNoUpdate)
			assert.Contains(t, err.Error(), tc.text)
		})
	}
}

func TestFloorsKeepOldReleasesOut(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 5, image("2", 100), func(r *manifest.Release) { r.DataFloor = 3 })
	d := newDevice(t, p)
	require.NoError(t, d.install())
	require.Equal(t, update.Trial, d.reboot().Phase)
	require.NoError(t, d.in.Confirm(t.Context()))
	d.version = "2.0"
	p.release("3.0", 4, image("3", 100), func(r *manifest.Release) { r.DataFloor = 3 })
	p.release("3.1", 9, image("3", 100), func(r *manifest.Release) { r.DataFloor = 2 })
	_, err := d.choose()
	require.ErrorIs(t, err, update.ErrNoUpdate)
	assert.Contains(t, err.Error(), "security counter 4, floor 5")
	assert.Contains(t, err.Error(), "reads data format 2, the data has 3")

	// An emergency downgrade: lower version, same counter, said so in signed metadata.
	p.release("1.9", 5, image("1.9", 100), func(r *manifest.Release) { r.DowngradeFrom, r.DataFloor = []string{"2.0"}, 3 })
	sel, err := d.choose()
	require.NoError(t, err)
	assert.Equal(t, "1.9", sel.Release().Version)
}

func TestWithdrawnAndPausedReleases(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 100))
	d := newDevice(t, p)
	for _, r := range []manifest.Rollout{
		{Withdrawn: "burns out lamps", Waves: []manifest.Wave{{Permille: 1000}}, Nodes: []string{"node-1"}},
		{Paused: true, Waves: []manifest.Wave{{Permille: 1000}}, Nodes: []string{"node-1"}},
		{},
		{Waves: []manifest.Wave{{Start: d.now.Add(time.Hour), Permille: 1000}}},
		{Nodes: []string{"node-2"}},
	} {
		p.edit(func(tx *repository.Tx) error { return tx.SetRollout("stable", "os-2.0", r) })
		_, err := d.choose()
		require.ErrorIs(t, err, update.ErrNoUpdate, "%+v", r)
	}
	p.edit(func(tx *repository.Tx) error {
		return tx.SetRollout("stable", "os-2.0", manifest.Rollout{Nodes: []string{"node-1"}})
	})
	_, err := d.choose()
	require.NoError(t, err)
}

func TestPartialBundleIsNotArmed(t *testing.T) {
	p := newPublisher(t)
	rel := manifest.Release{Name: "os-2.0", Version: "2.0", Security: 1, Channel: "stable", Hardware: []string{"lamp-2"}}
	p.edit(func(tx *repository.Tx) error {
		if err := tx.AddRelease(rel, repository.Content{Name: "rootfs", Reader: strings.NewReader("root")},
			repository.Content{Name: "uki", Reader: strings.NewReader("kernel")}); err != nil {
			return err
		}
		return tx.SetRollout("stable", rel.Name, manifest.Rollout{Nodes: []string{"node-1"}})
	})
	found, err := filepath.Glob(filepath.Join(p.dir, "targets/parts/stable/os-2.0/*.uki"))
	require.NoError(t, err)
	require.Len(t, found, 1)
	for name, damage := range map[string]func(){
		"missing": func() { require.NoError(t, os.Rename(found[0], found[0]+".away")) },
		"altered": func() { require.NoError(t, os.WriteFile(found[0], []byte("kernex"), 0o600)) },
		"longer":  func() { require.NoError(t, os.WriteFile(found[0], []byte("kernel and more"), 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			damage()
			defer func() { _ = os.Rename(found[0]+".away", found[0]) }()
			d := newDevice(t, p)
			require.Error(t, d.install())
			slots, err := d.boot.Slots(t.Context())
			require.NoError(t, err)
			for _, s := range slots {
				assert.Zero(t, s.Tries)
				assert.Equal(t, s.Running, s.Good)
			}
			assert.Equal(t, update.Writing, d.reboot().Phase)
		})
	}
}

func TestOnlyWhatTheReleaseListsIsFetched(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 100))
	p.edit(func(tx *repository.Tx) error { return tx.AddTarget("extra/thing", strings.NewReader("x"), nil) })
	spy := &spySource{Source: p.source()}
	d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) { c.Images = spy })
	require.NoError(t, d.install())
	for _, name := range spy.names {
		assert.NotContains(t, name, "extra")
	}
}

type spySource struct {
	update.Source
	names []string
	bytes int64
}

func (s *spySource) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	s.names = append(s.names, name)
	r, err := s.Source.Open(ctx, name, off, n)
	if err != nil {
		return nil, err
	}
	return &countReader{r, &s.bytes}, nil
}

type countReader struct {
	io.ReadCloser
	n *int64
}

func (r *countReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	*r.n += int64(n)
	return n, err
}

func TestBitFlipInTheSlotIsNotArmed(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 1<<20))
	d := newDevice(t, p, func(_ *update.ClientConfig, ic *update.InstallerConfig) { ic.Slots = flipSlots{ic.Slots} })
	require.ErrorIs(t, d.install(), update.ErrHash)
	assert.Equal(t, update.Writing, d.reboot().Phase)
	assert.Equal(t, update.Slot("a"), d.running().Slot)
}

// flipSlots lose one bit between write and read.
type flipSlots struct{ update.Slots }

func (s flipSlots) Open(ctx context.Context, slot update.Slot, part string) (update.SlotFile, error) {
	f, err := s.Slots.Open(ctx, slot, part)
	return flipSlot{f}, err
}

type flipSlot struct{ update.SlotFile }

func (f flipSlot) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.SlotFile.ReadAt(p, off)
	if n > 0 && off == 0 {
		p[0] ^= 1
	}
	return n, err
}

func TestSlotTooSmallIsRefusedBeforeAnythingChanges(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 1<<20))
	d := newDevice(t, p, func(_ *update.ClientConfig, ic *update.InstallerConfig) { ic.Slots = smallSlots{ic.Slots} })
	require.ErrorIs(t, d.install(), update.ErrNoSpace)
	st, err := d.in.State(t.Context())
	require.NoError(t, err)
	assert.Equal(t, update.Idle, st.Phase)
}

type smallSlots struct{ update.Slots }

func (s smallSlots) Open(ctx context.Context, slot update.Slot, part string) (update.SlotFile, error) {
	f, err := s.Slots.Open(ctx, slot, part)
	return smallSlot{f}, err
}

type smallSlot struct{ update.SlotFile }

func (smallSlot) Size() int64 { return 1000 }

// lyingBoot says that the slot that was to be invalidated still boots.
type lyingBoot struct{ update.BootControl }

func (lyingBoot) Invalidate(context.Context, update.Slot) error { return nil }

func TestSlotThatCanStillBootIsNotWritten(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 100))
	d := newDevice(t, p)
	require.NoError(t, d.install())
	require.Equal(t, update.Trial, d.reboot().Phase)
	require.NoError(t, d.in.Confirm(t.Context()))
	d.version = "2.0"
	p.release("3.0", 1, image("3", 100))
	d.icfg.Boot = lyingBoot{d.boot}
	d.restart()
	require.ErrorContains(t, d.install(), "can still be booted")
}

func TestPreflightRefusesBeforeArming(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 100))
	d := newDevice(t, p, func(_ *update.ClientConfig, ic *update.InstallerConfig) {
		ic.Preflight = func(context.Context, map[string][]byte) error { return errors.New("the volume would not open") }
	})
	require.ErrorIs(t, d.install(), update.ErrPreflight)
	assert.Equal(t, update.Writing, d.reboot().Phase)
	_, err := update.NewInstaller(update.InstallerConfig{Client: d.client, Boot: d.boot, Slots: d.icfg.Slots, Dir: d.dir})
	require.ErrorContains(t, err, "Preflight", "forgetting it is an error")
}

func TestHangingHealthCheckRollsBack(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 100))
	stop := make(chan struct{})
	defer close(stop)
	rebooted := 0
	d := newDevice(t, p, func(_ *update.ClientConfig, ic *update.InstallerConfig) {
		ic.HealthTimeout = 50 * time.Millisecond
		ic.Health = []update.Check{{Name: "hangs", Run: func(context.Context) error { <-stop; return nil }}}
		ic.Reboot = func(context.Context) error { rebooted++; return nil }
	})
	require.NoError(t, d.install())
	require.Equal(t, update.Trial, d.reboot().Phase)
	require.ErrorIs(t, d.in.Confirm(t.Context()), update.ErrHealth)
	assert.Equal(t, 1, rebooted)
	st := d.reboot()
	assert.Equal(t, update.RolledBack, st.Phase)
	assert.Equal(t, update.Slot("a"), d.running().Slot)
}

func TestPanickingHealthCheckRollsBack(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 100))
	d := newDevice(t, p, func(_ *update.ClientConfig, ic *update.InstallerConfig) {
		ic.Health = []update.Check{{Name: "panics", Run: func(context.Context) error { panic("boom") }}}
	})
	require.NoError(t, d.install())
	require.Equal(t, update.Trial, d.reboot().Phase)
	require.ErrorIs(t, d.in.Confirm(t.Context()), update.ErrHealth)
}

func TestRebootByHandDoesNotBurnAllTries(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 100))
	d := newDevice(t, p)
	require.NoError(t, d.install())
	for range 4 { // one more than there are tries
		require.Equal(t, update.Trial, d.reboot().Phase)
		require.NoError(t, d.in.CleanShutdown(t.Context()))
	}
	require.Equal(t, update.Trial, d.reboot().Phase)
	require.NoError(t, d.in.Confirm(t.Context()))
}

func TestUSBStick(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 1000))
	stick := t.TempDir()
	p.copyTo(stick)
	d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) { c.Images = update.FSSource(os.DirFS(stick)) })
	require.NoError(t, d.install())

	src := update.FSSource(os.DirFS(stick))
	for _, name := range []string{"../etc/passwd", "/etc/passwd", "metadata/../../x", "metadata", ""} {
		_, err := src.Open(t.Context(), name, 0, -1)
		require.Error(t, err, name)
	}
	require.NoError(t, os.Symlink("/etc/hostname", filepath.Join(stick, "metadata", "link")))
	_, err := src.Open(t.Context(), "metadata/link", 0, -1)
	require.ErrorContains(t, err, "neither a regular file")
	require.NoError(t, os.Symlink("/etc", filepath.Join(stick, "dir")))
	_, err = src.Open(t.Context(), "dir/hostname", 0, -1)
	require.ErrorContains(t, err, "neither a regular file")
}

func TestConcurrentUpdatersExcludeEachOther(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2", 100))
	var inner, innerInstall error
	d := newDevice(t, p)
	d.icfg.Preflight = func(ctx context.Context, _ map[string][]byte) error {
		icfg := d.icfg
		icfg.Client = d.client
		second, err := update.NewInstaller(icfg)
		if err != nil {
			return err
		}
		_, inner = second.Resume(ctx)
		sel, err := d.client.Select(ctx, d.node())
		if err != nil {
			return err
		}
		innerInstall = second.Install(ctx, sel)
		return nil
	}
	d.restart()
	require.NoError(t, d.install())
	require.ErrorIs(t, inner, update.ErrBusy)
	require.ErrorIs(t, innerInstall, update.ErrBusy)
	require.ErrorIs(t, d.install(), update.ErrTrialPending)
}

func TestInstallContinuesWhereItWasCut(t *testing.T) {
	p := newPublisher(t)
	const size = 40 << 20
	img := image("2.0", size)
	p.release("2.0", 1, img)
	spy := &spySource{Source: p.source()}
	d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) { c.Images = spy })
	ctx, cancel := context.WithCancel(t.Context())
	cut := false
	d.icfg.Progress = func(_ string, done, total int64) {
		if !cut && done >= total*8/10 {
			cut = true
			cancel()
		}
	}
	d.restart()
	sel, err := d.choose()
	require.NoError(t, err)
	require.ErrorIs(t, d.in.Install(ctx, sel), context.Canceled)
	assert.Equal(t, update.Writing, d.reboot().Phase)
	spy.bytes = 0
	require.NoError(t, d.install())
	assert.LessOrEqual(t, spy.bytes, int64(size*21/100+100_000))
	assert.Equal(t, img, d.slot("b", size))
}

func TestResumedDownloadOverAlteredSlotStartsAgain(t *testing.T) {
	p := newPublisher(t)
	img := image("2.0", 20<<20)
	p.release("2.0", 1, img)
	d := newDevice(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	d.icfg.Progress = func(_ string, done, total int64) {
		if done >= total/2 {
			cancel()
		}
	}
	d.restart()
	sel, err := d.choose()
	require.NoError(t, err)
	require.ErrorIs(t, d.in.Install(ctx, sel), context.Canceled)
	file := filepath.Join(d.dir, "slots", "b", "rootfs")
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("evil"), 100)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	d.icfg.Progress = nil
	d.restart()
	require.NoError(t, d.install())
	assert.Equal(t, img, d.slot("b", len(img)))
}
