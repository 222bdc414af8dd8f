// nodeinit is PID 1 of a test machine that runs the node's binary (/node of the
// initramfs), as a board's init system would: drivers, network, the state disk,
// the daemon, and a reboot when the daemon asks for one.
//
// All that it and the daemon say goes to the second serial port, a line of JSON
// each; its own events are called vm.…. At the first boot, when the state disk
// is empty, it fetches what the production line gives a node (an archive) from
// the address in the kernel parameter vm.factory, for the boot's event log.
//
// In each kernel mode volume that the node opens it keeps a diary: it writes
// one when there is none, and says what it finds.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/internal/testvm/vminit"
)

const (
	state    = "/state"
	eventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"
)

func main() {
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	log, port, err := prepare()
	if err == nil {
		err = (&supervisor{log: log, out: port}).run()
	}
	switch {
	case errors.Is(err, errReboot):
		log.Info("reboot", "event", "vm.reboot")
		how = unix.LINUX_REBOOT_CMD_RESTART
	case log != nil:
		log.Error("the machine stops", "event", "vm.failed", "error", fmt.Sprint(err))
	default:
		fmt.Printf("INIT: %v\n", err)
	}
	if port != nil {
		_ = unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1) // let it drain
	}
	unix.Sync()
	_ = unix.Unmount(state, 0)
	_ = unix.Reboot(how)
	select {}
}

// prepare brings the machine up as far as the state disk.
func prepare() (*slog.Logger, *os.File, error) {
	if err := vminit.Mount(); err != nil {
		return nil, nil, err
	}
	port, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	log := slog.New(slog.NewJSONHandler(port, nil))
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return log, port, err
	}
	log.Info("kernel up", "event", "vm.boot", "cmdline", strings.TrimSpace(string(cmdline)))
	for _, step := range []func() error{vminit.LoadModules, vminit.MountMore, network, disks} {
		if err := step(); err != nil {
			return log, port, err
		}
	}
	if _, err := os.Stat(filepath.Join(state, "node.json")); errors.Is(err, os.ErrNotExist) {
		if err := provision(parameter(string(cmdline), "vm.factory")); err != nil {
			return log, port, fmt.Errorf("factory: %w", err)
		}
		log.Info("provisioned", "event", "vm.provisioned")
	}
	return log, port, nil
}

func parameter(cmdline, name string) string {
	for _, f := range strings.Fields(cmdline) {
		if v, ok := strings.CutPrefix(f, name+"="); ok {
			return v
		}
	}
	return ""
}

// disks mounts the state disk and names the software slots. Disks are known by
// their serial numbers: the kernel numbers them in the order in which they
// answer.
func disks() error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		found := map[string]string{}
		names, _ := filepath.Glob("/sys/class/nvme/nvme*/serial")
		for _, name := range names {
			serial, _ := os.ReadFile(name)
			device := "/dev/" + filepath.Base(filepath.Dir(name)) + "n1"
			if _, err := os.Stat(device); err == nil {
				found[strings.TrimSpace(string(serial))] = device
			}
		}
		_, err := os.Stat(found["boot"] + "p2")
		if found["state"] != "" && err == nil {
			if err := errors.Join(os.Symlink(found["boot"]+"p1", "/dev/slot-a"), os.Symlink(found["boot"]+"p2", "/dev/slot-b"), os.MkdirAll(state, 0o755)); err != nil {
				return err
			}
			return unix.Mount(found["state"], state, "ext4", 0, "")
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("disks: found only %v", found)
		}
	}
}

// provision asks the production line for this node's files.
func provision(address string) error {
	log, err := os.ReadFile(eventLog)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/", bytes.NewReader(log))
	if err != nil {
		return err
	}
	rsp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK {
		return errors.New(rsp.Status)
	}
	for r := tar.NewReader(rsp.Body); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Join(state, filepath.FromSlash(filepath.Clean("/"+h.Name)))
		data, err := io.ReadAll(r)
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, data, 0o600))
		}
		if err != nil {
			return err
		}
	}
}
