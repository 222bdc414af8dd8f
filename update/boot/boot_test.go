package boot_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/boot"
	"github.com/trusttree/trusttree/update/updatetest"
)

var ab = [2]update.Slot{"a", "b"}

func cmdline(t *testing.T, dir string, s update.Slot) string {
	t.Helper()
	name := filepath.Join(dir, "cmdline")
	require.NoError(t, os.WriteFile(name, []byte("quiet trusttree.slot="+string(s)+" ro\n"), 0o600))
	return name
}

func opener(t *testing.T, f func() (update.BootControl, error)) func() update.BootControl {
	return func() update.BootControl {
		t.Helper()
		c, err := f()
		require.NoError(t, err)
		return c
	}
}

func TestFileKeepsTheContract(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boot.json")
	open := func() (*boot.File, error) { return boot.NewFile(path, "a", "b") }
	updatetest.TestBootControl(t, opener(t, func() (update.BootControl, error) { return open() }), func() update.Slot {
		f, err := open()
		require.NoError(t, err)
		s, err := f.Boot(t.Context())
		require.NoError(t, err)
		return s
	})
}

// choose is what both scripts do with the variables.
func choose(vars map[string]string) (slot string, changed bool) {
	slot = vars["tt_default"]
	armed := ""
	for _, s := range ab {
		if n, _ := strconv.Atoi(vars["tt_"+string(s)+"_tries"]); vars["tt_"+string(s)+"_ok"] != "1" && n > 0 {
			slot, armed = string(s), string(s)
		}
	}
	if armed == "" {
		return slot, false
	}
	n, _ := strconv.Atoi(vars["tt_"+armed+"_tries"])
	vars["tt_"+armed+"_tries"] = strconv.Itoa(n - 1)
	return slot, true
}

func TestGRUBKeepsTheContract(t *testing.T) {
	editenv := testenv.Tool(t, "grub-editenv", "grub-common")
	check := testenv.Tool(t, "grub-script-check", "grub-common")
	dir := t.TempDir()
	env, line := filepath.Join(dir, "grubenv"), cmdline(t, dir, "a")
	open := func() (update.BootControl, error) {
		return boot.NewGRUB(boot.GRUBConfig{Path: env, Slots: ab, CommandLine: line})
	}
	updatetest.TestBootControl(t, opener(t, open), func() update.Slot {
		out, err := exec.Command(editenv, env, "list").Output() // GRUB's own reader
		require.NoError(t, err)
		vars := map[string]string{}
		for _, l := range strings.Split(strings.TrimSpace(string(out)), "\n") {
			k, v, _ := strings.Cut(l, "=")
			vars[k] = v
		}
		slot, changed := choose(vars)
		if changed { // and GRUB's own writer
			key := "tt_" + slot + "_tries"
			require.NoError(t, exec.Command(editenv, env, "set", key+"="+vars[key]).Run())
		}
		cmdline(t, dir, update.Slot(slot))
		return update.Slot(slot)
	})
	cmd := exec.Command(check)
	cmd.Stdin = strings.NewReader(boot.GRUBScript(ab))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.WriteFile(env, []byte("garbage"), 0o600))
	_, err = open()
	require.Error(t, err)
}

// uboot writes an environment as U-Boot does.
func uboot(vars map[string]string, flag byte, size int) []byte {
	data := make([]byte, 5, size)
	data[4] = flag
	for k, v := range vars {
		data = append(data, k+"="+v+"\x00"...)
	}
	data = data[:size]
	binary.LittleEndian.PutUint32(data, crc32.ChecksumIEEE(data[5:]))
	return data
}

func TestUBootKeepsTheContract(t *testing.T) {
	printenv := testenv.Tool(t, "fw_printenv", "libubootenv-tool")
	setenv := testenv.Tool(t, "fw_setenv", "libubootenv-tool")
	dir, size := t.TempDir(), 4096
	env, line := filepath.Join(dir, "env.img"), cmdline(t, dir, "a")
	require.NoError(t, os.WriteFile(env, append(uboot(map[string]string{"bootdelay": "2"}, 1, size), make([]byte, size)...), 0o600))
	cfg := boot.UBootConfig{Copies: [2]boot.UBootCopy{{Path: env}, {Path: env, Offset: int64(size)}}, Size: size, Slots: ab, CommandLine: line}
	conf := filepath.Join(dir, "fw_env.config")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, "%s 0x0 0x%x\n%s 0x%x 0x%x\n", env, size, env, size, size), 0o600))
	updatetest.TestBootControl(t, opener(t, func() (update.BootControl, error) { return boot.NewUBoot(cfg) }), func() update.Slot {
		out, err := exec.Command(printenv, "-c", conf).CombinedOutput()
		require.NoError(t, err, "%s", out)
		vars := map[string]string{}
		for _, l := range strings.Split(strings.TrimSpace(string(out)), "\n") {
			k, v, _ := strings.Cut(l, "=")
			vars[k] = v
		}
		assert.Equal(t, "2", vars["bootdelay"], "variables of others stay")
		slot, changed := choose(vars)
		if changed {
			key := "tt_" + slot + "_tries"
			out, err := exec.Command(setenv, "-c", conf, key, vars[key]).CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
		cmdline(t, dir, update.Slot(slot))
		return update.Slot(slot)
	})

	// A cut while one copy is written leaves the other.
	good, err := os.ReadFile(env)
	require.NoError(t, err)
	for _, off := range []int{0, size} {
		torn := append([]byte{}, good...)
		copy(torn[off+100:off+200], make([]byte, 100))
		torn[off+50] ^= 1
		require.NoError(t, os.WriteFile(env, torn, 0o600))
		c, err := boot.NewUBoot(cfg)
		require.NoError(t, err)
		_, err = c.Slots(t.Context())
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(env, make([]byte, 2*size), 0o600))
	_, err = boot.NewUBoot(cfg)
	require.ErrorContains(t, err, "both copies")
}

