package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/trusttree/trusttree/tlsconn"
)

// checkEvery is how often live flows are held to trust and policy.
const checkEvery = 250 * time.Millisecond

// live is one flow in plain mode.
type live struct {
	peer tlsconn.Peer
	flow tlsconn.Flow
	cut  context.CancelCauseFunc
}

// plain relays each connection over a TLS connection of its own.
func (t *tunnel) plain(ctx context.Context, ln net.Listener) error {
	var mu sync.Mutex
	flows := map[*live]struct{}{}
	var wg sync.WaitGroup
	end, stop := context.WithCancel(context.Background()) // outlives ctx while draining
	defer stop()
	wg.Go(func() {
		tick := time.NewTicker(checkEvery)
		defer tick.Stop()
		for {
			select {
			case <-end.Done():
				return
			case <-tick.C:
			}
			mu.Lock()
			for f := range flows {
				if err := t.admit(f); err != nil {
					f.cut(err)
				}
			}
			mu.Unlock()
		}
	})
	slots := make(chan struct{}, 1024) // half-open handshakes
	var relays sync.WaitGroup
	accepting := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer accepting()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			time.Sleep(5 * time.Millisecond)
			continue
		}
		slots <- struct{}{}
		relays.Go(func() {
			fctx, cut := context.WithCancelCause(end)
			defer cut(nil)
			f := &live{cut: cut}
			near, far, err := t.connect(fctx, c, f)
			<-slots
			if err != nil {
				t.log.Warn("refused", "event", "flow.denied", "remote", c.RemoteAddr().String(), "error", err)
				t.m.flows.WithLabelValues(tlsconn.VerdictDenied, "refused").Inc()
				return
			}
			mu.Lock()
			flows[f] = struct{}{}
			mu.Unlock()
			start := time.Now()
			t.m.live.Inc()
			up, down, err := tlsconn.Relay(fctx, near, far)
			t.m.live.Dec()
			mu.Lock()
			delete(flows, f)
			mu.Unlock()
			result := "ok"
			if err != nil {
				result = "cut"
			}
			t.m.flows.WithLabelValues(tlsconn.VerdictAllowed, result).Inc()
			t.m.bytes.WithLabelValues("up").Add(float64(up))
			t.m.bytes.WithLabelValues("down").Add(float64(down))
			t.log.Info("flow", "event", "flow."+tlsconn.VerdictAllowed, "peer", f.peer.ID.String(), "up", up, "down", down, "end", result, "error", err, "duration", time.Since(start))
		})
	}
	drained := make(chan struct{})
	go func() { relays.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(t.o.drain):
		t.log.Warn("flows are cut, draining took too long", "event", "drain.timeout")
	}
	stop()
	<-drained
	wg.Wait()
	return nil
}

// connect brings both sides of a flow up: for a server TLS comes first, for a
// client the far end is dialled first. near is the side that was accepted.
func (t *tunnel) connect(ctx context.Context, c net.Conn, f *live) (near, far net.Conn, err error) {
	fail := func(err error, conns ...net.Conn) (net.Conn, net.Conn, error) {
		for _, c := range conns {
			if tc, ok := c.(*net.TCPConn); ok {
				_ = tc.SetLinger(0)
			}
			_ = c.Close()
		}
		return nil, nil, err
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	if t.o.server {
		s, peer, err := t.cfg.PlainServer(ctx, c)
		if err != nil {
			return fail(err, c)
		}
		f.peer, f.flow.Node = peer, peer.ID
		if err := t.admit(f); err != nil {
			return fail(err, c)
		}
		out, err := d.DialContext(ctx, "tcp", t.o.target)
		if err != nil {
			return fail(fmt.Errorf("target: %w", err), c)
		}
		return s, out, nil
	}
	raw, err := d.DialContext(ctx, "tcp", t.o.target)
	if err != nil {
		return fail(fmt.Errorf("target: %w", err), c)
	}
	s, peer, err := t.cfg.PlainClient(ctx, raw)
	if err != nil {
		return fail(err, c, raw)
	}
	f.peer, f.flow.Node = peer, t.cfg.Identity.ID()
	if err := t.admit(f); err != nil {
		return fail(err, c, raw)
	}
	return c, s, nil
}

// admit holds a flow to trust and policy, at its start and while it lives.
func (t *tunnel) admit(f *live) error {
	if err := t.cfg.Trust.Check(f.peer); err != nil {
		return err
	}
	f.flow.Direction, f.flow.Proto, f.flow.Service = tlsconn.ToCloud, tlsconn.TCP, service
	if d := t.cfg.Policy.Evaluate(f.flow); !d.Allowed || d.Inspect {
		return fmt.Errorf("%w: %s: rule %q: %s", tlsconn.ErrDenied, f.flow.Node, d.Rule, d.Reason)
	}
	return nil
}
