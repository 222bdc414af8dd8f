package update_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
)

// serve serves h on the loopback; the source sees the whole of it as its root.
func serve(t *testing.T, h http.HandlerFunc, change ...func(*update.HTTPConfig)) update.Source {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	cfg := update.HTTPConfig{URLs: []string{s.URL}, Attempts: 1, Transport: s.Client().Transport}
	for _, f := range change {
		f(&cfg)
	}
	src, err := update.HTTPSource(cfg)
	require.NoError(t, err)
	return src
}

func readSource(ctx context.Context, s update.Source, name string, off int64) ([]byte, error) {
	r, err := s.Open(ctx, name, off, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestReleaseOverHTTP(t *testing.T) {
	p := newPublisher(t)
	p.release("2.0", 1, image("2.0", 1<<20))
	var hits atomic.Int32
	files := http.FileServerFS(os.DirFS(p.dir))
	src := serve(t, func(w http.ResponseWriter, r *http.Request) { hits.Add(1); files.ServeHTTP(w, r) })
	d := newDevice(t, p, func(c *update.ClientConfig, _ *update.InstallerConfig) { c.Images = src })
	require.NoError(t, d.install())
	assert.Equal(t, image("2.0", 1<<20), d.slot("b", 1<<20))
	before := hits.Load()
	_, err := d.client.Refresh(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 2, hits.Load()-before, "a warm refresh asks for the next root and the timestamp only")
}

func TestHostileServers(t *testing.T) {
	fast := func(c *update.HTTPConfig) {
		c.MinRate, c.Window, c.FirstByte = 1000, 300*time.Millisecond, 300*time.Millisecond
	}
	body := strings.Repeat("x", 5000)
	for name, tc := range map[string]struct {
		h    http.HandlerFunc
		off  int64
		want error
	}{
		"one byte per 500 ms": {func(w http.ResponseWriter, r *http.Request) {
			for range 20 {
				fmt.Fprint(w, "x")
				w.(http.Flusher).Flush()
				select {
				case <-time.After(500 * time.Millisecond):
				case <-r.Context().Done():
					return
				}
			}
		}, 0, update.ErrSlow},
		"no header": {func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
		}, 0, update.ErrSlow},
		"redirect to another host": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
		}, 0, update.ErrRedirect},
		"redirect to a file": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		}, 0, update.ErrRedirect},
		"redirect loop": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusFound)
		}, 0, update.ErrRedirect},
		"wrong range": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-99/5000")
			w.WriteHeader(http.StatusPartialContent)
			fmt.Fprint(w, body[:100])
		}, 1000, update.ErrServer},
		"range that was not asked for": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-99/5000")
			w.WriteHeader(http.StatusPartialContent)
		}, 0, update.ErrServer},
		"file shorter than the offset": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "short") }, 1000, update.ErrServer},
		"absent":                       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, 0, fs.ErrNotExist},
		"forbidden is absent":          {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, 0, fs.ErrNotExist},
		"broken":                       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, 0, update.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := readSource(t.Context(), serve(t, tc.h, fast), "targets/x", tc.off)
			require.ErrorIs(t, err, tc.want)
		})
	}
}

func TestChangedETagIsNoticed(t *testing.T) {
	n := 0
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, n))
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("0123456789"))
	})
	_, err := readSource(t.Context(), src, "targets/x", 0)
	require.NoError(t, err)
	_, err = readSource(t.Context(), src, "targets/x", 4)
	require.ErrorIs(t, err, update.ErrServer)
}

func TestServerWithoutRangesIsReadFromTheOffset(t *testing.T) {
	src := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "0123456789") })
	got, err := readSource(t.Context(), src, "targets/x", 4)
	require.NoError(t, err)
	assert.Equal(t, "456789", string(got))
}

func TestNextMirrorIsAsked(t *testing.T) {
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	defer good.Close()
	src := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		func(c *update.HTTPConfig) { c.URLs = append(c.URLs, good.URL+"/mirror/") })
	got, err := readSource(t.Context(), src, "x", 0)
	require.NoError(t, err)
	assert.Equal(t, "ok", string(got))
}

// D15: '?', '#' and '%' in a name are part of the name.
func TestD15TargetNamesAreEscaped(t *testing.T) {
	var got string
	src := serve(t, func(w http.ResponseWriter, r *http.Request) { got = r.URL.Path + "|" + r.URL.RawQuery })
	_, err := readSource(t.Context(), src, "targets/a?b#c%2fd e/x", 0)
	require.NoError(t, err)
	assert.Equal(t, "/targets/a?b#c%2fd e/x|", got)
}

// D10: nothing of the process' default client is changed or used.
func TestD10DefaultClientIsLeftAlone(t *testing.T) {
	before, transport := *http.DefaultClient, http.DefaultTransport
	serve(t, func(http.ResponseWriter, *http.Request) {})
	assert.Equal(t, before, *http.DefaultClient)
	assert.Same(t, transport, http.DefaultTransport)
}

// D12: the context's deadline is honoured while a server trickles.
func TestD12DeadlineIsHonoured(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	_, err := readSource(ctx, src, "x", 0)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestSlowMirrorIsPassedOver(t *testing.T) {
	data := image("x", 4000)
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(data)))
	}))
	defer good.Close()
	f := newForge(t)
	f.publish(obj{"targets": obj{"x": f.addTarget("x", data)}})
	src := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, string(data[:10]))
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-time.After(5 * time.Second):
		}
	}, func(c *update.HTTPConfig) {
		c.URLs = append(c.URLs, good.URL)
		c.MinRate, c.Window = 1000, 300*time.Millisecond
	})
	c := newTUF(t, f)
	require.NoError(t, c.refresh())
	tgt, err := c.Target(t.Context(), "x")
	require.NoError(t, err)
	c.cfg.Images = src
	c.reopen(t)
	var out strings.Builder
	require.NoError(t, c.Download(t.Context(), tgt, &out))
	assert.Equal(t, string(data), out.String())
}
