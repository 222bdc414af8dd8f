package secureboot_test

import (
	"bytes"
	"crypto"
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/ima"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

// shimVariable is an event with which shim, or whoever runs later, says
// something in PCR 7.
func shimVariable(name string, data []byte) logtest.Event {
	b := []byte{0x50, 0xab, 0x5d, 0x60, 0x46, 0xe0, 0x00, 0x43, 0xab, 0xb6, 0x3d, 0xd8, 0x10, 0xdd, 0x8b, 0x23}
	b = append(b, byte(len(name)), 0, 0, 0, 0, 0, 0, 0, byte(len(data)), byte(len(data)>>8), 0, 0, 0, 0, 0, 0)
	for _, c := range []byte(name) {
		b = append(b, c, 0)
	}
	return logtest.Measured(7, eventlog.EvEFIVariableAuthority, append(b, data...), banks...)
}

// TestHigherSBATLevelExtendedLater: an old shim measured a low level and
// started a loader that is revoked; what that loader extends afterwards does
// not make the level higher.
func TestHigherSBATLevelExtendedLater(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "shim-sb-on")
	good := p.Appraise(boot(t, "shim-sb-on", crypto.SHA256), now)
	p.SecureBoot.MinSBAT = good.SecureBoot.Shim.SBATLevel
	low, high := []byte("sbat,1,2021030218\n"), []byte(good.SecureBoot.Shim.SBATLevel)
	ev := forge(t, "shim-sb-on", func(events []logtest.Event) []logtest.Event {
		i := slices.IndexFunc(events, func(e logtest.Event) bool {
			v, ok := eventlog.ParseVariable(e.Data)
			return e.PCR == 7 && ok && v.Name == "SbatLevel"
		})
		events[i] = shimVariable("SbatLevel", low)
		return append(events, shimVariable("SbatLevel", high))
	}, true)
	r := p.Appraise(ev, now)
	assert.Equal(t, secureboot.Contraindicated, r.Status)
	assert.Subset(t, codes(r), []secureboot.Code{secureboot.CodeSBSBATLevel, secureboot.CodeSBUnknownEvent})
	assert.Equal(t, string(low), r.SecureBoot.Shim.SBATLevel, "the first word counts")
}

// TestShimVariableNamedDB: whoever runs after the firmware can extend a variable
// of shim's with the name and content of db's authority; it is none.
func TestShimVariableNamedDB(t *testing.T) {
	good := secureboot.Inspect(boot(t, "uki-sb-on", crypto.SHA256))
	db := good.SecureBoot.Authorities[0]
	r := judge(t, forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
		return append(events, shimVariable("db", append(bytes.Clone(db.Signature.Owner[:]), db.Signature.Data...)))
	}, true))
	assert.Contains(t, codes(r), secureboot.CodeSBUnknownEvent)
	assert.Len(t, r.SecureBoot.Authorities, 1)
}

// TestPCRsOfALogThatDoesNotVerifyAreNotJudged: one wrong event must not make
// the other PCRs look affirmed.
func TestPCRsOfALogThatDoesNotVerifyAreNotJudged(t *testing.T) {
	r := judge(t, forge(t, "uki-sb-off", drop(func(e logtest.Event) bool { return e.PCR == 6 }), false))
	for pcr, s := range r.PCRs {
		if pcr == 6 {
			assert.Equal(t, secureboot.Contraindicated, s.Status)
		} else {
			assert.Equal(t, secureboot.None, s.Status, "PCR %d: %+v", pcr, s)
		}
	}
}

// TestEventOfPCR7WhoseDataIsNotWhatWasMeasured is a reason even where PCR 7 is
// pinned: a key could otherwise hide from the result.
func TestEventOfPCR7WhoseDataIsNotWhatWasMeasured(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{PinPCR7: true}, "shim-sb-on")
	r := p.Appraise(forge(t, "shim-sb-on", func(events []logtest.Event) []logtest.Event {
		events[find(events, 7, eventlog.EvEFIVariableAuthority)].Data[50] ^= 1
		return events
	}, false), now)
	assert.Equal(t, secureboot.Contraindicated, r.Status)
	assert.Contains(t, codes(r), secureboot.CodeLogUnbound)
	assert.False(t, r.Enforcing)
}

