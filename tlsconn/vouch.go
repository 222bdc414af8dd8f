package tlsconn

import (
	"fmt"
	"time"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// askGateway has the node appraise the gateway's own evidence, on a stream that
// the node opens: at the start, and again when four fifths of the result's time
// have passed or the application asks. Without good evidence the tunnel is cut.
func (t *tunnel) askGateway() {
	t.mu.Lock()
	busy := t.asking
	t.asking, t.askAgain = true, busy // what is asked meanwhile is not lost
	t.mu.Unlock()
	if busy {
		return
	}
	t.spawn(func() {
		until, err := t.appraiseGateway()
		t.mu.Lock()
		again := t.askAgain
		t.asking, t.askAgain = false, false
		t.mu.Unlock()
		if err != nil {
			t.cut(CodeNotAttested, "the gateway's evidence: "+err.Error(), err)
			return
		}
		t.mu.Lock()
		t.gateUntil = until
		t.mu.Unlock()
		t.e.event(TunnelEvent{Type: "attested", Peer: t.peer.ID, Remote: t.remote(), Reason: "the gateway, until " + until.UTC().Format(time.RFC3339)})
		t.openFlows()
		if again {
			t.askGateway()
			return
		}
		timer := time.NewTimer(until.Sub(t.e.now()) / 5 * 4)
		defer timer.Stop()
		select {
		case <-timer.C:
			t.mu.Lock()
			current := t.gateUntil.Equal(until)
			t.mu.Unlock()
			if current {
				t.askGateway()
			}
		case <-t.done:
		}
	})
}

func (t *tunnel) appraiseGateway() (time.Time, error) {
	ctx, cancel := t.context(t.e.cfg.Limits.AttestTimeout)
	defer cancel()
	s, err := t.sess.Open(ctx)
	if err != nil {
		return time.Time{}, err
	}
	defer bindStream(ctx, s)()
	if err := writeFrame(s, openFrame{Version: wireVersion, Kind: kindGateway}); err != nil {
		return time.Time{}, err
	}
	until, err := t.e.verify(ctx, t.Peer(), s, t.binder(gatewayExporter))
	if err == nil && !t.e.now().Before(until) {
		err = fmt.Errorf("the Attestation Result ended already at %s", until.UTC().Format(time.RFC3339))
	}
	if err != nil {
		_ = s.Reset(uint32(CodeNotAttested))
		return time.Time{}, err
	}
	return until, s.Close()
}

// vouch gives the gateway's own evidence on a stream that the node opened, one
// at a time: the node may ask again before this end has put the last one away.
func (t *tunnel) vouch(s mux.Stream) {
	if t.e.attest == nil {
		_ = s.Reset(uint32(CodeNotAttested))
		return
	}
	ctx, cancel := t.context(t.e.cfg.Limits.AttestTimeout)
	defer cancel()
	stop := bindStream(ctx, s)
	t.vouching.Lock() // held for AttestTimeout at most
	err := ctx.Err()
	if err == nil {
		err = t.e.attest(ctx, s, t.binder(gatewayExporter))
	}
	t.vouching.Unlock()
	stop()
	if err != nil {
		_ = s.Reset(uint32(CodeNotAttested))
		t.e.cfg.Logger.Warn("evidence", "event", "evidence.failed", "peer", t.peer.ID.String(), "error", err)
		return
	}
	_ = s.Close()
}
