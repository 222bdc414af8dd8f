package boot

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"github.com/trusttree/trusttree/update"
)

// environment is a set of variables that a boot loader shares with the system,
// replaced as a whole by one atomic, durable write.
type environment interface {
	load() (map[string]string, error)
	store(map[string]string) error
}

// envControl is a BootControl over an environment: variables tt_default (the
// slot that is booted when no trial is on), tt_SLOT_ok (1 for good) and
// tt_SLOT_tries (boots left of a trial).
type envControl struct {
	env     environment
	slots   [2]update.Slot
	cmdline string
	max     int // tries that the loader can count; more are cut to it
	mu      sync.Mutex
}

func (c *envControl) entry(vars map[string]string, s update.Slot) entry {
	e := entry{good: vars["tt_"+string(s)+"_ok"] == "1"}
	if n, err := strconv.Atoi(vars["tt_"+string(s)+"_tries"]); err == nil && n > 0 && n < 16 && !e.good {
		e.tries = n
	}
	return e
}

// Slots implements update.BootControl.
func (c *envControl) Slots(ctx context.Context) ([]update.SlotStatus, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	running, err := runningSlot(c.cmdline)
	if err != nil {
		return nil, err
	}
	vars, err := c.env.load()
	if err != nil {
		return nil, err
	}
	return statuses(c.slots, running, func(s update.Slot) entry { return c.entry(vars, s) })
}

func (c *envControl) edit(ctx context.Context, s update.Slot, change func(vars map[string]string, e *entry)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := member(c.slots, s); err != nil {
		return err
	}
	vars, err := c.env.load()
	if err != nil {
		return err
	}
	e := c.entry(vars, s)
	change(vars, &e)
	ok := "0"
	if e.good {
		ok = "1"
	}
	vars["tt_"+string(s)+"_ok"], vars["tt_"+string(s)+"_tries"] = ok, strconv.Itoa(e.tries)
	return c.env.store(vars)
}

// Invalidate implements update.BootControl.
func (c *envControl) Invalidate(ctx context.Context, s update.Slot) error {
	return c.edit(ctx, s, func(vars map[string]string, e *entry) {
		*e = entry{}
		if o := otherSlot(c.slots, s); c.entry(vars, o).good {
			vars["tt_default"] = string(o)
		}
	})
}

// Arm implements update.BootControl.
func (c *envControl) Arm(ctx context.Context, s update.Slot, tries int) error {
	if tries < 1 || tries > 15 {
		return fmt.Errorf("boot: %d tries, want 1 to 15", tries)
	}
	return c.edit(ctx, s, func(_ map[string]string, e *entry) { *e = entry{tries: min(tries, c.max)} })
}

// MarkGood implements update.BootControl.
func (c *envControl) MarkGood(ctx context.Context, s update.Slot) error {
	return c.edit(ctx, s, func(vars map[string]string, e *entry) {
		*e = entry{good: true}
		vars["tt_default"] = string(s)
	})
}

// init makes slot running good and the default, where the environment says
// nothing of slots yet.
func (c *envControl) init() error {
	vars, err := c.env.load()
	if err != nil {
		return err
	}
	if vars["tt_default"] != "" {
		return nil
	}
	running, err := runningSlot(c.cmdline)
	if err != nil {
		return err
	}
	if err := member(c.slots, running); err != nil {
		return err
	}
	return c.MarkGood(context.Background(), running)
}
