package attesttest_test

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest/attesttest"
	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/internal/tpm"
)

// realBoots are directories with the event log of a boot and the PCRs that it
// left: of U-Boot, shim and others.
func realBoots(t *testing.T) (list []string) {
	t.Helper()
	for _, pattern := range []string{"vm/*-*", "uboot/*-*"} {
		l, err := filepath.Glob(filepath.Join(testenv.Repo(), "secureboot", "testdata", pattern))
		require.NoError(t, err)
		list = append(list, l...)
	}
	require.NotEmpty(t, list)
	return list
}

func TestBootOfARealEventLogLeavesThePCRsOfThatBoot(t *testing.T) {
	banks := map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384}
	for _, dir := range realBoots(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			log, err := os.ReadFile(filepath.Join(dir, "binary_bios_measurements"))
			require.NoError(t, err)
			text, err := os.ReadFile(filepath.Join(dir, "pcrs.txt"))
			require.NoError(t, err)
			d := newTPM(t)
			require.NoError(t, d.BootLog(log))
			compared := 0
			for line := range strings.Lines(string(text)) {
				f := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" :=\t\n", r) })
				if len(f) != 3 || banks[f[0]] == 0 {
					continue
				}
				var pcr int
				for _, c := range f[1] {
					pcr = pcr*10 + int(c-'0')
				}
				if pcr > 9 { // the kernel's and the application's are in other logs
					continue
				}
				got, err := tpm.ReadPCRs(d, banks[f[0]], pcr)
				require.NoError(t, err)
				assert.Equal(t, strings.TrimPrefix(strings.ToLower(f[2]), "0x"), hex.EncodeToString(got[pcr]), "%s PCR %d", f[0], pcr)
				compared++
			}
			assert.GreaterOrEqual(t, compared, 10)
		})
	}
}

// event is one event in SHA-1 format.
func event(pcr, kind uint32, digest, data []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, pcr)
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = append(b, digest...)
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(data))), data...)
}

func TestOldEventLogIsOneOfSHA1Digests(t *testing.T) {
	digest := bytes.Repeat([]byte{7}, 20)
	locality, list, err := attesttest.ParseLog(event(4, 5, digest, []byte("kernel")))
	require.NoError(t, err)
	assert.Zero(t, locality)
	assert.Equal(t, []attesttest.Measurement{{PCR: 4, Digests: map[crypto.Hash][]byte{crypto.SHA1: digest}}}, list)
}

func TestMalformedEventLogLeavesTheTPMAsItWas(t *testing.T) {
	good, err := os.ReadFile(filepath.Join("testdata", "uboot.log"))
	require.NoError(t, err)
	d := newTPM(t)
	require.NoError(t, d.BootLog(good))
	before, err := tpm.ReadPCRs(d, crypto.SHA256, 0, 7)
	require.NoError(t, err)
	many := bytes.Clone(good)
	binary.LittleEndian.PutUint32(many[56:], 1<<31)
	for what, bad := range map[string][]byte{
		"cut in an event":   good[:len(good)-1],
		"cut in the header": good[:40],
		"many digests":      many,
		"PCR out of range":  append(bytes.Clone(good), event(99, 5, make([]byte, 20), nil)...),
		"over the limit":    make([]byte, 17<<20),
		"event of 4 GiB":    append(event(4, 5, make([]byte, 20), nil)[:28], 0xFF, 0xFF, 0xFF, 0xFF),
	} {
		assert.ErrorIs(t, d.BootLog(bad), attesttest.ErrEventLog, what)
	}
	after, err := tpm.ReadPCRs(d, crypto.SHA256, 0, 7)
	require.NoError(t, err)
	assert.Equal(t, before, after)
}

func FuzzParseLog(f *testing.F) {
	good, err := os.ReadFile(filepath.Join("testdata", "uboot.log"))
	require.NoError(f, err)
	f.Add(good)
	f.Add(good[:300])
	f.Add(event(4, 5, make([]byte, 20), []byte("kernel")))
	f.Fuzz(func(t *testing.T, log []byte) {
		_, list, err := attesttest.ParseLog(log)
		if err != nil {
			require.ErrorIs(t, err, attesttest.ErrEventLog)
			return
		}
		for _, m := range list {
			require.Less(t, m.PCR, 24)
			for h, d := range m.Digests {
				require.Len(t, d, h.Size())
			}
		}
	})
}
