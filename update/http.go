package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

// Defaults of HTTPConfig.
const (
	defaultMinRate   = 512              // bytes/s
	defaultWindow    = 15 * time.Second // over which MinRate is averaged
	defaultAttempts  = 3
	defaultFirstByte = 30 * time.Second
	maxETags         = 256
)

// HTTPConfig configures HTTPSource. Only URLs is required.
type HTTPConfig struct {
	// URLs are base URLs of the same repository, tried in order: the next
	// mirror is asked when one fails, is slow, lags behind, or serves what was
	// not signed. At most 16.
	URLs []string
	// TargetURLs, when set, are base URLs of the targets: then metadata/NAME
	// lies at URL/NAME, and targets/NAME at TARGETURL/NAME. At most 16.
	TargetURLs []string
	// Transport carries the requests: a tunnel, a proxy, a client with
	// certificates. Nil means an http.Transport of the source's own; nothing
	// of net/http's process-wide defaults is used or changed.
	Transport http.RoundTripper
	// RedirectHosts are hosts (host or host:port) other than a URL's own to
	// which a server may redirect. A redirect from https to http is always
	// refused.
	RedirectHosts []string
	// MinRate is the lowest average rate in bytes per second over Window
	// before a transfer ends in ErrSlow. Zero means 512 over 15 s.
	MinRate int64
	Window  time.Duration
	// FirstByte is how long a server may take to answer with a header.
	// Zero means 30 s.
	FirstByte time.Duration
	// Attempts is how often each mirror is tried for one request. Zero means
	// 3. Absent files are not tried again.
	Attempts int
	// Header is sent with each request. It must hold no Range.
	Header http.Header
}

// HTTPSource reads a repository over HTTP or HTTPS.
func HTTPSource(cfg HTTPConfig) (Source, error) {
	s := &httpSource{cfg: cfg, etags: map[string]string{}}
	if len(cfg.URLs) == 0 || len(cfg.URLs) > 16 || len(cfg.TargetURLs) > 16 {
		return nil, fmt.Errorf("update: HTTP source with %d and %d URLs, want 1 to 16", len(cfg.URLs), len(cfg.TargetURLs))
	}
	if cfg.MinRate < 0 || cfg.Window < 0 || cfg.FirstByte < 0 || cfg.Attempts < 0 || cfg.Header.Get("Range") != "" {
		return nil, errors.New("update: HTTP source with a negative limit, or a Range in Header")
	}
	var err error
	if s.all.bases, err = baseURLs(cfg.URLs); err != nil {
		return nil, err
	}
	if s.targets.bases, err = baseURLs(cfg.TargetURLs); err != nil {
		return nil, err
	}
	s.cfg.MinRate = or(cfg.MinRate, defaultMinRate)
	s.cfg.Window = or(cfg.Window, defaultWindow)
	s.cfg.FirstByte = or(cfg.FirstByte, defaultFirstByte)
	s.cfg.Attempts = or(cfg.Attempts, defaultAttempts)
	rt := cfg.Transport
	if rt == nil {
		rt = &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DisableCompression: true,
			TLSHandshakeTimeout: 15 * time.Second, IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 2,
			MaxResponseHeaderBytes: 64 << 10,
		}
	}
	s.client = &http.Client{Transport: rt, CheckRedirect: s.checkRedirect}
	return s, nil
}

func baseURLs(raw []string) (out []*url.URL, err error) {
	for _, r := range raw {
		u, err := url.Parse(r)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("update: HTTP source URL %q: want http(s)://host/path", r)
		}
		out = append(out, u)
	}
	return out, nil
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

type httpSource struct {
	cfg          HTTPConfig
	all, targets mirrors // targets is empty when all has them too
	client       *http.Client

	mu    sync.Mutex
	etags map[string]string // URL → ETag of files that were opened from the start
}

// locate returns where a file may lie, and its path there, escaped.
func (s *httpSource) locate(name string) (*mirrors, string) {
	m := &s.all
	rest, isMeta := strings.CutPrefix(name, "metadata/")
	if len(s.targets.bases) > 0 {
		target, isTarget := strings.CutPrefix(name, "targets/")
		switch {
		case isTarget:
			m, name = &s.targets, target
		case isMeta:
			name = rest
		}
	}
	if isMeta && strings.Trim(rest, unreserved+"%") == "" { // as tufmeta.MetadataName made it
		return m, name
	}
	return m, escapePath(name)
}

const unreserved = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"

func (s *httpSource) checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) >= 5 {
		return refuse(ErrRedirect, first.Redacted(), "more than 5 redirects")
	}
	if first.Scheme == "https" && req.URL.Scheme != "https" || req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return refuse(ErrRedirect, first.Redacted(), "to scheme %s", req.URL.Scheme)
	}
	if req.URL.Host == first.Host {
		return nil
	}
	for _, h := range s.cfg.RedirectHosts {
		if req.URL.Host == h || req.URL.Hostname() == h {
			return nil
		}
	}
	return refuse(ErrRedirect, first.Redacted(), "to host %s", req.URL.Host)
}

