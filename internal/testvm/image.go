package testvm

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// cpio writes a newc archive with PID 1 and more files, by path.
func cpio(pid1 []byte, more map[string][]byte) []byte {
	var b bytes.Buffer
	entry := func(name string, mode uint32, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
		b.Write(data)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	entry("init", 0o100755, pid1)
	for _, dir := range []string{"proc", "sys", "dev", "data", "modules"} {
		entry(dir, 0o040755, nil)
	}
	for _, name := range slices.Sorted(maps.Keys(more)) {
		entry(name, 0o100755, more[name])
	}
	entry("TRAILER!!!", 0, nil)
	return b.Bytes()
}

// Initrd makes an initramfs with PID 1 and more files, by path: in the root or
// in modules/.
func Initrd(pid1 []byte, more map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(cpio(pid1, more)); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// UKI makes the unified kernel image for an image's settings, signed as Sign
// says. It is what a vendor would publish, and reproducible but for the
// signature.
func (v *VM) UKI(ctx context.Context, im Image) ([]byte, error) {
	dir, err := os.MkdirTemp(v.dir, "uki-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	p := func(n string) string { return filepath.Join(dir, n) }
	ird, cmdline := im.Initrd, "console=ttyS0 panic=-1"
	if ird == nil {
		pid1, err := os.ReadFile(filepath.Join(v.cache, "init"))
		if err != nil {
			return nil, err
		}
		if ird, err = Initrd(pid1, nil); err != nil {
			return nil, err
		}
		cmdline += " ima_policy=tcb ima_hash=sha256"
	}
	if im.Cmdline != "" {
		cmdline += " " + im.Cmdline
	}
	for name, b := range map[string][]byte{"initrd": ird, "cmdline": []byte(cmdline), "osrel": []byte("ID=citynode\nPRETTY_NAME=\"City node\"\nVERSION_ID=1\n")} {
		if err := os.WriteFile(p(name), b, 0o600); err != nil {
			return nil, err
		}
	}
	if err := run(ctx, dir, "cp", v.kernel.image, p("linux")); err != nil {
		return nil, err
	}
	for run(ctx, dir, "sbattach", "--remove", p("linux")) == nil { // Debian's signature
		if b, err := os.ReadFile(p("linux")); err != nil || !hasSignature(b) {
			break
		}
	}
	args := []string{"--add-section", ".osrel=" + p("osrel"), "--change-section-vma", ".osrel=0x20000",
		"--add-section", ".cmdline=" + p("cmdline"), "--change-section-vma", ".cmdline=0x30000",
		"--add-section", ".linux=" + p("linux"), "--change-section-vma", ".linux=0x2000000",
		"--add-section", ".initrd=" + p("initrd"), "--change-section-vma", ".initrd=0x4000000"}
	for name, x := range map[string]struct {
		vma  string
		data []byte
	}{"pcrpkey": {"0x40000", im.PCRKey}, "pcrsig": {"0x50000", im.PCRSig}} {
		if x.data == nil {
			continue
		}
		if err := os.WriteFile(p(name), x.data, 0o600); err != nil {
			return nil, err
		}
		args = append(args, "--add-section", "."+name+"="+p(name), "--change-section-vma", "."+name+"="+x.vma)
	}
	if err = run(ctx, dir, "objcopy", append(args, stub, p("uki"))...); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(p("uki"))
	if err != nil {
		return nil, err
	}
	pe := binary.LittleEndian.Uint32(b[60:])
	copy(b[pe+8:], make([]byte, 4)) // objcopy stamps the time of day
	if im.Sign == "none" {
		return b, nil
	}
	if err := os.WriteFile(p("uki"), b, 0o600); err != nil {
		return nil, err
	}
	k := v.keys["db"]
	if im.Sign != "" {
		if k = v.keys[im.Sign]; k == nil {
			return nil, fmt.Errorf("testvm: no key %q", im.Sign)
		}
	}
	if err := run(ctx, dir, "sbsign", "--key", k.keyFile, "--cert", k.certFile, "--output", p("signed"), p("uki")); err != nil {
		return nil, err
	}
	if b, err = os.ReadFile(p("signed")); err != nil {
		return nil, err
	}
	if im.Tamper {
		b = bytes.Replace(b, []byte("City node"), []byte("Evil node"), 1)
	}
	return b, nil
}

func hasSignature(pe []byte) bool {
	if len(pe) < 64 {
		return false
	}
	h := int(binary.LittleEndian.Uint32(pe[60:]))
	if h+24+168 > len(pe) {
		return false
	}
	dir := h + 24 + 96 + 4*8
	if binary.LittleEndian.Uint16(pe[h+24:]) == 0x20B {
		dir += 16
	}
	return binary.LittleEndian.Uint32(pe[dir+4:]) != 0
}

// disk makes the boot disk: an EFI system partition with the image, and an
// ext4 partition with the files that IMA measures.
func (v *VM) disk(ctx context.Context, uki []byte) error {
	dir, err := os.MkdirTemp(v.dir, "disk-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p := func(n string) string { return filepath.Join(dir, n) }
	for _, d := range []string{"data/bin", "data/etc"} {
		if err := os.MkdirAll(p(d), 0o755); err != nil {
			return err
		}
	}
	for name, s := range map[string]string{"data/bin/selftest.sh": "#!/data/bin/busybox sh\nexit 0\n", "data/etc/config": "camera=on\n", "data/etc/role": "streetlight-node\n"} {
		if err := os.WriteFile(p(name), []byte(s), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(p("uki.efi"), uki, 0o600); err != nil {
		return err
	}
	out := filepath.Join(v.dir, "disk.img")
	for _, c := range [][]string{
		{"cp", "/usr/bin/busybox", p("data/bin/busybox")},
		{"truncate", "-s", "88M", p("esp.img")},
		{"mkfs.vfat", "-n", "ESP", "-i", "0A0B0C0D", p("esp.img")},
		{"mmd", "-i", p("esp.img"), "::/EFI", "::/EFI/BOOT"},
		{"mcopy", "-i", p("esp.img"), p("uki.efi"), "::/EFI/BOOT/BOOTX64.EFI"},
		{"truncate", "-s", "24M", p("ext4.img")},
		{"mkfs.ext4", "-q", "-b", "4096", "-E", "root_owner=0:0", "-d", p("data"), p("ext4.img")},
		{"truncate", "-s", "128M", out},
		{"sgdisk", "-o", "-U", "11111111-2222-3333-4444-555555555555", "-n", "1:2048:+88M", "-t", "1:ef00", "-u", "1:11111111-2222-3333-4444-000000000001",
			"-n", "2:182272:+24M", "-t", "2:8300", "-u", "2:11111111-2222-3333-4444-000000000002", out},
		{"dd", "if=" + p("esp.img"), "of=" + out, "bs=1M", "seek=1", "conv=notrunc", "status=none"},
		{"dd", "if=" + p("ext4.img"), "of=" + out, "bs=1M", "seek=89", "conv=notrunc", "status=none"},
	} {
		if err := run(ctx, dir, c[0], c[1:]...); err != nil {
			return err
		}
	}
	return nil
}
