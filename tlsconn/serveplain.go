package tlsconn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// PlainOptions configure Config.ServePlain.
type PlainOptions struct {
	// Server takes TLS from who connects; else TLS is spoken to who is dialled.
	Server bool
	// Service is the name by which rules allow the flows (Rule.Services, to-cloud).
	Service string
	// Dial reaches the other side of a flow: the target of a server, or the TLS
	// server of a client. Required.
	Dial func(ctx context.Context) (net.Conn, error)
	// Drain is how long live flows may go on when ctx has ended; then they are
	// reset. Zero resets them at once.
	Drain time.Duration
	// Live, if not nil, is told how many flows are relayed, after each change.
	Live func(int)
}

// ServePlain relays every connection of ln in plain mode, one TLS connection per
// flow, until ctx ends, and closes ln. Everything that holds for tunnels holds
// here: trust, the authoriser, the policy, at once when they change; Limits per
// node and for handshakes; honest ends; and a FlowRecord for each flow, whose
// counts are this end's alone, as no far end confirms them. Refused handshakes
// are Events.
func (c Config) ServePlain(ctx context.Context, ln net.Listener, o PlainOptions) error {
	side := AtNode
	if o.Server {
		side = AtGateway
	}
	if o.Dial == nil {
		return errors.New("tlsconn: plain: Dial is required")
	}
	if tg, err := newTarget(TCP, o.Service, 0); err != nil || tg.service() == "" {
		return fmt.Errorf("tlsconn: plain: service %q: a service is one label of a-z, 0-9 and '-'", o.Service)
	}
	e, err := newEndpoint(c, side)
	if err != nil {
		return err
	}
	p := &plainServer{e: e, o: o, live: map[*plainFlow]struct{}{}}
	defer e.close(CodeClosed, "the relay stops")
	e.tasks.Go(p.watch)
	return p.serve(ctx, ln)
}

type plainServer struct {
	e *endpoint
	o PlainOptions

	mu   sync.Mutex
	live map[*plainFlow]struct{}
}

// plainFlow is one flow in plain mode.
type plainFlow struct {
	p       *plainServer
	peer    Peer
	node    ID
	id      string
	start   time.Time
	cut     context.CancelCauseFunc
	caps    *nodeCaps
	in, out atomic.Uint64 // over TLS

	mu     sync.Mutex
	d      Decision
	addr   string
	seen   uint64
	seenAt time.Time
}

func (p *plainServer) serve(ctx context.Context, ln net.Listener) error {
	l := p.e.cfg.Limits
	end, stop := context.WithCancelCause(context.Background()) // outlives ctx while draining
	defer stop(nil)
	closing := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer closing()
	halfs := make(chan struct{}, l.MaxHandshakes)
	source := sourceRates{perSecond: l.HandshakesPerIP}
	if !p.o.Server {
		source.perSecond = Unlimited // who connects is on this host
	}
	var flows sync.WaitGroup
	backoff := time.Duration(0)
	var failed error
	for ctx.Err() == nil {
		conn, err := ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				if ctx.Err() == nil {
					failed = fmt.Errorf("tlsconn: plain: %w", err)
				}
				break
			}
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			p.e.cfg.Logger.Warn("accept", "event", "accept.failed", "error", err, "retry_in", backoff)
			time.Sleep(backoff)
			continue
		}
		backoff = 0
		if !source.allow(conn.RemoteAddr()) {
			p.refuse(conn, fmt.Errorf("%w: too many handshakes from this address", ErrLimit))
			continue
		}
		select {
		case halfs <- struct{}{}:
		default:
			p.refuse(conn, fmt.Errorf("%w: too many half-open handshakes", ErrLimit))
			continue
		}
		flows.Go(func() { p.relay(end, conn, halfs) })
	}
	done := make(chan struct{})
	go func() { flows.Wait(); close(done) }()
	timer := time.NewTimer(p.o.Drain)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		if p.o.Drain > 0 {
			p.e.cfg.Logger.Warn("draining took too long, flows are reset", "event", "drain.timeout")
		}
	}
	stop(&RefusedError{Code: CodeClosed, Side: p.e.side, Reason: "the relay stops"})
	<-done
	return failed
}

