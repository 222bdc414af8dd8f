package secureboot_test

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

var banks = []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384}

// forge returns evidence of a machine whose log is edited. Unless the attacker
// could also extend the PCRs so, values are those of the true boot.
func forge(t *testing.T, name string, edit func([]logtest.Event) []logtest.Event, alsoPCRs bool) secureboot.Evidence {
	t.Helper()
	ev := boot(t, name, crypto.SHA256)
	header, events := logtest.Split(ev.EventLog)
	events = edit(events)
	ev.EventLog = logtest.Join(header, events)
	if alsoPCRs {
		for pcr, v := range logtest.Values(crypto.SHA256, events) {
			if pcr != 10 {
				ev.PCRs[pcr] = v
			}
		}
	}
	return ev
}

func judge(t *testing.T, ev secureboot.Evidence) *secureboot.Result {
	t.Helper()
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	r := p.Appraise(ev, now)
	require.Equal(t, secureboot.Contraindicated, r.Status, "%v", r.Findings)
	require.Error(t, r.Err())
	return r
}

func drop(f func(logtest.Event) bool) func([]logtest.Event) []logtest.Event {
	return func(events []logtest.Event) (kept []logtest.Event) {
		for _, e := range events {
			if !f(e) {
				kept = append(kept, e)
			}
		}
		return kept
	}
}

func find(events []logtest.Event, pcr uint32, typ eventlog.Type) int {
	for i, e := range events {
		if e.PCR == pcr && e.Type == typ {
			return i
		}
	}
	panic("no such event")
}

// Attack A: every event of PCR 4 and 7 is left out; "Secure Boot disabled"
// without an error was the answer of others.
func TestAttackAEventsLeftOut(t *testing.T) {
	r := judge(t, forge(t, "uki-sb-on", drop(func(e logtest.Event) bool { return e.PCR == 4 || e.PCR == 7 }), false))
	assert.Equal(t, []secureboot.Code{secureboot.CodePCRUnexplained}, codes(r))
	assert.Equal(t, secureboot.Contraindicated, r.PCRs[4].Status)
	assert.Equal(t, secureboot.Contraindicated, r.PCRs[7].Status)
	assert.Nil(t, r.SecureBoot, "no fact from a log that does not verify")
}

// Attack A, with a quote that leaves the same PCRs out.
func TestAttackAQuoteLeavesPCRsOutToo(t *testing.T) {
	ev := forge(t, "uki-sb-on", drop(func(e logtest.Event) bool { return e.PCR == 4 || e.PCR == 7 }), false)
	delete(ev.PCRs, 4)
	delete(ev.PCRs, 7)
	assert.Contains(t, codes(judge(t, ev)), secureboot.CodePCRNotQuoted)
	r := secureboot.Inspect(ev)
	assert.Equal(t, secureboot.Contraindicated, r.Status)
	assert.Equal(t, secureboot.Unknown, r.SecureBoot.Enabled, "not: off")
}

// Attack A2: a log of the header alone, and of nothing.
func TestAttackA2NoEvents(t *testing.T) {
	for _, log := range [][]byte{logtest.Header(banks...), {}, nil} {
		ev := boot(t, "uki-sb-on", crypto.SHA256)
		ev.EventLog = log
		assert.Equal(t, []secureboot.Code{secureboot.CodeEvidenceMalformed}, codes(judge(t, ev)))
	}
}

// Attack B: another loader ran. Its event is retyped as a driver's, the good
// loader's digest is extended after boot, and listed as the application.
func TestAttackBAnotherLoaderRetypedAsDriver(t *testing.T) {
	r := judge(t, forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
		i := find(events, 4, eventlog.EvEFIBootServicesApp)
		good := events[i]
		evil := logtest.Measured(4, eventlog.EvEFIBootServicesDriver, []byte("evil loader"), banks...)
		events[i] = evil
		j := find(events, 5, eventlog.EvEFIAction)
		return append(events[:j:j], append([]logtest.Event{good}, events[j:]...)...)
	}, true))
	assert.Contains(t, codes(r), secureboot.CodePCRReference)
	assert.Equal(t, secureboot.Contraindicated, r.PCRs[4].Status)
	assert.Len(t, r.SecureBoot.Images, 2, "what was measured is listed whole, whatever its type says")
}

