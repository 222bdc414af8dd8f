package testvm

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Board is a machine as a node is built: two EFI system partitions as software
// slots, a firmware boot entry for each (Boot0100 boots slot a, Boot0101 slot
// b), a second disk for state (ext4 with encryption), a TPM whose maker
// certified its endorsement key, and a network in which the host is 10.0.2.2.
// PID 1 is package nodeinit. TPM, firmware variables and disks keep their state.
type Board struct {
	*VM
	// Makers are the certificates of the TPM's maker.
	Makers []*x509.Certificate

	tpm *exec.Cmd
}

// Slots' places on the disk, in sectors of 512 bytes.
const (
	slotSectors = 48 << 11
	slotA       = 1 << 11
	slotB       = slotA + slotSectors
)

// drivers that Debian's kernel does not have built in: the network, the
// firmware's variables, and what fscrypt encrypts with.
var drivers = []string{"virtio_pci", "virtio_net", "efivarfs", "sha512_generic", "ecb", "cts", "xts"}

// NewBoard is New for a board whose Secure Boot is on.
func NewBoard(tb testing.TB) *Board {
	tb.Helper()
	b := &Board{VM: New(tb, "on")}
	ctx := tb.Context()
	must(tb, b.certifyTPM(ctx))
	must(tb, b.build(ctx, "nodeinit", "./internal/testvm/nodeinit"))
	const unique = "11111111-2222-3333-4444-00000000000"
	b.entries = [][]byte{bootEntry("slot a", 1, slotA, slotSectors, unique+"a"), bootEntry("slot b", 2, slotB, slotSectors, unique+"b")}
	must(tb, b.firmware("on"))
	disk := filepath.Join(b.dir, "disk.img")
	for _, c := range [][]string{
		{"truncate", "-s", fmt.Sprint((slotB + slotSectors + slotA) * 512), disk},
		{"sgdisk", "-o", "-U", "11111111-2222-3333-4444-555555555555",
			"-n", fmt.Sprintf("1:%d:+%dM", slotA, slotSectors>>11), "-t", "1:ef00", "-u", "1:" + unique + "a",
			"-n", fmt.Sprintf("2:%d:+%dM", slotB, slotSectors>>11), "-t", "2:ef00", "-u", "2:" + unique + "b", disk},
		{"truncate", "-s", "128M", b.State()},
		{"mkfs.ext4", "-q", "-b", "4096", "-O", "encrypt", b.State()},
	} {
		must(tb, run(ctx, b.dir, c[0], c[1:]...))
	}
	tb.Cleanup(func() { _ = b.stopTPM() })
	return b
}

// State is the file that is the state disk.
func (b *Board) State() string { return filepath.Join(b.dir, "state.img") }

// Console is the file with what kernel and firmware said in the boot that Power
// made last.
func (b *Board) Console() string { return filepath.Join(b.dir, "console.log") }