// sdboot does what systemd-boot does with the entries in dir.
func sdboot(t *testing.T, dir string) update.Slot {
	t.Helper()
	type e struct {
		name, slot          string
		left, done, version int
		counted             bool
	}
	re := regexp.MustCompile(`^trusttree-(\w+?)(\+(\d+)(-(\d+))?)?\.conf$`)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	var all []e
	for _, f := range files {
		m := re.FindStringSubmatch(f.Name())
		if m == nil {
			continue
		}
		x := e{name: f.Name(), slot: m[1], counted: m[2] != ""}
		x.left, _ = strconv.Atoi(m[3])
		x.done, _ = strconv.Atoi(m[5])
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		require.NoError(t, err)
		v := regexp.MustCompile(`(?m)^version (\d+)$`).FindSubmatch(data)
		require.NotNil(t, v)
		x.version, _ = strconv.Atoi(string(v[1]))
		all = append(all, x)
	}
	bad := func(x e) bool { return x.counted && x.left == 0 }
	sort.Slice(all, func(i, j int) bool {
		if bad(all[i]) != bad(all[j]) {
			return bad(all[j])
		}
		return all[i].version > all[j].version
	})
	if len(all) == 0 {
		return ""
	}
	x := all[0]
	if x.counted && x.left > 0 {
		require.NoError(t, os.Rename(filepath.Join(dir, x.name), filepath.Join(dir, fmt.Sprintf("trusttree-%s+%d-%d.conf", x.slot, x.left-1, x.done+1))))
	}
	return update.Slot(x.slot)
}

func TestSystemdBootKeepsTheContract(t *testing.T) {
	dir := t.TempDir()
	entries := filepath.Join(dir, "entries")
	require.NoError(t, os.Mkdir(entries, 0o700))
	line := cmdline(t, dir, "a")
	cfg := boot.SystemdBootConfig{Dir: entries, Slots: ab, CommandLine: line, Entries: map[update.Slot]string{
		"a": "linux /a/linux\noptions trusttree.slot=a\n", "b": "linux /b/linux\noptions trusttree.slot=b\n"}}
	updatetest.TestBootControl(t, opener(t, func() (update.BootControl, error) { return boot.NewSystemdBoot(cfg) }), func() update.Slot {
		s := sdboot(t, entries)
		cmdline(t, dir, s)
		return s
	})
	cfg.Entries = map[update.Slot]string{"a": "options x", "b": "options y"}
	_, err := boot.NewSystemdBoot(cfg)
	require.ErrorContains(t, err, "trusttree.slot")
}

func TestEFIKeepsTheContract(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name+"-8be4df61-93ca-11d2-aa0d-00e098032b8c") }
	put := func(name string, v ...uint16) {
		data := []byte{7, 0, 0, 0}
		for _, n := range v {
			data = binary.LittleEndian.AppendUint16(data, n)
		}
		require.NoError(t, os.WriteFile(file(name), data, 0o600))
	}
	get := func(name string) []uint16 {
		data, err := os.ReadFile(file(name))
		if err != nil {
			return nil
		}
		var out []uint16
		for d := data[4:]; len(d) > 1; d = d[2:] {
			out = append(out, binary.LittleEndian.Uint16(d))
		}
		return out
	}
	put("BootOrder", 3, 1)
	put("BootCurrent", 3)
	slots := map[update.Slot]uint16{"a": 3, "b": 4}
	updatetest.TestBootControl(t, opener(t, func() (update.BootControl, error) {
		return boot.NewEFI(boot.EFIConfig{Dir: dir, Entries: slots})
	}), func() update.Slot {
		n := get("BootOrder")[0]
		if next := get("BootNext"); len(next) == 1 {
			n = next[0]
			require.NoError(t, os.Remove(file("BootNext")))
		}
		put("BootCurrent", n)
		for s, e := range slots {
			if e == n {
				return s
			}
		}
		return ""
	})
	assert.Contains(t, get("BootOrder"), uint16(1), "entries of others stay")
	require.NoError(t, os.WriteFile(file("BootOrder"), []byte{7}, 0o600))
	c, err := boot.NewEFI(boot.EFIConfig{Dir: dir, Entries: slots})
	require.NoError(t, err)
	_, err = c.Slots(t.Context())
	require.ErrorContains(t, err, "BootOrder")
}
