package boot

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/trusttree/trusttree/internal/durable"
	"github.com/trusttree/trusttree/update"
)

// GRUBConfig configures NewGRUB.
type GRUBConfig struct {
	// Path is GRUB's environment block. Empty means /boot/grub/grubenv.
	Path string
	// Slots are the names of both slots.
	Slots [2]update.Slot
	// CommandLine is the file with the kernel's command line, for tests.
	// Empty means /proc/cmdline.
	CommandLine string
}

// GRUBScript is what grub.cfg must hold to choose the slot: it sets $slot and
// counts a trial's tries. Boot entries pass trusttree.slot=$slot on. GRUB's
// script has no arithmetic, hence the ladder.
func GRUBScript(slots [2]update.Slot) string {
	var b strings.Builder
	b.WriteString("load_env\nset slot=\"$tt_default\"\nset tt_armed=\"\"\n")
	for _, s := range slots {
		fmt.Fprintf(&b, "if [ \"$tt_%[1]s_ok\" != 1 -a -n \"$tt_%[1]s_tries\" -a \"$tt_%[1]s_tries\" != 0 ]; then\n  set slot=%[1]s\n  set tt_armed=%[1]s\nfi\n", s)
	}
	for _, s := range slots {
		fmt.Fprintf(&b, "if [ \"$tt_armed\" = %s ]; then\n", s)
		for n := 1; n <= 15; n++ {
			word := "elif"
			if n == 1 {
				word = "if"
			}
			fmt.Fprintf(&b, "  %s [ \"$tt_%s_tries\" = %d ]; then set tt_%s_tries=%d\n", word, s, n, s, n-1)
		}
		fmt.Fprintf(&b, "  fi\n  save_env tt_%s_tries\nfi\n", s)
	}
	return b.String()
}

// NewGRUB returns a boot control over GRUB's environment block. grub.cfg must
// hold GRUBScript.
func NewGRUB(cfg GRUBConfig) (update.BootControl, error) {
	if cfg.Path == "" {
		cfg.Path = "/boot/grub/grubenv"
	}
	if err := checkSlots(cfg.Slots); err != nil {
		return nil, err
	}
	c := &envControl{env: grubEnv(cfg.Path), slots: cfg.Slots, cmdline: cfg.CommandLine, max: 15}
	return c, c.init()
}

type grubEnv string

const (
	grubMagic = "# GRUB Environment Block\n"
	grubSize  = 1024 // GRUB reads and writes exactly this much
)

func (g grubEnv) load() (map[string]string, error) {
	data, err := readFile(string(g))
	if errors.Is(err, os.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	return parseGRUB(data, string(g))
}

func parseGRUB(data []byte, name string) (map[string]string, error) {
	if len(data) != grubSize || !bytes.HasPrefix(data, []byte(grubMagic)) {
		return nil, fmt.Errorf("boot: %s is no GRUB environment block", name)
	}
	vars := map[string]string{}
	var line []byte
	escaped := false
	for _, c := range data[len(grubMagic):] {
		switch {
		case escaped:
			line, escaped = append(line, c), false
		case c == '\\':
			escaped = true
		case c == '\n':
			if k, v, ok := strings.Cut(string(line), "="); ok && !strings.HasPrefix(k, "#") {
				vars[k] = v
			}
			line = line[:0]
		default:
			line = append(line, c)
		}
	}
	return vars, nil
}

func (g grubEnv) store(vars map[string]string) error {
	data, err := formatGRUB(vars)
	if err != nil {
		return fmt.Errorf("boot: %s: %w", g, err)
	}
	return durable.WriteFile(string(g), data, 0o644)
}

func formatGRUB(vars map[string]string) ([]byte, error) {
	out := []byte(grubMagic)
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		out = append(out, k+"="+strings.NewReplacer("\\", "\\\\", "\n", "\\\n").Replace(vars[k])+"\n"...)
	}
	if len(out) > grubSize {
		return nil, fmt.Errorf("variables take %d bytes, the block has %d", len(out), grubSize)
	}
	return append(out, bytes.Repeat([]byte("#"), grubSize-len(out))...), nil
}
