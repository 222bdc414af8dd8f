package update_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/manifest"
	"github.com/trusttree/trusttree/update/repository"
)

// files serves a source over HTTP, with ranges.
func files(src update.Source) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, err := readSource(r.Context(), src, strings.TrimPrefix(r.URL.Path, "/"), 0)
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
}

// mirrors is a source of several servers, in order.
func mirrors(t *testing.T, change func(*update.HTTPConfig), hs ...http.HandlerFunc) update.Source {
	t.Helper()
	cfg := update.HTTPConfig{Attempts: 1}
	for _, h := range hs {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		if h == nil { // nobody answers there
			s.Close()
		}
		cfg.URLs = append(cfg.URLs, s.URL)
	}
	if change != nil {
		change(&cfg)
	}
	src, err := update.HTTPSource(cfg)
	require.NoError(t, err)
	return src
}

// A server that sends a byte for each request would be above any minimum rate
// within an answer: what counts is the whole transfer.
func TestTrickleOfOneByteForEachRequest(t *testing.T) {
	f := newForge(t)
	data := image("file", 1<<20)
	f.publish(obj{"targets": obj{"file": f.addTarget("file", data)}})
	var asked atomic.Int64
	trickle := func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/targets/") {
			files(f)(w, r)
			return
		}
		asked.Add(1)
		var off int
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off)
		if off > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(data)-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(data[off : off+1])
	}
	src := mirrors(t, nil, trickle)
	c := newTUF(t, f, func(c *update.ClientConfig) { c.Images, c.Limits.Attempts = src, 2 })
	require.NoError(t, c.refresh())
	tgt, err := c.Target(t.Context(), "file")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.ErrorIs(t, c.Download(ctx, tgt, io.Discard), update.ErrSlow)
	assert.LessOrEqual(t, asked.Load(), int64(4))

	// Another mirror makes up for it.
	c.cfg.Images = mirrors(t, nil, trickle, files(f))
	c.reopen(t)
	require.NoError(t, c.refresh())
	var out bytes.Buffer
	require.NoError(t, c.Download(ctx, tgt, &out))
	assert.True(t, bytes.Equal(data, out.Bytes()))
}

