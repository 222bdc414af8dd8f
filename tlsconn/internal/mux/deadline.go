package mux

import (
	"errors"
	"time"
)

// deadline is a point in time after which a direction's calls fail. Its fields
// are under the stream's lock.
type deadline struct {
	timer  *time.Timer
	past   bool
	cancel chan struct{} // closed when past; nil until someone waits
}

// channel returns what is closed when a deadline passes, now or after it is set
// anew. It is called with the lock held.
func (d *deadline) channel() <-chan struct{} {
	if d.cancel == nil {
		d.cancel = make(chan struct{})
	}
	return d.cancel
}

func (st *stream) setLimit(h *half, t time.Time) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	d := &h.limit
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer, d.past = nil, false
	if t.IsZero() || st.gone {
		return nil
	}
	pass := func() {
		d.timer, d.past = nil, true
		if d.cancel != nil {
			close(d.cancel)
			d.cancel = nil
		}
		signal(h.wake)
	}
	wait := time.Until(t)
	if wait <= 0 {
		pass()
		return nil
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		if d.timer == timer {
			pass()
		}
	})
	d.timer = timer
	return nil
}

func (st *stream) SetReadDeadline(t time.Time) error  { return st.setLimit(&st.in, t) }
func (st *stream) SetWriteDeadline(t time.Time) error { return st.setLimit(&st.out, t) }
func (st *stream) SetDeadline(t time.Time) error {
	return errors.Join(st.SetReadDeadline(t), st.SetWriteDeadline(t))
}