// Attack B2: after boot, the good loader's digest is extended once more.
func TestAttackBDigestExtendedAgain(t *testing.T) {
	r := judge(t, forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
		return append(events, events[find(events, 4, eventlog.EvEFIBootServicesApp)])
	}, true))
	assert.Contains(t, codes(r), secureboot.CodePCRReference)
}

// Order within a PCR is judged; order between PCRs is never used.
func TestEventsOfOnePCRSwapped(t *testing.T) {
	swap := func(events []logtest.Event) []logtest.Event {
		var idx []int
		for i, e := range events {
			if e.PCR == 11 {
				idx = append(idx, i)
			}
		}
		events[idx[0]], events[idx[2]] = events[idx[2]], events[idx[0]]
		return events
	}
	assert.Contains(t, codes(judge(t, forge(t, "uki-sb-on", swap, true))), secureboot.CodePCRReference)

	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	regroup := func(events []logtest.Event) (out []logtest.Event) {
		for pcr := range uint32(24) {
			for _, e := range events {
				if e.PCR == 23-pcr {
					out = append(out, e)
				}
			}
		}
		return out
	}
	assert.Equal(t, secureboot.Affirming, p.Appraise(forge(t, "uki-sb-on", regroup, false), now).Status)
}

// Attack C: a vendor's event type. It is no error by itself, but its digest
// needs a reference value like any other.
func TestAttackCVendorEventType(t *testing.T) {
	r := judge(t, forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
		return append(events, logtest.Measured(2, 0x8401, []byte("vendor"), banks...))
	}, true))
	assert.Contains(t, codes(r), secureboot.CodePCRReference)
	assert.Equal(t, secureboot.Affirming, r.PCRs[0].Status)
}

// variableEvent replaces the data of a Secure Boot variable.
func variableEvent(name string, data []byte) func([]logtest.Event) []logtest.Event {
	return func(events []logtest.Event) []logtest.Event {
		for i, e := range events {
			v, ok := eventlog.ParseVariable(e.Data)
			if e.PCR != 7 || !ok || v.Name != name || e.Type != eventlog.EvEFIVariableDriverConfig {
				continue
			}
			b := bytes.Clone(e.Data[:len(e.Data)-len(v.Data)])
			binary.LittleEndian.PutUint64(b[24:], uint64(len(data)))
			events[i] = logtest.Measured(7, e.Type, append(b, data...), banks...)
			return events
		}
		panic("no variable " + name)
	}
}

// list is an EFI_SIGNATURE_LIST header of the X.509 type.
func list(listSize, headerSize, signatureSize uint32, body ...byte) []byte {
	b := []byte{0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72}
	for _, v := range []uint32{listSize, headerSize, signatureSize} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(b, body...)
}

