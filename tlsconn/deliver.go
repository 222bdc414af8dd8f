package tlsconn

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// open opens a flow to the far end. It returns when the far end's policy has
// admitted it and its destination is reached. first are the flow's first bytes;
// they go with the open frame, unless this end has to inspect them. sent says that
// they may have been taken although there is no flow.
func (t *tunnel) open(ctx context.Context, tg target, first []byte) (conn net.Conn, sent bool, err error) {
	dir := ToCloud
	if t.e.side == AtGateway {
		dir = ToNode
	}
	f := t.newFlow(newFlowID(), dir, tg, true)
	if err := f.admit(); err != nil {
		if !errors.Is(err, ErrDraining) {
			f.refused(err)
		}
		return nil, false, err
	}
	inspects := f.inspects()
	early := first
	if inspects {
		early = nil
	}
	s, sent, err := t.openStream(ctx, f, early)
	if err != nil {
		f.forget()
		if sent || !errors.Is(err, ErrDraining) {
			f.refused(err)
		}
		return nil, sent, err
	}
	c := newFlowConn(f, s)
	if tg.proto == UDP {
		return newPacketConn(c), false, nil
	}
	if inspects {
		c.inspection = &inspection{f: f}
		if _, err := c.Write(first); err != nil {
			f.reset(codeOf(err), "", err)
			return nil, true, err
		}
	}
	return c, false, nil
}

func (t *tunnel) openStream(ctx context.Context, f *flow, first []byte) (_ mux.Stream, sent bool, _ error) {
	s, err := t.sess.Open(ctx)
	if err != nil {
		return nil, false, t.flowError(err)
	}
	if err := f.attach(s, nil); err != nil {
		_ = s.Reset(uint32(CodeClosed))
		return nil, false, err
	}
	stop := bindStream(ctx, s)
	defer stop()
	fail := func(err error) (mux.Stream, bool, error) {
		_ = s.Reset(uint32(CodeClosed))
		if ctx.Err() != nil {
			return nil, sent, context.Cause(ctx)
		}
		return nil, sent, t.flowError(err)
	}
	if err := (&flowConn{f: f}).pay(len(first)); err != nil {
		return fail(err)
	}
	t.await(s, t.e.cfg.Limits.OpenTimeout+dialTimeout)
	defer t.came(s)
	msg, err := appendFrame(nil, openFrame{Version: wireVersion, Kind: kindFlow, Flow: f.id, Proto: f.target.proto, Host: f.target.host, Port: f.target.port})
	if err != nil {
		return fail(err)
	}
	sent = len(first) > 0
	f.out.Add(uint64(len(first)))
	if _, err := s.Write(append(msg, first...)); err != nil {
		return fail(err)
	}
	var r replyFrame
	if err := readFrame(s, &r); err != nil {
		return fail(err)
	}
	if r.Code != CodeOK {
		f.out.Store(0) // none of it was taken
		_ = s.Close()
		return nil, false, &RefusedError{Code: r.Code, Side: other(t.e.side), Peer: t.peer.ID, Target: f.target.String(), Rule: r.Rule, Reason: clip(r.Reason)}
	}
	return s, false, f.attach(s, nil)
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
		svc.give(newFlowConn(f, s))
		return nil
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
		relayPackets(newPacketConn(newFlowConn(f, s)), far)
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
	if err == nil {
		if c.guard = f.guard(); c.guard != nil {
			head, err = c.guard.pass(head)
		}
	}
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
			e.cfg.Logger.Info("resolve", "event", "resolve.failed", "host", f.target.host, "error", err)
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
	e.cfg.Logger.Info("dial", "event", "dial.failed", "target", f.target.String(), "error", last)
	return nil, e.refuse(f, CodeUnreachable, "the destination does not answer", nil)
}

// maxDialAttempts is how many of a name's addresses are tried.
const maxDialAttempts = 4
