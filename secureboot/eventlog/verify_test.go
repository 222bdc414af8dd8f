package eventlog_test

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

func verify(t *testing.T, header []byte, events []logtest.Event, values map[int][]byte) (*eventlog.Verified, error) {
	t.Helper()
	l, err := eventlog.Parse(logtest.Join(header, events), nil)
	require.NoError(t, err)
	return l.Verify(crypto.SHA256, values)
}

func mismatches(t *testing.T, err error) map[int]eventlog.Mismatch {
	t.Helper()
	var re *eventlog.ReplayError
	require.ErrorAs(t, err, &re)
	m := make(map[int]eventlog.Mismatch)
	for _, x := range re.Mismatches {
		m[x.PCR] = x
	}
	return m
}

// Attack A: every event of PCR 4 and PCR 7 is left out of the log.
func TestAttackAEventsOfTwoPCRsLeftOut(t *testing.T) {
	header, events := logtest.Split(recorded(t, "uki-sb-on"))
	values := logtest.Values(crypto.SHA256, events)
	var kept []logtest.Event
	for _, e := range events {
		if e.PCR != 4 && e.PCR != 7 {
			kept = append(kept, e)
		}
	}
	_, err := verify(t, header, kept, values)
	m := mismatches(t, err)
	require.Len(t, m, 2)
	assert.Zero(t, m[4].Events)
	assert.Zero(t, m[7].Events)
	assert.Contains(t, err.Error(), "no event")
}

// Attack A2 (a log of the Spec ID event alone) is in TestMalformedLogsAreRefused.

// Attack C: one event of a vendor's type, in TestVendorEventTypeIsKept.

// Attack E: the SHA-256 digest of the loader is forged, SHA-1 is right.
func TestAttackEOtherBanksDoNotHelp(t *testing.T) {
	header, events := logtest.Split(recorded(t, "uki-sb-on"))
	values := logtest.Values(crypto.SHA256, events)
	for i := range events {
		if events[i].Type == eventlog.EvEFIBootServicesApp {
			events[i].Digests[1].Value = bytes.Repeat([]byte{7}, 32)
		}
	}
	_, err := verify(t, header, events, values)
	assert.Contains(t, mismatches(t, err), 4)
}

// Attack G: a late, forged EV_NO_ACTION contributes no fact.
func TestAttackGNoActionIsNeverAFact(t *testing.T) {
	header, events := logtest.Split(recorded(t, "uki-sb-on"))
	values := logtest.Values(crypto.SHA256, events)
	n := len(events)
	for pcr := range uint32(8) {
		events = append(events, logtest.Measured(pcr, eventlog.EvNoAction, []byte("trust me"), banks...))
	}
	v, err := verify(t, header, events, values)
	require.NoError(t, err)
	var seen int
	for pcr := range 24 {
		seen += v.Len(pcr)
	}
	assert.Equal(t, n, seen)
}

// Attack H: an event of PCR 4711, in TestMalformedLogsAreRefused.

// Attack L: a log that was cut between events, and one that is ahead.
func TestReplayFailureNamesPCRAndPrefix(t *testing.T) {
	header, events := logtest.Split(recorded(t, "uki-sb-on"))
	values := logtest.Values(crypto.SHA256, events)
	last := len(events) - 1
	require.EqualValues(t, 5, events[last].PCR)
	_, err := verify(t, header, events[:last], values)
	m := mismatches(t, err)
	require.Len(t, m, 1)
	assert.Equal(t, -1, m[5].Prefix)
	ahead := append(events, logtest.Measured(5, eventlog.EvEFIAction, []byte("later"), banks...))
	_, err = verify(t, header, ahead, values)
	m = mismatches(t, err)
	assert.Equal(t, m[5].Events-1, m[5].Prefix)
	assert.Contains(t, err.Error(), "ahead")
}

func TestStartupLocalityIsConfirmedByPCR0(t *testing.T) {
	header, events := logtest.Split(recorded(t, "uki-sb-on"))
	values := logtest.Values(crypto.SHA256, events)
	l3 := logtest.Measured(0, eventlog.EvNoAction, []byte("StartupLocality\x00\x03"), banks...)
	_, err := verify(t, header, append([]logtest.Event{l3}, events...), values)
	assert.Contains(t, mismatches(t, err), 0)
}

