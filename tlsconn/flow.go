package tlsconn

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
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
	dropped atomic.Uint64 // datagrams

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
	t.mu.Lock()
	err := t.admitsLocked(f.opener)
	if err == nil && (t.flows[f.id] != nil || t.pending[f.id] != nil) {
		err = fmt.Errorf("%w: flow %s exists", ErrProtocol, f.id)
	}
	if err == nil {
		t.flows[f.id] = f
	}
	t.mu.Unlock()
	if err != nil {
		return err
	}
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
	r.Verdict, r.Truncated = VerdictDenied, f.out.Load() > 0
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
	r.Up, r.Down, r.Dropped = f.in.Load(), f.out.Load(), f.dropped.Load()
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
	p := &pendingRecord{e: t.e, r: r, since: time.Now()}
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
		t.sendEnd(controlFrame{Flow: f.id, Up: r.Up, Down: r.Down, Code: code})
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
	since time.Time
}

// emit completes the record with the far end's counts; without them, or when
// they differ, the flow counts as truncated. Who took it off the tunnel calls it.
func (p *pendingRecord) emit(far *controlFrame) {
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
}

// late ends what has waited too long: records for the far end's counts, and
// streams for a frame.
func (t *tunnel) late(now time.Time) {
	var late []*pendingRecord
	t.mu.Lock()
	for id, p := range t.pending {
		if now.Sub(p.since) > confirmTimeout {
			late = append(late, p)
			delete(t.pending, id)
		}
	}
	var silent []mux.Stream
	for s, by := range t.awaited {
		if now.After(by) {
			silent = append(silent, s)
		}
	}
	t.mu.Unlock()
	for _, p := range late {
		p.emit(nil)
	}
	for _, s := range silent {
		go func() { _ = s.Reset(uint32(CodeTimeout)) }()
	}
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
