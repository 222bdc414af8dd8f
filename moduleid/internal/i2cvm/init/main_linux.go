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
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/atecc"
	"github.com/trusttree/trusttree/moduleid/hotplug"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

const (
	address  = 0x60
	childEnv = "I2CVM_CHILD"
)

var modules = []string{"usb-common", "usbcore", "usbip-core", "vhci-hcd", "i2c-dev", "i2c-tiny-usb", "hid", "usbhid", "hid-cp2112"}

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
	time.Sleep(200 * time.Millisecond) // for the serial line
	// At once: an orderly shutdown waits for the devices, whose other half is
	// this very process. The machine is started so that it ends with a reboot.
	_ = os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0)
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

// plugUSB puts a device into a port of the virtual host controller.
func (m *machine) plugUSB(number int, d device) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	go (&port{device: d, f: os.NewFile(uintptr(fds[1]), "usbip")}).serve()
	control, _ := filepath.Glob("/sys/devices/platform/vhci_hcd*/attach")
	if len(control) == 0 {
		return errors.New("no virtual host controller")
	}
	m.port = filepath.Dir(control[0])
	const fullSpeed = 2
	if err := os.WriteFile(control[0], fmt.Appendf(nil, "%d %d %d %d", number, fds[0], 0x10002+number, fullSpeed), 0); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	unix.Close(fds[0]) // the kernel holds its own reference
	return nil
}

// attach plugs the adapter in and waits for its device file.
func (m *machine) attach() error {
	if err := m.plugUSB(0, &adapter{bus: m.bus}); err != nil {
		return err
	}
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
		{"other process killed at any transfer", m.killed},
		{"presence line admits and removes a module", m.presence},
		{"address of a kernel driver is refused", m.owned},
		{"adapter pulled out during Sign", m.adapterGone},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), patience())
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

// patience is how long one check may take; the kernel's command line asks for
// the long ones.
func patience() time.Duration {
	if long() {
		return 20 * time.Minute
	}
	return 60 * time.Second
}

func long() bool {
	b, _ := os.ReadFile("/proc/cmdline")
	return strings.Contains(string(b), "i2cvm.long")
}

// killed kills the other process at one of its transfers on the real bus after
// the other. A transfer is a call of the kernel, which a kill does not cut
// short: no byte in between is a place of its own.
func (m *machine) killed(ctx context.Context) error {
	step := 23
	if long() {
		step = 1
	}
	kills := 0
	for n := 1; n <= 110; n += step {
		cmd := exec.CommandContext(ctx, "/init")
		cmd.Env = []string{childEnv + "=" + m.dev}
		died := make(chan struct{})
		var once sync.Once
		count := 0
		m.bus.OnTransfer(func(*moduleidtest.Transfer) error {
			if count++; count == n {
				once.Do(func() {
					if err := cmd.Process.Kill(); err == nil {
						close(died)
					}
				})
			}
			return nil
		})
		if err := cmd.Start(); err != nil {
			return err
		}
		select {
		case <-died:
			kills++
		case <-ctx.Done():
			return ctx.Err()
		}
		_ = cmd.Wait()
		m.bus.OnTransfer(nil)
		if err := prove(ctx, m.dev, address); err != nil {
			return fmt.Errorf("killed at transfer %d: %w", n, err)
		}
	}
	fmt.Printf("killed at %d transfers\n", kills)
	return nil
}

// presence lets a line of a real GPIO character device tell what is plugged in
// to the real bus.
func (m *machine) presence(ctx context.Context) error {
	lines := &cp2112{}
	if err := m.plugUSB(1, lines); err != nil {
		return err
	}
	var chip string
	for range 200 {
		if found, _ := filepath.Glob("/dev/gpiochip*"); len(found) > 0 {
			chip = found[0]
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if chip == "" {
		return errors.New("no GPIO character device appeared")
	}
	inv, err := moduleid.NewInventory(moduleid.InventoryConfig{Node: "vm",
		Verifier: &moduleid.Verifier{Schemes: []moduleid.Scheme{atecc.Scheme()}, UnsafeNoRevocations: true,
			Classes:    map[string]moduleid.Class{"camera": {Members: m.ca.Pool()}},
			Connectors: map[string]moduleid.Connector{"bay": {Classes: []string{"camera"}}}},
		Bays: []moduleid.BayConfig{{Connector: "bay", Timeout: 20 * time.Second, Open: func(context.Context) (moduleid.Chip, error) {
			bus, err := atecc.OpenI2C(m.dev)
			if err != nil {
				return nil, err
			}
			return atecc.NewHost(bus).Chip(atecc.Config{Address: address})
		}}}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- hotplug.Run(ctx, inv, hotplug.Config{Renew: time.Hour}, hotplug.GPIO{Connector: "bay", Chip: chip, Line: presenceLine})
	}()
	becomes := func(want bool) error {
		for range 400 {
			if inv.Bay("bay").Entry().Admitted() == want {
				return nil
			}
			select {
			case err := <-done:
				return fmt.Errorf("the source ended: %w", err)
			case <-time.After(50 * time.Millisecond):
			}
		}
		return fmt.Errorf("admitted did not become %v", want)
	}
	time.Sleep(500 * time.Millisecond)
	if inv.Bay("bay").Entry().Admitted() {
		return errors.New("admitted without a presence line")
	}
	for range 2 {
		for _, up := range []bool{true, false} {
			lines.set(up)
			if err := becomes(up); err != nil {
				return err
			}
		}
	}
	cancel()
	err = <-done
	// Pulled out again: a poll of the lines would keep the machine from ending.
	if derr := os.WriteFile(m.port+"/detach", []byte("1"), 0); derr != nil {
		return errors.Join(err, derr)
	}
	for range 200 {
		if found, _ := filepath.Glob("/dev/gpiochip*"); len(found) == 0 {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.Join(err, errors.New("the GPIO device did not go away"))
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
