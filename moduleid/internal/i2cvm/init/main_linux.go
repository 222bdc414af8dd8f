// Command init is PID 1 of a small virtual machine. It puts an emulated
// ATECC608 behind a real /dev/i2c-N of the stock kernel drivers, runs the
// driver of package atecc against it, prints one line for each check, and
// powers off.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

const (
	address  = 0x60
	childEnv = "I2CVM_CHILD"
)

var modules = []string{"usb-common", "usbcore", "usbip-core", "vhci-hcd", "i2c-dev", "i2c-tiny-usb"}

func main() {
	if dev := os.Getenv(childEnv); dev != "" {
		os.Exit(child(dev))
	}
	m := &machine{}
	err := m.setup()
	if err == nil {
		m.checks()
	} else {
		fmt.Println("I2CVM FAIL setup:", err)
	}
	fmt.Println("I2CVM DONE")
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// machine is the test bench inside.
type machine struct {
	bus  *moduleidtest.Bus // behind the adapter
	chip *moduleidtest.ATECC608
	ca   *moduleidtest.CA
	dev  string // /dev/i2c-N
	port string // of the virtual host controller
}

func (m *machine) setup() error {
	for _, mount := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(mount[0], mount[1], mount[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", mount[1], err)
		}
	}
	for _, name := range modules {
		f, err := os.Open("/m/" + name + ".ko")
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
		f.Close()
	}
	var err error
	if m.ca, err = moduleidtest.NewCA("Owner CA"); err != nil {
		return err
	}
	if m.chip, err = moduleidtest.NewATECC608(moduleidtest.DataSheet); err != nil {
		return err
	}
	cert, err := m.ca.Issue("module", m.chip.PublicKey(), nil)
	if err != nil {
		return err
	}
	if err := m.chip.Store(cert); err != nil {
		return err
	}
	m.bus = moduleidtest.NewBus(0)
	m.bus.Plug(address, m.chip)
	return m.attach()
}

// attach plugs the adapter in and waits for its device file.
func (m *machine) attach() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	go (&adapter{bus: m.bus, f: os.NewFile(uintptr(fds[1]), "usbip")}).serve()
	control, _ := filepath.Glob("/sys/devices/platform/vhci_hcd*/attach")
	if len(control) == 0 {
		return errors.New("no virtual host controller")
	}
	m.port = filepath.Dir(control[0])
	const device, fullSpeed = 0x10002, 2
	if err := os.WriteFile(control[0], fmt.Appendf(nil, "0 %d %d %d", fds[0], device, fullSpeed), 0); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	unix.Close(fds[0]) // the kernel holds its own reference
	for range 200 {
		names, _ := filepath.Glob("/sys/class/i2c-adapter/i2c-*/name")
		for _, n := range names {
			if b, _ := os.ReadFile(n); strings.HasPrefix(string(b), "i2c-tiny-usb") {
				m.dev = "/dev/" + filepath.Base(filepath.Dir(n))
				if _, err := os.Stat(m.dev); err == nil {
					return nil
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("the adapter did not appear")
}

func (m *machine) checks() {
	for _, c := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"proof through the kernel's driver", m.proof},
		{"chip sleeps afterwards", m.sleeps},
		{"chip was busy and did not acknowledge", m.busy},
		{"absent chip", m.absent},
		{"module pulled out during Sign, put back, proves", m.removal},
		{"two processes take turns", m.processes},
		{"address of a kernel driver is refused", m.owned},
		{"adapter pulled out during Sign", m.adapterGone},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if err := c.run(ctx); err != nil {
			fmt.Printf("I2CVM FAIL %s: %v\n", c.name, err)
		} else {
			fmt.Printf("I2CVM PASS %s\n", c.name)
		}
		cancel()
	}
}

// prove opens the bus as a node does and verifies a proof.
func prove(ctx context.Context, dev string, addr uint8) error {
	bus, err := atecc.OpenI2C(dev)
	if err != nil {
		return err
	}
	defer bus.Close()
	chip, err := atecc.NewHost(bus).Chip(atecc.Config{Address: addr})
	if err != nil {
		return err
	}
	c := moduleid.NewChallenge("vm", "bay")
	e, err := chip.Prove(ctx, c)
	if err != nil {
		return err
	}
	_, err = atecc.Scheme().Check(c, e)
	return err
}

func (m *machine) proof(ctx context.Context) error { return prove(ctx, m.dev, address) }

func (m *machine) sleeps(ctx context.Context) error {
	bus, err := atecc.OpenI2C(m.dev)
	if err != nil {
		return err
	}
	defer bus.Close()
	if err := bus.Tx(ctx, address, []byte{0}, nil); !errors.Is(err, atecc.ErrNACK) {
		return fmt.Errorf("a write to a sleeping chip gave %v", err)
	}
	return nil
}

func (m *machine) busy(context.Context) error {
	if s := m.bus.Stats(); s.NACKs < 10 || s.Wakes == 0 {
		return fmt.Errorf("%+v", s)
	}
	return nil
}

func (m *machine) absent(ctx context.Context) error {
	if err := prove(ctx, m.dev, 0x61); !errors.Is(err, moduleid.ErrAbsent) {
		return fmt.Errorf("a proof of nobody gave %v", err)
	}
	return nil
}

// duringSign calls f when the Sign command is on its way.
func (m *machine) duringSign(f func()) {
	done := false
	m.bus.OnTransfer(func(t *moduleidtest.Transfer) error {
		if !done && !t.Read && len(t.Data) > 2 && t.Data[2] == 0x41 {
			done = true
			go f() // the bus is held while this runs
		}
		return nil
	})
}

func (m *machine) removal(ctx context.Context) error {
	m.duringSign(func() { m.bus.Unplug(address) })
	err := prove(ctx, m.dev, address)
	m.bus.OnTransfer(nil)
	if err == nil {
		return errors.New("a module that was pulled out proved itself")
	}
	m.bus.Plug(address, m.chip)
	return prove(ctx, m.dev, address)
}

func child(dev string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	for range 3 {
		if err := prove(ctx, dev, address); err != nil {
			fmt.Println("child:", err)
			return 1
		}
	}
	return 0
}

func (m *machine) processes(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "/init")
	cmd.Env = []string{childEnv + "=" + m.dev}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	var errs error
	for range 3 {
		errs = errors.Join(errs, prove(ctx, m.dev, address))
	}
	return errors.Join(errs, cmd.Wait())
}

func (m *machine) owned(context.Context) error {
	n := "/sys/bus/i2c/devices/" + filepath.Base(m.dev)
	if err := os.WriteFile(n+"/new_device", []byte("dummy 0x62"), 0); err != nil {
		return err
	}
	defer func() { _ = os.WriteFile(n+"/delete_device", []byte("0x62"), 0) }()
	err := prove(context.Background(), m.dev, 0x62)
	if !errors.Is(err, atecc.ErrBus) || !strings.Contains(err.Error(), "kernel driver") {
		return fmt.Errorf("the address gave %v", err)
	}
	return nil
}

func (m *machine) adapterGone(ctx context.Context) error {
	m.duringSign(func() {
		if err := os.WriteFile(m.port+"/detach", []byte("0"), 0); err != nil {
			fmt.Println("detach:", err)
		}
	})
	start := time.Now()
	err := prove(ctx, m.dev, address)
	m.bus.OnTransfer(nil)
	if err == nil || ctx.Err() != nil {
		return fmt.Errorf("after %s: %w", time.Since(start), err)
	}
	return nil
}
