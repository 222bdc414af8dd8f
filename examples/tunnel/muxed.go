package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/trusttree/trusttree/tlsconn"
)

// gateway serves the target to nodes' tunnels.
func (t *tunnel) gateway(ctx context.Context, ln net.Listener) error {
	g, err := tlsconn.NewGateway(tlsconn.GatewayConfig{Config: t.cfg, InsecureNoAttestation: true}) // this command has no attestation
	if err != nil {
		return err
	}
	flows, err := g.Listen(service)
	if err != nil {
		return err
	}
	end, stop := context.WithCancel(context.Background())
	defer stop()
	// A goroutine serves one flow after another, on the stack that it has grown.
	var relays sync.WaitGroup
	var idle atomic.Int32
	work, done := make(chan net.Conn), make(chan struct{})
	relay := func(c net.Conn) {
		for ok := true; ok; idle.Add(-1) {
			t.relay(end, c)
			if idle.Add(1) > maxIdle {
				ok = false
			} else {
				c, ok = <-work
			}
		}
	}
	go func() {
		defer close(done)
		defer close(work)
		for {
			c, err := flows.Accept()
			if err != nil {
				return
			}
			select {
			case work <- c:
			default:
				relays.Go(func() { relay(c) })
			}
		}
	}()
	served := make(chan error, 1)
	go func() { served <- g.Serve(context.Background(), ln) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		_ = ln.Close()
		dctx, cancel := context.WithTimeout(context.Background(), t.o.drain)
		if derr := g.Shutdown(dctx); derr != nil {
			t.log.Warn("drain", "event", "drain.timeout", "error", derr)
		}
		cancel()
		<-served
	}
	stop()
	_ = g.Close()
	<-done
	relays.Wait()
	return err
}

// maxIdle is how many goroutines wait for flows to relay.
const maxIdle = 16

// relay takes a flow to the target.
func (t *tunnel) relay(ctx context.Context, c net.Conn) {
	far, err := t.dialer.DialContext(ctx, "tcp", t.o.target)
	if err != nil {
		t.log.Warn("target", "event", "dial.failed", "error", err)
		_ = c.(interface{ Reset() error }).Reset()
		return
	}
	t.m.live.Inc()
	defer t.m.live.Dec()
	_, _, _ = tlsconn.Relay(ctx, c, far)
}

// client forwards what connects to ln through a tunnel.
func (t *tunnel) client(ctx context.Context, ln net.Listener) error {
	c, err := tlsconn.NewClient(tlsconn.ClientConfig{Config: t.cfg, Gateways: []string{t.o.target}})
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(context.Background()) // outlives ctx while draining
	defer stop()
	ran := make(chan error, 1)
	go func() { ran <- c.Run(run) }()
	accepting, stopAccepting := context.WithCancel(run)
	defer stopAccepting()
	forwarded := make(chan error, 1)
	go func() { forwarded <- c.Forward(accepting, ln, "tcp", service) }()
	select {
	case err = <-forwarded:
		forwarded <- err
	case <-ctx.Done():
		_ = ln.Close()
		drain, cancel := context.WithTimeout(context.Background(), t.o.drain)
		select {
		case <-forwarded: // Forward returns when its last flow has ended
		case <-drain.Done():
			stopAccepting()
			<-forwarded
		}
		cancel()
	}
	stop()
	_ = c.Close()
	if rerr := <-ran; err == nil && !errors.Is(rerr, context.Canceled) && ctx.Err() == nil {
		err = rerr
	}
	return err
}
