package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/update"
)

// maxConfig bounds the configuration file, in bytes.
const maxConfig = 64 << 10

// config is the node's configuration file: strict JSON, an unknown key is an
// error. `node run -check` parses it and stops.
type config struct {
	Version   int    `json:"version"`
	State     string `json:"state"`      // directory of what the node keeps; 0700
	Run       string `json:"run"`        // directory that a reboot clears, such as /run/trusttree
	Bootstrap string `json:"bootstrap"`  // bootstrap.json from `cloud init`
	TPM       string `json:"tpm"`        // /dev/tpmrm0, or unix:PATH of a software TPM
	TPMMakers string `json:"tpm_makers"` // PEM: makers whose TPM the node takes for its own at the first start
	EventLog  string `json:"event_log"`  // the firmware's log; default: where Linux shows it
	IMALog    string `json:"ima_log"`    // optional
	// BootID is the kernel's boot ID, by which the cloud notices a TPM that was
	// reset beside the running machine; default: where Linux shows it. "none"
	// where kexec starts kernels, which the TPM does not notice.
	BootID   string    `json:"boot_id"`
	Policies string    `json:"policies"` // directory of signed PCR policies, one file for each software slot
	Flows    string    `json:"flows"`    // tunnel policy of this node: what it lets in and out by itself
	Hardware string    `json:"hardware"` // this node's hardware ID in releases
	Channel  string    `json:"channel"`  // of releases
	Modules  []module  `json:"modules"`
	Streams  []stream  `json:"streams"`
	Forwards []forward `json:"forwards"`
	Image    string    `json:"image"` // version of the software that the node was made with
	Slots    []string  `json:"slots"` // two files or block devices, one for each software slot
	// Sensors is the unix socket at which local processes leave records, a line
	// of JSON each; empty for none.
	Sensors string `json:"sensors,omitempty"`
	// Volumes says how the volumes are kept. One that is not named is a portable
	// volume in the state directory.
	Volumes volumes `json:"volumes,omitzero"`
	// BootEntries are the UEFI boot entries of the slots, as four hexadecimal
	// digits: {"a": "0100", "b": "0101"}; take high ones, as firmware gives low
	// ones that are not in BootOrder to what it finds by itself. Without them the
	// choice of slot is boot.json in the state directory, for a boot loader that
	// reads it.
	BootEntries map[string]string `json:"boot_entries,omitempty"`
	// ExitForReboot ends the daemon with exit code 10 when a release waits in
	// the other slot for the next boot, once for each, and when one on trial
	// failed: the service manager reboots then.
	ExitForReboot bool `json:"exit_for_reboot,omitempty"`
	// Keep leaves what the TPM unsealed with the service manager (systemd's
	// file descriptor store), so that a restart of the daemon does not need a
	// reboot. Who is root on the running node could then unseal again.
	Keep bool `json:"keep_across_restarts,omitempty"`
	// ModuleCheck is how often each module proves itself anew; 0 means 5 s.
	ModuleCheck jsonSecond `json:"module_check_seconds,omitempty"`
	// UpdateEvery is how often the node looks for releases; 0 means 300 s.
	UpdateEvery jsonSecond `json:"update_every_seconds"`
}

// volumes are the volumes that a node has.
type volumes struct {
	System volume `json:"system,omitzero"`
	Data   volume `json:"data,omitzero"`
}

// volume says where a volume is and who encrypts it.
type volume struct {
	// Mode is "portable" (the default: a format of this module's own that any
	// file system carries) or "kernel" (fscrypt on ext4, f2fs or ubifs: all
	// programs use the directory tree below it while the volume is open).
	Mode string `json:"mode,omitempty"`
	// Path is the volume's directory, which the node makes; empty means the
	// volume's name in the state directory.
	Path string `json:"path,omitempty"`
}

const (
	modePortable = "portable"
	modeKernel   = "kernel"
)

// module is one connector and the chip that must be in it.
type module struct {
	Bay     string `json:"bay"`
	Class   string `json:"class"`   // the owner's kind of module
	CA      string `json:"ca"`      // PEM: who certifies modules of this class
	Chip    string `json:"chip"`    // "atecc" or "spdm"
	Address string `json:"address"` // atecc: /dev/i2c-N:0x60 or tcp:HOST:PORT; spdm: tcp:HOST:PORT or emu:HOST:PORT
	// Optional says that the connector may be empty. What is in it must prove
	// itself all the same. The cloud must know of it: optional_connectors in
	// cloud.json.
	Optional bool `json:"optional,omitempty"`
}

// stream is one flow of sensor data; the cloud maps it to its tenant.
type stream struct {
	Name  string     `json:"name"`
	Every jsonSecond `json:"every_seconds"` // between two records of the built-in generator; 0: from the sensors' socket alone
	Bay   string     `json:"bay,omitempty"` // records count only while the module in this connector is admitted
}

// forward opens a local port whose connections leave through the tunnel.
type forward struct {
	Listen string `json:"listen"` // loopback address
	Target string `json:"target"` // host:port
}

// jsonSecond is a duration written as seconds.
type jsonSecond float64

func (s jsonSecond) duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// optional says whether a connector may be empty.
func (c *config) optional(bay string) bool {
	return slices.ContainsFunc(c.Modules, func(m module) bool { return m.Bay == bay && m.Optional })
}

