package tlsconn

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// flow is one admitted flow, as this end accounts for it.
type flow struct {
	t       *tunnel
	id      string
	target  target
	dir     Direction
	opener  bool // this end opened it
	st      mux.Stream
	start   time.Time
	release []func() // places in caps
	out     atomic.Uint64
	in      atomic.Uint64

	mu     sync.Mutex
	q      Flow     // what the policy was last asked
	d      Decision // and its answer
	addr   string
	far    net.Conn // the dialled destination, to be reset
	ended  bool
	why    Code      // what it ended with
	seen   uint64    // bytes at the last look, for idleness
	seenAt time.Time // when they last changed
}

// question builds what the policy is asked about a target.
func (t *tunnel) question(dir Direction, tg target) Flow {
	f := Flow{Node: t.node, Direction: dir, Proto: tg.proto, Host: tg.host, Port: tg.port, Addr: tg.addr}
	if s := tg.service(); s != "" {
		f.Service, f.Host, f.Port = s, "", 0
	}
	return f
}

func (t *tunnel) newFlow(id string, dir Direction, tg target, opener bool) *flow {
	now := time.Now()
	return &flow{t: t, id: id, dir: dir, target: tg, opener: opener, start: now, seenAt: now, q: t.question(dir, tg)}
}

func newFlowID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// admit asks the policy and the caps, and enters the flow among the live ones.
// It is entered before the policy is asked, so that no change is missed.
func (f *flow) admit() error {
	t := f.t
	if err := t.admits(f.opener); err != nil {
		return err
	}
	t.mu.Lock()
	switch {
	case t.err != nil:
		t.mu.Unlock()
		return t.err
	case t.flows[f.id] != nil || t.pending[f.id] != nil:
		t.mu.Unlock()
		return fmt.Errorf("%w: flow %s exists", ErrProtocol, f.id)
	}
	t.flows[f.id] = f
	t.mu.Unlock()
	if err := f.decide(func(*Flow) {}); err != nil {
		f.forget()
		return err
	}
	d := f.decision()
	release, err := t.caps.admit(f.target.String(), d.Rule, d.MaxFlows, f.start)
	if err != nil {
		f.forget()
		return &RefusedError{Code: CodeLimit, Side: t.e.side, Peer: t.peer.ID, Target: f.target.String(), Rule: d.Rule, Err: err}
	}
	f.addRelease(release)
	return nil
}

// addRelease notes a place to give back at the flow's end, or gives it back when
// that has come.
func (f *flow) addRelease(release func()) {
	f.mu.Lock()
	if !f.ended {
		f.release = append(f.release, release)
		release = nil
	}
	f.mu.Unlock()
	if release != nil {
		release()
	}
}

func (f *flow) releaseAll() {
	f.mu.Lock()
	list := f.release
	f.release = nil
	f.mu.Unlock()
	for _, r := range list {
		r()
	}
}

// decide asks the policy in force, after change added what is known by now.
func (f *flow) decide(change func(*Flow)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.q)
	f.d = f.t.e.cfg.Policy.current().evaluate(f.q)
	if f.d.Allowed {
		return nil
	}
	return &RefusedError{Code: CodeDenied, Side: f.t.e.side, Peer: f.t.peer.ID, Target: f.target.String(), Rule: f.d.Rule, Reason: f.d.Reason}
}

// attach notes the flow's stream, and what was dialled for it, so that the end
// of the flow reaches them. It fails when the flow has ended meanwhile.
func (f *flow) attach(s mux.Stream, far net.Conn) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s != nil {
		f.st = s
	}
	if far != nil {
		f.far, f.addr = far, far.RemoteAddr().String()
	}
	if !f.ended {
		return nil
	}
	if err := f.t.failure(); err != nil {
		return err
	}
	return &RefusedError{Code: CodeDenied, Side: f.t.e.side, Peer: f.t.peer.ID, Target: f.target.String(), Rule: f.d.Rule, Reason: "the policy changed: " + f.d.Reason}
}