// Attacks D and D2: signature lists that declare 4 GiB, or a million entries.
func TestAttackDHostileSignatureLists(t *testing.T) {
	sha := list(0, 0, 0)
	copy(sha, []byte{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28})
	binary.LittleEndian.PutUint32(sha[16:], 28+17)
	binary.LittleEndian.PutUint32(sha[24:], 17)
	for name, data := range map[string][]byte{
		"signature of 4 GiB":           list(76, 0, 0xFFFFFFFF, make([]byte, 48)...),
		"list of 4 GiB":                list(0xFFFFFFFF, 0, 48, make([]byte, 48)...),
		"header of 4 GiB":              list(76, 0xFFFFFFFF, 48, make([]byte, 48)...),
		"signatures of zero bytes":     list(76, 0, 0, make([]byte, 48)...),
		"signatures of the owner only": list(28+1<<20, 0, 16, make([]byte, 1<<20)...),
		"a million signatures":         list(28+17<<20, 0, 17, make([]byte, 17<<20)...)[:12<<20],
		"too many signatures":          list(28+17*20000, 0, 17, make([]byte, 17*20000)...),
		"not a multiple":               list(28+50, 0, 48, make([]byte, 50)...),
		"truncated":                    make([]byte, 27),
		"SHA-256 entry of one byte":    append(sha, make([]byte, 17)...),
	} {
		allocated := testing.AllocsPerRun(1, func() {
			r := judge(t, forge(t, "uki-sb-on", variableEvent("db", data), true))
			assert.Contains(t, codes(r), secureboot.CodeSBDatabase, name)
			assert.False(t, r.Enforcing, name)
		})
		assert.Less(t, allocated, 100_000., name)
	}
}

// Attack E: the loader's SHA-256 digest is forged, SHA-1 is right.
func TestAttackEOtherBankIsRight(t *testing.T) {
	r := judge(t, forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
		events[find(events, 4, eventlog.EvEFIBootServicesApp)].Digests[1].Value = bytes.Repeat([]byte{1}, 32)
		return events
	}, false))
	assert.Equal(t, []secureboot.Code{secureboot.CodePCRMismatch}, codes(r))
}

// Attack F1: no separator in PCR 7.
func TestAttackF1NoSeparator(t *testing.T) {
	r := judge(t, forge(t, "uki-sb-on", drop(func(e logtest.Event) bool { return e.PCR == 7 && e.Type == eventlog.EvSeparator }), true))
	assert.Contains(t, codes(r), secureboot.CodeLogSeparator)
	assert.Contains(t, codes(r), secureboot.CodeSBUnknown)
	assert.False(t, r.Enforcing)
	assert.Equal(t, secureboot.Unknown, r.SecureBoot.Enabled)
}

// Attack F2: a separator of 0xFFFFFFFF, retyped as an action.
func TestAttackF2SeparatorRetyped(t *testing.T) {
	r := judge(t, forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
		return append(events, logtest.Measured(7, eventlog.EvAction, []byte{0xFF, 0xFF, 0xFF, 0xFF}, banks...))
	}, true))
	assert.Contains(t, codes(r), secureboot.CodeLogSeparator)
}

// Attack F2, the reverse: an event that calls itself a separator.
func TestAttackF2FalseSeparator(t *testing.T) {
	r := judge(t, forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
		return append(events, logtest.Measured(6, eventlog.EvSeparator, []byte("WBCL"), banks...))
	}, true))
	assert.Contains(t, codes(r), secureboot.CodeLogSeparator)
}

// Attack F3: error separators in PCR 0 to 6.
func TestAttackF3ErrorSeparators(t *testing.T) {
	for _, pcr := range []uint32{0, 4, 7} {
		r := judge(t, forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
			events[find(events, pcr, eventlog.EvSeparator)] = logtest.Measured(pcr, eventlog.EvSeparator, []byte{1, 0, 0, 0}, banks...)
			return events
		}, true))
		assert.Contains(t, codes(r), secureboot.CodeLogFirmwareError)
		assert.False(t, r.Enforcing && pcr != 0)
	}
}

// Attacks G (forged EV_NO_ACTION), H (PCR 4711), J (two digests of one bank),
// K (trailing zeros) and L (truncation) are in package eventlog.

// Attack I: the quote offers PCR 0 alone.
func TestAttackIQuoteOfOnePCR(t *testing.T) {
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	ev.PCRs = map[int][]byte{0: ev.PCRs[0]}
	assert.Contains(t, codes(judge(t, ev)), secureboot.CodePCRNotQuoted)
	r := secureboot.Inspect(ev)
	assert.Equal(t, secureboot.Unknown, r.SecureBoot.Enabled)
	assert.False(t, r.Enforcing)
	ev.PCRs = nil
	judge(t, ev)
	assert.Equal(t, secureboot.Contraindicated, secureboot.Inspect(ev).Status)
}

