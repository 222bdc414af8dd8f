package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/trusttree/trusttree/update"
)

// UBootConfig configures NewUBoot.
type UBootConfig struct {
	// Copies are the two places of U-Boot's redundant environment
	// (CONFIG_ENV_REDUNDANT): one alone does not survive a power cut while it
	// is written.
	Copies [2]UBootCopy
	// Size is the size of each copy in bytes (CONFIG_ENV_SIZE).
	Size int
	// Slots are the names of both slots.
	Slots [2]update.Slot
	// CommandLine is the file with the kernel's command line, for tests.
	// Empty means /proc/cmdline.
	CommandLine string
}

// UBootCopy is one copy of the environment in a device or file.
type UBootCopy struct {
	Path   string
	Offset int64
}

// UBootScript is the script that U-Boot must run to choose the slot: it sets
// $slot and counts a trial's tries. The boot command passes
// trusttree.slot=${slot} on.
func UBootScript(slots [2]update.Slot) string {
	s := "setenv slot ${tt_default}; setenv tt_armed; "
	for _, n := range slots {
		s += fmt.Sprintf("if test \"${tt_%[1]s_ok}\" != 1 && test -n \"${tt_%[1]s_tries}\" && test ${tt_%[1]s_tries} -gt 0; then setenv slot %[1]s; setenv tt_armed %[1]s; fi; ", n)
	}
	for _, n := range slots {
		s += fmt.Sprintf("if test \"${tt_armed}\" = %[1]s; then setexpr tt_%[1]s_tries ${tt_%[1]s_tries} - 1; saveenv; fi; ", n)
	}
	return s
}

// NewUBoot returns a boot control over U-Boot's redundant environment. U-Boot
// must run UBootScript. Tries are cut to 9, as U-Boot counts in hexadecimal.
func NewUBoot(cfg UBootConfig) (update.BootControl, error) {
	if err := checkSlots(cfg.Slots); err != nil {
		return nil, err
	}
	if cfg.Size < 512 || cfg.Size > 1<<20 || cfg.Copies[0] == cfg.Copies[1] {
		return nil, fmt.Errorf("boot: U-Boot environment of %d bytes in %v: want 512 B to 1 MiB in two places", cfg.Size, cfg.Copies)
	}
	c := &envControl{env: &ubootEnv{cfg: cfg}, slots: cfg.Slots, cmdline: cfg.CommandLine, max: 9}
	return c, c.init()
}

type ubootEnv struct{ cfg UBootConfig }

// ubootHeader is a CRC-32 of the data, little-endian, and the flag byte that
// says which of two valid copies is newer.
const ubootHeader = 5

type ubootBlock struct {
	vars map[string]string
	flag byte
}

func (u *ubootEnv) read(c UBootCopy) (*ubootBlock, error) {
	f, err := os.Open(c.Path)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	defer f.Close()
	data := make([]byte, u.cfg.Size)
	if _, err := io.ReadFull(io.NewSectionReader(f, c.Offset, int64(len(data))), data); err != nil {
		return nil, fmt.Errorf("boot: read U-Boot environment in %s: %w", c.Path, err)
	}
	return parseUBoot(data)
}

var errUBootCRC = errors.New("boot: U-Boot environment has a wrong checksum")

func parseUBoot(data []byte) (*ubootBlock, error) {
	if len(data) < ubootHeader || binary.LittleEndian.Uint32(data) != crc32.ChecksumIEEE(data[ubootHeader:]) {
		return nil, errUBootCRC
	}
	b := &ubootBlock{vars: map[string]string{}, flag: data[4]}
	for _, v := range bytes.Split(data[ubootHeader:], []byte{0}) {
		if len(v) == 0 {
			break
		}
		if k, val, ok := bytes.Cut(v, []byte("=")); ok {
			b.vars[string(k)] = string(val)
		}
	}
	return b, nil
}

func formatUBoot(b *ubootBlock, size int) ([]byte, error) {
	data := make([]byte, ubootHeader, size)
	data[4] = b.flag
	for _, k := range slices.Sorted(maps.Keys(b.vars)) {
		data = append(data, k+"="+b.vars[k]+"\x00"...)
	}
	if len(data)+1 > size {
		return nil, fmt.Errorf("boot: U-Boot variables take %d bytes, the environment has %d", len(data), size)
	}
	data = data[:size]
	binary.LittleEndian.PutUint32(data, crc32.ChecksumIEEE(data[ubootHeader:]))
	return data, nil
}

// newest returns the index of the newer valid copy.
func (u *ubootEnv) newest() (int, *ubootBlock, error) {
	a, erra := u.read(u.cfg.Copies[0])
	b, errb := u.read(u.cfg.Copies[1])
	for _, err := range []error{erra, errb} {
		if err != nil && !errors.Is(err, errUBootCRC) {
			return 0, nil, err
		}
	}
	switch {
	case a == nil && b == nil:
		return 0, nil, fmt.Errorf("%w in both copies: run saveenv in U-Boot once", errUBootCRC)
	case b == nil || a != nil && int8(a.flag-b.flag) >= 0:
		return 0, a, nil
	}
	return 1, b, nil
}

func (u *ubootEnv) load() (map[string]string, error) {
	_, b, err := u.newest()
	if err != nil {
		return nil, err
	}
	return b.vars, nil
}

// store writes the older copy with the next flag: a cut leaves the newer one.
func (u *ubootEnv) store(vars map[string]string) (err error) {
	i, cur, err := u.newest()
	if err != nil {
		return err
	}
	data, err := formatUBoot(&ubootBlock{vars: vars, flag: cur.flag + 1}, u.cfg.Size)
	if err != nil {
		return err
	}
	c := u.cfg.Copies[1-i]
	f, err := os.OpenFile(c.Path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(data, c.Offset); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	return f.Sync()
}
