package tlsconn

import (
	"log/slog"
	"time"
)

// Side names an end of a tunnel.
type Side string

// FlowRecord is the audit record of one flow, allowed or refused, as one end
// saw it. The same Flow names the same flow in both ends' records.
type FlowRecord struct {
	Flow          string        `json:"flow"`
	Side          Side          `json:"side"`      // whose record this is
	Node          ID            `json:"node"`      // the node, by its certificate
	Peer          ID            `json:"peer"`      // the far end
	Serial        string        `json:"serial"`    // of the far end's certificate, hex
	Direction     Direction     `json:"direction"` //
	Proto         string        `json:"proto"`
	Target        string        `json:"target"`
	Addr          string        `json:"addr,omitempty"` // what was dialled
	Rule          string        `json:"rule,omitempty"`
	PolicySerial  uint64        `json:"policy_serial"`
	Verdict       string        `json:"verdict"`
	DecidedBy     Side          `json:"decided_by"`
	Code          Code          `json:"code"`
	End           string        `json:"end"` // Code's name; "ok" is a clean end both ways
	Reason        string        `json:"reason,omitempty"`
	Up            uint64        `json:"up"`                // bytes from the end that opened the flow
	Down          uint64        `json:"down"`              // bytes to it
	Dropped       uint64        `json:"dropped,omitempty"` // datagrams beyond Limits.PacketsPerSecond, at this end
	Truncated     bool          `json:"truncated"`
	Start         time.Time     `json:"start"`
	Duration      time.Duration `json:"duration"` // nanoseconds
	AttestedUntil time.Time     `json:"attested_until,omitzero"`
}

// MarshalText writes the ID as its URI.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads an ID; the empty text is the zero ID.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	p, err := ParseID(string(b))
	if err == nil {
		*id = p
	}
	return err
}

// TunnelEvent is one step in a tunnel's life.
type TunnelEvent struct {
	Type   string // "up", "refused", "attested", "reattest", "drain", "cut", "down"
	Side   Side
	Peer   ID     // zero when it was not authenticated
	Remote string // network address
	Code   Code
	Reason string
	At     time.Time
}

func (e *endpoint) event(ev TunnelEvent) {
	ev.Side, ev.At = e.side, time.Now()
	ev.Reason = clip(ev.Reason)
	level := slog.LevelInfo
	if ev.Code != CodeOK {
		level = slog.LevelWarn
	}
	e.cfg.Logger.Log(e.ctx, level, "tunnel "+ev.Type, slog.String("event", "tunnel."+ev.Type), slog.String("side", string(ev.Side)),
		slog.String("peer", ev.Peer.String()), slog.String("remote", ev.Remote), slog.String("code", ev.Code.String()), slog.String("reason", ev.Reason))
	if e.cfg.Events != nil {
		e.cfg.Events(ev)
	}
}

func (e *endpoint) audit(r FlowRecord) {
	r.End = r.Code.String()
	r.Reason = clip(r.Reason)
	level := slog.LevelInfo
	if r.Verdict != VerdictAllowed || r.Truncated {
		level = slog.LevelWarn
	}
	if e.cfg.Logger.Enabled(e.ctx, level) {
		e.logFlow(level, r)
	}
	if e.cfg.Audit != nil {
		e.cfg.Audit(r)
	}
}

func (e *endpoint) logFlow(level slog.Level, r FlowRecord) {
	e.cfg.Logger.Log(e.ctx, level, "flow", slog.String("event", "flow."+r.Verdict), slog.String("flow", r.Flow), slog.String("side", string(r.Side)),
		slog.String("node", r.Node.String()), slog.String("peer", r.Peer.String()), slog.String("target", r.Target), slog.String("addr", r.Addr), slog.String("rule", r.Rule),
		slog.Uint64("policy_serial", r.PolicySerial), slog.String("decided_by", string(r.DecidedBy)), slog.String("end", r.End), slog.String("reason", r.Reason),
		slog.Uint64("up", r.Up), slog.Uint64("down", r.Down), slog.Bool("truncated", r.Truncated), slog.Duration("duration", r.Duration))
}