// certifyTPM makes the TPM anew, with certificates for its endorsement keys.
func (b *Board) certifyTPM(ctx context.Context) error {
	p := func(n string) string { return filepath.Join(b.dir, "maker", n) }
	if err := os.Mkdir(p(""), 0o700); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"setup.conf":      "create_certs_tool=/usr/bin/swtpm_localca\ncreate_certs_tool_config=" + p("localca.conf") + "\ncreate_certs_tool_options=" + p("localca.options") + "\nactive_pcr_banks=sha256\n",
		"localca.conf":    "statedir=" + p("") + "\nsigningkey=" + p("signkey.pem") + "\nissuercert=" + p("issuercert.pem") + "\ncertserial=" + p("certserial") + "\n",
		"localca.options": "--tpm-manufacturer id:00001014\n--tpm-model swtpm\n--tpm-version id:00010000\n--platform-manufacturer trusttree\n--platform-version 1\n--platform-model test\n",
	} {
		if err := os.WriteFile(p(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	err := run(ctx, b.dir, "swtpm_setup", "--tpm2", "--tpmstate", filepath.Join(b.dir, "tpm"), "--config", p("setup.conf"),
		"--create-ek-cert", "--lock-nvram", "--pcr-banks", b.banks, "--overwrite")
	if err != nil {
		return err
	}
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		text, err := os.ReadFile(p(name))
		if err != nil {
			return err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return fmt.Errorf("testvm: %s is not PEM", name)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		b.Makers = append(b.Makers, cert)
	}
	return nil
}

// Initrd makes the initramfs of the board's system, which runs the node's binary
// in the file named.
func (b *Board) Initrd(node string) ([]byte, error) {
	pid1, err := os.ReadFile(filepath.Join(b.cache, "nodeinit"))
	if err != nil {
		return nil, err
	}
	files, err := b.kernel.modules(drivers...)
	if err != nil {
		return nil, err
	}
	if files["node"], err = os.ReadFile(node); err != nil {
		return nil, err
	}
	return Initrd(pid1, files)
}

// Slot makes the content of a software slot: an EFI system partition with an
// image as its fallback loader. It is what a release brings.
func (b *Board) Slot(ctx context.Context, uki []byte) ([]byte, error) {
	dir, err := os.MkdirTemp(b.dir, "slot-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	p := func(n string) string { return filepath.Join(dir, n) }
	if err := os.WriteFile(p("uki.efi"), uki, 0o600); err != nil {
		return nil, err
	}
	for _, c := range [][]string{
		{"truncate", "-s", fmt.Sprintf("%dM", len(uki)>>20+3), p("slot.img")},
		{"mkfs.vfat", "-n", "SLOT", "-i", "0A0B0C0D", p("slot.img")},
		{"mmd", "-i", p("slot.img"), "::/EFI", "::/EFI/BOOT"},
		{"mcopy", "-i", p("slot.img"), p("uki.efi"), "::/EFI/BOOT/BOOTX64.EFI"},
	} {
		if err := run(ctx, dir, c[0], c[1:]...); err != nil {
			return nil, err
		}
	}
	return os.ReadFile(p("slot.img"))
}

// WriteSlot writes a slot ("a" or "b") of the machine, which is off.
func (b *Board) WriteSlot(slot string, content []byte) error {
	if len(content) > slotSectors*512 {
		return fmt.Errorf("testvm: %d bytes do not fit into a slot", len(content))
	}
	f, err := os.OpenFile(filepath.Join(b.dir, "disk.img"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(content, map[string]int64{"a": slotA, "b": slotB}[slot]*512)
	return err
}

// Power returns the command that switches the machine on, with its TPM already
// powered: the daemon's and PID 1's log is its standard error. It ends when the
// machine reboots or switches itself off; to kill it is a power cut.
func (b *Board) Power(ctx context.Context) (*exec.Cmd, error) {
	err := b.stopTPM()
	if err != nil {
		return nil, err
	}
	if b.tpm, err = b.startTPM(ctx); err != nil {
		return nil, err
	}
	_ = os.Remove(b.Console())
	args := append(b.hardware(), "-chardev", "file,id=log,path=/dev/fd/2,append=on", "-serial", "chardev:log", "-netdev", "user,id=net0")
	// With a boot index, firmware starts this disk and leaves the other devices
	// alone; it keeps those entries of BootOrder that are on it.
	args = append(args, b.drive("boot", "disk.img", ",bootindex=1")...)
	args = append(args, b.drive("state", "state.img", "")...)
	return exec.CommandContext(ctx, "qemu-system-x86_64", args...), nil
}

// stopTPM ends the TPM of a machine that is off: it has its state on disk after
// each command.
func (b *Board) stopTPM() error {
	if b.tpm == nil {
		return nil
	}
	_ = b.tpm.Process.Kill()
	_ = b.tpm.Wait()
	b.tpm = nil
	return nil
}