// refuse audits a connection of nobody that is known.
func (p *plainServer) refuse(conn net.Conn, err error) {
	abortConn(conn)
	p.e.event(TunnelEvent{Type: "refused", Remote: conn.RemoteAddr().String(), Code: codeOf(err), Reason: err.Error()})
}

func (p *plainServer) relay(end context.Context, conn net.Conn, halfs chan struct{}) {
	ctx, cut := context.WithCancelCause(end)
	defer cut(nil)
	f := &plainFlow{p: p, id: newFlowID(), start: time.Now(), seenAt: time.Now(), cut: cut}
	tuneSocket(conn)
	near, far, err := f.connect(ctx, conn)
	<-halfs
	if err != nil {
		abortConn(conn)
		if f.caps == nil { // nobody was authenticated
			p.refuse(conn, err)
			return
		}
		f.audit(err, VerdictDenied)
		return
	}
	p.enter(f, true)
	err = f.decide() // nothing that changed meanwhile is missed
	if err == nil {
		_, _, err = Relay(ctx, near, far)
	} else {
		resetConn(near, err)
		resetConn(far, err)
	}
	p.enter(f, false)
	f.audit(err, VerdictAllowed)
}

// connect brings both sides up: for a server TLS comes first, for a client the
// far end is dialled first. near was accepted.
func (f *plainFlow) connect(ctx context.Context, conn net.Conn) (near, far net.Conn, err error) {
	c := f.p.e.cfg
	if f.p.o.Server {
		s, peer, err := c.PlainServer(ctx, conn)
		if err != nil {
			return nil, nil, err
		}
		release, err := f.admit(peer, peer.ID)
		if err != nil {
			return nil, nil, err
		}
		far, err := f.dial(ctx)
		if err != nil {
			release()
			return nil, nil, err
		}
		return &plainConn{secureConn: s.(*secureConn), f: f, release: release}, far, nil
	}
	raw, err := f.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	s, peer, err := c.PlainClient(ctx, raw)
	if err != nil {
		return nil, nil, err
	}
	release, err := f.admit(peer, c.Identity.ID())
	if err != nil {
		abortConn(raw)
		return nil, nil, err
	}
	return conn, &plainConn{secureConn: s.(*secureConn), f: f, release: release}, nil
}

func (f *plainFlow) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := f.p.o.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	tuneSocket(c)
	f.mu.Lock()
	f.addr = c.RemoteAddr().String()
	f.mu.Unlock()
	return c, nil
}

// admit asks the policy and the caps about an authenticated peer's flow.
func (f *plainFlow) admit(peer Peer, node ID) (release func(), err error) {
	f.peer, f.node = peer, node
	f.caps = f.p.e.caps.get(node, f.start)
	if err := f.decide(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	d := f.d
	f.mu.Unlock()
	release, err = f.caps.admit(TCP+"!"+f.p.o.Service, d.Rule, d.MaxFlows, f.start)
	if err != nil {
		return nil, f.refused(CodeLimit, "", err)
	}
	return release, nil
}

func (f *plainFlow) refused(code Code, reason string, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &RefusedError{Code: code, Side: f.p.e.side, Peer: f.peer.ID, Target: TCP + "!" + f.p.o.Service, Rule: f.d.Rule, Reason: reason, Err: err}
}

// decide holds the flow to trust and policy, at its start and while it lives.
func (f *plainFlow) decide() error {
	if err := f.p.e.cfg.Trust.check(f.peer.chains); err != nil {
		return f.refused(codeOf(err), "", err)
	}
	d := f.p.e.cfg.Policy.current().evaluate(Flow{Node: f.node, Direction: ToCloud, Proto: TCP, Service: f.p.o.Service})
	f.mu.Lock()
	f.d = d
	f.mu.Unlock()
	switch {
	case !d.Allowed:
		return f.refused(CodeDenied, d.Reason, nil)
	case d.Inspect:
		return f.refused(CodeDenied, "rules on content do not apply to services", nil)
	}
	return nil
}

// enter notes a flow among the live ones, or takes it off.
func (p *plainServer) enter(f *plainFlow, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		p.live[f] = struct{}{}
	} else {
		delete(p.live, f)
	}
	if p.o.Live != nil {
		p.o.Live(len(p.live))
	}
}

