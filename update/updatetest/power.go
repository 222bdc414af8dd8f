// Package updatetest cuts the power. It has a power supply that fails at a
// chosen step, a medium with a write cache that loses any subset of what was
// not synced, slots and a boot loader on top of them, and Explore, which runs a
// scenario once for every step at which the power can go. TestBootControl
// checks a boot loader backend of your own.
package updatetest

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
)

// Power is a power supply. Everything in this package that touches a medium
// asks it first. It is safe for concurrent use.
type Power struct {
	mu    sync.Mutex
	limit int                    // steps until the cut; negative for none
	at    func(step string) bool // cuts at the first step that it names; nil for none
	steps []string
}

// CutAt returns a supply that fails at the first step that at reports true for.
// at is asked before each step.
func CutAt(at func(step string) bool) *Power { return &Power{limit: -1, at: at} }

// NewPower returns a supply that fails at step n, counted from 0; negative
// means never.
func NewPower(n int) *Power { return &Power{limit: n} }

type cut struct{ step string }

// Step is one step of the scenario: the power may go instead of it.
func (p *Power) Step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := fmt.Sprintf(format, args...)
	if p.limit >= 0 && len(p.steps) >= p.limit || p.at != nil && p.at(s) {
		panic(cut{s})
	}
	p.steps = append(p.steps, s)
}

// Steps returns what was done so far.
func (p *Power) Steps() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.steps...)
}

// Run runs f and reports at which step the power went, if it did.
func (p *Power) Run(f func()) (step string, gone bool) {
	defer func() {
		if r := recover(); r != nil {
			c, ok := r.(cut)
			if !ok {
				panic(r)
			}
			step, gone = c.step, true
		}
	}()
	f()
	return "", false
}

// Logger returns a logger whose every record is a step: the library logs after
// each change of its own files, so that the power can go there as well.
func (p *Power) Logger() *slog.Logger { return slog.New(handler{p}) }

type handler struct{ p *Power }

func (h handler) Enabled(context.Context, slog.Level) bool { return true }
func (h handler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h handler) WithGroup(string) slog.Handler            { return h }

func (h handler) Handle(_ context.Context, r slog.Record) error {
	detail := ""
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "to" || a.Key == "event" {
			detail += " " + a.Value.String()
		}
		return true
	})
	h.p.Step("log%s", detail)
	return nil
}
