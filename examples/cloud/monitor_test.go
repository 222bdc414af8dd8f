package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMonitorCountsSecurityEvents(t *testing.T) {
	f := newFleet("", time.Now)
	m := newMonitor(f.touched)
	changed := f.changed()
	m.saw(eventView{Event: "page.failed"})
	<-changed
	m = newMonitor(f.touched)
	log := m.logger(slog.NewJSONHandler(io.Discard, nil))
	log.Warn("flow refused", "event", "flow.refused", "node", "n1")
	log.Info("flow ended", "event", "flow.ended") // counted, but not on the page
	log.Info("no event here")
	tail := m.last()
	require.Len(t, tail, 1)
	assert.Equal(t, "flow.refused", tail[0].Event)
	assert.Contains(t, tail[0].Detail, "node=n1")
	f.setState("00", "", "revoked", "stolen")
	m.registry.MustRegister(fleetCollector{f})
	rec := httptest.NewRecorder()
	m.handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, line := range []string{`trusttree_events_total{event="flow.refused"} 1`, `trusttree_events_total{event="flow.ended"} 1`, `trusttree_nodes{state="revoked"} 1`, `trusttree_nodes{state="affirming"} 0`} {
		assert.Contains(t, rec.Body.String(), line)
	}
	for range 2 * maxTail {
		log.Warn("x", "event", "y")
	}
	assert.Len(t, m.last(), maxTail)
}

func TestPagesAreToldOfChanges(t *testing.T) {
	f := newFleet("", time.Now)
	srv := httptest.NewServer(testPage(f))
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/live", nil)
	require.NoError(t, err)
	rsp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer rsp.Body.Close()
	assert.Equal(t, "text/event-stream", rsp.Header.Get("Content-Type"))
	lines := bufio.NewScanner(rsp.Body)
	await := func(want string) {
		for lines.Scan() {
			if lines.Text() == want {
				return
			}
		}
		t.Fatalf("the stream ended before %q: %v", want, lines.Err())
	}
	await("retry: 1000")
	for i := range 3 { // one that comes while the page is told of another is not lost
		f.setState(fmt.Sprintf("%02d", i), "", "contraindicated", "tampered boot")
		await("event: changed")
	}
}

func TestLoopbackPageAnswersNoForeignName(t *testing.T) {
	h := onLoopback(testPage(newFleet("", time.Now)))
	for host, want := range map[string]int{
		"127.0.0.1:8443": http.StatusOK, "localhost:8443": http.StatusOK, "[::1]:8443": http.StatusOK,
		"evil.example": http.StatusMisdirectedRequest, "evil.example:8443": http.StatusMisdirectedRequest, "10.0.0.1": http.StatusMisdirectedRequest, "": http.StatusMisdirectedRequest,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		assert.Equal(t, want, rec.Code, host)
	}
}

func TestTreeGrowsInOrder(t *testing.T) {
	f := newFleet("", time.Now)
	for _, l := range []string{"tenant lighting", "data volume", "tunnel", "boot", "identity"} {
		f.setLink("00", l, l != "boot", "said "+l)
	}
	n, ok := f.node("00")
	require.True(t, ok)
	tree := treeOf(n)
	assert.Equal(t, "TPM and identity", tree[0].Name)
	boot := tree[0].Grows[0]
	assert.Equal(t, "bad", boot.Class)
	modules := boot.Grows[0]
	assert.Equal(t, "none", modules.Class, "not heard of")
	tunnel := modules.Grows[0]
	assert.Equal(t, "tunnel", tunnel.Name)
	assert.Equal(t, "tenant lighting", tunnel.Grows[0].Name)
}