// watch re-evaluates live flows when trust or policy change, and on a clock tick.
func (p *plainServer) watch() {
	change := make(chan struct{}, 1)
	defer p.e.cfg.Trust.changes.subscribe(change)()
	defer p.e.cfg.Policy.changes.subscribe(change)()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		var now time.Time
		select {
		case <-p.e.ctx.Done():
			return
		case <-change:
		case now = <-tick.C:
		}
		p.mu.Lock()
		flows := make([]*plainFlow, 0, len(p.live))
		for f := range p.live {
			flows = append(flows, f)
		}
		p.mu.Unlock()
		for _, f := range flows {
			err := f.decide()
			if err == nil && !now.IsZero() {
				err = f.aged(now)
			}
			if err != nil {
				f.cut(err)
			}
		}
	}
}

func (f *plainFlow) aged(now time.Time) error {
	l, n := f.p.e.cfg.Limits, f.in.Load()+f.out.Load()
	f.mu.Lock()
	if n != f.seen {
		f.seen, f.seenAt = n, now
	}
	idle, age := now.Sub(f.seenAt), now.Sub(f.start)
	f.mu.Unlock()
	switch {
	case idle > l.IdleTimeout:
		return f.refused(CodeTimeout, "no byte for "+l.IdleTimeout.String(), nil)
	case age > l.MaxFlowAge:
		return f.refused(CodeTimeout, "older than "+l.MaxFlowAge.String(), nil)
	}
	return nil
}

// audit emits the flow's record.
func (f *plainFlow) audit(err error, verdict string) {
	f.mu.Lock()
	d, addr := f.d, f.addr
	f.mu.Unlock()
	r := FlowRecord{Flow: f.id, Side: f.p.e.side, Node: f.node, Peer: f.peer.ID, Serial: f.peer.Leaf.SerialNumber.Text(16), Direction: ToCloud, Proto: TCP,
		Target: TCP + "!" + f.p.o.Service, Addr: addr, Rule: d.Rule, PolicySerial: d.Serial, Verdict: verdict, DecidedBy: f.p.e.side, Start: f.start, Duration: time.Since(f.start),
		Up: f.in.Load(), Down: f.out.Load()}
	if !f.p.o.Server {
		r.Up, r.Down = r.Down, r.Up
	}
	if d.Report && verdict == VerdictAllowed {
		r.Verdict = VerdictReport
	}
	if err != nil {
		r.Code, r.Reason, r.Truncated = codeOf(err), err.Error(), verdict != VerdictDenied
	}
	f.p.e.audit(r)
}

// plainConn is a flow's TLS connection that counts and pays for its bytes.
type plainConn struct {
	*secureConn
	f       *plainFlow
	release func()
}

func (c *plainConn) Read(b []byte) (int, error) {
	n, err := c.secureConn.Read(b)
	if n > 0 {
		c.f.in.Add(uint64(n))
		if perr := c.pay(n); perr != nil {
			return 0, perr
		}
	}
	return n, err
}

// lend is Read into a buffer that the caller puts back.
func (c *plainConn) lend() (*[]byte, int, error) {
	b, n, err := c.secureConn.lend()
	if err != nil {
		return nil, 0, err
	}
	c.f.in.Add(uint64(n))
	if err := c.pay(n); err != nil {
		buffers.put(b)
		return nil, 0, err
	}
	return b, n, nil
}

func (c *plainConn) Write(b []byte) (int, error) {
	if err := c.pay(len(b)); err != nil {
		return 0, err
	}
	n, err := c.secureConn.Write(b)
	c.f.out.Add(uint64(n))
	return n, err
}

func (c *plainConn) pay(n int) error {
	err := c.f.caps.pay(n, func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(c.f.p.e.ctx, c.f.p.e.cfg.Limits.IdleTimeout)
	})
	if err != nil {
		return c.f.refused(CodeLimit, "", err)
	}
	return nil
}

// Close ends the connection with a close_notify. What still comes is thrown
// away.
func (c *plainConn) Close() error {
	c.release()
	return c.secureConn.Close()
}

// NetConn lets a reset reach the socket.
func (c *plainConn) NetConn() net.Conn {
	c.release()
	return c.secureConn.NetConn()
}
