package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/trusttree/trusttree/tlsconn"
)

// metrics are what /metrics shows.
type metrics struct {
	reg     *prometheus.Registry
	flows   *prometheus.CounterVec
	bytes   *prometheus.CounterVec
	tunnels *prometheus.CounterVec
	reloads *prometheus.CounterVec
	live    prometheus.Gauge
	start   time.Time
}

func newMetrics() *metrics {
	m := &metrics{reg: prometheus.NewRegistry(), start: time.Now(),
		flows:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tunnel_flows_total", Help: "Flows by verdict and end."}, []string{"verdict", "end"}),
		bytes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tunnel_bytes_total", Help: "Payload bytes by direction."}, []string{"direction"}),
		tunnels: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tunnel_events_total", Help: "Tunnel events by type and code."}, []string{"type", "code"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tunnel_reloads_total", Help: "Reloads by result."}, []string{"result"}),
		live:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "tunnel_flows_live", Help: "Flows that are relayed now."})}
	m.reg.MustRegister(m.flows, m.bytes, m.tunnels, m.reloads, m.live)
	return m
}

func (m *metrics) audit(r tlsconn.FlowRecord) {
	m.flows.WithLabelValues(r.Verdict, r.End).Inc()
	m.bytes.WithLabelValues("up").Add(float64(r.Up))
	m.bytes.WithLabelValues("down").Add(float64(r.Down))
}

func (m *metrics) event(e tlsconn.TunnelEvent) {
	m.tunnels.WithLabelValues(e.Type, e.Code.String()).Inc()
}

// serveStatus serves /_status and /metrics until the returned function is called.
func (t *tunnel) serveStatus() (func(), error) {
	ln, err := net.Listen("tcp", t.o.status)
	if err != nil {
		return nil, fmt.Errorf("status: %w: %w", tlsconn.ErrUnavailable, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(t.m.reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /_status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		leaf := t.cfg.Identity.Leaf()
		_ = json.NewEncoder(w).Encode(map[string]any{"version": 1, "ok": time.Now().Before(leaf.NotAfter), "identity": t.cfg.Identity.ID(), "not_after": leaf.NotAfter,
			"policy_serial": t.cfg.Policy.Policy().Serial, "mux": t.o.mux, "server": t.o.server, "listen": t.o.listen, "target": t.o.target, "uptime_seconds": int(time.Since(t.m.start).Seconds())})
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = s.Serve(ln) }()
	t.log.Warn("status", "event", "status.listening", "address", ln.Addr().String())
	return func() { _ = s.Close() }, nil
}
