package tlsconn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// Times of the tunnel's own protocol.
const (
	keepAlive    = 15 * time.Second
	writeTimeout = 20 * time.Second
	// cutGrace is how long a cut tries to write why to the peer, and byeGrace how
	// long it leaves the peer to read it. Nothing else passes meanwhile.
	cutGrace = 200 * time.Millisecond
	byeGrace = 500 * time.Millisecond
	// confirmTimeout is how long a flow's record waits for the far end's counts.
	// It is looked at every watchInterval.
	confirmTimeout = 2 * time.Second
)

// tunnel is one authenticated connection with its streams.
type tunnel struct {
	e    *endpoint
	peer Peer // AttestedUntil is under mu
	node ID   // the node's end, by certificate
	conn *secureConn
	sess mux.Session
	caps *nodeCaps
	up   time.Time

	ctl     chan controlFrame
	endsDue chan struct{} // has a token when ends are to be written
	ready   chan struct{} // closed when flows may pass
	done    chan struct{} // closed when cut or closed
	drainCh chan struct{} // closed when the far end drains
	tasks   sync.WaitGroup

	emu    sync.Mutex
	ends   []byte    // frames with the counts of flows that ended, which wait for company
	endsAt time.Time // when some were written last

	mu      sync.Mutex
	isReady bool
	needs   bool // an Attestation Result is required
	until   time.Time
	asked   time.Time // when an outstanding re-attestation was asked for
	// What was asked for while an exchange was under way.
	reattestAgain, attestAgain, askAgain bool
	vouching                             sync.Mutex // one exchange of the gateway's evidence at a time
	attesting                            bool
	asking                               bool      // the gateway's own evidence is under way
	gateUntil                            time.Time // when the node's result about the gateway ends
	farReady                             bool      // the gateway has let flows in, at the node
	draining                             bool
	farDrains                            bool
	refused                              *RefusedError // the node's evidence was; the cut follows
	err                                  *RefusedError
	flows                                map[string]*flow
	pending                              map[string]*pendingRecord // ended here, the far end's counts not known
	ended                                map[string]controlFrame   // the far end's counts of flows that live here
	awaited                              map[mux.Stream]time.Time  // streams that must bring a frame by then
}

func newTunnel(e *endpoint, conn *secureConn, peer Peer) (*tunnel, error) {
	t := &tunnel{e: e, peer: peer, node: peer.ID, conn: conn, up: time.Now(),
		ctl: make(chan controlFrame, controlQueue), endsDue: make(chan struct{}, 1), ready: make(chan struct{}), done: make(chan struct{}), drainCh: make(chan struct{}),
		flows: map[string]*flow{}, pending: map[string]*pendingRecord{}, ended: map[string]controlFrame{}, awaited: map[mux.Stream]time.Time{}}
	if e.side == AtNode {
		t.node = e.cfg.Identity.ID()
	}
	t.caps = e.caps.get(t.node, t.up)
	l := e.cfg.Limits
	s, err := mux.New(conn, e.side == AtNode, mux.Options{MaxStreams: uint32(l.MaxStreams), Window: uint32(l.StreamWindow), KeepAlive: keepAlive, WriteTimeout: writeTimeout, LimitCode: uint32(CodeLimit)})
	if err != nil {
		conn.abort()
		return nil, err
	}
	t.sess = s
	return t, nil
}

// run serves the tunnel until it ends. ctl is the control stream after the
// hellos.
func (t *tunnel) run(ctl mux.Stream) {
	t.spawn(func() { t.readControl(ctl) })
	t.spawn(func() { t.writeControl(ctl) })
	t.spawn(t.acceptLoop)
	<-t.done
}

// markReady opens the tunnel for flows.
func (t *tunnel) markReady(until time.Time) {
	t.mu.Lock()
	t.until, t.asked, t.farReady = until, time.Time{}, true
	t.mu.Unlock()
	t.openFlows()
	if !until.IsZero() {
		t.e.event(TunnelEvent{Type: "attested", Peer: t.peer.ID, Remote: t.remote(), Reason: "until " + until.UTC().Format(time.RFC3339)})
	}
}

// openFlows lets flows pass once both ends have what they ask of the other.
func (t *tunnel) openFlows() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isReady || t.err != nil || !t.farReady || t.asksGateway() && t.gateUntil.IsZero() {
		return
	}
	t.isReady = true
	close(t.ready)
}