func TestDynamicLaunchPCRsAreNotMixed(t *testing.T) {
	header, events := logtest.Split(recorded(t, "uki-sb-on"))
	values := logtest.Values(crypto.SHA256, events)
	for pcr := 17; pcr <= 22; pcr++ {
		values[pcr] = make([]byte, 32)
	}
	_, err := verify(t, header, events, values)
	require.NoError(t, err, "all reset by a dynamic launch")
	values[19] = bytes.Repeat([]byte{0xFF}, 32)
	_, err = verify(t, header, events, values)
	require.Error(t, err)
	values[19] = bytes.Repeat([]byte{1}, 32)
	_, err = verify(t, header, events, values)
	require.Error(t, err)
}

func TestNoValuesVerifyNothing(t *testing.T) {
	l, err := eventlog.Parse(recorded(t, "uki-sb-on"), nil)
	require.NoError(t, err)
	for name, v := range map[string]map[int][]byte{"none": nil, "PCR 24": {24: make([]byte, 32)}, "negative": {-1: make([]byte, 32)},
		"value of another bank": {0: make([]byte, 20)}, "empty value": {0: nil}} {
		_, err := l.Verify(crypto.SHA256, v)
		assert.Error(t, err, name)
	}
	_, err = l.Verify(crypto.SHA512, map[int][]byte{0: make([]byte, 64)})
	require.ErrorIs(t, err, eventlog.ErrNoBank)
	_, err = l.Verify(crypto.MD5, map[int][]byte{0: make([]byte, 16)})
	require.ErrorIs(t, err, eventlog.ErrNoBank)
}

func TestFactsGoOnlyAsFarAsTheDigest(t *testing.T) {
	l, err := eventlog.Parse(recorded(t, "shim-sb-on"), nil)
	require.NoError(t, err)
	_, events := logtest.Split(recorded(t, "shim-sb-on"))
	v, err := l.Verify(crypto.SHA256, logtest.Values(crypto.SHA256, events))
	require.NoError(t, err)
	data, b := v.At(7, 0).Fact()
	require.Equal(t, eventlog.BindingData, b)
	variable, ok := eventlog.ParseVariable(data)
	require.True(t, ok)
	assert.Equal(t, "SecureBoot", variable.Name)
	_, b = v.At(4, 2).Fact()
	assert.Equal(t, eventlog.BindingNone, b, "an image's device path is no fact")
	order, b := v.At(1, 0).Fact()
	assert.Equal(t, eventlog.BindingValue, b, "of a boot variable the value alone is bound")
	assert.Len(t, order, 6)
	var texts []string
	for e := range v.Events(8) {
		text, b := e.Fact()
		require.Equal(t, eventlog.BindingText, b)
		texts = append(texts, string(text))
	}
	assert.Contains(t, texts, "set timeout=0")
}

func TestLogIsReadableAsCEL(t *testing.T) {
	raw := recorded(t, "uki-sb-on")
	l, err := eventlog.Parse(raw, nil)
	require.NoError(t, err)
	var buf bytes.Buffer
	require.NoError(t, l.WriteCEL(&buf))
	c, err := eventlog.ParseCEL(buf.Bytes(), nil)
	require.NoError(t, err)
	want, err := l.Replay(crypto.SHA384)
	require.NoError(t, err)
	got, err := c.Replay(crypto.SHA384)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	n := 0
	for x := range l.Extends() {
		assert.Len(t, x.Digests, 3)
		n++
	}
	assert.Equal(t, 36, n)
}

