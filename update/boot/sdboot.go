package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/update"
)

// SystemdBootConfig configures NewSystemdBoot.
type SystemdBootConfig struct {
	// Dir is loader/entries of the boot partition.
	Dir string
	// Slots are the names of both slots.
	Slots [2]update.Slot
	// Entries are the contents of each slot's Boot Loader Specification entry
	// (type 1) without sort-key and version, which are added. The options must
	// pass trusttree.slot=SLOT.
	Entries map[update.Slot]string
	// CommandLine is the file with the kernel's command line, for tests.
	// Empty means /proc/cmdline.
	CommandLine string
}

// NewSystemdBoot returns a boot control over systemd-boot's automatic boot
// assessment: an entry's file name counts its tries (trusttree-b+3.conf,
// trusttree-b+2-1.conf), an entry without a counter is good, and a slot without
// an entry is not booted. Among entries the highest version comes first; those
// whose tries are used up come last.
func NewSystemdBoot(cfg SystemdBootConfig) (update.BootControl, error) {
	if err := checkSlots(cfg.Slots); err != nil {
		return nil, err
	}
	for _, s := range cfg.Slots {
		if !strings.Contains(cfg.Entries[s], CommandLine+"="+string(s)) {
			return nil, fmt.Errorf("boot: entry of slot %s does not pass %s=%s", s, CommandLine, s)
		}
	}
	b := &systemdBoot{cfg: cfg}
	all, err := b.scan()
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		running, err := runningSlot(cfg.CommandLine)
		if err != nil {
			return nil, err
		}
		return b, b.MarkGood(context.Background(), running)
	}
	return b, nil
}

type systemdBoot struct {
	cfg SystemdBootConfig
	mu  sync.Mutex
}

type sdEntry struct {
	file    string
	version uint64
	counted bool
	left    int
}

var sdName = regexp.MustCompile(`^trusttree-([A-Za-z0-9]+)(?:\+([0-9]{1,2})(?:-([0-9]{1,3}))?)?\.conf$`)

// scan returns each slot's entry; of two, which a cut can leave, the newer.
func (b *systemdBoot) scan() (map[update.Slot]sdEntry, error) {
	files, err := os.ReadDir(b.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	out := map[update.Slot]sdEntry{}
	for _, f := range files {
		m := sdName.FindStringSubmatch(f.Name())
		if m == nil || member(b.cfg.Slots, update.Slot(m[1])) != nil {
			continue
		}
		e := sdEntry{file: f.Name(), counted: m[2] != ""}
		if e.counted {
			if e.left, err = strconv.Atoi(m[2]); err != nil {
				return nil, fmt.Errorf("boot: entry %s: %w", f.Name(), err)
			}
		}
		data, err := readFile(filepath.Join(b.cfg.Dir, f.Name()))
		if err != nil {
			return nil, fmt.Errorf("boot: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			if v, ok := strings.CutPrefix(line, "version "); ok {
				// What a cut made of it is the oldest version: the slot can
				// still be judged, and its entry written anew.
				if e.version, err = strconv.ParseUint(strings.TrimSpace(v), 10, 32); err != nil {
					e.version = 0
				}
			}
		}
		if old, ok := out[update.Slot(m[1])]; !ok || e.version > old.version {
			out[update.Slot(m[1])] = e
		}
	}
	return out, nil
}

// Slots implements update.BootControl.
func (b *systemdBoot) Slots(ctx context.Context) ([]update.SlotStatus, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	running, err := runningSlot(b.cfg.CommandLine)
	if err != nil {
		return nil, err
	}
	all, err := b.scan()
	if err != nil {
		return nil, err
	}
	return statuses(b.cfg.Slots, running, func(s update.Slot) entry {
		e, ok := all[s]
		return entry{good: ok && !e.counted, tries: e.left}
	})
}

// remove removes the entries of a slot, but for one file.
func (b *systemdBoot) remove(s update.Slot, but string) error {
	files, err := os.ReadDir(b.cfg.Dir)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	for _, f := range files {
		if m := sdName.FindStringSubmatch(f.Name()); m == nil || m[1] != string(s) || f.Name() == but {
			continue
		}
		if err := os.Remove(filepath.Join(b.cfg.Dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("boot: %w", err)
		}
	}
	return durable.SyncDir(b.cfg.Dir)
}

func (b *systemdBoot) put(ctx context.Context, s update.Slot, counter string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := member(b.cfg.Slots, s); err != nil {
		return err
	}
	all, err := b.scan()
	if err != nil {
		return err
	}
	var version uint64
	for _, e := range all {
		version = max(version, e.version)
	}
	name := "trusttree-" + string(s) + counter + ".conf"
	body := fmt.Sprintf("sort-key trusttree\nversion %d\n%s", version+1, b.cfg.Entries[s])
	if err := durable.WriteFile(filepath.Join(b.cfg.Dir, name), []byte(body), 0o600); err != nil {
		return err
	}
	return b.remove(s, name)
}

// Invalidate implements update.BootControl.
func (b *systemdBoot) Invalidate(ctx context.Context, s update.Slot) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := member(b.cfg.Slots, s); err != nil {
		return err
	}
	return b.remove(s, "")
}

// Arm implements update.BootControl.
func (b *systemdBoot) Arm(ctx context.Context, s update.Slot, tries int) error {
	if tries < 1 || tries > 15 {
		return fmt.Errorf("boot: %d tries, want 1 to 15", tries)
	}
	return b.put(ctx, s, "+"+strconv.Itoa(tries))
}

// MarkGood implements update.BootControl.
func (b *systemdBoot) MarkGood(ctx context.Context, s update.Slot) error { return b.put(ctx, s, "") }
