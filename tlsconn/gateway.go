package tlsconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// GatewayConfig configures the cloud's end.
type GatewayConfig struct {
	Config
	// Verify is the gateway's half of the evidence exchange, run before any flow
	// may pass and again before the result ends. It asks, appraises, and returns
	// until when the peer counts as attested; bind is the same as the node's. An
	// error, or a time that has passed, cuts the tunnel; its text goes into the
	// audit, not to the node. Required, unless InsecureNoAttestation.
	Verify func(ctx context.Context, peer Peer, stream io.ReadWriter, bind func(context []byte) ([]byte, error)) (until time.Time, err error)
	// Attest gives the gateway's own evidence to nodes that ask for it
	// (ClientConfig.Verify). Nil refuses them.
	Attest func(ctx context.Context, stream io.ReadWriter, bind func(context []byte) ([]byte, error)) error
	// InsecureNoAttestation admits nodes by certificate alone.
	InsecureNoAttestation bool
}

// Gateway is the cloud's interface point: it admits nodes' tunnels, evaluates
// policy on the certificate's identity, serves named services, and relays to
// destinations. Safe for concurrent use.
type Gateway struct {
	e      *endpoint
	halfs  chan struct{} // a place for each half-open handshake
	source sourceRates
}

// NewGateway checks the configuration. Register services, then Serve.
func NewGateway(c GatewayConfig) (*Gateway, error) {
	if (c.Verify == nil) != c.InsecureNoAttestation {
		return nil, errors.New("tlsconn: gateway: exactly one of Verify and InsecureNoAttestation is required")
	}
	e, err := newEndpoint(c.Config, AtGateway)
	if err != nil {
		return nil, err
	}
	e.verify, e.attest = c.Verify, c.Attest
	return &Gateway{e: e, halfs: make(chan struct{}, e.cfg.Limits.MaxHandshakes), source: sourceRates{perSecond: e.cfg.Limits.HandshakesPerIP}}, nil
}

// Handle serves HTTP to nodes under a service name, as in "http://ingest/".
// Handlers learn who asks by PeerFromContext.
func (g *Gateway) Handle(service string, h http.Handler) error { return g.e.handle(service, h) }

// Listen registers a service and returns its listener, for protocols other
// than HTTP. Its connections have a method Peer() Peer, and CloseWrite.
func (g *Gateway) Listen(service string) (net.Listener, error) { return g.e.listen(service) }

