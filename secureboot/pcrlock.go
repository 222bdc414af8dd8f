package secureboot

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// Limits on .pcrlock files.
const (
	maxPCRLockFile  = 1 << 20 // bytes
	maxPCRLockFiles = 4096
)

// LoadPCRLock reads a directory of systemd-pcrlock's components: NAME.pcrlock
// is a component of one variant, the files in NAME.pcrlock.d are a component's
// variants. They are ordered by name, together with more. Files of other names
// are not looked at.
//
// A running system has not reached all components, so systemd-pcrlock's default
// location (760- to 940-) applies: a component from 760- on may be absent, and
// one from 940- on (shutdown) is left out. Components of several directories
// (/etc/pcrlock.d, /var/lib/pcrlock.d, /usr/lib/pcrlock.d) are joined by passing
// one result as more of the next call.
func LoadPCRLock(fsys fs.FS, dir string, more ...Component) ([]Component, error) {
	comps := slices.Clone(more)
	add := func(name string, v Variant) {
		i := slices.IndexFunc(comps, func(c Component) bool { return c.Name == name })
		if i < 0 {
			comps = append(comps, Component{Name: name})
			i = len(comps) - 1
		}
		comps[i].Variants = append(comps[i].Variants, v)
	}
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("secureboot: pcrlock: %w", err)
	}
	files := 0
	load := func(component, file string) error {
		if files++; files > maxPCRLockFiles {
			return fmt.Errorf("secureboot: pcrlock: more than %d files in %s", maxPCRLockFiles, dir)
		}
		v, err := loadVariant(fsys, file)
		if err != nil {
			return fmt.Errorf("secureboot: pcrlock: %s: %w", file, err)
		}
		add(component, v)
		return nil
	}
	for _, e := range entries {
		name := e.Name()
		if component, ok := strings.CutSuffix(name, ".pcrlock"); ok && !e.IsDir() {
			if err := load(component, path.Join(dir, name)); err != nil {
				return nil, err
			}
		}
		component, ok := strings.CutSuffix(name, ".pcrlock.d")
		if !ok || !e.IsDir() {
			continue
		}
		variants, err := fs.ReadDir(fsys, path.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("secureboot: pcrlock: %w", err)
		}
		for _, v := range variants {
			if strings.HasSuffix(v.Name(), ".pcrlock") && !v.IsDir() {
				if err := load(component, path.Join(dir, name, v.Name())); err != nil {
					return nil, err
				}
			}
		}
	}
	comps = slices.DeleteFunc(comps, func(c Component) bool { return located(c.Name) && c.Name >= lastComponent })
	for i := range comps {
		c := &comps[i]
		if located(c.Name) && c.Name >= firstOptional && !slices.ContainsFunc(c.Variants, func(v Variant) bool { return len(v.Records) == 0 }) {
			c.Variants = append(slices.Clone(c.Variants), Variant{Name: "absent", Records: []Record{}})
		}
	}
	slices.SortStableFunc(comps, func(a, b Component) int { return strings.Compare(a.Name, b.Name) })
	return comps, nil
}

// Names of the components that a running system may have reached.
const (
	firstOptional = "760-"
	lastComponent = "940-"
)

// located reports whether a component's name starts with a position ("750-…").
func located(name string) bool {
	return len(name) > 3 && name[3] == '-' && strings.Trim(name[:3], "0123456789") == ""
}

func loadVariant(fsys fs.FS, file string) (v Variant, err error) {
	fi, err := fs.Stat(fsys, file)
	if err != nil {
		return v, err
	}
	if fi.Size() > maxPCRLockFile {
		return v, fmt.Errorf("%d bytes, limit %d", fi.Size(), maxPCRLockFile)
	}
	b, err := fs.ReadFile(fsys, file)
	if err != nil {
		return v, err
	}
	var j struct {
		Records []Record `json:"records"`
	}
	if err := strictUnmarshal(b, &j); err != nil {
		return v, err
	}
	if j.Records == nil {
		return v, errors.New("no records")
	}
	for _, r := range j.Records {
		if r.PCR < 0 || r.PCR > 23 || len(r.Digests) == 0 {
			return v, fmt.Errorf("record without a PCR in range or a digest")
		}
	}
	return Variant{Name: strings.TrimSuffix(path.Base(file), ".pcrlock"), Records: j.Records}, nil
}

// StandardComponents are the parts of every boot whose measurements the
// specifications fix, under names that sort among those of systemd's own
// components: the separators, "Calling EFI Application", the exit of boot
// services (which some firmware does not measure) and the phases of systemd
// (each may be absent).
func StandardComponents(banks ...crypto.Hash) []Component {
	rec := func(pcr int, data string) Record {
		r := Record{PCR: pcr}
		for _, b := range banks {
			if eventlog.HashName(b) != "" {
				r.Digests = append(r.Digests, Digest{b, hashOf(b, data)})
			}
		}
		return r
	}
	separators := func(value string, pcrs ...int) (rs []Record) {
		for _, pcr := range pcrs {
			rs = append(rs, rec(pcr, value))
		}
		return rs
	}
	const zero, ones = "\x00\x00\x00\x00", "\xff\xff\xff\xff"
	others := []int{0, 1, 2, 3, 4, 5, 6}
	comps := []Component{
		{"350-action-efi-calling-application", []Variant{{"present", []Record{rec(4, callingApp)}}, {"absent", []Record{}}}},
		{"400-secureboot-separator", []Variant{{"300-0x00000000", separators(zero, 7)}, {"600-0xffffffff", separators(ones, 7)}}},
		{"500-separator", []Variant{{"300-0x00000000", separators(zero, others...)}, {"600-0xffffffff", separators(ones, others...)}}},
		{"700-action-efi-exit-boot-services", []Variant{
			{"present", []Record{rec(5, "Exit Boot Services Invocation"), rec(5, "Exit Boot Services Returned with Success")}}, {"absent", []Record{}}}},
	}
	for _, p := range [][2]string{{"750-enter-initrd", "enter-initrd"}, {"800-leave-initrd", "leave-initrd"}, {"850-sysinit", "sysinit"}, {"900-ready", "ready"}} {
		comps = append(comps, Component{p[0], []Variant{{"present", []Record{rec(11, p[1])}}, {"absent", []Record{}}}})
	}
	return comps
}
