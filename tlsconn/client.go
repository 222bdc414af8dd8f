package tlsconn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

// Times of the managed client.
const (
	backoffMin    = 500 * time.Millisecond
	backoffMax    = 60 * time.Second
	healthyAfter  = 60 * time.Second // a tunnel that lived so long resets the back-off
	defaultMaxAge = 12 * time.Hour   // of a tunnel; ± 20 %
)

// ClientConfig configures a node's end.
type ClientConfig struct {
	Config
	// Gateways are "host:port" addresses, tried in order from a random start.
	Gateways []string
	// Attest is the node's half of the evidence exchange, run whenever the
	// gateway asks. It speaks any protocol over the stream, and returns nil when
	// it has said all. bind returns 32 bytes that only the two ends of this TLS
	// session can compute (RFC 8446 7.5, label EXPORTER-trusttree-attest-node),
	// for a context that holds the verifier's nonce of at least 16 bytes:
	// evidence that covers them is evidence about this session's node. When bind
	// fails, there must be no evidence.
	Attest func(ctx context.Context, stream io.ReadWriter, bind func(context []byte) ([]byte, error)) error
	// Verify is the node's appraisal of the gateway's own evidence, as
	// GatewayConfig.Verify is of the node's; bind is over the label
	// EXPORTER-trusttree-attest-gateway, so that the node's evidence sent back is
	// not taken for the gateway's. Nil asks the gateway for its certificate only.
	// With it, no flow passes before, and none after the time it returned.
	Verify func(ctx context.Context, gateway Peer, stream io.ReadWriter, bind func(context []byte) ([]byte, error)) (until time.Time, err error)
	// MaxAge is how long a tunnel is used before another takes its place;
	// 12 h when zero. The node varies it by a fifth, so that a fleet spreads.
	MaxAge time.Duration
	// DialGateway makes the connection to a gateway, over a proxy for example;
	// nil is a net.Dialer.
	DialGateway func(ctx context.Context, network, address string) (net.Conn, error)
}

// errDrained says that the gateway asked for the tunnel to be replaced.
var errDrained = errors.New("the gateway drains")

// Client is the node's interface point: it keeps one tunnel to a gateway up,
// replaces it before it breaks, and opens flows through it. Safe for concurrent
// use.
type Client struct {
	e    *endpoint
	c    ClientConfig
	done sync.WaitGroup

	mu      sync.Mutex
	current *tunnel
	changed chan struct{} // closed and replaced when current or lastErr change
	lastErr error
}

// NewClient checks the configuration. Nothing is dialled before Run.
func NewClient(c ClientConfig) (*Client, error) {
	if len(c.Gateways) == 0 {
		return nil, errors.New("tlsconn: client: no gateway address given")
	}
	for _, g := range c.Gateways {
		if _, _, err := net.SplitHostPort(g); err != nil {
			return nil, fmt.Errorf("tlsconn: client: gateway %q: %w", g, err)
		}
	}
	if c.DialGateway == nil {
		c.DialGateway = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	if c.MaxAge == 0 {
		c.MaxAge = defaultMaxAge
	}
	e, err := newEndpoint(c.Config, AtNode)
	if err != nil {
		return nil, err
	}
	e.attest, e.verify = c.Attest, c.Verify
	return &Client{e: e, c: c, changed: make(chan struct{})}, nil
}

// Run keeps a tunnel up until ctx ends or the client is closed, then closes the
// client. Failures are retried with full-jitter exponential back-off between
// 0.5 s and 60 s; Events and the Logger tell them.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.e.ctx.Err() != nil {
		c.mu.Unlock()
		return &RefusedError{Code: CodeClosed, Side: AtNode, Reason: "the client is closed"}
	}
	c.done.Add(1)
	c.mu.Unlock()
	defer c.done.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopOwn := context.AfterFunc(c.e.ctx, func() { cancel(ErrClosed) })
	defer stopOwn()
	wait, next := backoffMin, rand.IntN(len(c.c.Gateways))
	for ctx.Err() == nil {
		began := time.Now()
		err := c.connect(ctx, c.c.Gateways[next%len(c.c.Gateways)])
		if ctx.Err() != nil {
			break
		}
		if err == errDrained {
			next++ // another gateway, if there is one, and no pause
			continue
		}
		if err != nil {
			next++
			c.set(nil, err)
			c.e.event(TunnelEvent{Type: "refused", Remote: c.c.Gateways[(next-1)%len(c.c.Gateways)], Code: codeOf(err), Reason: err.Error()})
		}
		if time.Since(began) > healthyAfter {
			wait = backoffMin
		}
		if err == nil {
			continue // replaced on purpose: the next tunnel at once
		}
		pause := rand.N(wait)
		wait = min(2*wait, backoffMax)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	c.e.close(CodeClosed, "the client stops")
	c.set(nil, ErrClosed)
	if errors.Is(context.Cause(ctx), ErrClosed) {
		return nil
	}
	return ctx.Err()
}

