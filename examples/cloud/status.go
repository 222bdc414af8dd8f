package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/trusttree/trusttree/attest/registry"
)

// statusHandler serves /healthz (the process answers), /readyz (it can serve
// nodes now, or why not) and /metrics, on a loopback address.
func (c *cloud) statusHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := c.check(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", c.mon.handler())
	return mux
}

// check says why this instance can't serve nodes now: a listener that is not
// up, a store that does not answer, no reference values.
func (c *cloud) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if !c.ready.Load() {
		return fmt.Errorf("starting or stopping")
	}
	if _, err := (devices{t: c.store.System()}).List(ctx, registry.DeviceID{}, 1); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	refs, err := c.references.current(ctx)
	if err != nil {
		return fmt.Errorf("reference values: %w", err)
	}
	if len(refs) == 0 {
		return fmt.Errorf("reference values: none are in force, so no node can attest")
	}
	return nil
}

// onLoopback refuses requests that a page of somebody else's made a browser on
// this machine send (DNS rebinding): the host must be a loopback address.
func onLoopback(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "only for loopback addresses", http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// alive says whether this instance hangs. A store that is away is no reason to
// restart; one that never answers, not even that its time is over, is.
func (c *cloud) alive(ctx context.Context) bool {
	_, _ = devices{t: c.store.System()}.List(ctx, registry.DeviceID{}, 1)
	return true
}
