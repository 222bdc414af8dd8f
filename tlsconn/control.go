package tlsconn

import (
	"bufio"
	"errors"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

const (
	// controlQueue is how many control frames may wait; a peer that lets more
	// pile up does not read, and is cut.
	controlQueue = 4096
	// endsDelay lies between two writes of flows' counts, unless there are
	// endsBatch bytes of them; endsQueue is how many bytes may wait.
	endsDelay = 5 * time.Millisecond
	endsBatch = 4 << 10
	endsQueue = 1 << 20
)

// send queues a control frame.
func (t *tunnel) send(f controlFrame) {
	f.Version = wireVersion
	select {
	case t.ctl <- f:
	case <-t.done:
	default:
		t.cut(CodeProtocol, "peer does not read its control stream", nil)
	}
}

// sendEnd queues a flow's counts. They are not urgent: those of many flows go
// together.
func (t *tunnel) sendEnd(f controlFrame) {
	f.Version, f.Type = wireVersion, ctlEnd
	t.emu.Lock()
	first := len(t.ends) == 0
	b, err := appendFrame(t.ends, f)
	if err == nil {
		t.ends = b
	}
	n, wait := len(t.ends), endsDelay-time.Since(t.endsAt)
	t.emu.Unlock()
	switch {
	case err != nil:
		t.lost(err)
	case n > endsQueue:
		t.cut(CodeProtocol, "peer does not read its control stream", nil)
	case n >= endsBatch, first && wait <= 0:
		t.wakeEnds()
	case first:
		time.AfterFunc(wait, t.wakeEnds)
	}
}

func (t *tunnel) wakeEnds() {
	select {
	case t.endsDue <- struct{}{}:
	default:
	}
}

func (t *tunnel) takeEnds() []byte {
	t.emu.Lock()
	defer t.emu.Unlock()
	b := t.ends
	if b != nil {
		t.ends, t.endsAt = nil, time.Now()
	}
	return b
}

func (t *tunnel) writeControl(s mux.Stream) {
	for {
		var err error
		var b []byte
		select {
		case f := <-t.ctl: // counts that wait go before it
			b, err = appendFrame(t.takeEnds(), f)
			for err == nil && len(b) < maxFrame && len(t.ctl) > 0 { // what waits goes together
				b, err = appendFrame(b, <-t.ctl)
			}
		case <-t.endsDue:
			b = t.takeEnds()
		case <-t.done:
			return
		}
		if err == nil {
			_, err = s.Write(b)
		}
		if err != nil {
			t.lost(err)
			return
		}
	}
}

// lost ends the tunnel because of an error on one of its own streams.
func (t *tunnel) lost(err error) {
	var re *mux.ResetError
	switch {
	case errors.As(err, &re) && re.Remote && re.Session:
		t.cutFrom(other(t.e.side), Code(re.Code), "the far end cut the tunnel", nil)
	case errors.Is(err, ErrProtocol):
		t.cut(CodeProtocol, err.Error(), err)
	default:
		t.cut(CodeReset, "connection lost", err)
	}
}

func other(s Side) Side {
	if s == AtNode {
		return AtGateway
	}
	return AtNode
}

func (t *tunnel) readControl(s mux.Stream) {
	r := bufio.NewReader(s)
	for {
		var f controlFrame
		if err := readFrame(r, &f); err != nil {
			t.lost(err)
			return
		}
		if err := t.control(f); err != nil {
			t.lost(err)
			return
		}
	}
}

func (t *tunnel) control(f controlFrame) error {
	node := t.e.side == AtNode
	switch {
	case f.Type == ctlReattest && node:
		t.startAttest()
	case f.Type == ctlAttested && node && f.Until != nil:
		t.markReady(*f.Until)
	case f.Type == ctlEnd:
		t.farEnd(f)
	case f.Type == ctlDrain:
		t.mu.Lock()
		first := !t.farDrains
		t.farDrains = true
		t.mu.Unlock()
		if first {
			t.e.event(TunnelEvent{Type: "drain", Peer: t.peer.ID, Remote: t.remote(), Reason: "asked by the far end"})
			close(t.drainCh)
		}
	case f.Type == ctlBye:
		t.cutFrom(other(t.e.side), CodeDraining, "the far end left: "+clip(f.Reason), nil)
	default:
		return fmt.Errorf("%w: control frame %.20q", ErrProtocol, f.Type)
	}
	return nil
}