func TestCELTLV(t *testing.T) {
	tlv := func(typ byte, v ...byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{typ}, uint32(len(v))), v...)
	}
	digest := bytes.Repeat([]byte{9}, 32)
	one := func(n byte) []byte {
		return bytes.Join([][]byte{tlv(0, 0, 0, 0, 0, 0, 0, 0, n), tlv(1, 13), tlv(3, tlv(0x0B, digest...)...), tlv(80, []byte("content")...)}, nil)
	}
	l, err := eventlog.ParseCEL(append(one(0), one(1)...), nil)
	require.NoError(t, err)
	assert.Equal(t, 2, l.Len())
	for name, b := range map[string][]byte{
		"record left out": one(1), "truncated": one(0)[:20], "no digest": bytes.Join([][]byte{tlv(0, 0), tlv(1, 13), tlv(3), tlv(80)}, nil),
		"PCR 24":          bytes.Join([][]byte{tlv(0, 0), tlv(1, 24), tlv(3, tlv(0x0B, digest...)...), tlv(80)}, nil),
		"short digest":    bytes.Join([][]byte{tlv(0, 0), tlv(1, 13), tlv(3, tlv(0x0B, 1, 2)...), tlv(80)}, nil),
		"digest twice":    bytes.Join([][]byte{tlv(0, 0), tlv(1, 13), tlv(3, append(tlv(0x0B, digest...), tlv(0x0B, digest...)...)...), tlv(80)}, nil),
		"length of 4 GiB": {0, 0xFF, 0xFF, 0xFF, 0xFF, 1},
	} {
		_, err := eventlog.ParseCEL(b, nil)
		assert.Error(t, err, name)
	}
}

func TestSystemdLogIsRead(t *testing.T) {
	log := "\x1e" + `{"pcr":11,"digests":[{"hashAlg":"sha256","digest":"` + strings.Repeat("ab", 32) + `"}],"content_type":"systemd","content":{"string":"enter-initrd","bootId":"0","timestamp":1,"eventType":"phase"}}` + "\n" +
		"\x1e" + `{"nv_index":25165984,"nv_index_name":"hardware","digests":[{"hashAlg":"sha256","digest":"` + strings.Repeat("cd", 32) + `"}],"content_type":"systemd","content":{}}` + "\n"
	l, err := eventlog.ParseCEL([]byte(log), nil)
	require.NoError(t, err)
	assert.Equal(t, 1, l.Len(), "an NV index is no PCR")
	for name, bad := range map[string]string{
		"unknown field":   `{"pcr":1,"digests":[],"extend":true}`,
		"no PCR":          `{"digests":[{"hashAlg":"sha256","digest":"` + strings.Repeat("ab", 32) + `"}]}`,
		"unknown hash":    `{"pcr":1,"digests":[{"hashAlg":"md5","digest":"00"}]}`,
		"banks change":    log[1:] + `{"pcr":1,"digests":[{"hashAlg":"sha1","digest":"` + strings.Repeat("ab", 20) + `"}]}`,
		"array and more":  `[] {}`,
		"array truncated": `[{"pcr":1`,
		"no JSON":         "hello",
	} {
		_, err := eventlog.ParseCEL([]byte(bad), nil)
		assert.Error(t, err, name)
	}
}

// TestLogsOfOtherFirmware replays logs of real machines and compares with what
// two independent programs make of them.
func TestLogsOfOtherFirmware(t *testing.T) {
	dir := testenv.Corpus(t, "secureboot")
	raw, err := os.ReadFile(dir + "/thirdparty/manifest.json")
	require.NoError(t, err)
	var m struct {
		Cases []struct {
			File   string
			Replay struct {
				Error  string
				Events int
				PCRs   map[string]map[string]string
			}
		} `json:"files"`
	}
	if err := json.Unmarshal(raw, &m); err != nil || len(m.Cases) == 0 {
		var all map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(raw, &all))
		for _, v := range all {
			if json.Unmarshal(v, &m.Cases) == nil && len(m.Cases) > 0 {
				break
			}
		}
	}
	require.NotEmpty(t, m.Cases)
	for _, c := range m.Cases {
		t.Run(c.File, func(t *testing.T) {
			log, err := os.ReadFile(dir + "/" + c.File)
			require.NoError(t, err)
			l, err := eventlog.Parse(log, nil)
			uneven := strings.HasSuffix(c.File, "event-uefivar.bin") // made by hand: two digests under a header of four algorithms
			if c.Replay.Error != "" || len(log) == 0 || uneven {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			for bank, pcrs := range c.Replay.PCRs {
				h := eventlog.HashByName(bank)
				got, err := l.Replay(h)
				if len(pcrs) == 0 {
					continue
				}
				require.NoError(t, err, bank)
				for pcr, want := range pcrs {
					i, err := strconv.Atoi(pcr)
					require.NoError(t, err)
					assert.Equal(t, want, hex.EncodeToString(got[i]), "%s PCR %d", bank, i)
				}
			}
		})
	}
}