// decision returns the policy's last answer.
func (f *flow) decision() Decision {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.d
}

func (f *flow) forget() {
	f.t.mu.Lock()
	delete(f.t.flows, f.id)
	delete(f.t.ended, f.id)
	f.t.mu.Unlock()
	f.releaseAll()
}

// refused audits a flow that was not let through.
func (f *flow) refused(err error) {
	f.mu.Lock()
	twice := f.ended
	f.ended = true
	f.mu.Unlock()
	if twice {
		return
	}
	r := f.record(codeOf(err), err.Error())
	r.Verdict = VerdictDenied
	var re *RefusedError
	if errors.As(err, &re) {
		r.DecidedBy = re.Side
		if re.Rule != "" {
			r.Rule = re.Rule
		}
	}
	f.t.e.audit(r)
}

func (f *flow) record(code Code, reason string) FlowRecord {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.t.Peer()
	r := FlowRecord{Flow: f.id, Side: f.t.e.side, Node: f.t.node, Peer: p.ID, Serial: p.Leaf.SerialNumber.Text(16), Direction: f.dir, Proto: f.target.proto,
		Target: f.target.String(), Addr: f.addr, Rule: f.d.Rule, PolicySerial: f.d.Serial, Verdict: VerdictAllowed, DecidedBy: f.t.e.side,
		Code: code, Reason: reason, Start: f.start, Duration: time.Since(f.start), AttestedUntil: p.AttestedUntil}
	if f.d.Report {
		r.Verdict = VerdictReport
	}
	r.Up, r.Down = f.in.Load(), f.out.Load()
	if f.opener {
		r.Up, r.Down = r.Down, r.Up
	}
	return r
}

// end closes the books of a flow, once: it frees its places, tells the far end
// the counts, and leaves the record to be emitted when the far end's are known.
// With a code it also resets the stream and what was dialled.
func (f *flow) end(code Code, rule string, cause error) {
	f.mu.Lock()
	if f.ended {
		f.mu.Unlock()
		return
	}
	f.ended, f.why = true, code
	if rule != "" {
		f.d.Rule = rule
	}
	far, st := f.far, f.st
	f.mu.Unlock()
	reason := ""
	if cause != nil {
		reason = cause.Error()
	}
	if code != CodeOK {
		if st != nil {
			go func() { _ = st.Reset(uint32(code)) }()
		}
		if far != nil {
			abortConn(far)
		}
	}
	r := f.record(code, reason)
	t := f.t
	p := &pendingRecord{e: t.e, r: r}
	t.mu.Lock()
	delete(t.flows, f.id)
	far2, known := t.ended[f.id]
	delete(t.ended, f.id)
	gone := t.err != nil
	if !known && !gone {
		t.pending[f.id] = p
	}
	t.mu.Unlock()
	f.releaseAll()
	switch {
	case known:
		p.emit(&far2)
	case gone:
		p.emit(nil)
	}
	if !gone {
		if !known {
			p.arm(t)
		}
		t.send(controlFrame{Type: ctlEnd, Flow: f.id, Up: r.Up, Down: r.Down, Code: code})
	}
}

// reset ends the flow abnormally.
func (f *flow) reset(code Code, rule string, cause error) {
	if code == CodeOK {
		code = CodeReset
	}
	f.end(code, rule, cause)
}

// pendingRecord is a flow's record that waits for the far end's counts.
type pendingRecord struct {
	e     *endpoint
	r     FlowRecord
	once  sync.Once
	mu    sync.Mutex
	timer *time.Timer
}

func (p *pendingRecord) arm(t *tunnel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(confirmTimeout, func() {
		t.mu.Lock()
		delete(t.pending, p.r.Flow)
		t.mu.Unlock()
		p.emit(nil)
	})
}

