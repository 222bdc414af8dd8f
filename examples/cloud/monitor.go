package main

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/trusttree/trusttree/tlsconn"
)

// monitor turns what the packages log as security events (records with an
// "event" attribute) into metrics and into the tail that the operator page
// shows. It is safe for concurrent use.
type monitor struct {
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	attested *prometheus.HistogramVec
	records  *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	flows    *prometheus.CounterVec

	changed func() // tells the page

	mu   sync.Mutex
	tail []eventView // newest last
}

// eventView is one line of the tail.
type eventView struct {
	At     time.Time `json:"at"`
	Level  string    `json:"level"`
	Event  string    `json:"event"`
	Text   string    `json:"text"`
	Detail string    `json:"detail"` // the other attributes, as key=value
}

// maxTail is how many events the page shows.
const maxTail = 200

func newMonitor(changed func()) *monitor {
	m := &monitor{
		registry: prometheus.NewRegistry(),
		changed:  changed,
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trusttree_events_total", Help: "Security events by name; docs/operations.md says what each means."}, []string{"event"}),
		attested: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "trusttree_attestation_seconds", Help: "Time from challenge to verdict, by verdict.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}}, []string{"verdict"}),
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trusttree_ingest_records_total", Help: "Telemetry records stored durably, by tenant."}, []string{"tenant"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trusttree_ingest_bytes_total", Help: "Bytes of telemetry records stored durably, by tenant."}, []string{"tenant"}),
		flows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trusttree_flow_bytes_total", Help: "Bytes relayed for nodes, by direction (up: from the end that opened the flow)."}, []string{"direction"}),
	}
	m.registry.MustRegister(m.events, m.attested, m.records, m.bytes, m.flows,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe adds the gauges that are read when somebody asks.
func (m *monitor) observe(f *fleet, tunnels func() []tlsconn.Peer, listed func() time.Time) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "trusttree_tunnels", Help: "Tunnels that are up at this instance."},
			func() float64 { return float64(len(tunnels())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "trusttree_module_list_age_seconds", Help: "Age of the owner's list of revoked modules; at 30 days every module is refused."},
			func() float64 { return time.Since(listed()).Seconds() }),
		fleetCollector{f})
}

func (m *monitor) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// fleetCollector counts the nodes by state.
type fleetCollector struct{ f *fleet }

var nodesDesc = prometheus.NewDesc("trusttree_nodes", "Nodes by state.", []string{"state"}, nil)

func (c fleetCollector) Describe(ch chan<- *prometheus.Desc) { ch <- nodesDesc }

func (c fleetCollector) Collect(ch chan<- prometheus.Metric) {
	counts := c.f.counts()
	for _, state := range nodeStates {
		ch <- prometheus.MustNewConstMetric(nodesDesc, prometheus.GaugeValue, float64(counts[state]), state)
	}
}

// logger returns a logger whose security events the monitor sees on their way
// to next.
func (m *monitor) logger(next slog.Handler) *slog.Logger { return slog.New(watched{m: m, next: next}) }

// watched is a slog.Handler that shows each record to the monitor.
type watched struct {
	m     *monitor
	next  slog.Handler
	attrs []slog.Attr
}

func (h watched) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h watched) WithAttrs(attrs []slog.Attr) slog.Handler {
	return watched{h.m, h.next.WithAttrs(attrs), append(slices.Clip(h.attrs), attrs...)}
}

func (h watched) WithGroup(name string) slog.Handler {
	return watched{h.m, h.next.WithGroup(name), h.attrs}
}

func (h watched) Handle(ctx context.Context, r slog.Record) error {
	v := eventView{At: r.Time, Level: r.Level.String(), Text: r.Message}
	var detail []string
	take := func(a slog.Attr) bool {
		if a.Key == "event" {
			v.Event = a.Value.String()
		} else {
			detail = append(detail, a.Key+"="+clip(a.Value.String(), 256))
		}
		return true
	}
	for _, a := range h.attrs {
		take(a)
	}
	r.Attrs(take)
	if v.Event != "" {
		v.Detail = strings.Join(detail, " ")
		h.m.saw(v)
	}
	return h.next.Handle(ctx, r)
}

func (m *monitor) saw(v eventView) {
	m.events.WithLabelValues(v.Event).Inc()
	if v.Level == slog.LevelInfo.String() && strings.HasPrefix(v.Event, "flow.") {
		return // ordinary traffic would push everything else off the page
	}
	m.mu.Lock()
	m.tail = append(m.tail, v)
	if len(m.tail) > maxTail {
		m.tail = slices.Delete(m.tail, 0, len(m.tail)-maxTail)
	}
	m.mu.Unlock()
	m.changed()
}

// last returns the newest events, newest first.
func (m *monitor) last() []eventView {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := slices.Clone(m.tail)
	slices.Reverse(out)
	return out
}

// clip shortens a text for people to at most n bytes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
