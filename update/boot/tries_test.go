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