// emit completes the record with the far end's counts; without them, or when
// they differ, the flow counts as truncated.
func (p *pendingRecord) emit(far *controlFrame) {
	p.once.Do(func() {
		p.mu.Lock()
		if p.timer != nil {
			p.timer.Stop()
		}
		p.mu.Unlock()
		switch {
		case p.r.Code != CodeOK:
			p.r.Truncated = true
		case far == nil:
			p.r.Truncated, p.r.Reason = true, "the far end did not confirm its byte counts"
		case far.Code != CodeOK:
			p.r.Truncated, p.r.Code, p.r.DecidedBy = true, far.Code, other(p.r.Side)
		case far.Up != p.r.Up || far.Down != p.r.Down:
			p.r.Truncated = true
			p.r.Reason = fmt.Sprintf("the far end counted %d up and %d down", far.Up, far.Down)
		}
		p.e.audit(p.r)
	})
}

// farEnd takes the far end's counts of a flow.
func (t *tunnel) farEnd(c controlFrame) {
	t.mu.Lock()
	p := t.pending[c.Flow]
	delete(t.pending, c.Flow)
	if p == nil && t.flows[c.Flow] != nil {
		t.ended[c.Flow] = c
	}
	t.mu.Unlock()
	if p != nil {
		p.emit(&c)
	}
}

// reconsider asks the present policy about a live flow again, and resets it
// when it is not allowed any more.
func (f *flow) reconsider() {
	if err := f.decide(func(*Flow) {}); err != nil {
		d := f.decision()
		f.reset(CodeDenied, d.Rule, errors.New("the policy changed: "+d.Reason))
	}
}

// aged resets flows that are idle or too old.
func (f *flow) aged(now time.Time, l Limits) {
	n := f.in.Load() + f.out.Load()
	f.mu.Lock()
	if n != f.seen {
		f.seen, f.seenAt = n, now
	}
	idle, age := now.Sub(f.seenAt), now.Sub(f.start)
	f.mu.Unlock()
	switch {
	case idle > l.IdleTimeout:
		f.reset(CodeTimeout, "", errors.New("no byte for "+l.IdleTimeout.String()))
	case age > l.MaxFlowAge:
		f.reset(CodeTimeout, "", errors.New("older than "+l.MaxFlowAge.String()))
	}
}

// open opens a flow to the far end. It returns when the far end's policy has
// admitted it and its destination is reached.
func (t *tunnel) open(ctx context.Context, tg target) (net.Conn, error) {
	dir := ToCloud
	if t.e.side == AtGateway {
		dir = ToNode
	}
	f := t.newFlow(newFlowID(), dir, tg, true)
	if err := f.admit(); err != nil {
		if !errors.Is(err, ErrDraining) {
			f.refused(err)
		}
		return nil, err
	}
	s, err := t.openStream(ctx, f)
	if err != nil {
		f.forget()
		if !errors.Is(err, ErrDraining) {
			f.refused(err)
		}
		return nil, err
	}
	c := newFlowConn(f, s)
	if tg.proto == UDP {
		return &packetConn{flowConn: c}, nil
	}
	if f.inspects() {
		c.inspection = &inspection{f: f}
	}
	return c, nil
}

func (t *tunnel) openStream(ctx context.Context, f *flow) (mux.Stream, error) {
	s, err := t.sess.Open(ctx)
	if err != nil {
		return nil, t.flowError(err)
	}
	if err := f.attach(s, nil); err != nil {
		_ = s.Reset(uint32(CodeClosed))
		return nil, err
	}
	stop := bindStream(ctx, s)
	fail := func(err error) (mux.Stream, error) {
		_ = s.Reset(uint32(CodeClosed))
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, t.flowError(err)
	}
	_ = s.SetDeadline(time.Now().Add(t.e.cfg.Limits.OpenTimeout + dialTimeout))
	if err := writeFrame(s, openFrame{Version: wireVersion, Kind: kindFlow, Flow: f.id, Proto: f.target.proto, Host: f.target.host, Port: f.target.port}); err != nil {
		return fail(err)
	}
	var r replyFrame
	if err := readFrame(s, &r); err != nil {
		return fail(err)
	}
	stop()
	if r.Code != CodeOK {
		_ = s.Close()
		return nil, &RefusedError{Code: r.Code, Side: other(t.e.side), Peer: t.peer.ID, Target: f.target.String(), Rule: r.Rule, Reason: clip(r.Reason)}
	}
	_ = s.SetDeadline(time.Time{})
	return s, f.attach(s, nil)
}