// connect makes a tunnel, puts it into use in place of the one before, and
// returns nil when it should be replaced, or why it ended.
func (c *Client) connect(ctx context.Context, gateway string) error {
	_, rotated := c.e.cfg.Identity.current()
	t, err := c.establish(ctx, gateway)
	if err != nil {
		return err
	}
	old := c.set(t, nil)
	if old != nil {
		c.retire(old)
	}
	age := time.NewTimer(time.Duration(float64(c.c.MaxAge) * (0.8 + 0.4*rand.Float64())))
	defer age.Stop()
	select {
	case <-t.done:
		return t.failure()
	case <-ctx.Done():
		return ctx.Err()
	case <-age.C:
	case <-rotated:
	case <-t.drainCh:
		return errDrained
	}
	return nil
}

// establish makes a tunnel that is ready for flows.
func (c *Client) establish(ctx context.Context, gateway string) (*tunnel, error) {
	hctx, cancel := context.WithTimeout(ctx, c.e.cfg.Limits.HandshakeTimeout+dialTimeout)
	defer cancel()
	raw, err := c.c.DialGateway(hctx, "tcp", gateway)
	if err != nil {
		return nil, fmt.Errorf("%w: gateway %s: %w", ErrUnavailable, gateway, err)
	}
	tuneSocket(raw)
	sc, peer, err := c.e.cfg.handshake(hctx, raw, false)
	if err != nil {
		return nil, fmt.Errorf("gateway %s: %w", gateway, err)
	}
	t, err := newTunnel(c.e, sc, peer)
	if err != nil {
		return nil, err
	}
	ctl, err := t.startAsNode(hctx)
	if err == nil {
		err = c.e.add(t)
	}
	if err != nil {
		err = t.flowError(err)
		t.cut(codeOf(err), err.Error(), err)
		return nil, fmt.Errorf("gateway %s: %w", gateway, err)
	}
	c.done.Go(func() {
		t.run(ctl)
		t.wait()
	})
	if t.asksGateway() {
		t.askGateway()
	}
	if t.needs {
		t.startAttest()
	} else {
		t.markReady(time.Time{})
	}
	timer := time.NewTimer(c.e.cfg.Limits.AttestTimeout)
	defer timer.Stop()
	select {
	case <-t.ready:
		c.e.event(TunnelEvent{Type: "up", Peer: peer.ID, Remote: gateway, Reason: peer.KeyExchange.String()})
		return t, nil
	case <-t.done:
		return nil, t.failure()
	case <-timer.C:
		t.cut(CodeNotAttested, "the gateway did not answer the evidence in time", nil)
	case <-ctx.Done():
		t.cut(CodeClosed, "the client stops", nil)
	}
	return nil, t.failure()
}

// set puts a tunnel into use and returns the one before. With a nil tunnel only
// one that has ended leaves.
func (c *Client) set(t *tunnel, err error) *tunnel {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.current
	if t != nil || old != nil && old.failure() != nil {
		c.current = t
	}
	c.lastErr = err
	close(c.changed)
	c.changed = make(chan struct{})
	return old
}

// retire lets a replaced tunnel finish its flows, then closes it.
func (c *Client) retire(t *tunnel) {
	if t.failure() != nil {
		return
	}
	c.done.Go(func() {
		t.drain()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			if t.idle() {
				t.leave("replaced")
				return
			}
			select {
			case <-tick.C:
			case <-t.done:
				return
			}
		}
	})
}

// tunnel returns the tunnel in use, waiting for one until ctx ends, or until by
// when it is not zero.
func (c *Client) tunnel(ctx context.Context, by time.Time) (*tunnel, error) {
	for {
		c.mu.Lock()
		t, changed, last := c.current, c.changed, c.lastErr
		c.mu.Unlock()
		if t != nil && t.admits(true) == nil {
			return t, nil
		}
		if !by.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, by)
			defer cancel()
			by = time.Time{}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, &RefusedError{Code: CodeUnreachable, Side: AtNode, Reason: "no tunnel is up", Err: errors.Join(context.Cause(ctx), last)}
		case <-c.e.ctx.Done():
			return nil, &RefusedError{Code: CodeClosed, Side: AtNode, Reason: "the client is closed"}
		}
	}
}

