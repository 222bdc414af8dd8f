package boot

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/trusttree/trusttree/update"
)

// CommandLine is the kernel parameter by which a boot loader tells the system
// its slot: trusttree.slot=a.
const CommandLine = "trusttree.slot"

// runningSlot reads the slot from a kernel command line file; empty means
// /proc/cmdline.
func runningSlot(file string) (update.Slot, error) {
	if file == "" {
		file = "/proc/cmdline"
	}
	data, err := readFile(file)
	if err != nil {
		return "", fmt.Errorf("boot: %w", err)
	}
	for _, f := range strings.Fields(string(data)) {
		if s, ok := strings.CutPrefix(f, CommandLine+"="); ok && s != "" {
			return update.Slot(s), nil
		}
	}
	return "", fmt.Errorf("boot: %s has no %s=: let the boot loader pass its slot", file, CommandLine)
}

// maxFile bounds what a boot loader's files hold, in bytes.
const maxFile = 64 << 10

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1)) // kernel files have no size
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: longer than %d bytes", name, maxFile)
	}
	return data, err
}

// entry is what a loader that keeps variables knows of a slot.
type entry struct {
	good  bool
	tries int
}

func statuses(slots [2]update.Slot, running update.Slot, of func(update.Slot) entry) ([]update.SlotStatus, error) {
	if running != slots[0] && running != slots[1] {
		return nil, fmt.Errorf("boot: slot %q runs, configured are %q and %q", running, slots[0], slots[1])
	}
	var out []update.SlotStatus
	for _, s := range slots {
		e := of(s)
		out = append(out, update.SlotStatus{Slot: s, Running: s == running, Good: e.good, Tries: e.tries})
	}
	return out, nil
}

func checkSlots(slots [2]update.Slot) error {
	for _, s := range slots {
		if s == "" || strings.Trim(string(s), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
			return fmt.Errorf("boot: slot %q: want letters and digits", s)
		}
	}
	if slots[0] == slots[1] {
		return fmt.Errorf("boot: both slots are called %q", slots[0])
	}
	return nil
}

func member(slots [2]update.Slot, s update.Slot) error {
	if s != slots[0] && s != slots[1] {
		return fmt.Errorf("boot: no slot %q, configured are %q and %q", s, slots[0], slots[1])
	}
	return nil
}

func otherSlot(slots [2]update.Slot, s update.Slot) update.Slot {
	if s == slots[0] {
		return slots[1]
	}
	return slots[0]
}