// flowError names an error of a stream by its tunnel's reason or its code.
func (t *tunnel) flowError(err error) error {
	if err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		return err
	}
	var re *mux.ResetError
	if errors.As(err, &re) {
		side := t.e.side
		if re.Remote {
			side = other(side)
		}
		if re.Session {
			if f := t.failure(); f != nil {
				return f
			}
		}
		return &RefusedError{Code: max(Code(re.Code), CodeDenied), Side: side, Peer: t.peer.ID, Reason: "flow reset"}
	}
	if f := t.failure(); f != nil {
		return f
	}
	if errors.Is(err, mux.ErrCut) {
		return &RefusedError{Code: CodeReset, Side: t.e.side, Peer: t.peer.ID, Reason: "connection lost", Err: err}
	}
	return err
}

// serveFlow decides about a flow that the far end opened and serves it.
func (t *tunnel) serveFlow(s mux.Stream, o openFrame) {
	dir := ToCloud
	if t.e.side == AtNode {
		dir = ToNode
	}
	tg, err := newTarget(o.Proto, o.Host, o.Port)
	if err == nil && !validFlowID(o.Flow) {
		err = fmt.Errorf("flow name %.40q", o.Flow)
	}
	if err != nil {
		t.lost(fmt.Errorf("%w: %w", ErrProtocol, err))
		return
	}
	f := t.newFlow(o.Flow, dir, tg, false)
	f.st = s // not shared yet
	err = f.admit()
	if err == nil {
		if err = t.deliver(f, s); err == nil {
			return
		}
		f.forget()
	}
	f.refused(err)
	r := replyFrame{Version: wireVersion, Code: max(codeOf(err), CodeDenied), Reason: publicReason(err)}
	var re *RefusedError
	if errors.As(err, &re) {
		r.Rule = re.Rule
	}
	_ = s.SetDeadline(time.Now().Add(t.e.cfg.Limits.OpenTimeout))
	if writeFrame(s, r) == nil {
		_ = s.CloseWrite()
	}
	_ = s.Close()
}

func validFlowID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 16
}

// publicReason is what the far end may learn about a refusal: policy reasons
// in full, but not what lies behind this end.
func publicReason(err error) string {
	var re *RefusedError
	if errors.As(err, &re) {
		if re.Err != nil {
			return clip(re.Err.Error())
		}
		return clip(re.Reason)
	}
	return codeOf(err).String()
}

// deliver takes an admitted flow to its service or destination. The reply has
// been sent when it returns nil.
func (t *tunnel) deliver(f *flow, s mux.Stream) error {
	if name := f.target.service(); name != "" {
		svc := t.e.service(name)
		if svc == nil {
			return &RefusedError{Code: CodeUnreachable, Side: t.e.side, Peer: t.peer.ID, Target: f.target.String(), Rule: f.decision().Rule, Reason: "no such service here"}
		}
		if d := f.decision(); d.Inspect {
			return &RefusedError{Code: CodeDenied, Side: t.e.side, Peer: t.peer.ID, Target: f.target.String(), Rule: d.Rule, Reason: "rules on content do not apply to services"}
		}
		if err := writeFrame(s, replyFrame{Version: wireVersion}); err != nil {
			return t.flowError(err)
		}
		return svc.give(newFlowConn(f, s))
	}
	addrs, err := t.e.resolve(f)
	if err != nil {
		return err
	}
	if f.inspects() {
		return t.deliverInspected(f, s, addrs)
	}
	if f.decision().Inspect {
		return t.e.refuse(f, CodeDenied, "rules on content apply to TCP only", nil)
	}
	far, err := t.e.dial(f, addrs)
	if err != nil {
		return err
	}
	if err = f.attach(nil, far); err == nil {
		err = t.flowError(writeFrame(s, replyFrame{Version: wireVersion}))
	}
	if err != nil {
		abortConn(far)
		return err
	}
	if f.target.proto == UDP {
		relayPackets(&packetConn{flowConn: newFlowConn(f, s)}, far)
		return nil
	}
	_, _, _ = Relay(t.e.ctx, newFlowConn(f, s), far)
	return nil
}