// One mirror that is down, redirects in circles or breaks the protocol stops no
// refresh: root N+1 is absent when a mirror says so and none has it.
func TestOneBadMirrorStopsNoRefresh(t *testing.T) {
	f := newForge(t)
	bad := map[string]http.HandlerFunc{
		"down":      nil,
		"redirects": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) },
		"broken":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"lies":      func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"signed":{},"signatures":[]}`) },
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"stalls": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "{")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
		"cuts off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, "{")
		},
	}
	quick := func(c *update.HTTPConfig) { c.MinRate, c.Window = 100, 2*time.Second } // that no slow machine is a slow mirror
	for name, h := range bad {
		for order, hs := range map[string][]http.HandlerFunc{"first": {h, files(f)}, "last": {files(f), h}} {
			t.Run(name+" "+order, func(t *testing.T) {
				t.Parallel()
				c := newTUF(t, f, func(c *update.ClientConfig) { c.Images = mirrors(t, quick, hs...) })
				require.NoError(t, c.refresh())
				require.NoError(t, c.refresh())
			})
		}
	}
	t.Run("all of them", func(t *testing.T) {
		c := newTUF(t, f, func(c *update.ClientConfig) { c.Images = mirrors(t, quick, nil, bad["broken"]) })
		require.ErrorIs(t, c.refresh(), update.ErrUnavailable)
	})
}

// A mirror that has not got the newest metadata yet, or that shows an older
// repository, stops nobody who has another.
func TestLaggingMirrorIsPassedOver(t *testing.T) {
	f := newForge(t)
	old := f.clone()
	f.putRoot()
	f.publish(obj{})
	c := newTUF(t, f)
	require.NoError(t, c.refresh())
	c.cfg.Images = mirrors(t, nil, files(old), files(f))
	c.reopen(t)
	st, err := c.Refresh(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 2, st.Root)
	c.cfg.Images = mirrors(t, nil, files(old))
	c.reopen(t)
	require.ErrorIs(t, c.refresh(), update.ErrRollback)
}

// What a mirror serves in a target's place is not the end of it either.
func TestMirrorThatLiesAboutContentIsPassedOver(t *testing.T) {
	lie := func(src update.Source, prefix string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			data, err := readSource(r.Context(), src, strings.TrimPrefix(r.URL.Path, "/"), 0)
			if err == nil && strings.HasPrefix(r.URL.Path, prefix) {
				data = bytes.Clone(data)
				data[len(data)/2] ^= 1
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
				return
			}
			files(src)(w, r)
		}
	}
	t.Run("file", func(t *testing.T) {
		f := newForge(t)
		data := image("file", 1<<20)
		f.publish(obj{"targets": obj{"file": f.addTarget("file", data)}})
		c := newTUF(t, f, func(c *update.ClientConfig) { c.Images = mirrors(t, nil, lie(f, "/targets/"), files(f)) })
		require.NoError(t, c.refresh())
		tgt, err := c.Target(t.Context(), "file")
		require.NoError(t, err)
		name := filepath.Join(t.TempDir(), "file")
		require.NoError(t, c.DownloadFile(t.Context(), tgt, name, nil))
		got, err := os.ReadFile(name)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(data, got))
	})
	t.Run("too long", func(t *testing.T) {
		f := newForge(t)
		data := image("file", 1000)
		f.publish(obj{"targets": obj{"file": f.addTarget("file", data)}})
		long := func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/targets/") {
				fmt.Fprint(w, strings.Repeat("x", 2000))
				return
			}
			files(f)(w, r)
		}
		c := newTUF(t, f, func(c *update.ClientConfig) { c.Images = mirrors(t, nil, long, files(f)) })
		require.NoError(t, c.refresh())
		tgt, err := c.Target(t.Context(), "file")
		require.NoError(t, err)
		require.NoError(t, c.DownloadFile(t.Context(), tgt, filepath.Join(t.TempDir(), "file"), nil))
	})
	p := newPublisher(t)
	p.release("2.0", 1, image("2.0", 1<<20))
	for _, prefix := range []string{"/targets/parts/", "/targets/parts/stable/os-2.0/", "/targets/releases/", "/targets/"} {
		t.Run("release "+prefix, func(t *testing.T) {
			d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) {
				c.Images = mirrors(t, nil, lie(p.source(), prefix), files(p.source()))
			})
			require.NoError(t, d.install())
			assert.Equal(t, image("2.0", 1<<20), d.slot("b", 1<<20))
			alone := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) {
				c.Images = mirrors(t, nil, lie(p.source(), prefix))
			})
			require.ErrorIs(t, alone.install(), update.ErrHash)
		})
	}
}

// A header without end costs no memory.
func TestEndlessHeaderIsCut(t *testing.T) {
	src := mirrors(t, nil, func(w http.ResponseWriter, _ *http.Request) {
		for i := range 2000 {
			w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
		}
	})
	_, err := readSource(t.Context(), src, "x", 0)
	require.ErrorIs(t, err, update.ErrUnavailable)
}

func TestNegativeLimitsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*update.HTTPConfig){
		"rate":     func(c *update.HTTPConfig) { c.MinRate = -1 },
		"window":   func(c *update.HTTPConfig) { c.Window = -1 },
		"header":   func(c *update.HTTPConfig) { c.FirstByte = -1 },
		"attempts": func(c *update.HTTPConfig) { c.Attempts = -1 },
		"range":    func(c *update.HTTPConfig) { c.Header = http.Header{"Range": {"bytes=0-"}} },
	} {
		cfg := update.HTTPConfig{URLs: []string{"https://example.invalid"}}
		change(&cfg)
		_, err := update.HTTPSource(cfg)
		assert.Error(t, err, name)
	}
	f := newForge(t)
	for name, change := range map[string]func(*update.Limits){
		"root": func(l *update.Limits) { l.Root = -1 }, "timestamp": func(l *update.Limits) { l.Timestamp = -1 },
		"snapshot": func(l *update.Limits) { l.Snapshot = -1 }, "targets": func(l *update.Limits) { l.Targets = -1 },
		"signed": func(l *update.Limits) { l.Signed = -1 }, "rotations": func(l *update.Limits) { l.RootRotations = -1 },
		"roles": func(l *update.Limits) { l.Roles = -1 }, "attempts": func(l *update.Limits) { l.Attempts = -1 },
		"rate": func(l *update.Limits) { l.Rate = -1 }, "patch": func(l *update.Limits) { l.Patch = -1 },
	} {
		cfg := update.ClientConfig{Root: f.files["metadata/1.root.json"], Dir: t.TempDir(), Images: f, Floors: update.FileFloors(t.TempDir())}
		change(&cfg.Limits)
		_, err := update.NewClient(cfg)
		assert.Error(t, err, name)
	}
	client := newTUF(t, f).Client
	_, err := update.NewInstaller(update.InstallerConfig{Client: client, Boot: lyingBoot{}, Slots: smallSlots{}, Dir: t.TempDir(),
		Preflight: update.NoPreflight, HealthTimeout: -1})
	assert.Error(t, err)
}

// A stalled answer before each single block is slow retrieval too: the ranges
// are given up, and the whole part is fetched.
func TestStallBeforeEachBlockIsSlow(t *testing.T) {
	p := newPublisher(t)
	old := image("1.0", 400<<12)
	img := bytes.Clone(old)
	for i := range 200 { // every second block differs
		img[2*i<<12] ^= 1
	}
	p.edit(func(tx *repository.Tx) error {
		rel := manifest.Release{Name: "os-2.0", Version: "2.0", Channel: "stable", Hardware: []string{"lamp-2"}}
		if err := tx.AddRelease(rel, repository.Content{Name: "rootfs", Reader: bytes.NewReader(img), Index: true}); err != nil {
			return err
		}
		return tx.SetRollout("stable", rel.Name, manifest.Rollout{Waves: []manifest.Wave{{Start: p.now, Permille: 1000}}})
	})
	synctest.Test(t, func(t *testing.T) {
		src := &stalledRanges{Source: p.source()}
		d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) { c.Images = src })
		dir := filepath.Join(d.dir, "slots", "a")
		require.NoError(t, os.MkdirAll(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "rootfs"), old, 0o600))
		require.NoError(t, d.install())
		assert.Equal(t, img, d.slot("b", len(img)))
		assert.LessOrEqual(t, src.ranges, 5)
		assert.NotZero(t, src.ranges)
	})
}

type stalledRanges struct {
	update.Source
	ranges int
}

func (s *stalledRanges) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if n > 0 {
		s.ranges++
		time.Sleep(25 * time.Second)
	}
	return s.Source.Open(ctx, name, off, n)
}
