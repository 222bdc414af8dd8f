package predict_test

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/predict"
)

// makeUKI makes a small image around systemd's stub, the stub itself standing
// in for the kernel.
func makeUKI(t *testing.T, sections map[string]string) string {
	t.Helper()
	const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	if _, err := os.Stat(stub); err != nil {
		testenv.Missing(t, stub+" (apt-get install systemd-boot-efi)")
	}
	objcopy := testenv.Tool(t, "objcopy", "binutils")
	dir := t.TempDir()
	vma := map[string]string{".osrel": "0x20000", ".cmdline": "0x30000", ".linux": "0x2000000", ".initrd": "0x3000000", ".uname": "0x40000"}
	var args []string
	for name, s := range sections {
		f := filepath.Join(dir, name[1:])
		require.NoError(t, os.WriteFile(f, []byte(s), 0o600))
		args = append(args, "--add-section", name+"="+f, "--change-section-vma", name+"="+vma[name])
	}
	kernel := filepath.Join(dir, "kernel")
	b, err := os.ReadFile(stub)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(kernel, b, 0o600))
	args = append(args, "--add-section", ".linux="+kernel, "--change-section-vma", ".linux=0x2000000")
	out := filepath.Join(dir, "uki.efi")
	msg, err := exec.Command(objcopy, append(args, stub, out)...).CombinedOutput()
	require.NoError(t, err, "%s", msg)
	return out
}

func measure(t *testing.T, file string, bank crypto.Hash) *predict.UKI {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	u, err := predict.MeasureUKI(bytes.NewReader(b), int64(len(b)), bank)
	require.NoError(t, err)
	return u
}

var sections = map[string]string{".osrel": "ID=node\n", ".cmdline": "console=ttyS0", ".initrd": strings.Repeat("initrd", 1000)}

// TestPCR11AgreesWithSystemdMeasure compares with systemd's own prediction.
func TestPCR11AgreesWithSystemdMeasure(t *testing.T) {
	tool := "/usr/lib/systemd/systemd-measure"
	if _, err := os.Stat(tool); err != nil {
		testenv.Missing(t, tool+" (apt-get install systemd)")
	}
	file := makeUKI(t, sections)
	dir := filepath.Dir(file)
	phases := []string{"enter-initrd", "leave-initrd"}
	for _, bank := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		name := eventlog.HashName(bank)
		out, err := exec.Command(tool, "calculate", "--linux="+dir+"/kernel", "--osrel="+dir+"/osrel", "--cmdline="+dir+"/cmdline", "--initrd="+dir+"/initrd",
			"--bank="+name, "--phase="+strings.Join(phases, ":")).Output()
		require.NoError(t, err)
		values, err := predict.Values(bank, []secureboot.Component{{Name: "uki", Variants: []secureboot.Variant{measure(t, file, bank).Variant("v", predict.Boot{Phases: phases})}}})
		require.NoError(t, err)
		assert.Contains(t, string(out), "11:"+name+"="+hex.EncodeToString(values[0][11]))
	}
}

// TestAuthenticodeAgreesWithSbsign: signing does not change the hash of an
// image whose size is a multiple of eight, and the signature holds the hash.
func TestAuthenticodeAgreesWithSbsign(t *testing.T) {
	file := makeUKI(t, sections)
	unsigned, err := os.ReadFile(file)
	require.NoError(t, err)
	for len(unsigned)%8 != 0 {
		unsigned = append(unsigned, 0)
	}
	require.NoError(t, os.WriteFile(file, unsigned, 0o600))
	sbsign, openssl := testenv.Tool(t, "sbsign", "sbsigntool"), testenv.Tool(t, "openssl", "openssl")
	dir := t.TempDir()
	out, err := exec.Command(openssl, "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x/", "-keyout", dir+"/k", "-out", dir+"/c").CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command(sbsign, "--key", dir+"/k", "--cert", dir+"/c", "--output", dir+"/signed", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	signed, err := os.ReadFile(dir + "/signed")
	require.NoError(t, err)
	a, err := predict.Authenticode(bytes.NewReader(unsigned), int64(len(unsigned)), crypto.SHA256)
	require.NoError(t, err)
	b, err := predict.Authenticode(bytes.NewReader(signed), int64(len(signed)), crypto.SHA256)
	require.NoError(t, err)
	assert.Equal(t, a, b)
	assert.True(t, bytes.Contains(signed[len(unsigned):], b), "the signature is over this hash")
	tampered := bytes.Replace(signed, []byte("ID=node"), []byte("ID=evil"), 1)
	c, err := predict.Authenticode(bytes.NewReader(tampered), int64(len(tampered)), crypto.SHA256)
	require.NoError(t, err)
	assert.NotEqual(t, b, c)
}

func TestHostileImages(t *testing.T) {
	file := makeUKI(t, sections)
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	check := func(b []byte) error {
		_, err := predict.MeasureUKI(bytes.NewReader(b), int64(len(b)), crypto.SHA256)
		return err
	}
	require.NoError(t, check(good))
	for _, n := range []int{0, 1, 63, 64, 200, 400, 1000, len(good) / 2} {
		assert.Error(t, check(good[:n]), "truncated to %d bytes", n)
	}
	for name, b := range map[string][]byte{
		"no PE":          bytes.Repeat([]byte("x"), 1000),
		"section twice":  bytes.Replace(good, []byte(".osrel\x00"), []byte(".initrd"), 1),
		"profiles":       bytes.Replace(good, []byte(".osrel\x00\x00"), []byte(".profile"), 1),
		"without .linux": bytes.Replace(good, []byte(".linux\x00"), []byte(".other\x00"), 1),
	} {
		assert.Error(t, check(b), name)
	}
}

func TestPredictionsAreBounded(t *testing.T) {
	var comps []secureboot.Component
	for range 9 {
		d := func(b byte) secureboot.Variant {
			return secureboot.Variant{Records: []secureboot.Record{{PCR: 11, Digests: []secureboot.Digest{{Hash: crypto.SHA256, Value: bytes.Repeat([]byte{b}, 32)}}}}}
		}
		comps = append(comps, secureboot.Component{Name: "c", Variants: []secureboot.Variant{d(1), d(2)}})
	}
	v, err := predict.Values(crypto.SHA256, comps[:8])
	require.NoError(t, err)
	assert.Len(t, v, 256)
	_, err = predict.Values(crypto.SHA256, comps)
	require.Error(t, err)
	_, err = predict.Values(crypto.SHA384, comps[:1])
	require.Error(t, err)
}

func FuzzMeasureUKI(f *testing.F) {
	f.Add(pe())
	f.Add(pe(append(stub("257"), ".cmdline", "x", ".initrd", "y", ".profile", "a", ".profile", "b", ".pcrsig", "{}")...))
	if b, err := os.ReadFile("/usr/lib/systemd/boot/efi/linuxx64.efi.stub"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for profile := range 2 {
			u, err := predict.MeasureProfile(bytes.NewReader(b), int64(len(b)), crypto.SHA256, profile)
			if err == nil {
				u.Variant("x", predict.Boot{})
			}
		}
	})
}
