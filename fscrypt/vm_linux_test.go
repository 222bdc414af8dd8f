package fscrypt_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// TestOtherFileSystems runs kernel mode on f2fs and on UBIFS (over a simulated
// NAND chip), with the kernel that Debian ships, in a virtual machine: the
// kernels of build machines often have neither. The machine has no AES
// instructions loaded, so that it is also where Adiantum is taken.
func TestOtherFileSystems(t *testing.T) {
	if !testenv.Long() {
		t.Skip("boots a virtual machine: TRUSTTREE_LONG=1 runs it")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the virtual machine is amd64")
	}
	qemu := testenv.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	mkfs := testenv.Tool(t, "mkfs.f2fs", "f2fs-tools")
	root := debianKernel(t)
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	require.NoError(t, err)
	require.Len(t, images, 1)

	dir := t.TempDir()
	init := filepath.Join(dir, "init")
	build := exec.Command(testenv.Tool(t, "go", "golang"), "test", "-c", "-o", init, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	disk := filepath.Join(dir, "f2fs")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 128<<20))
	out, err = exec.Command(mkfs, "-f", "-O", "encrypt", disk).CombinedOutput()
	require.NoError(t, err, string(out))
	initrd := filepath.Join(dir, "initrd")
	require.NoError(t, os.WriteFile(initrd, initramfs(t, init, modules(t, root)), 0o600))

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-machine", "q35", "-cpu", "max", "-accel", "tcg", "-m", "1024", "-nographic", "-no-reboot", "-net", "none",
		"-kernel", images[0], "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet",
		"-drive", "file="+disk+",format=raw,if=virtio")
	console, err := cmd.CombinedOutput()
	var said []string
	for line := range strings.SplitSeq(string(console), "\n") {
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), "GUEST "); ok {
			said = append(said, s)
		}
	}
	t.Log(strings.Join(said, "\n"))
	require.Contains(t, said, "end", "%v: %s", err, console)
	for _, want := range []string{"modules: ok", "f2fs: ok", "ubi volume: ok", "ubifs: ok", "f2fs modes: Adiantum with Adiantum, key present, slow cipher false"} {
		assert.Contains(t, said, want)
	}
}

// debianKernel unpacks Debian's kernel package into the user's cache, once.
func debianKernel(t *testing.T) string {
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	cache = filepath.Join(cache, "trusttree-fscrypt")
	require.NoError(t, os.MkdirAll(cache, 0o755))
	root := filepath.Join(cache, "kernel")
	if _, err := os.Stat(root); err == nil {
		return root
	}
	out, err := exec.Command("apt-cache", "depends", "linux-image-amd64").Output()
	name := regexp.MustCompile(`linux-image-[0-9][^ \n]*-amd64`).FindString(string(out))
	if err != nil || name == "" {
		testenv.Missing(t, "Debian's kernel package: run apt-get update")
	}
	tmp, err := os.MkdirTemp(cache, "new-*")
	require.NoError(t, err)
	defer os.RemoveAll(tmp)
	require.NoError(t, os.Chmod(tmp, 0o777)) // apt downloads as a user of its own
	get := exec.Command("apt-get", "-q", "download", name)
	get.Dir = tmp
	if out, err := get.CombinedOutput(); err != nil {
		testenv.Missing(t, "apt-get download "+name+": "+string(out))
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	require.NoError(t, err)
	require.Len(t, debs, 1)
	out, err = exec.Command("dpkg-deb", "-x", debs[0], filepath.Join(tmp, "root")).CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.Rename(filepath.Join(tmp, "root"), root))
	return root
}

// modules lists the files of the modules that the guest loads, in an order
// that satisfies what they depend on.
func modules(t *testing.T, root string) (files []string) {
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(filepath.Join(root, "lib", "modules"), func(name string, _ fs.DirEntry, err error) error {
		if base, ok := strings.CutSuffix(filepath.Base(name), ".ko"); ok {
			all[strings.ReplaceAll(base, "-", "_")] = name
		}
		return err
	}))
	seen := map[string]bool{}
	var add func(name string)
	add = func(name string) {
		file := all[strings.ReplaceAll(name, "-", "_")]
		if file == "" || seen[file] { // built in
			return
		}
		seen[file] = true
		for _, d := range dependsOn(t, file) {
			add(d)
		}
		files = append(files, file)
	}
	for _, name := range []string{"virtio_pci", "virtio_blk", "sha512_generic", "hmac", "ecb", "cbc", "cts", "xts", "chacha_generic", "nhpoly1305", "adiantum",
		"crc32_generic", "crc32c_generic", "deflate", "lzo", "zstd", "f2fs", "nandsim", "ubi", "ubifs"} {
		add(name)
	}
	return files
}

// dependsOn reads what a module says that it needs.
func dependsOn(t *testing.T, file string) []string {
	f, err := elf.Open(file)
	require.NoError(t, err)
	defer f.Close()
	section := f.Section(".modinfo")
	require.NotNil(t, section, file)
	info, err := section.Data()
	require.NoError(t, err)
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if v, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(v) > 0 {
			return strings.Split(string(v), ",")
		}
	}
	return nil
}

// initramfs is a compressed archive of PID 1 and modules (cpio's newc format).
func initramfs(t *testing.T, init string, modules []string) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	var w countWriter
	w.w = z
	entry := func(name string, mode uint32, data []byte) {
		fmt.Fprintf(&w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		fmt.Fprintf(&w, "%s\x00", name)
		w.align()
		_, _ = w.Write(data)
		w.align()
	}
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "mnt", "modules"} {
		entry(dir, 0o040755, nil)
	}
	entry("init", 0o100755, read(t, init))
	for i, m := range modules {
		entry(fmt.Sprintf("modules/%03d-%s", i, filepath.Base(m)), 0o100644, read(t, m))
	}
	entry("TRAILER!!!", 0, nil)
	require.NoError(t, z.Close())
	return out.Bytes()
}

type countWriter struct {
	w io.Writer
	n int
}

func (c *countWriter) Write(p []byte) (int, error) {
	c.n += len(p)
	return c.w.Write(p)
}

func (c *countWriter) align() {
	if pad := -c.n & 3; pad > 0 {
		_, _ = c.Write(make([]byte, pad))
	}
}
