package softtpm_test

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What the package doc says is absent here, by capability, as swtpm names it.
var (
	absentAlgorithms = []uint32{0x03, 0x1A, 0x1B, 0x1C, 0x1D, 0x21, 0x26, 0x3F} // TDES, ECDAA, SM2, ECSCHNORR, ECMQV, KDF2, Camellia, CMAC
	absentCurves     = []uint32{0x01, 0x02, 0x10, 0x11, 0x20}                   // P-192, P-224, BN, SM2
	absentCommands   = []uint32{0x12B, 0x12C, 0x12D, 0x133, 0x13F, 0x140, 0x152, 0x183, 0x18B, 0x18D, 0x18E, 0x197}
	// Manufacturer, vendor strings, firmware, limits of contexts, numbers of
	// commands and curves, room in NV.
	otherProperties = []uint32{0x105, 0x106, 0x107, 0x108, 0x109, 0x10B, 0x10C, 0x114, 0x11A, 0x121, 0x122, 0x129, 0x12A, 0x209, 0x20B, 0x20D}
)

type capabilityQuery struct{ capability, first, count uint32 }

// capabilityQueries ask for all of each capability, from each kind of start, and
// for little of it.
func capabilityQueries() (all []capabilityQuery) {
	firsts := []uint32{0, 1, 3, 0xFF, 0x100, 0x101, 0x120, 0x12E, 0x12F, 0x1FF, 0x200, 0x205, 0x214, 0x215, 0x2FF, 0x300, 0x01000000, 0x02000000,
		0x03000000, 0x40000000, 0x40000007, 0x4000000C, 0x40000110, 0x4000011F, 0x40000120, 0x80000000, 0x81000000, 0x90000000, 0xFFFFFFFF}
	for c := range uint32(12) {
		for _, f := range firsts {
			for _, n := range []uint32{0, 1, 254} {
				all = append(all, capabilityQuery{c, f, n})
			}
		}
	}
	return all
}

// capabilityAnswers asks a TPM that was just started.
func capabilityAnswers(t *testing.T, dev interface {
	SendAt(locality int, command []byte) ([]byte, error)
}) (lines []string) {
	for _, q := range capabilityQueries() {
		cmd := []byte{0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7A}
		for _, v := range []uint32{q.capability, q.first, q.count} {
			cmd = binary.BigEndian.AppendUint32(cmd, v)
		}
		rsp, err := dev.SendAt(0, cmd)
		require.NoError(t, err)
		lines = append(lines, fmt.Sprintf("%x %x %x %x", q.capability, q.first, q.count, rsp))
	}
	return lines
}

const capabilitiesFile = "testdata/swtpm-capabilities.txt"

func recordedCapabilities(t *testing.T) (lines []string) {
	f, err := os.Open(capabilitiesFile)
	require.NoError(t, err)
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		lines = append(lines, s.Text())
	}
	require.NoError(t, s.Err())
	return lines
}

// TestSwtpmCapabilitiesAreAsRecorded holds the recording against the swtpm that
// is installed.
func TestSwtpmCapabilitiesAreAsRecorded(t *testing.T) {
	sw := newSwtpm(t)
	_, err := sw.SendAt(0, []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0})
	require.NoError(t, err)
	got := capabilityAnswers(t, sw)
	if *update {
		require.NoError(t, os.WriteFile(capabilitiesFile, []byte(strings.Join(got, "\n")+"\n"), 0o644))
		return
	}
	assert.Equal(t, recordedCapabilities(t), got)
}

// capabilityEntries takes the answer to one query apart: whether there is more,
// and the entries by key. ok is false for an error.
func capabilityEntries(t *testing.T, line string) (q capabilityQuery, code uint32, more bool, keys []uint32, entries map[uint32]string) {
	var text string
	_, err := fmt.Sscanf(line, "%x %x %x %s", &q.capability, &q.first, &q.count, &text)
	require.NoError(t, err)
	b, err := hex.DecodeString(text)
	require.NoError(t, err)
	if code = binary.BigEndian.Uint32(b[6:]); code != 0 {
		return q, code, false, nil, nil
	}
	more, b = b[10] == 1, b[15:]
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	entries = map[uint32]string{}
	for i := range n {
		var key uint32
		size := 4
		switch q.capability {
		case 0: // TPML_ALG_PROPERTY
			key, size = uint32(binary.BigEndian.Uint16(b)), 6
		case 5: // TPML_PCR_SELECTION
			key, size = i, 6
		case 6:
			key, size = binary.BigEndian.Uint32(b), 8
		case 7:
			key, size = binary.BigEndian.Uint32(b), 8
		case 8:
			key, size = uint32(binary.BigEndian.Uint16(b)), 2
		case 9: // without a policy
			key, size = binary.BigEndian.Uint32(b), 6
		case 2: // TPMA_CC
			key = binary.BigEndian.Uint32(b) & 0xFFFF
		default:
			key = binary.BigEndian.Uint32(b)
		}
		keys, entries[key], b = append(keys, key), fmt.Sprintf("%x", b[:size]), b[size:]
	}
	require.Empty(t, b)
	return q, 0, more, keys, entries
}

// TestCapabilitiesDifferAsTheDocSays compares what this TPM says it can with
// what swtpm says: the differences are those of the package doc and no others.
func TestCapabilitiesDifferAsTheDocSays(t *testing.T) {
	tpm := newSoft(t)
	startup(t, tpm)
	got := capabilityAnswers(t, tpm)
	want := recordedCapabilities(t)
	require.Len(t, got, len(want))
	gone := map[uint32][]uint32{0: absentAlgorithms, 2: absentCommands, 3: {0x12D}, 4: {0x140}, 8: absentCurves}
	for i := range want {
		q, wantCode, wantMore, wantKeys, wantEntries := capabilityEntries(t, want[i])
		_, code, more, keys, entries := capabilityEntries(t, got[i])
		assert.Equal(t, wantCode, code, "%+v", q)
		if wantCode != 0 || gone[q.capability] != nil && q.count <= 1 {
			continue
		}
		wantKeys = slices.DeleteFunc(wantKeys, func(k uint32) bool { return slices.Contains(gone[q.capability], k) })
		assert.True(t, slices.Equal(wantKeys, keys), "%+v: want %x, got %x", q, wantKeys, keys)
		assert.Equal(t, wantMore, more, "%+v", q)
		for k, e := range entries {
			if q.capability != 6 || !slices.Contains(otherProperties, k) {
				assert.Equal(t, wantEntries[k], e, "%+v: 0x%x", q, k)
			}
		}
	}
}

// TestAbsentCommandsAnswerCommandCode sends each command that swtpm has and this
// TPM has not, and all codes around them.
func TestAbsentCommandsAnswerCommandCode(t *testing.T) {
	tpm := newSoft(t)
	startup(t, tpm)
	var present []uint32
	for _, line := range recordedCapabilities(t) {
		if q, _, _, keys, _ := capabilityEntries(t, line); q.capability == 2 && q.first == 0 && q.count == 254 {
			present = keys
		}
	}
	require.NotEmpty(t, present)
	for cc := uint32(0x110); cc < 0x1B0; cc++ {
		rsp, err := tpm.SendAt(0, binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, cc))
		require.NoError(t, err)
		absent := !slices.Contains(present, cc) || slices.Contains(absentCommands, cc)
		assert.Equal(t, absent, binary.BigEndian.Uint32(rsp[6:]) == 0x143, "command 0x%x", cc)
	}
}
