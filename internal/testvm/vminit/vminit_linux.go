package vminit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Mount mounts /proc, /sys, securityfs and /dev.
func Mount() error {
	return errors.Join(mount("proc", "/proc"), mount("sysfs", "/sys"), mount("securityfs", "/sys/kernel/security"), mount("devtmpfs", "/dev"))
}

// MountMore mounts the firmware's variables, once their driver is loaded, and
// /run and /tmp in memory.
func MountMore() error {
	return errors.Join(mount("efivarfs", "/sys/firmware/efi/efivars"), mount("tmpfs", "/run"), mount("tmpfs", "/tmp"))
}

func mount(kind, dir string) error {
	_ = os.MkdirAll(dir, 0o755)
	if err := unix.Mount(kind, dir, kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// LoadModules loads the drivers below /modules in the order of their file names.
func LoadModules() error {
	files, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}