func loadConfig(name string) (*config, error) {
	data, err := wire.ReadCapped(name, maxConfig)
	if err != nil {
		return nil, err
	}
	c := config{EventLog: "/sys/kernel/security/tpm0/binary_bios_measurements", BootID: "/proc/sys/kernel/random/boot_id"}
	if err := wire.Decode(data, maxConfig, &c); err != nil {
		return nil, wire.Usage("%s: %w", name, err)
	}
	if err := c.check(); err != nil {
		return nil, wire.Usage("%s: %w", name, err)
	}
	return &c, nil
}

func (c *config) check() error {
	if c.Version != 1 {
		return fmt.Errorf("version %d, this program reads 1", c.Version)
	}
	for name, v := range map[string]string{"state": c.State, "run": c.Run, "bootstrap": c.Bootstrap, "tpm_makers": c.TPMMakers,
		"policies": c.Policies, "flows": c.Flows, "hardware": c.Hardware, "channel": c.Channel} {
		if v == "" {
			return fmt.Errorf("%q is missing", name)
		}
	}
	if c.BootID != "none" && !filepath.IsAbs(c.BootID) {
		return fmt.Errorf("boot_id %q must be an absolute path, or none", c.BootID)
	}
	if !filepath.IsAbs(c.State) || !filepath.IsAbs(c.Run) {
		return fmt.Errorf("state %q and run %q must be absolute paths", c.State, c.Run)
	}
	bays := map[string]bool{}
	for _, m := range c.Modules {
		if m.CA == "" || m.Class == "" {
			return fmt.Errorf("modules: bay %q needs class and ca: whose modules may be in it?", m.Bay)
		}
		if m.Bay == "" || bays[m.Bay] {
			return fmt.Errorf("modules: bay %q is empty or named twice", m.Bay)
		}
		bays[m.Bay] = true
		if m.Chip != "atecc" && m.Chip != "spdm" {
			return fmt.Errorf("modules: bay %s: chip %q is neither atecc nor spdm", m.Bay, m.Chip)
		}
	}
	for name, v := range map[string]jsonSecond{"module_check_seconds": c.ModuleCheck, "update_every_seconds": c.UpdateEvery} {
		if v < 0 || v > 1e6 {
			return fmt.Errorf("%s is %g: give 0 to 1000000", name, float64(v))
		}
	}
	names := map[string]bool{}
	for _, s := range c.Streams {
		if s.Name == "" || strings.ContainsAny(s.Name, "/ ") || names[s.Name] {
			return fmt.Errorf("streams: name %q is empty, named twice, or has a slash or space", s.Name)
		}
		if s.Every > 1e6 || s.Every < 0 || (s.Every == 0 && c.Sensors == "") {
			return fmt.Errorf("streams: %s: every_seconds must be positive where no sensors socket is configured", s.Name)
		}
		if s.Bay != "" && !bays[s.Bay] {
			return fmt.Errorf("streams: %s: bay %q is not among the modules", s.Name, s.Bay)
		}
		names[s.Name] = true
	}
	if c.Sensors != "" && !filepath.IsAbs(c.Sensors) {
		return fmt.Errorf("sensors %q must be an absolute path", c.Sensors)
	}
	if len(c.Slots) != 0 && len(c.Slots) != 2 {
		return fmt.Errorf("slots: %d given, updates need two", len(c.Slots))
	}
	return errors.Join(c.checkVolumes(), c.checkBootEntries())
}

func (c *config) checkVolumes() error {
	for name, v := range map[string]volume{"system": c.Volumes.System, "data": c.Volumes.Data} {
		if v.Mode != "" && v.Mode != modePortable && v.Mode != modeKernel {
			return fmt.Errorf("volumes: %s: mode %q is neither portable nor kernel", name, v.Mode)
		}
		if v.Path != "" && (!filepath.IsAbs(v.Path) || filepath.Clean(v.Path) != v.Path) {
			return fmt.Errorf("volumes: %s: path %q must be absolute, and cleaned of dots", name, v.Path)
		}
	}
	system, data := c.volume("system"), c.volume("data")
	if within(system.Path, data.Path) || within(data.Path, system.Path) {
		return fmt.Errorf("volumes: system %s and data %s need a directory each, not one within the other", system.Path, data.Path)
	}
	return nil
}

// within reports whether a clean path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// volume returns where and how a volume is kept.
func (c *config) volume(name string) volume {
	v := c.Volumes.System
	if name == "data" {
		v = c.Volumes.Data
	}
	if v.Mode == "" {
		v.Mode = modePortable
	}
	if v.Path == "" {
		v.Path = filepath.Join(c.State, name)
	}
	return v
}

func (c *config) checkBootEntries() error {
	if len(c.BootEntries) == 0 {
		return nil
	}
	if len(c.Slots) == 0 {
		return errors.New("boot_entries: there are no slots that they could boot")
	}
	_, err := c.entries()
	return err
}

// entries are the numbers of the UEFI boot entries.
func (c *config) entries() (map[update.Slot]uint16, error) {
	out := map[update.Slot]uint16{}
	for _, slot := range []update.Slot{"a", "b"} {
		text := c.BootEntries[string(slot)]
		n, err := strconv.ParseUint(text, 16, 16)
		if err != nil || len(text) != 4 {
			return nil, fmt.Errorf("boot_entries: slot %s: %q is not four hexadecimal digits, as in Boot0001", slot, text)
		}
		out[slot] = uint16(n)
	}
	if len(c.BootEntries) != 2 || out["a"] == out["b"] {
		return nil, errors.New("boot_entries: want one for slot a and another for slot b")
	}
	return out, nil
}