// Attack K: trailing bytes after the log.
func TestAttackKTrailingBytes(t *testing.T) {
	for _, tail := range [][]byte{make([]byte, 64), bytes.Repeat([]byte{0xFF}, 64), {0}} {
		ev := boot(t, "uki-sb-on", crypto.SHA256)
		ev.EventLog = append(bytes.Clone(ev.EventLog), tail...)
		assert.Equal(t, []secureboot.Code{secureboot.CodeEvidenceMalformed}, codes(judge(t, ev)))
	}
}

// TestSecureBootVariableValues: behaviour 14.
func TestSecureBootVariableValues(t *testing.T) {
	for _, c := range []struct {
		data []byte
		want secureboot.Tristate
	}{{[]byte{1}, secureboot.Yes}, {[]byte{0}, secureboot.No}, {nil, secureboot.No}, {[]byte{2}, secureboot.Unknown}, {[]byte{1, 0}, secureboot.Unknown}} {
		r := secureboot.Inspect(forge(t, "uki-sb-on", variableEvent("SecureBoot", c.data), true))
		assert.Equal(t, c.want, r.SecureBoot.Enabled, "%x", c.data)
		assert.Equal(t, c.want == secureboot.Yes, r.Enforcing, "%x", c.data)
	}
	r := secureboot.Inspect(forge(t, "uki-sb-on", drop(func(e logtest.Event) bool {
		return bytes.Contains(e.Data, []byte("S\x00e\x00c\x00u\x00r\x00e\x00B\x00"))
	}), true))
	assert.Equal(t, secureboot.No, r.SecureBoot.Enabled, "not measured")
}

// TestVariablesAreMatchedByGUIDAndName: behaviour 13.
func TestVariablesAreMatchedByGUIDAndName(t *testing.T) {
	other := func(events []logtest.Event) []logtest.Event {
		i := find(events, 7, eventlog.EvEFIVariableDriverConfig)
		d := bytes.Clone(events[i].Data)
		d[0] ^= 1
		events[i] = logtest.Measured(7, events[i].Type, d, banks...)
		return events
	}
	r := judge(t, forge(t, "uki-sb-on", other, true))
	assert.Equal(t, secureboot.No, r.SecureBoot.Enabled, "another vendor's variable of the same name")
	assert.Contains(t, codes(r), secureboot.CodeSBUnknownEvent)

	twice := func(events []logtest.Event) []logtest.Event {
		i := find(events, 7, eventlog.EvEFIVariableDriverConfig)
		return append(events[:i:i], append([]logtest.Event{events[i]}, events[i:]...)...)
	}
	r = judge(t, forge(t, "uki-sb-on", twice, true))
	assert.Equal(t, secureboot.Unknown, r.SecureBoot.Enabled)

	late := func(events []logtest.Event) []logtest.Event {
		return append(events, events[find(events, 7, eventlog.EvEFIVariableDriverConfig)])
	}
	assert.Contains(t, codes(judge(t, forge(t, "uki-sb-on", late, true))), secureboot.CodeSBUnknownEvent)
}

func TestDebuggerAndDMA(t *testing.T) {
	with := func(s string) func([]logtest.Event) []logtest.Event {
		return func(events []logtest.Event) []logtest.Event {
			i := find(events, 7, eventlog.EvSeparator)
			return append(events[:i:i], append([]logtest.Event{logtest.Measured(7, eventlog.EvEFIAction, []byte(s), banks...)}, events[i:]...)...)
		}
	}
	r := judge(t, forge(t, "uki-sb-on", with("UEFI Debug Mode"), true))
	assert.Contains(t, codes(r), secureboot.CodeSBDebugMode)
	assert.False(t, r.Enforcing)
	r = judge(t, forge(t, "uki-sb-on", with("DMA Protection Disabled"), true))
	assert.Contains(t, codes(r), secureboot.CodeSBDMAUnprotected)
	r = judge(t, forge(t, "uki-sb-on", with("anything"), true))
	assert.Contains(t, codes(r), secureboot.CodeSBUnknownEvent)
}

