package predict_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot/predict"
)

// pe makes a PE32+ image of sections, in their order: name, content, name, …
func pe(sections ...string) []byte {
	const opt, align = 112 + 16*8, 512
	n := len(sections) / 2
	headers := (64 + 24 + opt + 40*n + align - 1) / align * align
	b := make([]byte, headers)
	copy(b, "MZ")
	b[60] = 64
	copy(b[64:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[64+6:], uint16(n))
	binary.LittleEndian.PutUint16(b[64+20:], opt)
	binary.LittleEndian.PutUint16(b[88:], 0x20B)
	binary.LittleEndian.PutUint32(b[88+60:], uint32(headers))
	binary.LittleEndian.PutUint32(b[88+108:], 16)
	for i := range n {
		name, content := sections[2*i], sections[2*i+1]
		h := b[88+opt+40*i:]
		copy(h[:8], name)
		size := (len(content) + align - 1) / align * align
		binary.LittleEndian.PutUint32(h[8:], uint32(len(content)))
		binary.LittleEndian.PutUint32(h[16:], uint32(size))
		binary.LittleEndian.PutUint32(h[20:], uint32(len(b)))
		b = append(b, content...)
		b = append(b, make([]byte, size-len(content))...)
	}
	return b
}

func stub(version string) []string {
	return []string{".sdmagic", "#### LoaderInfo: systemd-stub " + version + " ####", ".linux", string(pe(".text", "kernel"))}
}

func measureProfile(b []byte, profile int) (*predict.UKI, error) {
	return predict.MeasureProfile(bytes.NewReader(b), int64(len(b)), crypto.SHA256, profile)
}

// replay is a PCR after the hashes of these contents.
func replay(contents ...string) []byte {
	v := make([]byte, 32)
	for _, c := range contents {
		d := sha256.Sum256([]byte(c))
		s := sha256.Sum256(append(bytes.Clone(v), d[:]...))
		v = s[:]
	}
	return v
}

func pcrsOf(u *predict.UKI) map[int][]byte {
	m := map[int][]byte{}
	for _, r := range u.Variant("x", predict.Boot{}).Records {
		old := m[r.PCR]
		if old == nil {
			old = make([]byte, 32)
		}
		s := sha256.Sum256(append(bytes.Clone(old), r.Digests[0].Value...))
		m[r.PCR] = s[:]
	}
	return m
}

// cpioFile is a file in an archive as cpio -H newc would write it, with the
// stub's owner, modes and inodes.
func cpioFile(inode int, mode, path, content string) string {
	s := fmt.Sprintf("070701%08x%s%s%s00000001%s%08x%s%08x%s", inode, mode, strings.Repeat("0", 8), strings.Repeat("0", 8), strings.Repeat("0", 8), len(content), strings.Repeat("0", 32), len(path)+1, strings.Repeat("0", 8)) + path + "\x00"
	s += strings.Repeat("\x00", (4-len(s)%4)%4) + content
	return s + strings.Repeat("\x00", (4-len(s)%4)%4)
}

func extra(name, content string) string {
	trailer := "070701" + strings.Repeat("0", 32) + "00000001" + strings.Repeat("0", 48) + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
	return cpioFile(1, "0000416d", ".extra", "") + cpioFile(2, "00008124", ".extra/"+name, content) + trailer
}

func pad4(s string) string { return s + strings.Repeat("\x00", (4-len(s)%4)%4) }

// TestProfilesOfOneImage follows systemd-stub from 257 on: a profile's sections
// take the place of the common ones, in the stub's order, and a choice other
// than the default is measured into PCR 12.
func TestProfilesOfOneImage(t *testing.T) {
	image := pe(append(stub("257.2-1"), ".osrel", "ID=node", ".cmdline", "quiet", ".initrd", "initrd!",
		".profile", "ID=main", ".profile", "ID=rescue", ".cmdline", "rescue", ".profile", "ID=factory", ".initrd", "other", ".cmdline", "factory")...)
	linux := string(pe(".text", "kernel"))
	for profile, want := range []struct{ id, cmdline, initrd string }{{"ID=main", "quiet", "initrd!"}, {"ID=rescue", "rescue", "initrd!"}, {"ID=factory", "factory", "other"}} {
		u, err := measureProfile(image, profile)
		require.NoError(t, err)
		assert.Equal(t, want.cmdline, u.CommandLine)
		pcrs := pcrsOf(u)
		assert.Equal(t, replay(".linux\x00", linux, ".osrel\x00", "ID=node", ".cmdline\x00", want.cmdline, ".initrd\x00", want.initrd, ".profile\x00", want.id), pcrs[11], "profile %d", profile)
		if profile == 0 {
			assert.NotContains(t, pcrs, 12, "the default is not measured")
		} else {
			assert.Equal(t, replay(fmt.Sprintf("%d\x00\x00\x00", profile)), pcrs[12])
		}
		utf16 := strings.Join(strings.Split(want.cmdline+"\x00", ""), "\x00") + "\x00"
		assert.Equal(t, replay(utf16, pad4(want.initrd)+extra("profile", want.id)+extra("os-release", "ID=node")), pcrs[9], "profile %d", profile)
	}
	def, err := predict.MeasureUKI(bytes.NewReader(image), int64(len(image)), crypto.SHA256)
	require.NoError(t, err)
	assert.Zero(t, def.Profile)

	for name, c := range map[string]struct {
		image   []byte
		profile int
	}{
		"no such profile":              {image, 3},
		"negative":                     {image, -1},
		"profile of an image of one":   {pe(append(stub("257"), ".cmdline", "x")...), 1},
		"stub without profiles":        {pe(append(stub("256.7"), ".profile", "ID=main")...), 0},
		"unknown stub":                 {pe(".linux", linux, ".profile", "ID=main"), 0},
		"section twice in one profile": {pe(append(stub("257"), ".profile", "a", ".cmdline", "x", ".cmdline", "y")...), 0},
		"chosen by the hardware":       {pe(append(stub("257"), ".profile", "a", ".dtbauto", "x")...), 0},
	} {
		_, err := measureProfile(c.image, c.profile)
		assert.Error(t, err, name)
	}
}

// TestFilesThatTheStubAddsToTheInitrd: a signed PCR policy and its key in the
// image reach user space in archives that the stub appends, and so PCR 9;
// microcode comes first.
func TestFilesThatTheStubAddsToTheInitrd(t *testing.T) {
	const key, sig = "-----BEGIN PUBLIC KEY-----", `{"sha256":[]}`
	utf16 := "x\x00\x00\x00"
	for name, c := range map[string]struct {
		image  []byte
		initrd string
	}{
		"alone, not padded": {pe(append(stub("252"), ".cmdline", "x", ".osrel", "ID=node", ".initrd", "12345")...), "12345"},
		"signed policy":     {pe(append(stub("252"), ".cmdline", "x", ".initrd", "12345", ".pcrpkey", key, ".pcrsig", sig)...), pad4("12345") + extra("tpm2-pcr-signature.json", sig) + extra("tpm2-pcr-public-key.pem", key)},
		"microcode":         {pe(append(stub("256"), ".cmdline", "x", ".initrd", "12345", ".ucode", "u")...), pad4("u") + pad4("12345")},
		"microcode, old":    {pe(append(stub("255"), ".cmdline", "x", ".initrd", "12345", ".ucode", "u")...), "12345"},
		"no initrd":         {pe(append(stub("252"), ".cmdline", "x", ".pcrsig", sig)...), extra("tpm2-pcr-signature.json", sig)},
	} {
		u, err := measureProfile(c.image, 0)
		require.NoError(t, err, name)
		assert.Equal(t, replay(utf16, c.initrd), pcrsOf(u)[9], name)
	}
	u, err := measureProfile(pe(append(stub("252"), ".cmdline", "a\tb\nc \n\x00", ".pcrsig", sig)...), 0)
	require.NoError(t, err)
	assert.Equal(t, "a b c", u.CommandLine, "as the stub mangles it")
	with, err := measureProfile(pe(append(stub("252"), ".cmdline", "x", ".pcrsig", sig)...), 0)
	require.NoError(t, err)
	without, err := measureProfile(pe(append(stub("252"), ".cmdline", "x")...), 0)
	require.NoError(t, err)
	assert.Equal(t, without.PCR11, with.PCR11, "the signature over PCR 11 is not in it")
}
