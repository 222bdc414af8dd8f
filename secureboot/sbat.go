package secureboot

import (
	"fmt"
	"strconv"
	"strings"
)

// sbatAtLeast compares shim's revocation level with the one demanded: every
// component that min names must be there with at least its generation (SBAT.md
// of shim, "SBAT revocation level").
func sbatAtLeast(level, min string) error {
	have := make(map[string]uint64)
	for name, gen := range sbatLines(level) {
		have[name] = gen
	}
	for name, gen := range sbatLines(min) {
		if have[name] < gen {
			return fmt.Errorf("SBAT level of %.40q is %d, the policy demands %d", name, have[name], gen)
		}
	}
	return nil
}

// sbatLines reads "component,generation[,date]" lines. A line that can't be
// read gives no generation.
func sbatLines(s string) map[string]uint64 {
	m := make(map[string]uint64)
	for _, line := range strings.Split(strings.TrimRight(s, "\x00"), "\n") {
		f := strings.Split(strings.TrimSpace(line), ",")
		if len(f) < 2 {
			continue
		}
		if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			m[f[0]] = n
		}
		if f[0] == "sbat" && len(f) > 2 {
			if n, err := strconv.ParseUint(f[2], 10, 64); err == nil {
				m["sbat date"] = n
			}
		}
	}
	return m
}

// checkSBAT refuses a demanded level with a line that sbatLines would skip.
func checkSBAT(min string) error {
	lines := 0
	for line := range strings.Lines(min) {
		if strings.TrimSpace(line) != "" {
			lines++
		}
	}
	n := sbatLines(min)
	delete(n, "sbat date")
	if len(n) != lines {
		return fmt.Errorf("minSBAT: %d of %d lines can be read", len(n), lines)
	}
	return nil
}
