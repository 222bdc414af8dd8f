package predict

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // banks of PCRs
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/trusttree/trusttree/secureboot"
)

// UKI is what a unified kernel image will measure, in one bank.
type UKI struct {
	Bank        crypto.Hash
	Profile     int    // which of the image's profiles; 0 is the default
	Stub        int    // systemd version of its stub; 0 unknown
	CommandLine string // built in
	Image       []byte // Authenticode hash: PCR 4
	Linux       []byte // Authenticode hash of .linux, which some boots add to PCR 4
	Initrd      []byte // hash of what the stub hands to the kernel as initrd; nil without one
	PCR11       [][]byte
}

// measured are the sections that the stub measures, in its order; .pcrsig holds
// the signature over the result and is left out. since is the systemd version
// that began to measure it: the stub's own .sbat was there before.
var measured = []struct {
	name  string
	since int
}{{".linux", 0}, {".osrel", 0}, {".cmdline", 0}, {".initrd", 0}, {".ucode", withUcode}, {".splash", 0}, {".dtb", 0}, {".uname", 253}, {".sbat", 253}, {".pcrpkey", 0},
	{".profile", withProfiles}}

// Versions of the stub.
const (
	withUcode    = 256
	withProfiles = 257
)

const (
	maxCmdline = 64 << 10 // bytes
	maxExtra   = 1 << 20
	maxGap     = 1 << 20 // of zeros that a section has in memory alone
	maxMagic   = 4096
)

// MeasureUKI reads an image, in its default profile. It streams; memory does
// not grow with the image. Images with sections that the stub chooses by the
// machine's hardware are refused.
func MeasureUKI(r io.ReaderAt, size int64, bank crypto.Hash) (*UKI, error) {
	return MeasureProfile(r, size, bank, 0)
}

// MeasureProfile is MeasureUKI for another profile of a multi-profile image
// (systemd-stub from 257 on): its sections take the place of the common ones of
// the same name. Which one is booted is the boot loader's choice; one other than
// 0 is measured into PCR 12.
func MeasureProfile(r io.ReaderAt, size int64, bank crypto.Hash, profile int) (*UKI, error) {
	image, err := Authenticode(r, size, bank)
	if err != nil {
		return nil, err
	}
	im, err := parsePE(r, size)
	if err != nil {
		return nil, err
	}
	u := &UKI{Bank: bank, Image: image, Profile: profile}
	sections, err := im.profile(profile)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{".dtbauto", ".hwids", ".efifw"} {
		if _, ok := sections[name]; ok {
			return nil, fmt.Errorf("predict: what section %q measures depends on the machine", name)
		}
	}
	if s, ok := sections[".sdmagic"]; ok {
		b, err := im.read(s, maxMagic)
		if err != nil {
			return nil, err
		}
		u.Stub = stubVersion(string(b))
	}
	if _, ok := sections[".profile"]; (ok || profile != 0) && u.Stub < withProfiles {
		return nil, fmt.Errorf("predict: the image has profiles, its stub (systemd %d) does not know them", u.Stub)
	}
	for _, m := range measured {
		s, ok := sections[m.name]
		if !ok || m.since > u.Stub {
			continue
		}
		d, err := im.hash(s, bank)
		if err != nil {
			return nil, err
		}
		u.PCR11 = append(u.PCR11, hash(bank, []byte(m.name+"\x00")), d)
	}
	if u.Initrd, err = im.initrd(sections, u.Stub, bank); err != nil {
		return nil, err
	}
	return u, u.readLinux(im, sections)
}

// profile returns the sections in force: those before the first .profile
// section, and over them those that follow the profile's own .profile section.
func (im *image) profile(want int) (map[string]section, error) {
	sections, own := make(map[string]section, len(im.sections)), make(map[string]section)
	n := -1
	for _, s := range im.sections {
		if s.name == ".profile" {
			n++
		}
		to := sections
		if n >= 0 {
			to = own
		}
		if n >= 0 && n != want {
			continue
		}
		if _, ok := to[s.name]; ok {
			return nil, fmt.Errorf("predict: section %q is there twice", s.name)
		}
		to[s.name] = s
	}
	if want < 0 || want > max(n, 0) {
		return nil, fmt.Errorf("predict: the image has no profile %d", want)
	}
	for name, s := range own {
		sections[name] = s
	}
	return sections, nil
}

