package update_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/updatetest"
)

const crashImage = 48 << 10 // twelve writes of 4 KiB

// world is a node whose power can go at any step.
type world struct {
	t       *testing.T
	pub     *publisher
	dir     string
	power   *updatetest.Power
	loader  *updatetest.Loader
	slots   *updatetest.Slots
	healthy bool
	booted  func(update.Slot) // told of every boot; may be nil
}

func newWorld(t *testing.T, pub *publisher, p *updatetest.Power, healthy bool) *world {
	w := &world{t: t, pub: pub, dir: t.TempDir(), power: p, healthy: healthy, loader: updatetest.NewLoader(p)}
	w.slots = &updatetest.Slots{Size: crashImage, Power: p, Media: map[string]*updatetest.Medium{}}
	quiet := updatetest.NewPower(-1)
	m := updatetest.NewMedium("a/rootfs", crashImage, quiet)
	_, err := m.WriteAt(image("1.0", crashImage), 0)
	require.NoError(t, err)
	require.NoError(t, m.Sync())
	m.Lose(nil, p)
	w.slots.Media["a/rootfs"] = m
	return w
}

// after is the world after a power cut that kept some unsynced writes, with
// mains power.
func (w *world) after(keep func(int) bool) *world {
	p := updatetest.NewPower(-1)
	n := &world{t: w.t, pub: w.pub, dir: w.t.TempDir(), power: p, healthy: w.healthy}
	require.NoError(w.t, os.CopyFS(n.dir, os.DirFS(w.dir)))
	n.loader = updatetest.NewLoader(p)
	n.loader.Running, n.loader.Default = w.loader.Running, w.loader.Default
	for s := range map[update.Slot]bool{"a": true, "b": true} {
		n.loader.Good[s], n.loader.Tries[s] = w.loader.Good[s], w.loader.Tries[s]
	}
	n.slots = &updatetest.Slots{Size: crashImage, Power: p, Media: map[string]*updatetest.Medium{}}
	for name, m := range w.slots.Media {
		c := updatetest.NewMedium(name, crashImage, updatetest.NewPower(-1))
		_, err := c.WriteAt(m.After(crashImage, keep), 0)
		require.NoError(w.t, err)
		require.NoError(w.t, c.Sync())
		n.slots.Media[name] = c
	}
	return n
}

// smallReads delivers 4 KiB at a time and lets the power go at each request.
type smallReads struct {
	update.Source
	p *updatetest.Power
}

func (s smallReads) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	s.p.Step("fetch %s", name)
	r, err := s.Source.Open(ctx, name, off, n)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{smallReader{r}, r}, nil
}

type smallReader struct{ io.Reader }

func (r smallReader) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(len(p), 4<<10)]) }

type poweredFloors struct {
	update.FloorStore
	p *updatetest.Power
}

func (f poweredFloors) Raise(ctx context.Context, to update.Floors) error {
	f.p.Step("raise floors")
	err := f.FloorStore.Raise(ctx, to)
	f.p.Step("raised floors")
	return err
}

func (w *world) floors() update.FloorStore {
	return poweredFloors{update.FileFloors(filepath.Join(w.dir, "floors")), w.power}
}

// boot makes the objects that a boot makes.
func (w *world) boot() (*update.Client, *update.Installer) {
	client, err := update.NewClient(update.ClientConfig{Root: w.pub.firstRoot, Dir: filepath.Join(w.dir, "tuf"),
		Images: smallReads{w.pub.source(), w.power}, Floors: w.floors(), Logger: w.power.Logger(), Now: w.pub.repoNow})
	require.NoError(w.t, err)
	in, err := update.NewInstaller(update.InstallerConfig{Client: client, Boot: w.loader, Slots: w.slots, Dir: filepath.Join(w.dir, "installer"),
		Preflight: func(context.Context, map[string][]byte) error { w.power.Step("preflight"); return nil },
		Health: []update.Check{{Name: "app", Run: func(context.Context) error {
			if w.healthy {
				return nil
			}
			return errors.New("dark")
		}}}})
	require.NoError(w.t, err)
	return client, in
}

func (p *publisher) repoNow() time.Time { return p.now }

