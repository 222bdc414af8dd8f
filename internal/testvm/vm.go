package testvm

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/testvm/vmtar"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// Image says what the machine boots.
type Image struct {
	Cmdline string // added to the kernel command line
	Sign    string // "" or "db": by the enrolled key; "attacker"; "none"
	Tamper  bool   // changed after it was signed
	PCRKey  []byte // PEM public key, in .pcrpkey
	PCRSig  []byte // signed PCR policy, in .pcrsig
	Initrd  []byte // as Initrd makes it; nil means package init, with an IMA policy
}

// VM is a machine that is switched off.
type VM struct {
	dir    string
	cache  string
	kernel *kernel
	keys   map[string]*key
	banks  string
	// entries are the firmware's boot entries, from firstEntry on; none means that
	// it boots the first disk.
	entries [][]byte
}

// Result is what a boot brought back.
type Result struct {
	Files   map[string][]byte // as in the corpus: binary_bios_measurements, pcrs.txt, quote_sha256.tpms_attest, …
	Console []byte
	Wall    time.Duration
}

// ErrNoResult says that PID 1 did not report success: the firmware refused the
// image, the kernel did not start, or a task failed.
var ErrNoResult = errors.New("testvm: boot ended without a result")

// ErrRefused says that the firmware did not accept the image's signature. It
// comes with ErrNoResult.
var ErrRefused = errors.New("testvm: firmware refused the image")

const resultFile = "result.txt"

// refusal is what OVMF prints before it falls into its shell, which never ends.
const refusal = "Access Denied"

// Tools are the programs that a VM needs, with their Debian packages.
var tools = [][2]string{{"qemu-system-x86_64", "qemu-system-x86"}, {"swtpm", "swtpm"}, {"swtpm_setup", "swtpm-tools"}, {"sbsign", "sbsigntool"},
	{"mcopy", "mtools"}, {"mkfs.vfat", "dosfstools"}, {"sgdisk", "gdisk"}, {"mkfs.ext4", "e2fsprogs"}, {"objcopy", "binutils"}, {"busybox", "busybox-static"}, {"dpkg-deb", "dpkg"}}

var buildOnce sync.Mutex // one go build of PID 1 at a time

// New makes a machine with a new TPM and new Secure Boot keys, the latter
// enrolled. secureBoot is "on", "off" or "setup" (no keys). It skips the test
// (fails it under CI) when something that it needs is missing.
func New(tb testing.TB, secureBoot string) *VM {
	tb.Helper()
	for _, t := range tools {
		testenv.Tool(tb, t[0], t[1])
	}
	for file, pkg := range map[string]string{stub: "systemd-boot-efi", ovmfCode: "ovmf"} {
		if _, err := os.Stat(file); err != nil {
			testenv.Missing(tb, file+" (apt-get install "+pkg+")")
		}
	}
	ctx := tb.Context()
	base, err := os.UserCacheDir()
	must(tb, err)
	v := &VM{dir: tb.TempDir(), cache: filepath.Join(base, "trusttree-testvm"), banks: "sha256"}
	must(tb, os.MkdirAll(v.cache, 0o755))
	if v.kernel, err = findKernel(ctx, v.cache); err != nil {
		testenv.Missing(tb, err.Error())
	}
	must(tb, v.build(ctx, "init", "./internal/testvm/init"))
	v.keys, err = makeKeys(v.dir)
	must(tb, err)
	must(tb, v.firmware(secureBoot))
	must(tb, os.Mkdir(filepath.Join(v.dir, "tpm"), 0o700))
	must(tb, run(ctx, v.dir, "swtpm_setup", "--tpm2", "--tpmstate", filepath.Join(v.dir, "tpm"), "--pcr-banks", v.banks, "--overwrite"))
	return v
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// SetSecureBoot switches Secure Boot on or off, with the keys still enrolled,
// as the firmware's menu would. Variables that the firmware made are lost.
func (v *VM) SetSecureBoot(on bool) error {
	if on {
		return v.firmware("on")
	}
	return v.firmware("off")
}

// Certificate returns an enrolled certificate (DER): "PK", "KEK" or "db".
func (v *VM) Certificate(name string) []byte { return v.keys[name].der }

const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

func (v *VM) firmware(secureBoot string) error {
	fd, err := os.ReadFile(ovmfVars)
	if err != nil {
		return err
	}
	switch secureBoot {
	case "on", "off":
		fd = enrol(fd, v.keys, secureBoot == "on", v.entries...)
	case "setup":
	default:
		return fmt.Errorf("testvm: Secure Boot %q", secureBoot)
	}
	return os.WriteFile(filepath.Join(v.dir, "vars.fd"), fd, 0o600)
}

// build builds a program for the machine into the cache. Tests of other packages
// may use the cache at the same time: a file there is whole at any moment.
func (v *VM) build(ctx context.Context, name, pkg string) error {
	buildOnce.Lock()
	defer buildOnce.Unlock()
	dir, err := os.MkdirTemp(v.cache, name+"-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", made, pkg)
	cmd.Dir = testenv.Repo()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("testvm: build %s: %w\n%s", name, err, out)
	}
	return os.Rename(made, filepath.Join(v.cache, name))
}