func (u *UKI) readLinux(im *image, sections map[string]section) error {
	s, ok := sections[".linux"]
	if !ok {
		return errors.New("predict: image has no .linux section: no unified kernel image")
	}
	size := min(s.virtual, s.bytes)
	var err error
	if u.Linux, err = Authenticode(io.NewSectionReader(im.r, s.offset, size), size, u.Bank); err != nil {
		return fmt.Errorf("kernel in .linux: %w", err)
	}
	if s, ok := sections[".cmdline"]; ok {
		b, err := im.read(s, maxCmdline)
		if err != nil {
			return err
		}
		u.CommandLine = commandLine(bytes.TrimRight(b, "\x00"))
	}
	return nil
}

// commandLine does to a command line what the stub does: control characters
// become spaces, and spaces at the end go.
func commandLine(b []byte) string {
	return strings.TrimRight(strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, string(b)), " ")
}

// content is a section as it lies in memory: zeros follow what the file has.
func (im *image) content(s section) io.Reader {
	r := io.Reader(io.NewSectionReader(im.r, s.offset, min(s.bytes, s.virtual)))
	if more := s.virtual - s.bytes; more > 0 {
		r = io.MultiReader(r, io.LimitReader(zeros{}, more))
	}
	return r
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (im *image) hash(s section, bank crypto.Hash) ([]byte, error) {
	if s.virtual > s.bytes+maxGap {
		return nil, fmt.Errorf("predict: section %q is larger in memory than in the file", s.name)
	}
	h := bank.New()
	if _, err := io.Copy(h, im.content(s)); err != nil {
		return nil, fmt.Errorf("predict: read image: %w", err)
	}
	return h.Sum(nil), nil
}

func (im *image) read(s section, limit int64) ([]byte, error) {
	if s.virtual > limit {
		return nil, fmt.Errorf("predict: section %q of %d bytes, limit %d", s.name, s.virtual, limit)
	}
	return io.ReadAll(im.content(s))
}

// stubVersion reads "#### LoaderInfo: systemd-stub 252.39-1 ####".
func stubVersion(s string) int {
	_, v, ok := strings.Cut(s, "systemd-stub ")
	if !ok {
		return 0
	}
	end := strings.IndexFunc(v, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(v)
	}
	n, err := strconv.Atoi(v[:end])
	if err != nil {
		return 0
	}
	return n
}

// Boot says in which way an image will be booted.
type Boot struct {
	// KernelLoaded: the stub starts the kernel through the firmware, which
	// measures it into PCR 4 too (Secure Boot off, or a stub from 254 on that
	// loads through the firmware in any case).
	KernelLoaded bool
	// Attempts are boot options that fail before this image is called.
	Attempts int
	// Phases are words that systemd measures into PCR 11 while the system comes
	// up ("enter-initrd", "leave-initrd", "sysinit", "ready"): nil without systemd.
	Phases []string
}

// Variant returns the reference values of PCR 4, 9, 11 and (of a profile other
// than 0) 12 for a component of secureboot.Policy. PCR 9 holds what Linux' own
// EFI stub measures: the command line and the initrd, to which the stub adds
// files that the image holds (see UKI.Initrd). Credentials, extensions and
// addons that lie beside the image on the disk are not known from it: they add
// to PCR 9, 12 and 13.
func (u *UKI) Variant(name string, b Boot) secureboot.Variant {
	v := secureboot.Variant{Name: name}
	add := func(pcr int, d []byte) {
		v.Records = append(v.Records, secureboot.Record{PCR: pcr, Digests: []secureboot.Digest{{Hash: u.Bank, Value: d}}})
	}
	const calling, returning = "Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option"
	add(4, hash(u.Bank, []byte(calling)))
	add(4, hash(u.Bank, make([]byte, 4)))
	for range b.Attempts {
		add(4, hash(u.Bank, []byte(returning)))
		add(4, hash(u.Bank, []byte(calling)))
	}
	add(4, u.Image)
	if b.KernelLoaded {
		add(4, u.Linux)
	}
	add(9, hash(u.Bank, loadOptions(u.CommandLine)))
	if u.Initrd != nil {
		add(9, u.Initrd)
	}
	for _, d := range u.PCR11 {
		add(11, d)
	}
	if u.Profile != 0 {
		add(12, hash(u.Bank, loadOptions(strconv.Itoa(u.Profile))))
	}
	for _, p := range b.Phases {
		add(11, hash(u.Bank, []byte(p)))
	}
	return v
}

// loadOptions is the command line as the kernel gets it: UTF-16 with a NUL.
func loadOptions(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

func hash(h crypto.Hash, b []byte) []byte {
	w := h.New()
	w.Write(b)
	return w.Sum(nil)
}