// live does what a node does, until it has nothing more to do.
func (w *world) live() update.State {
	ctx := context.Background()
	for range 20 {
		client, in := w.boot()
		st, err := in.Resume(ctx)
		require.NoError(w.t, err)
		reboot := st.RebootNeeded
		switch st.Phase {
		case update.Committed:
			return st
		case update.Trial:
			if err := in.Confirm(ctx); err != nil {
				require.ErrorIs(w.t, err, update.ErrHealth)
				reboot = true
			}
		case update.Armed:
			reboot = true
		default:
			if reboot {
				break
			}
			_, err := client.Refresh(ctx)
			require.NoError(w.t, err)
			sel, err := client.Select(ctx, update.Node{ID: "node-1", Hardware: "lamp-2", Channel: "stable", Version: "1.0"})
			require.NoError(w.t, err)
			err = in.Install(ctx, sel)
			if errors.Is(err, update.ErrFailedBefore) {
				return st
			}
			require.NoError(w.t, err)
		}
		if reboot {
			w.power.Step("reboot")
			if s := w.loader.Boot(); w.booted != nil {
				w.booted(s)
			}
			w.power.Step("rebooted")
		}
	}
	w.t.Fatal("the node never comes to rest")
	return update.State{}
}

// check holds what must be true after every power cut.
func (w *world) check(step string, keep func(int) bool) {
	w.t.Helper()
	content := func(s update.Slot) []byte {
		if m := w.slots.Media[string(s)+"/rootfs"]; m != nil {
			return m.After(crashImage, keep)
		}
		return nil
	}
	next := w.loader.Next()
	require.NotEmpty(w.t, next, "at %q: the node does not boot", step)
	var security uint64
	for s, img := range map[update.Slot]struct {
		name     string
		security uint64
	}{"a": {"1.0", 0}, "b": {"2.0", 5}} {
		if !w.loader.Good[s] && w.loader.Tries[s] == 0 {
			continue
		}
		require.True(w.t, bytes.Equal(image(img.name, crashImage), content(s)), "at %q: slot %s can be booted but was not verified", step, s)
		if w.loader.Good[s] {
			security = max(security, img.security)
		}
	}
	f, err := update.FileFloors(filepath.Join(w.dir, "floors")).Load(w.t.Context())
	require.NoError(w.t, err)
	require.LessOrEqual(w.t, f.Security, security, "at %q: the floor is above what is committed", step)
}

func TestPowerCutAtEveryStep(t *testing.T) {
	pub := newPublisher(t)
	pub.release("2.0", 5, image("2.0", crashImage))
	for name, healthy := range map[string]bool{"good release": true, "bad release": false} {
		t.Run(name, func(t *testing.T) {
			var w *world
			finish := func(w *world) {
				w.loader.Boot()
				st := w.live()
				if healthy {
					assert.Equal(t, update.Committed, st.Phase)
					assert.Equal(t, update.Slot("b"), w.loader.Running)
				} else {
					assert.Equal(t, update.RolledBack, st.Phase)
					assert.Equal(t, update.Slot("a"), w.loader.Running)
				}
				w.check("rest", nil)
			}
			samples := testenv.N(100, 1000)
			subsets := 0
			cuts := updatetest.Explore(func(p *updatetest.Power) {
				w = newWorld(t, pub, p, healthy)
				w.live()
			}, func(_ *updatetest.Power, step string) {
				unsynced := 0
				if m := w.slots.Media["b/rootfs"]; m != nil {
					unsynced = m.Unsynced()
				}
				updatetest.Subsets(unsynced, samples, 1, func(keep func(int) bool) bool {
					w.check(step, keep)
					subsets++
					return true
				})
				finish(w.after(func(int) bool { return false }))
				if unsynced > 0 {
					finish(w.after(nil))
					finish(w.after(func(i int) bool { return i%2 == 0 }))
				}
			})
			require.Greater(t, cuts, 30)
			t.Logf("%d cuts, %d subsets of unsynced writes", cuts, subsets)
		})
	}
}

// A second cut during the recovery from the first.
func TestPowerCutTwice(t *testing.T) {
	pub := newPublisher(t)
	pub.release("2.0", 5, image("2.0", crashImage))
	stride := testenv.N(9, 1)
	for n := 0; ; n += stride {
		p := updatetest.NewPower(n)
		w := newWorld(t, pub, p, true)
		if _, gone := p.Run(func() { w.live() }); !gone {
			return
		}
		for k := 0; ; k += stride {
			v := w.after(nil)
			v.setPower(updatetest.NewPower(k))
			v.loader.Boot()
			_, gone := v.power.Run(func() { v.live() })
			v.check("second cut", nil)
			if !gone {
				break
			}
			u := v.after(nil)
			u.loader.Boot()
			assert.Equal(t, update.Committed, u.live().Phase)
		}
	}
}

func (w *world) setPower(p *updatetest.Power) {
	w.power, w.loader.Power, w.slots.Power = p, p, p
	for _, m := range w.slots.Media {
		m.Lose(nil, p)
	}
}

func TestLoaderKeepsTheContract(t *testing.T) {
	l := updatetest.NewLoader(updatetest.NewPower(-1))
	updatetest.TestBootControl(t, func() update.BootControl { return l }, l.Boot)
}
