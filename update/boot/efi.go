package boot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/trusttree/trusttree/update"
)

// EFIConfig configures NewEFI.
type EFIConfig struct {
	// Dir is where the kernel shows EFI variables. Empty means
	// /sys/firmware/efi/efivars.
	Dir string
	// Entries are the numbers of each slot's boot entry (Boot####), made
	// when the node was provisioned.
	Entries map[update.Slot]uint16
}

// NewEFI returns a boot control over UEFI boot entries (UEFI specification
// 2.10, section 3): BootNext is a trial of one boot, whatever number of tries
// is asked for; BootOrder lists the good slots, the default first; an entry
// that is in neither is not booted. Firmware takes BootNext away before it
// boots it, so a trial that crashes falls back to BootOrder.
func NewEFI(cfg EFIConfig) (update.BootControl, error) {
	if cfg.Dir == "" {
		cfg.Dir = "/sys/firmware/efi/efivars"
	}
	if len(cfg.Entries) != 2 {
		return nil, fmt.Errorf("boot: %d EFI boot entries, want one for each of two slots", len(cfg.Entries))
	}
	var seen []uint16
	for _, n := range cfg.Entries {
		if slices.Contains(seen, n) {
			return nil, fmt.Errorf("boot: EFI boot entry %04X is given twice", n)
		}
		seen = append(seen, n)
	}
	return &efiBoot{cfg: cfg}, nil
}

type efiBoot struct {
	cfg EFIConfig
	mu  sync.Mutex
}

const (
	efiGlobal = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	efiAttrs  = 0x7 // non-volatile, boot and runtime access
)

func (b *efiBoot) file(name string) string { return filepath.Join(b.cfg.Dir, name+"-"+efiGlobal) }

// read returns a variable as 16-bit numbers; nil where there is none.
func (b *efiBoot) read(name string) ([]uint16, error) {
	data, err := readFile(b.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("boot: EFI variable %s: %w", name, err)
	}
	if len(data) < 4 || len(data)%2 != 0 || len(data) > 4096 {
		return nil, fmt.Errorf("boot: EFI variable %s has %d bytes", name, len(data))
	}
	var out []uint16
	for d := data[4:]; len(d) > 0; d = d[2:] {
		out = append(out, binary.LittleEndian.Uint16(d))
	}
	return out, nil
}

// write replaces a variable with one write, which firmware makes durable.
func (b *efiBoot) write(name string, v []uint16) error {
	data := binary.LittleEndian.AppendUint32(nil, efiAttrs)
	for _, n := range v {
		data = binary.LittleEndian.AppendUint16(data, n)
	}
	if err := makeMutable(b.file(name)); err != nil {
		return fmt.Errorf("boot: EFI variable %s: %w", name, err)
	}
	f, err := os.OpenFile(b.file(name), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("boot: EFI variable %s: %w", name, err)
	}
	_, err = f.Write(data)
	if err == nil && b.cfg.Dir != "/sys/firmware/efi/efivars" {
		err = errors.Join(f.Truncate(int64(len(data))), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("boot: EFI variable %s: %w", name, err)
	}
	return nil
}

func (b *efiBoot) remove(name string) error {
	if err := makeMutable(b.file(name)); err != nil {
		return fmt.Errorf("boot: EFI variable %s: %w", name, err)
	}
	if err := os.Remove(b.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("boot: EFI variable %s: %w", name, err)
	}
	return nil
}

func (b *efiBoot) number(ctx context.Context, s update.Slot) (uint16, error) {
	n, ok := b.cfg.Entries[s]
	if !ok {
		return 0, fmt.Errorf("boot: no EFI boot entry for slot %q", s)
	}
	return n, ctx.Err()
}

// Slots implements update.BootControl.
func (b *efiBoot) Slots(ctx context.Context) ([]update.SlotStatus, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	current, err := b.read("BootCurrent")
	if err != nil {
		return nil, err
	}
	order, err := b.read("BootOrder")
	if err != nil {
		return nil, err
	}
	next, err := b.read("BootNext")
	if err != nil {
		return nil, err
	}
	var out []update.SlotStatus
	for s, n := range b.cfg.Entries {
		st := update.SlotStatus{Slot: s, Running: slices.Contains(current, n), Good: slices.Contains(order, n)}
		if slices.Contains(next, n) && !st.Good {
			st.Tries = 1
		}
		out = append(out, st)
	}
	return out, nil
}

// drop takes a slot out of BootNext and then out of BootOrder.
func (b *efiBoot) drop(n uint16) error {
	next, err := b.read("BootNext")
	if err != nil {
		return err
	}
	if slices.Contains(next, n) {
		if err := b.remove("BootNext"); err != nil {
			return err
		}
	}
	order, err := b.read("BootOrder")
	if err != nil || !slices.Contains(order, n) {
		return err
	}
	return b.write("BootOrder", slices.DeleteFunc(order, func(o uint16) bool { return o == n }))
}

// Invalidate implements update.BootControl.
func (b *efiBoot) Invalidate(ctx context.Context, s update.Slot) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.number(ctx, s)
	if err != nil {
		return err
	}
	return b.drop(n)
}

// Arm implements update.BootControl. tries is cut to 1.
func (b *efiBoot) Arm(ctx context.Context, s update.Slot, tries int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.number(ctx, s)
	if err != nil {
		return err
	}
	if tries < 1 {
		return fmt.Errorf("boot: %d tries", tries)
	}
	if err := b.drop(n); err != nil {
		return err
	}
	return b.write("BootNext", []uint16{n})
}

// MarkGood implements update.BootControl.
func (b *efiBoot) MarkGood(ctx context.Context, s update.Slot) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.number(ctx, s)
	if err != nil {
		return err
	}
	order, err := b.read("BootOrder")
	if err != nil {
		return err
	}
	if len(order) == 0 || order[0] != n {
		order = append([]uint16{n}, slices.DeleteFunc(order, func(o uint16) bool { return o == n })...)
		if err := b.write("BootOrder", order); err != nil {
			return err
		}
	}
	next, err := b.read("BootNext")
	if err == nil && slices.Contains(next, n) {
		err = b.remove("BootNext")
	}
	return err
}