// TestKeysThatThePolicyDoesNotKnow: one more certificate in db is a reason even
// if nothing was booted by it; a missing dbx entry too.
func TestKeysThatThePolicyDoesNotKnow(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on-dbx")
	r := p.Appraise(boot(t, "uki-sb-on", crypto.SHA256), now)
	assert.Equal(t, []secureboot.Code{secureboot.CodeSBDBXIncomplete}, codes(r))

	db := func(t *testing.T) []byte {
		_, events := logtest.Split(boot(t, "uki-sb-on", crypto.SHA256).EventLog)
		for _, e := range events {
			if v, ok := eventlog.ParseVariable(e.Data); ok && e.PCR == 7 && v.Name == "db" {
				return v.Data
			}
		}
		panic("no db")
	}(t)
	body := append(make([]byte, 16), 0x30, 3, 'D', 'O', ' ', 'N', 'O', 'T', ' ', 'T', 'R', 'U', 'S', 'T')
	extra := list(uint32(28+len(body)), 0, uint32(len(body)), body...)
	r = judge(t, forge(t, "uki-sb-on", variableEvent("db", append(bytes.Clone(db), extra...)), true))
	assert.Contains(t, codes(r), secureboot.CodeSBKeyNotAllowed)
	assert.Contains(t, codes(r), secureboot.CodeSBTestKey, "PKfail; and a certificate that Go can't parse is carried raw")

	// The certificate that vouched for the image is revoked.
	r = judge(t, forge(t, "uki-sb-on", variableEvent("dbx", db), true))
	assert.Contains(t, codes(r), secureboot.CodeSBRevoked)
	// The image's hash is revoked.
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	_, events := logtest.Split(ev.EventLog)
	image := events[find(events, 4, eventlog.EvEFIBootServicesApp)].Digests[1].Value
	hash := list(28+48, 0, 48, append(make([]byte, 16), image...)...)
	copy(hash, []byte{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28})
	r = judge(t, forge(t, "uki-sb-on", variableEvent("dbx", hash), true))
	assert.Contains(t, codes(r), secureboot.CodeSBRevoked)
	// The authority is not in db.
	r = judge(t, forge(t, "uki-sb-on", variableEvent("db", nil), true))
	assert.Contains(t, codes(r), secureboot.CodeSBAuthorityUnknown)
}

// TestMOKValidationDisabled: shim measures MokSBState.
func TestMOKValidationDisabled(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "shim-sb-on")
	ev := forge(t, "shim-sb-on", func(events []logtest.Event) []logtest.Event {
		e := logtest.Measured(14, eventlog.EvIPL, []byte{1}, banks...)
		e.Data = []byte("MokSBState\x00")
		return append(events, e)
	}, true)
	r := p.Appraise(ev, now)
	assert.Contains(t, codes(r), secureboot.CodeSBShimValidation)
	assert.False(t, r.Enforcing)
	assert.True(t, r.SecureBoot.Shim.ValidationDisabled)
}

func TestSBATLevelMustNotFall(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "shim-sb-on")
	ev := boot(t, "shim-sb-on", crypto.SHA256)
	level := p.Appraise(ev, now).SecureBoot.Shim.SBATLevel
	require.NotEmpty(t, level)
	p.SecureBoot.MinSBAT = level
	assert.Equal(t, secureboot.Affirming, p.Appraise(ev, now).Status)
	p.SecureBoot.MinSBAT = "sbat,1,2099010100\nshim,99\n"
	assert.Contains(t, codes(p.Appraise(ev, now)), secureboot.CodeSBSBATLevel)
}