// Reattest asks the gateway for fresh evidence of its own. Without Verify it does
// nothing. The tunnel is cut when the evidence is not good.
func (c *Client) Reattest() {
	c.e.each(func(t *tunnel) {
		if t.asksGateway() {
			t.askGateway()
		}
	})
}

// Wait returns when a tunnel is ready for flows, with its gateway, or when ctx
// ends, with the last failure.
func (c *Client) Wait(ctx context.Context) (Peer, error) {
	t, err := c.tunnel(ctx, time.Time{})
	if err != nil {
		return Peer{}, err
	}
	return t.Peer(), nil
}

// DialContext opens a flow: to a service of the gateway ("ingest:80", where the
// port says nothing) or to a destination beyond it. Both ends' policies must
// allow it. It fits http.Transport, and gRPC and MQTT clients. It waits for a
// tunnel until ctx ends. The connection has CloseWrite; errors are RefusedError.
func (c *Client) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	tg, err := parseTarget(network, address)
	if err != nil {
		return nil, fmt.Errorf("tlsconn: %w", err)
	}
	return c.dial(ctx, time.Time{}, tg, nil)
}

// dial is DialContext with the flow's first bytes; by, when not zero, bounds the
// wait for a tunnel.
func (c *Client) dial(ctx context.Context, by time.Time, tg target, first []byte) (net.Conn, error) {
	for {
		t, err := c.tunnel(ctx, by)
		if err != nil {
			return nil, err
		}
		conn, sent, err := t.open(ctx, tg, first)
		if err == nil {
			return conn, nil
		}
		if sent || ctx.Err() != nil || t.failure() == nil && !errors.Is(err, ErrDraining) {
			return nil, err
		}
		// The tunnel ended while the flow was opened; nothing was sent on it.
		c.set(nil, err)
	}
}

// Transport returns an HTTP transport through the tunnel, without any proxy.
func (c *Client) Transport() *http.Transport {
	return &http.Transport{DialContext: c.DialContext, MaxIdleConnsPerHost: 4, IdleConnTimeout: httpIdleTimeout,
		ResponseHeaderTimeout: time.Minute, MaxResponseHeaderBytes: httpHeaderBytes}
}

// Handle serves HTTP to the cloud under a service name, when this node's policy
// allows it.
func (c *Client) Handle(service string, h http.Handler) error { return c.e.handle(service, h) }

// Listen registers a service that the cloud may reach, when this node's policy
// allows it.
func (c *Client) Listen(service string) (net.Listener, error) { return c.e.listen(service) }

// Forward relays what connects to ln to one target, until ctx ends: the node's
// interface point for programs that know nothing of tunnels. ln must be on a
// loopback address or a Unix socket.
func (c *Client) Forward(ctx context.Context, ln net.Listener, network, address string) error {
	tg, err := parseTarget(network, address)
	if err != nil {
		return fmt.Errorf("tlsconn: forward: %w", err)
	}
	if a, ok := ln.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		return fmt.Errorf("tlsconn: forward: %s is not a loopback address; others could use this node's identity", a)
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	stopOwn := context.AfterFunc(c.e.ctx, func() { _ = ln.Close() })
	defer stopOwn()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		local, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || c.e.ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("tlsconn: forward: %w", err)
			}
			time.Sleep(5 * time.Millisecond)
			continue
		}
		wg.Go(func() { c.forward(ctx, local, tg) })
	}
}

// firstBytes is how much an application may have sent before its flow is opened
// that goes with the open frame.
const firstBytes = 2 << 10

func (c *Client) forward(ctx context.Context, local net.Conn, tg target) {
	growStack()
	far, err := c.forwardTo(ctx, local, tg)
	if err != nil {
		abortConn(local)
		return
	}
	_, _, _ = Relay(ctx, far, local) // this goroutine sends, on the stack that it has grown
}

func (c *Client) forwardTo(ctx context.Context, local net.Conn, tg target) (net.Conn, error) {
	var first []byte
	if s := socketOf(local); s != nil && tg.proto == TCP {
		b, n, err := s.take(firstBytes)
		if err != nil && err != io.EOF { // a reset shows once only: here
			return nil, err
		}
		if b != nil { // the large buffer is not held while the far end thinks
			first = bytes.Clone((*b)[:n])
			buffers.put(b)
		}
	}
	return c.dial(ctx, time.Now().Add(c.e.cfg.Limits.OpenTimeout+dialTimeout), tg, first)
}

// Close closes the client and its tunnels, and waits for Run to return.
func (c *Client) Close() error {
	c.mu.Lock()
	c.e.stop(ErrClosed)
	c.mu.Unlock()
	c.e.close(CodeClosed, "the client stops")
	c.done.Wait()
	return nil
}
