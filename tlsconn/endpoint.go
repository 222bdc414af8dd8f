package tlsconn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// watchInterval is how often live tunnels are looked at when nothing changed:
// for expiry, attestation and idleness. It bounds how late a cut can be.
const watchInterval = 500 * time.Millisecond

// endpoint is what a Client and a Gateway have in common.
type endpoint struct {
	cfg    Config
	side   Side
	attest attestFunc // gives this end's evidence
	verify verifyFunc // appraises the far end's
	caps   capTable
	fleet  fleetTable
	own    []netip.AddrPort // listen addresses, never a destination
	ctx    context.Context  // ends with the endpoint
	stop   context.CancelCauseFunc
	tasks  sync.WaitGroup

	mu       sync.Mutex
	tunnels  map[*tunnel]struct{}
	services map[string]*serviceListener
}

func newEndpoint(cfg Config, side Side) (*endpoint, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	e := &endpoint{cfg: cfg, side: side, tunnels: map[*tunnel]struct{}{}, services: map[string]*serviceListener{}}
	e.caps.l, e.fleet.l = cfg.Limits, cfg.Limits
	e.ctx, e.stop = context.WithCancelCause(context.Background())
	e.tasks.Go(e.watch)
	return e, nil
}

func (e *endpoint) now() time.Time {
	t := e.cfg.Trust
	t.mu.RLock()
	defer t.mu.RUnlock()
	now, _ := t.now()
	return now
}

// watch re-evaluates every live tunnel and flow when trust or policy change,
// and on a clock tick, which also sees what no one announces: expiry, a lapsed
// Attestation Result, a clock that was set.
func (e *endpoint) watch() {
	trust, policy := make(chan struct{}, 1), make(chan struct{}, 1)
	defer e.cfg.Trust.changes.subscribe(trust)()
	defer e.cfg.Policy.changes.subscribe(policy)()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-trust:
			e.each(func(t *tunnel) { t.check() })
		case <-policy:
			e.eachFlow((*flow).reconsider)
		case now := <-tick.C:
			e.each(func(t *tunnel) {
				t.check()
				t.late(now)
			})
			e.eachFlow(func(f *flow) { f.aged(now, e.cfg.Limits) })
		}
	}
}

func (e *endpoint) snapshot() []*tunnel {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]*tunnel, 0, len(e.tunnels))
	for t := range e.tunnels {
		out = append(out, t)
	}
	return out
}

func (e *endpoint) each(do func(*tunnel)) {
	for _, t := range e.snapshot() {
		do(t)
	}
}

func (e *endpoint) eachFlow(do func(*flow)) {
	for _, t := range e.snapshot() {
		t.mu.Lock()
		flows := make([]*flow, 0, len(t.flows))
		for _, f := range t.flows {
			flows = append(flows, f)
		}
		t.mu.Unlock()
		for _, f := range flows {
			do(f)
		}
	}
}

// add enters a tunnel among those that changes act on, and then looks at it
// once more, so that no change falls between handshake and entry.
func (e *endpoint) add(t *tunnel) error {
	e.mu.Lock()
	if e.ctx.Err() != nil {
		e.mu.Unlock()
		return ErrClosed
	}
	if len(e.tunnels) >= e.cfg.Limits.MaxTunnels {
		e.mu.Unlock()
		return fmt.Errorf("%w: %d tunnels", ErrLimit, e.cfg.Limits.MaxTunnels)
	}
	e.tunnels[t] = struct{}{}
	e.mu.Unlock()
	t.check()
	return t.failure()
}

func (e *endpoint) remove(t *tunnel) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.tunnels, t)
}

func (e *endpoint) isOwn(a netip.AddrPort) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, o := range e.own {
		if o.Port() == a.Port() && (o.Addr().IsUnspecified() || o.Addr().Unmap() == a.Addr().Unmap()) {
			if o.Addr().IsUnspecified() && !isLocalAddr(a.Addr()) {
				continue
			}
			return true
		}
	}
	return false
}

// isLocalAddr reports whether an address is one of this host's.
func isLocalAddr(a netip.Addr) bool {
	if a.Unmap().IsLoopback() {
		return true
	}
	ifs, err := net.InterfaceAddrs()
	if err != nil {
		return true // unknown is deny
	}
	for _, i := range ifs {
		if p, ok := i.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok && ip.Unmap() == a.Unmap() {
				return true
			}
		}
	}
	return false
}