// deliverInspected answers the opener first, so that it sends, and dials only
// when its first bytes have passed.
func (t *tunnel) deliverInspected(f *flow, s mux.Stream, addrs []netip.Addr) error {
	if err := writeFrame(s, replyFrame{Version: wireVersion}); err != nil {
		return t.flowError(err)
	}
	c := newFlowConn(f, s)
	head, err := c.readHead()
	var far net.Conn
	if err == nil {
		far, err = t.e.dial(f, addrs)
	}
	if err == nil {
		if err = f.attach(nil, far); err == nil {
			_, err = far.Write(head)
		}
		if err != nil {
			abortConn(far)
		}
	}
	if err != nil {
		var re *RefusedError
		rule := ""
		if errors.As(err, &re) {
			rule = re.Rule
		}
		f.reset(codeOf(err), rule, err)
		return nil
	}
	_, _, _ = Relay(t.e.ctx, c, far)
	return nil
}

func (e *endpoint) refuse(f *flow, code Code, why string, err error) error {
	return &RefusedError{Code: code, Side: e.side, Peer: f.t.peer.ID, Target: f.target.String(), Rule: f.decision().Rule, Reason: why, Err: err}
}

// resolve resolves once and has every answer pass the policy: one bad answer
// refuses them all.
func (e *endpoint) resolve(f *flow) ([]netip.Addr, error) {
	ctx, cancel := f.t.context(dialTimeout)
	defer cancel()
	addrs := []netip.Addr{f.target.addr}
	if !f.target.addr.IsValid() {
		// The final dot keeps search domains out of it.
		found, err := e.cfg.Resolver.LookupNetIP(ctx, "ip", f.target.host+".")
		if err != nil || len(found) == 0 {
			e.cfg.Logger.Info("resolve", "event", "resolve_failed", "host", f.target.host, "error", err)
			return nil, e.refuse(f, CodeUnreachable, "the name does not resolve", nil)
		}
		addrs = addrs[:0]
		for _, a := range found {
			addrs = append(addrs, a.Unmap())
		}
	}
	for _, a := range addrs {
		if err := f.decide(func(q *Flow) { q.Addr = a }); err != nil {
			return nil, err
		}
		if e.isOwn(netip.AddrPortFrom(a, f.target.port)) {
			return nil, e.refuse(f, CodeDenied, "the destination is this gateway itself", nil)
		}
	}
	return addrs, nil
}

// dial dials the literals that resolve let pass, until one answers.
func (e *endpoint) dial(f *flow, addrs []netip.Addr) (net.Conn, error) {
	ctx, cancel := f.t.context(dialTimeout)
	defer cancel()
	var last error
	for _, a := range addrs[:min(len(addrs), maxDialAttempts)] {
		if err := f.decide(func(q *Flow) { q.Addr = a }); err != nil {
			return nil, err
		}
		dst := netip.AddrPortFrom(a, f.target.port)
		if err := e.takeFleet(ctx, f, dst); err != nil {
			return nil, err
		}
		c, err := e.cfg.Dial(ctx, f.target.proto, dst)
		if err == nil {
			return c, nil
		}
		last = err
	}
	e.cfg.Logger.Info("dial", "event", "dial_failed", "target", f.target.String(), "error", last)
	return nil, e.refuse(f, CodeUnreachable, "the destination does not answer", nil)
}

// maxDialAttempts is how many of a name's addresses are tried.
const maxDialAttempts = 4