// asksGateway reports whether this end is a node that wants the gateway's own
// evidence.
func (t *tunnel) asksGateway() bool { return t.e.side == AtNode && t.e.verify != nil }

func (t *tunnel) remote() string { return t.conn.RemoteAddr().String() }

// Peer returns the far end with its attestation state.
func (t *tunnel) Peer() Peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peer
	p.AttestedUntil = t.until
	return p
}

// admits reports whether a flow may pass now, opened by this end or by the other.
func (t *tunnel) admits(opener bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.admitsLocked(opener)
}

func (t *tunnel) admitsLocked(opener bool) error {
	switch {
	case t.err != nil:
		return t.err
	case !t.isReady || t.refused != nil:
		return ErrNotAttested
	case t.draining || opener && t.farDrains:
		return ErrDraining
	case t.enforces() && !t.e.now().Before(t.until):
		return fmt.Errorf("%w since %s", ErrNotAttested, t.until.UTC().Format(time.RFC3339))
	case t.asksGateway() && !t.e.now().Before(t.gateUntil):
		return fmt.Errorf("%w: the gateway, since %s", ErrNotAttested, t.gateUntil.UTC().Format(time.RFC3339))
	}
	return nil
}

// enforces reports whether this end holds the far end to its Attestation Result.
// The node's clock has no say in it.
func (t *tunnel) enforces() bool { return t.needs && t.e.side == AtGateway }

// check re-evaluates the tunnel's right to be: trust and attestation. It is
// called whenever something changed, and every half second.
func (t *tunnel) check() {
	if err := t.e.cfg.Trust.check(t.peer.chains); err != nil {
		t.cut(codeOf(err), err.Error(), err)
		return
	}
	t.mu.Lock()
	lapsed := t.enforces() && t.isReady && !t.e.now().Before(t.until)
	overdue := !t.asked.IsZero() && time.Since(t.asked) > t.e.cfg.Limits.AttestTimeout
	until := t.until
	if t.asksGateway() && t.isReady && !t.e.now().Before(t.gateUntil) {
		lapsed, until = true, t.gateUntil
	}
	t.mu.Unlock()
	switch {
	case lapsed:
		t.cut(CodeNotAttested, "the Attestation Result ended at "+until.UTC().Format(time.RFC3339), nil)
	case overdue:
		t.cut(CodeNotAttested, "no evidence came when it was asked for", nil)
	}
}

// cut ends the tunnel at once: streams are reset with the code, dialled
// destinations with RST, and the reason is audited. It is idempotent.
func (t *tunnel) cut(code Code, reason string, cause error) {
	t.cutFrom(t.e.side, code, reason, cause)
}

func (t *tunnel) cutFrom(side Side, code Code, reason string, cause error) {
	t.mu.Lock()
	if t.err != nil {
		t.mu.Unlock()
		return
	}
	if t.refused != nil && (side != t.e.side || code == CodeReset || code == CodeNotAttested) { // whoever comes first, the cause is the refusal
		side, code, reason, cause = t.e.side, t.refused.Code, t.refused.Reason, t.refused.Err
	}
	t.err = &RefusedError{Code: code, Side: side, Peer: t.peer.ID, Reason: reason, Err: cause}
	if t.err.Err != nil {
		t.err.Reason = ""
	}
	flows := slices.Collect(maps.Values(t.flows))
	pending := t.pending
	t.pending = map[string]*pendingRecord{}
	close(t.done)
	t.mu.Unlock()

	timer := time.AfterFunc(cutGrace, t.conn.abort)
	go func() {
		_ = t.sess.Abort(uint32(max(code, CodeDenied)))
		timer.Stop()
	}()
	for _, f := range flows {
		f.end(code, "", fmt.Errorf("tunnel: %s", reason))
	}
	for _, p := range pending {
		p.emit(nil)
	}
	t.e.remove(t)
	typ := "cut"
	if code == CodeClosed || code == CodeReset || code == CodeDraining {
		typ = "down"
	}
	t.e.event(TunnelEvent{Type: typ, Peer: t.peer.ID, Remote: t.remote(), Code: code, Reason: reason})
}

// leave ends a tunnel that has no flows any more: the far end is told after the
// counts of the last flow, and closes.
func (t *tunnel) leave(reason string) {
	t.send(controlFrame{Type: ctlBye, Reason: reason})
	timer := time.NewTimer(confirmTimeout)
	defer timer.Stop()
	select {
	case <-t.done:
	case <-timer.C:
		t.cut(CodeDraining, reason, nil)
	}
}

