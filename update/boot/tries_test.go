package boot_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/update"
	"github.com/trusttree/trusttree/update/boot"
)

// U-Boot counts in hexadecimal: ten tries would be sixteen, of which the script
// understands one.
func TestTriesThatALoaderCanNotCountAreCut(t *testing.T) {
	dir := t.TempDir()
	env, line := filepath.Join(dir, "env.img"), cmdline(t, dir, "a")
	require.NoError(t, os.WriteFile(env, append(uboot(nil, 1, 4096), make([]byte, 4096)...), 0o600))
	uboot, err := boot.NewUBoot(boot.UBootConfig{Copies: [2]boot.UBootCopy{{Path: env}, {Path: env, Offset: 4096}}, Size: 4096, Slots: ab, CommandLine: line})
	require.NoError(t, err)
	grub, err := boot.NewGRUB(boot.GRUBConfig{Path: filepath.Join(dir, "grubenv"), Slots: ab, CommandLine: line})
	require.NoError(t, err)
	for _, tc := range []struct {
		c    update.BootControl
		want int
	}{{uboot, 9}, {grub, 12}} {
		require.NoError(t, tc.c.Arm(t.Context(), "b", 12))
		slots, err := tc.c.Slots(t.Context())
		require.NoError(t, err)
		for _, s := range slots {
			if s.Slot == "b" {
				assert.Equal(t, tc.want, s.Tries)
			}
		}
		require.Error(t, tc.c.Arm(t.Context(), "b", 0))
	}
}

// A boot entry that a cut damaged stops neither the judgement of its slot nor
// the next entry.
func TestDamagedBootEntryIsReplaced(t *testing.T) {
	dir := t.TempDir()
	line := cmdline(t, dir, "a")
	c, err := boot.NewSystemdBoot(boot.SystemdBootConfig{Dir: dir, Slots: ab, CommandLine: line, Entries: map[update.Slot]string{
		"a": "options trusttree.slot=a\n", "b": "options trusttree.slot=b\n"}})
	require.NoError(t, err)
	for _, damage := range []string{"", "version banana\n", "version 99999999999999999999\n", "\x00\x00"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "trusttree-a.conf"), []byte(damage), 0o600))
		slots, err := c.Slots(t.Context())
		require.NoError(t, err)
		for _, s := range slots {
			assert.Equal(t, s.Slot == "a", s.Good, "%+v", s)
		}
		require.NoError(t, c.Arm(t.Context(), "b", 3))
		slots, err = c.Slots(t.Context())
		require.NoError(t, err)
		for _, s := range slots {
			assert.Equal(t, s.Slot == "b", s.Tries == 3, "%+v", s)
		}
		require.NoError(t, c.Invalidate(t.Context(), "b"))
		require.NoError(t, c.MarkGood(t.Context(), "a"))
	}
}

// TestHugeFilesAreNotRead: who can write to a boot partition does not make the
// node read gigabytes into memory.
func TestHugeFilesAreNotRead(t *testing.T) {
	huge := func(t *testing.T, name string) string {
		require.NoError(t, os.WriteFile(name, nil, 0o600))
		require.NoError(t, os.Truncate(name, 5<<30)) // a hole, where the file system has them
		t.Cleanup(func() { _ = os.Remove(name) })
		return name
	}
	for name, open := range map[string]func(t *testing.T, dir string) error{
		"state of a file": func(t *testing.T, dir string) error {
			f, err := boot.NewFile(huge(t, filepath.Join(dir, "boot.json")), "a", "b")
			if err == nil {
				_, err = f.Slots(t.Context())
			}
			return err
		},
		"GRUB's environment": func(t *testing.T, dir string) error {
			_, err := boot.NewGRUB(boot.GRUBConfig{Path: huge(t, filepath.Join(dir, "grubenv")), Slots: ab, CommandLine: cmdline(t, dir, "a")})
			return err
		},
		"systemd-boot's entry": func(t *testing.T, dir string) error {
			huge(t, filepath.Join(dir, "trusttree-a.conf"))
			c, err := boot.NewSystemdBoot(boot.SystemdBootConfig{Dir: dir, Slots: ab, CommandLine: cmdline(t, dir, "a"), Entries: map[update.Slot]string{
				"a": "options trusttree.slot=a\n", "b": "options trusttree.slot=b\n"}})
			if err == nil {
				_, err = c.Slots(t.Context())
			}
			return err
		},
		"command line": func(t *testing.T, dir string) error {
			_, err := boot.NewGRUB(boot.GRUBConfig{Path: filepath.Join(dir, "grubenv"), Slots: ab, CommandLine: huge(t, filepath.Join(dir, "cmdline"))})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { assert.ErrorContains(t, open(t, t.TempDir()), "longer than 65536 bytes") })
	}
}