func TestViewsAreBounded(t *testing.T) {
	f := newFleet("", time.Now)
	reasons := make([]string, 1000)
	for i := range reasons {
		reasons[i] = strings.Repeat("x", 10000)
	}
	f.setState("00", "", "contraindicated", reasons...)
	n, _ := f.node("00")
	assert.Len(t, n.Reason, maxReasons)
	assert.Less(t, len(n.Reason[0]), maxReason+8)
	for i := range maxView + 10 {
		f.setState(fmt.Sprintf("%04x", i), "", "enrolled")
	}
	assert.Len(t, f.view("", ""), maxView)
	assert.Equal(t, "contraindicated", f.view("", "")[0].State, "the worst first")
	assert.Len(t, f.view("contraindicated", ""), 1)
}

func TestViewsOutliveTheProcess(t *testing.T) {
	store := testStore(t)
	one := &cloud{cfg: &config{}, store: store, fleet: newFleet("one", time.Now), log: slog.New(slog.DiscardHandler)}
	one.fleet.setState("0011", "/node/0011", "contraindicated", "PCR 7 differs")
	one.fleet.setLink("0011", "boot", false, "PCR 7 differs")
	require.NoError(t, one.flushViews(t.Context()))
	two := &cloud{cfg: &config{}, store: store, fleet: newFleet("two", time.Now), log: one.log}
	require.NoError(t, two.loadAllViews(t.Context()))
	n, ok := two.fleet.node("0011")
	require.True(t, ok)
	assert.Equal(t, []string{"PCR 7 differs"}, n.Reason)
	assert.Equal(t, "one", n.Instance)
	_, ok = parseView([]byte(`{"version":2,"id":"00"}`))
	assert.False(t, ok, "of a newer instance")
}

func TestFleetWideDestinationCap(t *testing.T) {
	system := testStore(t).System()
	addr := netip.MustParseAddrPort("192.0.2.1:443")
	one, two := newDestinations(system, "one", 40, true), newDestinations(system, "two", 40, true)
	var release []func()
	count := func(d *destinations) (n int) {
		for {
			done, err := d.take(t.Context(), "tcp", addr)
			if err != nil {
				require.ErrorIs(t, err, errDestinationFull)
				return n
			}
			release = append(release, done)
			n++
		}
	}
	first := count(one)
	assert.Equal(t, 40, first)
	assert.Equal(t, 0, count(two), "the other instance holds all")
	for _, done := range release {
		done()
		done() // twice counts once
	}
	one.renew(t.Context())
	assert.Equal(t, 40, count(two), "given back")
	alone := newDestinations(system, "", 40, false)
	assert.Equal(t, 40, count(alone))
}

func TestPublishedReleasesOfAFreshCloud(t *testing.T) {
	state := initialised(t)
	got, err := publishedReleases(os.DirFS(state + "/tuf"))
	require.NoError(t, err)
	assert.Empty(t, got)
	_, err = publishedReleases(fstest.MapFS{"metadata/1.targets.json": {Data: []byte("{")}})
	require.Error(t, err)
}

func TestConfigOfSeveralInstances(t *testing.T) {
	good := func() *config {
		return &config{Version: 1, TrustDomain: "d", Enroll: "h:1", Gateway: "h:2", API: "h:3", Bank: "sha256", PCRs: []int{0}, AttestSeconds: 1, LeaseSeconds: 1}
	}
	require.NoError(t, good().check())
	for name, change := range map[string]func(*config){
		"status in the open":    func(c *config) { c.Status = "0.0.0.0:80" },
		"postgres, no instance": func(c *config) { c.Postgres = "host=x" },
		"instance, no postgres": func(c *config) { c.Instance = "a" },
		"shared, no postgres":   func(c *config) { c.Shared = "/x" },
		"connector twice": func(c *config) {
			c.Connectors, c.OptionalConnectors = map[string]string{"b": "x"}, map[string]string{"b": "x"}
		},
		"connector of no class":   func(c *config) { c.OptionalConnectors = map[string]string{"b": ""} },
		"transit without a token": func(c *config) { c.Transit = &transitConfig{Address: "https://x"} },
	} {
		c := good()
		change(c)
		assert.Error(t, c.check(), name)
	}
}
