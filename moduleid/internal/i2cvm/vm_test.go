// Package i2cvm boots a small virtual machine in which the stock kernel's I2C
// drivers carry the traffic between package atecc and an emulated chip.
package i2cvm

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
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

// drivers are the modules that the machine loads, in that order, below the
// kernel's module directory.
var drivers = []string{"drivers/usb/common/usb-common", "drivers/usb/core/usbcore", "drivers/usb/usbip/usbip-core",
	"drivers/usb/usbip/vhci-hcd", "drivers/i2c/i2c-dev", "drivers/i2c/busses/i2c-tiny-usb",
	"drivers/hid/hid", "drivers/hid/usbhid/usbhid", "drivers/hid/hid-cp2112"}

var versioned = regexp.MustCompile(`linux-image-[0-9][^ \n]*-amd64`)

// kernel unpacks Debian's kernel package into the user's cache, once, and
// returns the folder. The cloud flavour lacks the drivers.
func kernel(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("KDIR"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	dir := filepath.Join(cache, "trusttree-i2cvm")
	if k, _ := filepath.Glob(filepath.Join(dir, "kernel/boot/vmlinuz-*")); len(k) > 0 {
		return filepath.Join(dir, "kernel")
	}
	apt, dpkg := testenv.Tool(t, "apt-get", "apt"), testenv.Tool(t, "dpkg-deb", "dpkg")
	out, err := exec.Command("apt-cache", "depends", "linux-image-amd64").Output()
	name := versioned.FindString(string(out))
	if err != nil || name == "" {
		testenv.Missing(t, "package linux-image-amd64 (apt-get update)")
	}
	tmp := t.TempDir()
	require.NoError(t, os.Chmod(tmp, 0o777)) // apt downloads as a user of its own
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, apt, "-q", "download", name)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		testenv.Missing(t, fmt.Sprintf("kernel package %s: %v %s", name, err, out))
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	require.Len(t, debs, 1)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	part := filepath.Join(dir, fmt.Sprintf("part-%d", os.Getpid()))
	defer os.RemoveAll(part)
	out, err = exec.Command(dpkg, "-x", debs[0], part).CombinedOutput()
	require.NoError(t, err, "%s", out)
	_ = os.Rename(part, filepath.Join(dir, "kernel")) // another test may have been faster
	return filepath.Join(dir, "kernel")
}

func TestRealI2CBus(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the virtual machine is an amd64 one")
	}
	qemu := testenv.Tool(t, "qemu-system-x86_64", "qemu-system-x86")
	k := kernel(t)
	images, _ := filepath.Glob(filepath.Join(k, "boot/vmlinuz-*"))
	require.NotEmpty(t, images)

	dir := t.TempDir()
	pid1 := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", pid1, "./init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	initrd := filepath.Join(dir, "initrd.gz")
	require.NoError(t, os.WriteFile(initrd, archive(t, k, pid1), 0o600))

	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(testenv.N(8, 40))*time.Minute)
	defer cancel()
	vm := exec.CommandContext(ctx, qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "384", "-nographic", "-no-reboot", "-nodefaults",
		"-serial", "stdio", "-kernel", images[0], "-initrd", initrd, "-append", "console=ttyS0 quiet loglevel=4 panic=-1"+[]string{"", " i2cvm.long"}[testenv.N(0, 1)])
	console, err := vm.CombinedOutput()
	require.NoError(t, err, "%s", console)
	results := regexp.MustCompile(`I2CVM (PASS|FAIL) ([^\r\n]*)`).FindAllStringSubmatch(string(console), -1)
	for _, r := range results {
		t.Run(strings.SplitN(r[2], ":", 2)[0], func(t *testing.T) { assert.Equal(t, "PASS", r[1], r[2]) })
	}
	assert.Len(t, results, 10, "every check ran: %s", console)
	assert.Contains(t, string(console), "I2CVM DONE", "%s", console)
}

// archive makes the initramfs: PID 1 and the drivers, as gzipped cpio.
func archive(t *testing.T, k, pid1 string) []byte {
	t.Helper()
	var b bytes.Buffer
	entry := func(name string, mode uint32, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	for _, d := range []string{"dev", "proc", "sys", "m"} {
		entry(d, 0o40755, nil)
	}
	data, err := os.ReadFile(pid1)
	require.NoError(t, err)
	entry("init", 0o100755, data)
	for _, d := range drivers {
		files, _ := filepath.Glob(filepath.Join(k, "lib/modules/*/kernel", d+".ko"))
		require.NotEmpty(t, files, d)
		data, err := os.ReadFile(files[0])
		require.NoError(t, err)
		entry("m/"+filepath.Base(d)+".ko", 0o100644, data)
	}
	entry("TRAILER!!!", 0, nil)
	var z bytes.Buffer
	w, err := gzip.NewWriterLevel(&z, gzip.BestSpeed)
	require.NoError(t, err)
	_, err = w.Write(b.Bytes())
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return z.Bytes()
}
