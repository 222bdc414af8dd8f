package eventlog_test

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

func recorded(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("..", "testdata", "vm", name, "binary_bios_measurements"))
	require.NoError(tb, err)
	return b
}

// Banks of the recorded logs.
var banks = []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384}

func TestTruncationAtAnyByteIsRefused(t *testing.T) {
	log := recorded(t, "uki-sb-on")
	header, events := logtest.Split(log)
	values := logtest.Values(crypto.SHA256, events)
	boundary := map[int]bool{}
	off := len(header)
	for _, e := range events {
		boundary[off] = true
		off += len(e.Bytes())
	}
	for n := range len(log) {
		l, err := eventlog.Parse(log[:n], nil)
		if !boundary[n] || n == len(header) {
			require.Error(t, err, "%d bytes", n)
			continue
		}
		require.NoError(t, err, "%d bytes: between events", n)
		_, err = l.Verify(crypto.SHA256, values)
		var re *eventlog.ReplayError
		require.ErrorAs(t, err, &re, "%d bytes: the replay fails", n)
		require.NotEmpty(t, re.Mismatches)
	}
}

func TestTruncationNamesTheOffset(t *testing.T) {
	log := recorded(t, "uki-sb-on")
	_, err := eventlog.Parse(log[:len(log)-1], nil)
	var pe *eventlog.ParseError
	require.ErrorAs(t, err, &pe)
	require.ErrorIs(t, err, eventlog.ErrTruncated)
	assert.Equal(t, 35, pe.Event)
	assert.Positive(t, pe.Offset)
}

// TestAnyChangedByteIsRefusedOrChangesNothingClaimed flips every byte of a log.
func TestAnyChangedByteIsRefusedOrChangesNothingClaimed(t *testing.T) {
	log := recorded(t, "uki-sb-on")
	_, events := logtest.Split(log)
	values := logtest.Values(crypto.SHA256, events)
	facts := func(log []byte) (s []string, err error) {
		l, err := eventlog.Parse(log, nil)
		if err != nil {
			return nil, err
		}
		v, err := l.Verify(crypto.SHA256, values)
		if err != nil {
			return nil, err
		}
		for pcr := range 24 {
			for e := range v.Events(pcr) {
				data, b := e.Fact()
				if b == eventlog.BindingData {
					s = append(s, string(e.Digest)+string(data))
				} else {
					s = append(s, string(e.Digest))
				}
			}
		}
		return s, nil
	}
	want, err := facts(log)
	require.NoError(t, err)
	masks := []byte{1, 0x80, 0xFF}
	for i := range log {
		some := masks[i%3 : i%3+1]
		if testenv.Long() {
			some = masks
		}
		for _, mask := range some {
			changed := bytes.Clone(log)
			changed[i] ^= mask
			got, err := facts(changed)
			if err != nil {
				continue
			}
			require.Len(t, got, len(want), "byte %d", i)
			for j := range got {
				// Either the fact is as it was, or it is no fact any more.
				if got[j] != want[j] {
					require.Equal(t, want[j][:32], got[j], "byte %d", i)
				}
			}
		}
	}
}

func TestMalformedLogsAreRefused(t *testing.T) {
	log := recorded(t, "uki-sb-on")
	header, events := logtest.Split(log)
	sep := logtest.Measured(0, eventlog.EvSeparator, make([]byte, 4), banks...)
	with := func(es ...logtest.Event) []byte { return logtest.Join(header, append(es, events...)) }
	locality := func(pcr uint32, v ...byte) logtest.Event {
		e := logtest.Measured(pcr, eventlog.EvNoAction, append([]byte("StartupLocality\x00"), v...), banks...)
		return e
	}
	patch := func(off int, b ...byte) []byte {
		p := bytes.Clone(log)
		copy(p[off:], b)
		return p
	}
	le := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	twice := sep
	twice.Digests = append([]logtest.Digest{sep.Digests[1], sep.Digests[1]}, sep.Digests[2])
	missing := sep
	missing.Digests = sep.Digests[:2]
	more := sep
	more.Digests = append(append([]logtest.Digest{}, sep.Digests...), logtest.Digest{Hash: crypto.SHA512, Value: make([]byte, 64)})
	foreign := sep
	foreign.Digests = append(append([]logtest.Digest{}, sep.Digests[:2]...), logtest.Digest{Hash: crypto.SHA512, Value: make([]byte, 64)})
	pcr := func(n uint32) logtest.Event { e := sep; e.PCR = n; return e }
	for name, b := range map[string][]byte{
		"empty":                            {},
		"header alone":                     header,
		"64 zero bytes at the end":         append(bytes.Clone(log), make([]byte, 64)...),
		"0xFF padding without the option":  append(bytes.Clone(log), bytes.Repeat([]byte{0xFF}, 64)...),
		"one byte more":                    append(bytes.Clone(log), 0),
		"two digests of one bank":          with(twice),
		"a bank's digest is missing":       with(missing),
		"more digests than banks":          with(more),
		"digest of an unnamed algorithm":   with(foreign),
		"PCR 24":                           with(pcr(24)),
		"PCR 4711":                         with(pcr(4711)),
		"PCR 0xFFFFFFFF that is extended":  with(pcr(0xFFFFFFFF)),
		"StartupLocality 1":                with(locality(0, 1)),
		"StartupLocality 0xFF":             with(locality(0, 0xFF)),
		"StartupLocality of PCR 1":         with(locality(1, 3)),
		"StartupLocality twice":            with(locality(0, 3), locality(0, 3)),
		"StartupLocality after an extend":  logtest.Join(header, append(append([]logtest.Event{}, events...), locality(0, 3))),
		"StartupLocality without a value":  with(locality(0)),
		"StartupLocality with more":        with(locality(0, 3, 0)),
		"second Spec ID event":             with(logtest.Measured(0, eventlog.EvNoAction, header[32:], banks...)),
		"Spec ID event of PCR 1":           patch(0, 1),
		"Spec ID event with a digest":      patch(8, 1),
		"Spec ID version 1":                patch(32+21, 1),
		"Spec ID uintn 3":                  patch(32+23, 3),
		"no algorithm":                     patch(32+24, le(0)...),
		"nine algorithms":                  patch(32+24, le(9)...),
		"2^32-1 algorithms":                patch(32+24, le(0xFFFFFFFF)...),
		"algorithm twice":                  patch(32+32, 4, 0, 20, 0),
		"SHA-256 of 20 bytes":              patch(32+34, 20, 0),
		"vendor data longer than it is":    patch(32+40, 200),
		"event data of 4 GiB":              append(bytes.Clone(log[:len(log)-44]), 0xFF, 0xFF, 0xFF, 0xFF),
		"digest count of 4 GiB":            append(bytes.Clone(header), append(make([]byte, 8), 0xFF, 0xFF, 0xFF, 0xFF)...),
		"SHA-1 log of zero bytes":          make([]byte, 64),
		"SHA-1 log, declared size too big": append(make([]byte, 28), 0xFF, 0xFF, 0xFF, 0x7F),
	} {
		_, err := eventlog.Parse(b, nil)
		assert.Error(t, err, name)
	}
	_, err := eventlog.Parse(log, &eventlog.Options{MaxSize: 100})
	require.Error(t, err)
	_, err = eventlog.Parse(log, &eventlog.Options{MaxEvents: 35})
	require.Error(t, err)
	_, err = eventlog.Parse(log, &eventlog.Options{MaxEvents: 36})
	require.NoError(t, err)
}