// idle reports whether no flow is live or waits for its counts.
func (t *tunnel) idle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flows)+len(t.pending) == 0
}

// failure returns why the tunnel ended, or nil.
func (t *tunnel) failure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		return nil
	}
	return t.err
}

// spawn runs do in a goroutine that wait waits for, unless the tunnel has ended.
func (t *tunnel) spawn(do func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return false
	}
	t.tasks.Go(do)
	return true
}

// wait, after a cut, returns when all of the tunnel's goroutines have ended.
func (t *tunnel) wait() { t.tasks.Wait() }

// acceptLoop takes the streams that the far end opens.
func (t *tunnel) acceptLoop() {
	for {
		s, err := t.sess.Accept()
		if err != nil {
			t.lost(err)
			return
		}
		if !t.spawn(func() { t.serveStream(s) }) {
			return
		}
	}
}

func (t *tunnel) serveStream(s mux.Stream) {
	growStack()
	t.await(s, t.e.cfg.Limits.OpenTimeout)
	var f openFrame
	err := readFrame(s, &f)
	t.came(s)
	if err != nil {
		_ = s.Reset(uint32(codeOf(err)))
		if errors.Is(err, ErrProtocol) {
			t.lost(err)
		}
		return
	}
	switch {
	case f.Kind == kindFlow:
		t.serveFlow(s, f)
	case f.Kind == kindAttest && t.e.side == AtGateway:
		t.appraise(s)
	case f.Kind == kindGateway && t.e.side == AtGateway:
		t.vouch(s)
	default:
		t.lost(fmt.Errorf("%w: stream kind %.20q", ErrProtocol, f.Kind))
	}
}

// await bounds the wait for a stream's next frame, until came: the endpoint's tick
// resets the stream, which costs no timer for each flow.
func (t *tunnel) await(s mux.Stream, d time.Duration) {
	by := time.Now().Add(d)
	t.mu.Lock()
	t.awaited[s] = by
	t.mu.Unlock()
}

func (t *tunnel) came(s mux.Stream) {
	t.mu.Lock()
	delete(t.awaited, s)
	t.mu.Unlock()
}

// startAsNode opens the control stream and says hello; it returns whether the
// gateway asks for evidence.
func (t *tunnel) startAsNode(ctx context.Context) (mux.Stream, error) {
	s, err := t.sess.Open(ctx)
	if err != nil {
		return nil, err
	}
	_ = s.SetDeadline(time.Now().Add(t.e.cfg.Limits.HandshakeTimeout))
	if err := writeFrame(s, openFrame{Version: wireVersion, Kind: kindControl}); err != nil {
		return nil, err
	}
	if err := writeFrame(s, controlFrame{Version: wireVersion, Type: ctlHello, Policy: t.e.cfg.Policy.current().serial}); err != nil {
		return nil, err
	}
	var hello controlFrame
	if err := readFrame(s, &hello); err != nil {
		return nil, err
	}
	if hello.Type != ctlHello {
		return nil, fmt.Errorf("%w: expected hello", ErrProtocol)
	}
	t.needs = hello.Attest
	return s, s.SetDeadline(time.Time{})
}

// startAsGateway waits for the node's control stream and answers its hello.
func (t *tunnel) startAsGateway() (mux.Stream, error) {
	timer := time.AfterFunc(t.e.cfg.Limits.OpenTimeout, t.conn.abort)
	defer timer.Stop()
	s, err := t.sess.Accept()
	if err != nil {
		return nil, err
	}
	_ = s.SetDeadline(time.Now().Add(t.e.cfg.Limits.OpenTimeout))
	var open openFrame
	if err := readFrame(s, &open); err != nil {
		return nil, err
	}
	var hello controlFrame
	if err := readFrame(s, &hello); err != nil {
		return nil, err
	}
	if open.Kind != kindControl || hello.Type != ctlHello {
		return nil, fmt.Errorf("%w: the first stream is not a control stream", ErrProtocol)
	}
	t.needs = t.e.verify != nil
	if err := writeFrame(s, controlFrame{Version: wireVersion, Type: ctlHello, Attest: t.needs, Policy: t.e.cfg.Policy.current().serial}); err != nil {
		return nil, err
	}
	return s, s.SetDeadline(time.Time{})
}
