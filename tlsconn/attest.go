package tlsconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// The labels of the keying material that evidence is bound to, by whose evidence
// it is, so that neither end's can be reflected as the other's.
const (
	nodeExporter    = "EXPORTER-trusttree-attest-node"
	gatewayExporter = "EXPORTER-trusttree-attest-gateway"
)

// minBindContext is the shortest verifier nonce in bytes.
const minBindContext = 16

// attestFunc and verifyFunc are the two halves of the evidence exchange; the
// configurations describe them.
type (
	attestFunc = func(ctx context.Context, stream io.ReadWriter, bind func(context []byte) ([]byte, error)) error
	verifyFunc = func(ctx context.Context, peer Peer, stream io.ReadWriter, bind func(context []byte) ([]byte, error)) (until time.Time, err error)
)

// binder returns what binds the evidence of one side to this session.
func (t *tunnel) binder(label string) func([]byte) ([]byte, error) {
	return func(context []byte) ([]byte, error) { return t.bind(label, context) }
}

// bind returns 32 bytes that only the two ends of this TLS session can compute
// (RFC 8446 7.5). Any failure means that there must be no evidence.
func (t *tunnel) bind(label string, context []byte) ([]byte, error) {
	if len(context) < minBindContext {
		return nil, fmt.Errorf("tlsconn: bind: context of %d bytes, a verifier nonce has at least %d", len(context), minBindContext)
	}
	if err := t.failure(); err != nil {
		return nil, err
	}
	cs := t.conn.ConnectionState()
	b, err := cs.ExportKeyingMaterial(label, context, 32)
	if err != nil {
		return nil, fmt.Errorf("tlsconn: bind: %w", err)
	}
	return b, nil
}

// startAttest runs the node's half on a stream of its own, once at a time. What
// is asked while one runs is not lost: the gateway has had that one's answer,
// and wants newer evidence.
func (t *tunnel) startAttest() {
	t.mu.Lock()
	busy := t.attesting
	t.attesting, t.attestAgain = true, busy
	t.mu.Unlock()
	if busy {
		return
	}
	t.spawn(func() {
		err := t.attest()
		t.mu.Lock()
		again := t.attestAgain
		t.attesting, t.attestAgain = false, false
		t.mu.Unlock()
		switch {
		case err != nil:
			t.cut(CodeNotAttested, "evidence exchange failed: "+err.Error(), err)
		case again:
			t.startAttest()
		}
	})
}

func (t *tunnel) attest() error {
	if t.e.attest == nil {
		return errors.New("the gateway asks for evidence and no Attest hook is configured")
	}
	ctx, cancel := t.context(t.e.cfg.Limits.AttestTimeout)
	defer cancel()
	s, err := t.sess.Open(ctx)
	if err != nil {
		return err
	}
	defer bindStream(ctx, s)()
	if err := writeFrame(s, openFrame{Version: wireVersion, Kind: kindAttest}); err != nil {
		return err
	}
	if err := t.e.attest(ctx, s, t.binder(nodeExporter)); err != nil {
		_ = s.Reset(uint32(CodeNotAttested))
		return err
	}
	return s.Close()
}

// appraise runs the gateway's half on a stream that the node opened.
func (t *tunnel) appraise(s mux.Stream) {
	t.mu.Lock()
	busy := t.attesting || t.refused != nil
	t.attesting = true
	t.mu.Unlock()
	if busy || t.e.verify == nil {
		_ = s.Reset(uint32(CodeProtocol))
		return
	}
	ctx, cancel := t.context(t.e.cfg.Limits.AttestTimeout)
	defer cancel()
	stop := bindStream(ctx, s)
	until, err := t.e.verify(ctx, t.Peer(), s, t.binder(nodeExporter))
	stop()
	t.mu.Lock()
	t.attesting = false
	t.mu.Unlock()
	if err == nil && !t.e.now().Before(until) {
		err = fmt.Errorf("the Attestation Result ended already at %s", until.UTC().Format(time.RFC3339))
	}
	if err != nil {
		t.refuse(s, err)
		return
	}
	_ = s.Close()
	t.markReady(until)
	t.send(controlFrame{Type: ctlAttested, Until: &until})
	t.scheduleReattest(until)
	t.mu.Lock()
	again := t.reattestAgain
	t.reattestAgain = false
	t.mu.Unlock()
	if again {
		t.reattest("on demand")
	}
}

// refuse ends a tunnel whose node was not affirmed. Nothing passes from now on,
// but what the Verify hook wrote last, which may be why and what to do, is left
// to the node to read: a reset would overtake it. The cut follows when the node
// has closed the stream, or after byeGrace.
func (t *tunnel) refuse(s mux.Stream, err error) {
	reason := "appraisal: " + err.Error()
	t.mu.Lock()
	if t.err == nil {
		t.refused = &RefusedError{Code: CodeNotAttested, Side: t.e.side, Peer: t.peer.ID, Reason: reason, Err: err}
	}
	flows := slices.Collect(maps.Values(t.flows))
	t.mu.Unlock()
	for _, f := range flows {
		f.end(CodeNotAttested, "", fmt.Errorf("tunnel: %s", reason))
	}
	if s.CloseWrite() == nil {
		_ = s.SetReadDeadline(time.Now().Add(byeGrace))
		_, _ = io.Copy(io.Discard, s)
	}
	_ = s.Reset(uint32(CodeNotAttested))
	t.cut(CodeNotAttested, reason, err)
}

// scheduleReattest asks for new evidence when four fifths of the result's time
// have passed, so that a good node never loses its tunnel.
func (t *tunnel) scheduleReattest(until time.Time) {
	wait := until.Sub(t.e.now()) / 5 * 4
	t.spawn(func() {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
			t.mu.Lock()
			current := t.until.Equal(until)
			t.mu.Unlock()
			if current {
				t.reattest("scheduled")
			}
		case <-t.done:
		}
	})
}

// reattest asks the node for fresh evidence; the tunnel is cut when none comes
// within AttestTimeout. While evidence is awaited that may be older than what
// made somebody ask, the node is asked once more after it.
func (t *tunnel) reattest(why string) {
	t.mu.Lock()
	outstanding := !t.asked.IsZero()
	if !outstanding {
		t.asked = time.Now()
	} else {
		t.reattestAgain = true
	}
	t.mu.Unlock()
	if outstanding {
		return
	}
	t.e.event(TunnelEvent{Type: "reattest", Peer: t.peer.ID, Remote: t.remote(), Reason: why})
	t.send(controlFrame{Type: ctlReattest})
}

// context returns a context that ends with the tunnel.
func (t *tunnel) context(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(t.e.ctx, d)
	stop := make(chan struct{})
	go func() {
		select {
		case <-t.done:
			cancel()
		case <-stop:
		}
	}()
	return ctx, func() { close(stop); cancel() }
}

// bindStream resets a stream when ctx ends; the returned function lets go.
func bindStream(ctx context.Context, s mux.Stream) func() {
	stop := context.AfterFunc(ctx, func() { _ = s.Reset(uint32(CodeTimeout)) })
	return func() { stop() }
}