// escapePath escapes each segment, so that '?', '#' and '%' in a name reach
// the server as part of it.
func escapePath(name string) string {
	segs := strings.Split(name, "/")
	for i := range segs {
		segs[i] = tufmeta.Quote(segs[i])
	}
	return strings.Join(segs, "/")
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *httpSource) get(ctx context.Context, full string, passOver func(), off, n int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, full, nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for k, v := range s.cfg.Header {
		req.Header[k] = v
	}
	ranged := off > 0 || n >= 0
	if ranged {
		end := ""
		if n > 0 {
			end = strconv.FormatInt(off+n-1, 10)
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", off, end))
	}
	slow := refuse(ErrSlow, full, "no answer within %v", s.cfg.FirstByte)
	first := time.AfterFunc(s.cfg.FirstByte, func() { cancel(slow) })
	rsp, err := s.client.Do(req)
	stopped := first.Stop()
	if err != nil {
		defer cancel(nil)
		if !stopped && context.Cause(ctx) == slow {
			return nil, slow
		}
		return nil, err
	}
	if err := s.check(rsp, full, off, ranged); err != nil {
		cancel(nil)
		_ = rsp.Body.Close()
		return nil, err
	}
	if rsp.StatusCode == http.StatusOK && off > 0 {
		// The server ignores ranges: what is not wanted passes by, at the
		// same minimum rate.
		p := newPaced(ctx, cancel, passOver, rsp.Body, full, s.cfg.MinRate, s.cfg.Window)
		if _, err := io.CopyN(io.Discard, p, off); err != nil {
			_ = p.Close()
			return nil, refuseErr(ErrServer, full, fmt.Errorf("ends before byte %d: %w", off, err))
		}
		return p, nil
	}
	return newPaced(ctx, cancel, passOver, rsp.Body, full, s.cfg.MinRate, s.cfg.Window), nil
}

func (s *httpSource) check(rsp *http.Response, full string, off int64, ranged bool) error {
	switch rsp.StatusCode {
	case http.StatusOK:
		if off == 0 {
			s.remember(full, rsp.Header.Get("ETag"))
			return nil
		}
		return s.unchanged(rsp, full)
	case http.StatusPartialContent:
		if !ranged {
			return refuse(ErrServer, full, "partial content that was not asked for")
		}
		var from, to int64
		if _, err := fmt.Sscanf(rsp.Header.Get("Content-Range"), "bytes %d-%d/", &from, &to); err != nil || from != off || to < from {
			return refuse(ErrServer, full, "asked for bytes from %d, got range %.60q", off, rsp.Header.Get("Content-Range"))
		}
		return s.unchanged(rsp, full)
	case http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		return &fs.PathError{Op: "get", Path: full, Err: fs.ErrNotExist}
	case http.StatusRequestedRangeNotSatisfiable:
		return refuse(ErrServer, full, "file ends before byte %d", off)
	}
	return refuse(ErrUnavailable, full, "HTTP status %d", rsp.StatusCode)
}

func (s *httpSource) remember(full, etag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.etags) >= maxETags {
		clear(s.etags)
	}
	if etag == "" {
		delete(s.etags, full)
		return
	}
	s.etags[full] = etag
}

func (s *httpSource) unchanged(rsp *http.Response, full string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, now := s.etags[full], rsp.Header.Get("ETag")
	if old != "" && now != "" && old != now {
		delete(s.etags, full)
		return refuse(ErrServer, full, "file changed between two requests (ETag %.40s, then %.40s)", old, now)
	}
	return nil
}

// paced enforces the minimum rate: when a window passes in which fewer bytes
// came than MinRate asks for, the request is cancelled. Time in which nobody
// reads does not count against the server.
type paced struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	pass   func() // makes the next request begin at another mirror
	body   io.ReadCloser
	slow   error
	min    int64 // bytes per window
	window time.Duration

	timer *time.Timer
	spent time.Duration // waiting for the server in this window
	got   int64
}

func newPaced(ctx context.Context, cancel context.CancelCauseFunc, pass func(), body io.ReadCloser, what string, rate int64, window time.Duration) *paced {
	p := &paced{ctx: ctx, cancel: cancel, pass: pass, body: body, window: window, min: int64(float64(rate) * window.Seconds()),
		slow: refuse(ErrSlow, what, "below %d bytes/s over %v", rate, window)}
	p.timer = time.AfterFunc(time.Hour, p.tooSlow)
	p.timer.Stop()
	return p
}

func (p *paced) tooSlow() {
	p.pass()
	p.cancel(p.slow)
}

func (p *paced) Read(b []byte) (int, error) {
	begin := time.Now()
	p.timer.Reset(p.window - p.spent)
	n, err := p.body.Read(b)
	p.timer.Stop()
	p.spent += time.Since(begin)
	p.got += int64(n)
	if p.got >= p.min {
		p.got, p.spent = 0, 0
	} else if p.spent >= p.window && err == nil {
		p.tooSlow()
	}
	if err != nil && err != io.EOF || p.ctx.Err() != nil && n == 0 && err != io.EOF {
		if cause := context.Cause(p.ctx); cause != nil {
			return n, cause
		}
	}
	return n, err
}

func (p *paced) Close() error {
	p.timer.Stop()
	p.cancel(nil)
	return p.body.Close()
}