// serviceBacklog is how many flows may wait for a service to accept them.
const serviceBacklog = 64

// serviceListener hands flows to a service as a net.Listener does.
type serviceListener struct {
	e     *endpoint
	name  string
	conns chan *flowConn
	once  sync.Once
	done  chan struct{}
}

// listen registers a service by name.
func (e *endpoint) listen(name string) (*serviceListener, error) {
	if err := checkHost(name); err != nil {
		return nil, fmt.Errorf("tlsconn: service %q: %w", name, err)
	}
	if t, err := newTarget(TCP, name, 0); err != nil || t.service() == "" {
		return nil, fmt.Errorf("tlsconn: service %q: a service is one label of a-z, 0-9 and '-'", name)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.services[name] != nil {
		return nil, fmt.Errorf("tlsconn: service %q is registered already", name)
	}
	l := &serviceListener{e: e, name: name, conns: make(chan *flowConn, serviceBacklog), done: make(chan struct{})}
	e.services[name] = l
	return l, nil
}

func (e *endpoint) service(name string) *serviceListener {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.services[name]
}

// give hands a flow, which was answered, to the service. It waits for room, for
// OpenTimeout at most.
func (l *serviceListener) give(c *flowConn) {
	select {
	case l.conns <- c:
	default:
		timer := time.NewTimer(l.e.cfg.Limits.OpenTimeout)
		defer timer.Stop()
		select {
		case l.conns <- c:
		case <-l.done:
			c.f.reset(CodeUnreachable, "", errClosing)
		case <-c.f.t.done: // which ended the flow
		case <-timer.C:
			c.f.reset(CodeLimit, "", errors.New("service does not keep up"))
		}
	}
	select {
	case <-l.done:
		l.turnAway()
	default:
	}
}

var errClosing = errors.New("service is closing")

// turnAway resets the flows that wait for a service that has closed.
func (l *serviceListener) turnAway() {
	for {
		select {
		case c := <-l.conns:
			c.f.reset(CodeUnreachable, "", errClosing)
		default:
			return
		}
	}
}

// Accept implements net.Listener. The connections have a method Peer() Peer.
func (l *serviceListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		if c.f.target.proto == UDP {
			return newPacketConn(c), nil
		}
		return c, nil
	case <-l.done:
	case <-l.e.ctx.Done():
	}
	return nil, net.ErrClosed
}

// Close takes the service off.
func (l *serviceListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.e.mu.Lock()
		delete(l.e.services, l.name)
		l.e.mu.Unlock()
		l.turnAway()
	})
	return nil
}

func (l *serviceListener) Addr() net.Addr { return flowAddr{l.name} }

// Bounds of the HTTP servers that Handle starts.
const (
	httpHeaderTimeout = 10 * time.Second
	httpIdleTimeout   = 2 * time.Minute
	httpHeaderBytes   = 64 << 10
)

// handle serves HTTP under a service name until the endpoint closes.
func (e *endpoint) handle(name string, h http.Handler) error {
	if h == nil {
		return fmt.Errorf("tlsconn: service %q: handler is nil", name)
	}
	l, err := e.listen(name)
	if err != nil {
		return err
	}
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// The attestation state is that of the request, not of the connection.
			if fc, ok := r.Context().Value(connKey{}).(*flowConn); ok {
				r = r.WithContext(withPeer(r.Context(), fc.Peer()))
			}
			h.ServeHTTP(w, r)
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ReadHeaderTimeout: httpHeaderTimeout, IdleTimeout: httpIdleTimeout, MaxHeaderBytes: httpHeaderBytes,
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return ErrClosed
	}
	e.tasks.Go(func() { _ = s.Serve(l) })
	e.tasks.Go(func() {
		<-e.ctx.Done()
		_ = s.Close()
	})
	return nil
}

type connKey struct{}

// close ends the endpoint with all of its tunnels and goroutines.
func (e *endpoint) close(code Code, reason string) {
	e.stop(ErrClosed)
	tunnels := e.snapshot()
	for _, t := range tunnels {
		t.cut(code, reason, nil)
	}
	for _, t := range tunnels {
		t.wait()
	}
	e.tasks.Wait()
}