// Boot makes the image, boots it, and waits for the machine to switch itself
// off. task holds files for PID 1; see package init. On failure the error wraps
// ErrNoResult, and the Result has the console.
func (v *VM) Boot(ctx context.Context, im Image, task map[string][]byte) (*Result, error) {
	uki, err := v.UKI(ctx, im)
	if err != nil {
		return nil, err
	}
	return v.BootUKI(ctx, uki, task)
}

// BootUKI is Boot for an image that UKI made.
func (v *VM) BootUKI(ctx context.Context, uki []byte, task map[string][]byte) (*Result, error) {
	if err := v.disk(ctx, uki); err != nil {
		return nil, err
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	in := map[string][]byte{"nonce.bin": nonce}
	for k, b := range task {
		in[k] = b
	}
	if err := writeTar(filepath.Join(v.dir, "in.img"), in); err != nil {
		return nil, err
	}
	out := filepath.Join(v.dir, "out.img")
	if err := os.WriteFile(out, make([]byte, 16<<20), 0o600); err != nil {
		return nil, err
	}
	start := time.Now()
	console, err := v.qemu(ctx)
	r := &Result{Console: console, Wall: time.Since(start)}
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrNoResult, err)
	}
	if r.Files, err = vmtar.Read(out); err != nil {
		return r, fmt.Errorf("%w: %w", ErrNoResult, err)
	}
	if want := "ok " + hex.EncodeToString(nonce) + "\n"; string(r.Files[resultFile]) != want {
		return r, fmt.Errorf("%w: PID 1 says %q", ErrNoResult, r.Files[resultFile])
	}
	return r, nil
}

// qemu runs the machine once.
func (v *VM) qemu(ctx context.Context) (console []byte, err error) {
	p := func(n string) string { return filepath.Join(v.dir, n) }
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tpm, err := v.startTPM(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		cancel()
		_ = tpm.Wait()
	}()
	args := append(v.hardware(), "-netdev", "user,id=net0,restrict=on")
	args = append(args, v.drive("boot", "disk.img", ",bootindex=1")...)
	args = append(args, v.drive("out", "out.img", "")...)
	args = append(args, v.drive("in", "in.img", "")...)
	machine := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	machine.SysProcAttr = tpmtest.DieWithParent()
	var stderr bytes.Buffer
	machine.Stderr = &stderr
	_ = os.Remove(p("console.log"))
	if err := machine.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- machine.Wait() }()
	refused := false
	for running := true; running; {
		select {
		case err = <-ended:
			running = false
		case <-time.After(500 * time.Millisecond):
			if b, _ := os.ReadFile(p("console.log")); !refused && bytes.Contains(b, []byte(refusal)) {
				refused = true
				_ = machine.Process.Kill()
			}
		}
	}
	console, _ = os.ReadFile(p("console.log"))
	if refused {
		return console, ErrRefused
	}
	if err != nil {
		return console, fmt.Errorf("qemu: %w: %s", err, stderr.Bytes())
	}
	return console, nil
}

// startTPM starts the TPM, which ends with the machine that it is in.
func (v *VM) startTPM(ctx context.Context) (*exec.Cmd, error) {
	sock := filepath.Join(v.dir, "tpm.sock")
	_ = os.Remove(sock)
	tpm := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(v.dir, "tpm"), "--ctrl", "type=unixio,path="+sock,
		"--flags", "startup-clear", "--terminate")
	tpm.SysProcAttr = tpmtest.DieWithParent()
	if err := tpm.Start(); err != nil {
		return nil, err
	}
	for range 600 {
		if _, err := os.Stat(sock); err == nil {
			return tpm, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, errors.Join(errors.New("testvm: swtpm does not listen"), tpm.Process.Kill(), tpm.Wait())
}

// hardware are the machine's parts but for disks and the network behind its card.
func (v *VM) hardware() []string {
	p := func(n string) string { return filepath.Join(v.dir, n) }
	return []string{"-machine", "q35,smm=on", "-accel", "tcg", "-cpu", "max", "-m", "512", "-smp", "1", "-display", "none", "-monitor", "none",
		"-serial", "file:" + p("console.log"), "-no-reboot", "-no-user-config", "-nodefaults", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + ovmfCode, "-drive", "if=pflash,format=raw,unit=1,file=" + p("vars.fd"),
		"-chardev", "socket,id=chrtpm,path=" + p("tpm.sock"), "-tpmdev", "emulator,id=tpm0,chardev=chrtpm", "-device", "tpm-crb,tpmdev=tpm0",
		"-device", "virtio-net-pci,netdev=net0,romfile="}
}

// drive is an NVMe disk.
func (v *VM) drive(id, file, more string) []string {
	return []string{"-drive", "if=none,id=" + id + ",format=raw,file=" + filepath.Join(v.dir, file), "-device", "nvme,drive=" + id + ",serial=" + id + more}
}

func writeTar(name string, files map[string][]byte) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o600, Size: int64(len(data))}); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	for b.Len()%(1<<20) != 0 {
		b.WriteByte(0)
	}
	return os.WriteFile(name, b.Bytes(), 0o600)
}