// Serve accepts tunnels on ln until ctx ends or the gateway is closed, and
// closes ln. It returns nil when it was asked to end.
func (g *Gateway) Serve(ctx context.Context, ln net.Listener) error {
	if a, ok := ln.Addr().(*net.TCPAddr); ok {
		g.e.mu.Lock()
		g.e.own = append(g.e.own, a.AddrPort())
		g.e.mu.Unlock()
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	stopOwn := context.AfterFunc(g.e.ctx, func() { _ = ln.Close() })
	defer stopOwn()
	var wg sync.WaitGroup
	defer wg.Wait()
	backoff := time.Duration(0)
	for {
		c, err := ln.Accept()
		switch {
		case ctx.Err() != nil || g.e.ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case err != nil && errors.Is(err, net.ErrClosed):
			return fmt.Errorf("tlsconn: gateway: %w", err)
		case err != nil:
			// Out of files, most likely: give what is open time to close.
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			g.e.cfg.Logger.Warn("accept", "event", "accept.failed", "error", err, "retry_in", backoff)
			time.Sleep(backoff)
			continue
		}
		backoff = 0
		if why := g.tooMany(c); why != "" {
			abortConn(c)
			g.e.event(TunnelEvent{Type: "refused", Remote: c.RemoteAddr().String(), Code: CodeLimit, Reason: why})
			continue
		}
		wg.Go(func() { g.serve(ctx, c) })
	}
}

// tooMany takes a place for a handshake, or says which bound is reached.
func (g *Gateway) tooMany(c net.Conn) string {
	if !g.source.allow(c.RemoteAddr()) {
		return "too many handshakes from this address"
	}
	select {
	case g.halfs <- struct{}{}:
		return ""
	default:
		return "too many half-open handshakes"
	}
}

func (g *Gateway) serve(ctx context.Context, c net.Conn) {
	t, err := g.handshake(ctx, c)
	<-g.halfs
	if err != nil {
		g.e.event(TunnelEvent{Type: "refused", Remote: c.RemoteAddr().String(), Code: codeOf(err), Reason: err.Error()})
		return
	}
	defer t.wait()
	ctl, err := t.startAsGateway()
	if err == nil {
		err = g.e.add(t)
	}
	if err != nil {
		t.cut(codeOf(err), err.Error(), err)
		return
	}
	if t.needs {
		t.mu.Lock()
		t.asked = time.Now()
		t.mu.Unlock()
	} else {
		t.markReady(time.Time{})
	}
	g.e.event(TunnelEvent{Type: "up", Peer: t.peer.ID, Remote: t.remote(), Reason: t.peer.KeyExchange.String()})
	stop := context.AfterFunc(ctx, func() { t.cut(CodeClosed, "the gateway stops", nil) })
	defer stop()
	t.run(ctl)
}

func (g *Gateway) handshake(ctx context.Context, c net.Conn) (*tunnel, error) {
	tuneSocket(c)
	sc, peer, err := g.e.cfg.handshake(ctx, c, true)
	if err != nil {
		return nil, err
	}
	return newTunnel(g.e, sc, peer)
}

// Peers returns the nodes that have a tunnel now, with their attestation state.
func (g *Gateway) Peers() []Peer {
	var out []Peer
	g.e.each(func(t *tunnel) { out = append(out, t.Peer()) })
	return out
}

// Reattest asks a node for fresh evidence on every tunnel that it has, and
// returns how many. A tunnel whose node does not answer in time is cut.
func (g *Gateway) Reattest(id ID) int {
	return g.forNode(id, func(t *tunnel) { t.reattest("on demand") })
}

// Cut cuts every tunnel of a node at once, as when its Attestation Result was
// withdrawn, and returns how many. The node may come back; to keep it out,
// revoke it in the trust store.
func (g *Gateway) Cut(id ID, reason string) int {
	return g.forNode(id, func(t *tunnel) { t.cut(CodeNotAttested, reason, nil) })
}

func (g *Gateway) forNode(id ID, do func(*tunnel)) int {
	n := 0
	g.e.each(func(t *tunnel) {
		if t.peer.ID == id {
			n++
			do(t)
		}
	})
	return n
}

// DialContext opens a flow to a node: to a service that the node serves, or to
// a destination behind it. The node's own policy has the last word.
func (g *Gateway) DialContext(ctx context.Context, node ID, network, address string) (net.Conn, error) {
	tg, err := parseTarget(network, address)
	if err != nil {
		return nil, fmt.Errorf("tlsconn: %w", err)
	}
	for _, t := range g.e.snapshot() {
		if t.peer.ID == node && t.admits(true) == nil {
			c, _, err := t.open(ctx, tg, nil)
			if err != nil {
				return nil, err
			}
			return c, nil
		}
	}
	return nil, &RefusedError{Code: CodeUnreachable, Side: AtGateway, Peer: node, Target: tg.String(), Reason: "the node has no attested tunnel here"}
}

// drainSpacing lies between two nodes that are sent elsewhere, so that a fleet
// does not knock at the next gateway all at once.
const drainSpacing = time.Millisecond

// Shutdown drains: it asks every node to open no more flows here, waits until
// the live ones have ended or ctx ends, and closes.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.e.each(func(t *tunnel) {
		t.drain()
		select {
		case <-time.After(drainSpacing):
		case <-ctx.Done():
		}
	})
	err := g.e.drained(ctx)
	if err == nil {
		var wg sync.WaitGroup
		g.e.each(func(t *tunnel) { wg.Go(func() { t.leave("the gateway has drained") }) })
		wg.Wait()
	}
	g.e.close(CodeDraining, "the gateway has drained")
	return err
}

// Close cuts every tunnel and stops serving.
func (g *Gateway) Close() error {
	g.e.close(CodeClosed, "the gateway stops")
	return nil
}

// drain asks the far end to open no more flows.
func (t *tunnel) drain() {
	t.mu.Lock()
	t.draining = true
	t.mu.Unlock()
	t.send(controlFrame{Type: ctlDrain})
}

// drained waits until no flow is live.
func (e *endpoint) drained(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		n := 0
		e.each(func(t *tunnel) {
			if !t.idle() {
				n++
			}
		})
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("tlsconn: drain: %d tunnels still have flows: %w", n, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// maxSources bounds how many source addresses are remembered.
const maxSources = 16384

// sourceRates is a token bucket for each source address (IPv6: each /64).
type sourceRates struct {
	perSecond int
	mu        sync.Mutex
	m         map[netip.Addr]*rate.Limiter
}

func (s *sourceRates) allow(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || s.perSecond < 0 {
		return true
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() {
		p, _ := ip.Prefix(64)
		ip = p.Addr()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.m[ip]
	if l == nil {
		if s.m == nil {
			s.m = map[netip.Addr]*rate.Limiter{}
		}
		if len(s.m) >= maxSources {
			for k, v := range s.m {
				if v.Tokens() >= float64(4*s.perSecond) {
					delete(s.m, k) // a full bucket is as good as none
				}
			}
			if len(s.m) >= maxSources {
				return false
			}
		}
		l = rate.NewLimiter(rate.Limit(s.perSecond), 4*s.perSecond)
		s.m[ip] = l
	}
	return l.Allow()
}