// TestCCELRegistersAreNotPCRs: register 1 holds what PCR 1 and 7 hold, and has
// several separators; no Secure Boot fact is read out of register 4.
func TestCCELRegistersAreNotPCRs(t *testing.T) {
	events := []logtest.Event{logtest.Measured(1, eventlog.EvEFIVariableDriverConfig, []byte("variable"), crypto.SHA384),
		logtest.Measured(1, eventlog.EvSeparator, make([]byte, 4), crypto.SHA384), logtest.Measured(1, eventlog.EvSeparator, make([]byte, 4), crypto.SHA384),
		logtest.Measured(2, eventlog.EvSeparator, make([]byte, 4), crypto.SHA384), logtest.Measured(2, eventlog.EvEFIBootServicesApp, []byte("loader"), crypto.SHA384),
		logtest.Measured(3, eventlog.EvIPL, []byte("kernel"), crypto.SHA384)}
	all := logtest.Values(crypto.SHA384, events)
	ev := secureboot.Evidence{Bank: crypto.SHA384, CCEL: true, PCRs: map[int][]byte{1: all[1], 2: all[2], 3: all[3], 4: all[4]},
		EventLog: append(logtest.Join(logtest.Header(crypto.SHA384), events), bytes.Repeat([]byte{0xFF}, 100)...)}
	p, err := secureboot.Learn(secureboot.LearnOptions{Name: "td", NotAfter: nextYear, InsecureNoSB: true, Replay: []int{}, Ignore: []int{}}, ev)
	require.NoError(t, err)
	r := p.Appraise(ev, now)
	assert.Equal(t, secureboot.Affirming, r.Status, "%v", r.Findings)
	assert.Nil(t, r.SecureBoot)
	r = secureboot.Inspect(ev)
	assert.Equal(t, secureboot.Warning, r.Status, "%v", r.Findings)
	assert.Contains(t, codes(r), secureboot.CodeSBUnknown)
	p.SecureBoot = &secureboot.SecureBootPolicy{}
	assert.Equal(t, secureboot.Contraindicated, p.Appraise(ev, now).Status, "unknown is no")
	events[5] = logtest.Measured(3, eventlog.EvIPL, []byte("evil"), crypto.SHA384)
	p.SecureBoot = nil
	ev.EventLog, ev.PCRs[3] = logtest.Join(logtest.Header(crypto.SHA384), events), logtest.Values(crypto.SHA384, events)[3]
	assert.Equal(t, []secureboot.Code{secureboot.CodePCRReference}, codes(p.Appraise(ev, now)))
}

// TestAppraisalContinuesWhereTheLastEnded judges the new files alone, and
// refuses to continue over a reboot, under another policy, or from a state that
// was not affirmed.
func TestAppraisalContinuesWhereTheLastEnded(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	ev.ResetCount, ev.RestartCount = 7, 1
	first := p.Appraise(ev, now)
	require.NotNil(t, first.IMA)
	kept, err := json.Marshal(first.IMA)
	require.NoError(t, err)
	var state secureboot.IMAState
	require.NoError(t, json.Unmarshal(kept, &state))
	assert.Equal(t, ima.State{Bank: crypto.SHA256, Entries: 5, Bytes: len(ev.IMALog), PCR: ev.PCRs[10], ResetCount: 7, RestartCount: 1}, state.State)

	next := func(name, content string) secureboot.Evidence {
		e := boot(t, "uki-sb-on", crypto.SHA256)
		e.IMALog = append([]byte{}, ev.IMALog...)
		measure(&e, name, []byte(content), nil)
		e.IMALog = e.IMALog[state.State.Bytes:]
		e.IMAState, e.ResetCount, e.RestartCount = &state, 7, 1
		return e
	}
	p.IMA.Files["/usr/bin/new"] = []string{"sha256:" + hexOf(hashSHA256("good"))}
	r := p.Appraise(next("/usr/bin/new", "good"), now)
	assert.Equal(t, secureboot.Affirming, r.Status, "%v", r.Findings)
	assert.Equal(t, 6, r.PCRs[10].Events)
	require.NotNil(t, r.IMA)
	assert.Equal(t, 6, r.IMA.State.Entries)
	same := boot(t, "uki-sb-on", crypto.SHA256)
	same.IMALog, same.IMAState, same.ResetCount, same.RestartCount = nil, &state, 7, 1
	assert.Equal(t, secureboot.Affirming, p.Appraise(same, now).Status, "nothing new")

	r = p.Appraise(next("/usr/bin/new", "evil"), now)
	assert.Equal(t, []secureboot.Code{secureboot.CodeIMAFile}, codes(r))
	assert.Nil(t, r.IMA, "a state that was not affirmed can't be continued from")
	assert.Equal(t, 5, r.Findings[0].Event, "numbers go on")
	assert.Contains(t, codes(p.Appraise(next("boot_aggregate", "kexec"), now)), secureboot.CodeIMABootAggregate)

	rebooted := next("/usr/bin/new", "good")
	rebooted.ResetCount = 8
	assert.Equal(t, []secureboot.Code{secureboot.CodeIMAState}, codes(p.Appraise(rebooted, now)), "an old prefix in a new boot")
	left := next("/usr/bin/new", "good")
	left.IMALog = nil
	assert.Equal(t, []secureboot.Code{secureboot.CodeIMABehind}, codes(p.Appraise(left, now)))
	p.Serial++
	assert.Equal(t, []secureboot.Code{secureboot.CodeIMAState}, codes(p.Appraise(next("/usr/bin/new", "good"), now)), "another policy judges anew")
	empty := next("/usr/bin/new", "good")
	empty.IMAState = &secureboot.IMAState{Policy: first.Policy}
	assert.Contains(t, codes(p.Appraise(empty, now)), secureboot.CodeIMAState)
}

func hashSHA256(s string) []byte {
	h := crypto.SHA256.New()
	h.Write([]byte(s))
	return h.Sum(nil)
}
