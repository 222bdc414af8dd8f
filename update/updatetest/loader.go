package updatetest

import (
	"context"
	"fmt"
	"testing"

	"github.com/trusttree/trusttree/update"
)

// Loader is a boot loader in memory with slots "a" and "b": an
// update.BootControl whose every change is a step of its power supply.
type Loader struct {
	Power   *Power
	Running update.Slot
	Default update.Slot
	Good    map[update.Slot]bool
	Tries   map[update.Slot]int
}

// NewLoader returns a loader of which slot a runs and is good.
func NewLoader(p *Power) *Loader {
	return &Loader{Power: p, Running: "a", Default: "a", Good: map[update.Slot]bool{"a": true}, Tries: map[update.Slot]int{}}
}

// Slots implements update.BootControl.
func (l *Loader) Slots(ctx context.Context) ([]update.SlotStatus, error) {
	var out []update.SlotStatus
	for _, s := range []update.Slot{"a", "b"} {
		out = append(out, update.SlotStatus{Slot: s, Running: s == l.Running, Good: l.Good[s], Tries: l.Tries[s]})
	}
	return out, ctx.Err()
}

func (l *Loader) change(ctx context.Context, s update.Slot, what string, f func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s != "a" && s != "b" {
		return fmt.Errorf("updatetest: no slot %q", s)
	}
	l.Power.Step("boot %s %s", what, s)
	f()
	l.Power.Step("boot %s %s done", what, s)
	return nil
}

func other(s update.Slot) update.Slot {
	if s == "a" {
		return "b"
	}
	return "a"
}

// Invalidate implements update.BootControl.
func (l *Loader) Invalidate(ctx context.Context, s update.Slot) error {
	return l.change(ctx, s, "invalidate", func() {
		l.Good[s], l.Tries[s] = false, 0
		if l.Good[other(s)] {
			l.Default = other(s)
		}
	})
}

// Arm implements update.BootControl.
func (l *Loader) Arm(ctx context.Context, s update.Slot, tries int) error {
	return l.change(ctx, s, "arm", func() { l.Good[s], l.Tries[s] = false, tries })
}

// MarkGood implements update.BootControl.
func (l *Loader) MarkGood(ctx context.Context, s update.Slot) error {
	return l.change(ctx, s, "good", func() { l.Good[s], l.Tries[s], l.Default = true, 0, s })
}

// Next returns the slot that the next boot takes; empty means none.
func (l *Loader) Next() update.Slot {
	for _, s := range []update.Slot{"a", "b"} {
		if l.Tries[s] > 0 && !l.Good[s] {
			return s
		}
	}
	if l.Good[l.Default] {
		return l.Default
	}
	return ""
}

// Boot boots the next slot and counts its try.
func (l *Loader) Boot() update.Slot {
	l.Running = l.Next()
	if !l.Good[l.Running] && l.Tries[l.Running] > 0 {
		l.Tries[l.Running]--
	}
	return l.Running
}

// TestBootControl checks that a boot loader backend keeps the contract of
// update.BootControl. open returns the backend with one slot running and good
// and the other invalid; it is called again to read what was stored. boot does what the
// boot loader does at power-on and returns the slot that it takes.
func TestBootControl(t *testing.T, open func() update.BootControl, boot func() update.Slot) {
	t.Helper()
	ctx := t.Context()
	status := func() map[update.Slot]update.SlotStatus {
		t.Helper()
		slots, err := open().Slots(ctx)
		if err != nil || len(slots) != 2 {
			t.Fatalf("Slots: %v, %v", slots, err)
		}
		return map[update.Slot]update.SlotStatus{slots[0].Slot: slots[0], slots[1].Slot: slots[1]}
	}
	expect := func(step string, want update.SlotStatus) {
		t.Helper()
		if got := status()[want.Slot]; got != want {
			t.Fatalf("%s: slot %s is %+v, want %+v", step, want.Slot, got, want)
		}
	}
	do := func(step string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
	}
	booted := func(step string, want update.Slot) {
		t.Helper()
		if got := boot(); got != want {
			t.Fatalf("%s: slot %q was booted, want %q", step, got, want)
		}
	}
	var a, b update.Slot
	for s, st := range status() {
		if st.Running {
			a = s
		} else {
			b = s
		}
	}
	expect("fresh", update.SlotStatus{Slot: a, Running: true, Good: true})
	expect("fresh", update.SlotStatus{Slot: b})

	do("invalidate", open().Invalidate(ctx, b))
	booted("invalid slot", a)
	do("arm", open().Arm(ctx, b, 3))
	if got := status()[b]; got.Good || got.Running || got.Tries < 1 || got.Tries > 3 {
		t.Fatalf("armed: slot %s is %+v, want 1 to 3 tries", b, got)
	}
	expect("armed", update.SlotStatus{Slot: a, Running: true, Good: true})
	do("invalidate armed", open().Invalidate(ctx, b))
	booted("armed and invalidated", a)

	do("arm", open().Arm(ctx, b, 2))
	for n := status()[b].Tries; n > 0; n-- { // a loader may give fewer tries
		booted("trial", b)
		expect("trial", update.SlotStatus{Slot: b, Running: true, Tries: n - 1})
	}
	booted("tries used up", a)
	expect("tries used up", update.SlotStatus{Slot: b})
	booted("still", a)

	do("arm", open().Arm(ctx, b, 1))
	booted("trial", b)
	do("rearm while running", open().Arm(ctx, b, 1))
	booted("try given back", b)
	do("good", open().MarkGood(ctx, b))
	do("good again", open().MarkGood(ctx, b))
	expect("good", update.SlotStatus{Slot: b, Running: true, Good: true})
	expect("good", update.SlotStatus{Slot: a, Good: true})
	for range 5 {
		booted("permanent", b)
	}

	do("invalidate old", open().Invalidate(ctx, a))
	do("arm old", open().Arm(ctx, a, 3))
	booted("the other way", a)
	do("invalidate while running", open().Invalidate(ctx, a))
	booted("rolled back", b)
	expect("rolled back", update.SlotStatus{Slot: b, Running: true, Good: true})
	if err := open().Arm(ctx, "no such slot", 1); err == nil {
		t.Fatal("an unknown slot was armed")
	}
}
