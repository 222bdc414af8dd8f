package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

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
	var relays sync.WaitGroup
	done := make(chan struct{})
	go func() {
		defer close(done)
		d := net.Dialer{Timeout: 10 * time.Second}
		for {
			c, err := flows.Accept()
			if err != nil {
				return
			}
			relays.Go(func() {
				far, err := d.DialContext(end, "tcp", t.o.target)
				if err != nil {
					t.log.Warn("target", "event", "dial.failed", "error", err)
					_ = c.(interface{ Reset() error }).Reset()
					return
				}
				t.m.live.Inc()
				defer t.m.live.Dec()
				_, _, _ = tlsconn.Relay(end, c, far)
			})
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