func TestUnknownAlgorithmIsSkippedAndNeverJudged(t *testing.T) {
	h := logtest.Header(crypto.SHA256, crypto.SHA512)
	h = bytes.Replace(h, []byte{0x0D, 0, 64, 0}, []byte{0x77, 0x70, 5, 0}, 1) // an algorithm of 5 bytes
	e := logtest.Measured(0, eventlog.EvSeparator, make([]byte, 4), crypto.SHA256)
	b := binary.LittleEndian.AppendUint32(nil, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(eventlog.EvSeparator))
	b = binary.LittleEndian.AppendUint32(b, 2)
	b = append(append(b, 0x77, 0x70), "other"...)
	b = append(append(b, 0x0B, 0), e.Digests[0].Value...)
	b = append(binary.LittleEndian.AppendUint32(b, 4), 0, 0, 0, 0)
	l, err := eventlog.Parse(append(h, b...), nil)
	require.NoError(t, err)
	assert.Equal(t, []crypto.Hash{crypto.SHA256}, l.Banks())
	_, err = l.Verify(crypto.SHA256, map[int][]byte{0: logtest.Values(crypto.SHA256, []logtest.Event{e})[0]})
	require.NoError(t, err)
	_, err = l.Verify(crypto.SHA512, map[int][]byte{0: make([]byte, 64)})
	require.ErrorIs(t, err, eventlog.ErrNoBank)
}

func TestVendorEventTypeIsKept(t *testing.T) {
	header, events := logtest.Split(recorded(t, "uki-sb-on"))
	events = append(events, logtest.Measured(2, 0x8401, []byte("vendor"), banks...)) // met on AMD firmware
	l, err := eventlog.Parse(logtest.Join(header, events), nil)
	require.NoError(t, err)
	v, err := l.Verify(crypto.SHA256, logtest.Values(crypto.SHA256, events))
	require.NoError(t, err)
	e := v.At(2, 1)
	assert.Equal(t, eventlog.Type(0x8401), e.Claimed().Type)
	assert.Equal(t, "0x00008401", e.Claimed().Type.String())
}

func TestTextOfLogsIsEscaped(t *testing.T) {
	header, events := logtest.Split(recorded(t, "uki-sb-on"))
	events = append(events, logtest.Measured(8, eventlog.EvIPL, []byte("x\x1b[2J\nok: all good\x00"), banks...))
	l, err := eventlog.Parse(logtest.Join(header, events), nil)
	require.NoError(t, err)
	for e := range l.Events() {
		assert.NotContains(t, e.Hint(), "\x1b")
		assert.NotContains(t, e.Hint(), "\n")
	}
}

func TestCCELPaddingNeedsTheOption(t *testing.T) {
	h := logtest.Header(crypto.SHA384)
	e := logtest.Measured(1, eventlog.EvSeparator, make([]byte, 4), crypto.SHA384)
	log := append(logtest.Join(h, []logtest.Event{e}), bytes.Repeat([]byte{0xFF}, 1000)...)
	_, err := eventlog.Parse(log, nil)
	require.Error(t, err)
	l, err := eventlog.Parse(log, &eventlog.Options{CCEL: true})
	require.NoError(t, err)
	_, err = l.Verify(crypto.SHA384, map[int][]byte{1: logtest.Values(crypto.SHA384, []logtest.Event{e})[1]})
	require.NoError(t, err)
	_, err = eventlog.Parse(append(log, 0), &eventlog.Options{CCEL: true})
	require.Error(t, err, "padding that ends in something else")
	e.PCR = 5
	_, err = eventlog.Parse(logtest.Join(h, []logtest.Event{e}), &eventlog.Options{CCEL: true})
	require.Error(t, err, "there are four measurement registers")
}
