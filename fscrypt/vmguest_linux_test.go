package fscrypt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/fscrypt"
	"github.com/trusttree/trusttree/fscrypt/kernel"
)

// guest is PID 1 of the machine that TestOtherFileSystems boots: it prints one
// line for each file system and switches the machine off.
func guest() {
	report := func(what string, err error) {
		if err != nil {
			fmt.Printf("\nGUEST %s: FAILED: %s\n", what, strings.ReplaceAll(err.Error(), "\n", " | "))
			return
		}
		fmt.Printf("\nGUEST %s: ok\n", what)
	}
	for _, m := range [][3]string{{"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"}, {"dev", "/dev", "devtmpfs"}, {"tmp", "/tmp", "tmpfs"}} {
		if err := unix.Mount(m[0], m[1], m[2], 0, ""); err != nil {
			report("mount "+m[1], err)
		}
	}
	report("modules", loadModules())
	report("f2fs", onFileSystem("f2fs", "/dev/vda", "/dev/vda"))
	report("ubi volume", makeUBIVolume(64<<20))
	report("ubifs", onFileSystem("ubifs", "ubi0_0", "/dev/ubi0_0"))
	fmt.Println("GUEST end")
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func loadModules() error {
	names, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	slices.Sort(names)
	params := map[string]string{
		"nandsim": "first_id_byte=0x20 second_id_byte=0xaa third_id_byte=0x00 fourth_id_byte=0x15", // 256 MiB, pages of 2 KiB
		"ubi":     "mtd=0",
	}
	var errs []error
	for _, n := range names {
		f, err := os.Open(n)
		if err != nil {
			return err
		}
		_, name, _ := strings.Cut(strings.TrimSuffix(filepath.Base(n), ".ko"), "-")
		if err := unix.FinitModule(int(f.Fd()), params[name], 0); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// makeUBIVolume is UBI_IOCMKVOL (include/uapi/mtd/ubi-user.h). A volume that is
// empty gets a UBIFS when it is mounted.
func makeUBIVolume(size int64) error {
	var dev *os.File
	var err error
	for range 100 {
		if dev, err = os.OpenFile("/dev/ubi0", os.O_RDWR, 0); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	defer dev.Close()
	req := struct {
		ID, Alignment int32
		Bytes         int64
		Type          int8
		Flags         uint8
		NameLen       int16
		_             [4]int8
		Name          [128]byte
	}{ID: -1, Alignment: 1, Bytes: size, Type: 3, NameLen: 4}
	copy(req.Name[:], "test")
	const mkvol = 1<<30 | 152<<16 | 'o'<<8
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), mkvol, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

// onFileSystem takes a kernel mode volume through its life on a file system.
func onFileSystem(typ, source, device string) error {
	ctx := context.Background()
	mount := "/mnt/" + typ
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(source, mount, typ, 0, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	dir := mount + "/volume"
	v, err := fscrypt.Create(ctx, dir, kernelConfig, pass)
	if err != nil {
		return err
	}
	s := v.Status().Kernel
	fmt.Printf("\nGUEST %s modes: %s with %s, key %s, slow cipher %v\n", typ, s.Contents, s.Filenames, s.Key, s.SlowCipher)
	secret := bytes.Repeat([]byte("plaintext of the camera "), 2000)
	name := filepath.Join(v.Path(), "camera-0001")
	if err := os.WriteFile(name, secret, 0o600); err != nil {
		return err
	}
	if err := v.Protect(ctx, "camera-0001"); err != nil {
		return err
	}
	held, err := os.Open(name)
	if err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	var busy *fscrypt.BusyError
	if err := v.Lock(short); !errors.As(err, &busy) {
		return fmt.Errorf("lock over an open file: %w", err)
	}
	if err := errors.Join(held.Close(), v.Lock(ctx)); err != nil {
		return err
	}
	if _, err := os.ReadFile(name); err == nil {
		return errors.New("a locked file can be read")
	}
	if err := os.WriteFile(filepath.Join(dir, "tree", "new"), nil, 0o600); !errors.Is(err, unix.ENOKEY) {
		return fmt.Errorf("a file in a locked directory: %w", err)
	}
	unix.Sync()
	if found, err := deviceHas(device, secret[:48], []byte("camera-0001")); err != nil || found {
		return fmt.Errorf("plaintext or name on the device: %v, %w", found, err)
	}
	if v, err = fscrypt.Open(ctx, dir, fscrypt.Config{}, pass); err != nil {
		return err
	}
	if got, err := v.ReadFile("camera-0001"); err != nil || !bytes.Equal(got, secret) {
		return fmt.Errorf("content differs: %w", err)
	}
	if d, err := os.Open(v.Path()); err != nil {
		return err
	} else if p, err := kernel.GetPolicy(d); err != nil || p.Identifier.String() != s.Identifier {
		return fmt.Errorf("policy %v: %w", p, err)
	} else if err := d.Close(); err != nil {
		return err
	}
	if err := v.Lock(ctx); err != nil {
		return err
	}
	// A look-alike: the header with a directory that is not encrypted.
	evil := mount + "/evil"
	if err := os.CopyFS(evil+"/.fscrypt", os.DirFS(dir+"/.fscrypt")); err != nil {
		return err
	}
	if err := os.Mkdir(evil+"/tree", 0o700); err != nil {
		return err
	}
	if _, err := fscrypt.Open(ctx, evil, fscrypt.Config{}, pass); !errors.Is(err, fscrypt.ErrWrongVolume) {
		return fmt.Errorf("look-alike: %w", err)
	}
	if v, err = fscrypt.Open(ctx, dir, fscrypt.Config{}, pass); err != nil {
		return err
	}
	return v.Destroy(ctx)
}

// deviceHas looks for bytes on a block device or a UBI volume.
func deviceHas(device string, needles ...[]byte) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for kept := 0; ; {
		n, err := io.ReadFull(f, buf[kept:])
		for _, needle := range needles {
			if bytes.Contains(buf[:kept+n], needle) {
				return true, nil
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			return false, err
		}
		kept = copy(buf, buf[len(buf)-64:])
	}
}
