package secureboot_test

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

// globalVariable adds a variable of UEFI's own to what the firmware measures.
func globalVariable(name string, data ...byte) func([]logtest.Event) []logtest.Event {
	return func(events []logtest.Event) []logtest.Event {
		b := []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
		b = binary.LittleEndian.AppendUint64(b, uint64(len(name)))
		b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
		for _, c := range []byte(name) {
			b = append(b, c, 0)
		}
		i := find(events, 7, eventlog.EvSeparator)
		e := logtest.Measured(7, eventlog.EvEFIVariableDriverConfig, append(b, data...), banks...)
		return append(events[:i:i], append([]logtest.Event{e}, events[i:]...)...)
	}
}

// TestModes: setup, audit, user and deployed mode, and unknown where the
// platform key was not measured; only user and deployed mode enforce.
func TestModes(t *testing.T) {
	noPK := func(events []logtest.Event) []logtest.Event {
		return drop(func(e logtest.Event) bool {
			v, ok := eventlog.ParseVariable(e.Data)
			return e.PCR == 7 && ok && v.Name == "PK"
		})(events)
	}
	for name, c := range map[string]struct {
		edit func([]logtest.Event) []logtest.Event
		mode secureboot.Mode
		on   bool
		code secureboot.Code
	}{
		"user":                {globalVariable("AuditMode", 0), secureboot.ModeUser, true, ""},
		"deployed":            {globalVariable("DeployedMode", 1), secureboot.ModeDeployed, true, ""},
		"not deployed":        {globalVariable("DeployedMode", 0), secureboot.ModeUser, true, ""},
		"audit":               {globalVariable("AuditMode", 1), secureboot.ModeAudit, false, secureboot.CodeSBAuditMode},
		"setup":               {variableEvent("PK", nil), secureboot.ModeSetup, false, secureboot.CodeSBSetupMode},
		"PK was not measured": {noPK, secureboot.ModeUnknown, false, secureboot.CodeSBUnknown},
		"PK can't be read":    {variableEvent("PK", []byte("no list")), secureboot.ModeSetup, false, secureboot.CodeSBSetupMode},
		"debugger":            {globalVariable("UEFI Debug Mode"), secureboot.ModeUser, true, ""}, // a variable of that name is no action
		"audit after deployed": {func(e []logtest.Event) []logtest.Event {
			return globalVariable("AuditMode", 1)(globalVariable("DeployedMode", 1)(e))
		}, secureboot.ModeAudit, false, secureboot.CodeSBAuditMode},
	} {
		r := secureboot.Inspect(forge(t, "uki-sb-on", c.edit, true))
		assert.Equal(t, c.mode, r.SecureBoot.Mode, name)
		assert.Equal(t, c.on, r.Enforcing, "%s: %v", name, r.Findings)
		if c.code != "" {
			assert.Contains(t, codes(r), c.code, name)
		}
	}
}

// TestEnforcingNeedsEveryCondition takes away, one at a time, what Enforcing
// asks for beyond the SecureBoot variable.
func TestEnforcingNeedsEveryCondition(t *testing.T) {
	good := secureboot.Inspect(boot(t, "uki-sb-on", crypto.SHA256))
	require.True(t, good.Enforcing)
	mokSBState := func(events []logtest.Event) []logtest.Event {
		return append(events, shimVariable("MokSBState", []byte{1}))
	}
	for name, c := range map[string]struct {
		edit func([]logtest.Event) []logtest.Event
		code secureboot.Code
	}{
		"no authority":          {drop(func(e logtest.Event) bool { return e.PCR == 7 && e.Type == eventlog.EvEFIVariableAuthority }), secureboot.CodeSBNothingAuthenticated},
		"no image":              {drop(func(e logtest.Event) bool { return e.PCR == 4 && e.Type == eventlog.EvEFIBootServicesApp }), secureboot.CodeSBNothingMeasured},
		"authority not in db":   {variableEvent("db", nil), secureboot.CodeSBAuthorityUnknown},
		"shim's switch":         {mokSBState, secureboot.CodeSBShimValidation},
		"no separator in PCR 4": {drop(func(e logtest.Event) bool { return e.PCR == 4 && e.Type == eventlog.EvSeparator }), secureboot.CodeSBUnknown},
		"SecureBoot is 2":       {variableEvent("SecureBoot", []byte{2}), secureboot.CodeSBUnknown},
		"image before the firmware was done": {func(events []logtest.Event) []logtest.Event {
			i, j := find(events, 4, eventlog.EvSeparator), find(events, 4, eventlog.EvEFIBootServicesApp)
			events[i], events[j] = events[j], events[i]
			return events
		}, secureboot.CodeSBNothingMeasured},
	} {
		r := secureboot.Inspect(forge(t, "uki-sb-on", c.edit, true))
		assert.False(t, r.Enforcing, name)
		assert.Equal(t, secureboot.Contraindicated, r.Status, name)
		assert.Contains(t, codes(r), c.code, name)
	}
}

// TestForeignPKAndKEK: a platform key or key exchange key that the policy does
// not name lets its holder change db.
func TestForeignPKAndKEK(t *testing.T) {
	body := append(make([]byte, 16), 0x30, 3, 'k', 'e', 'y')
	foreign := list(uint32(28+len(body)), 0, uint32(len(body)), body...)
	for _, name := range []string{"PK", "KEK"} {
		r := judge(t, forge(t, "uki-sb-on", variableEvent(name, foreign), true))
		assert.Contains(t, codes(r), secureboot.CodeSBKeyNotAllowed, name)
	}
}

// TestHostileLogsCostLittle: 1 MiB of evidence costs the verifier at most 8 MiB
// of memory, whatever is in it.
func TestHostileLogsCostLittle(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	for name, ev := range hostile(t) {
		require.LessOrEqual(t, len(ev.EventLog)+len(ev.IMALog)+len(ev.UserspaceLog), 1<<20+64<<10, name)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		r := p.Appraise(ev, now)
		runtime.ReadMemStats(&after)
		assert.NotEqual(t, secureboot.Affirming, r.Status, name)
		assert.LessOrEqual(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20), name)
	}
}

// hostile is evidence of 1 MiB that is meant to cost most. The PCRs fit, so that
// no step is left out.
func hostile(tb testing.TB) map[string]secureboot.Evidence {
	good := boot(tb, "uki-sb-on", crypto.SHA256)
	header, events := logtest.Split(good.EventLog)
	logs := map[string][]byte{}
	fill := func(e logtest.Event) []byte {
		b := logtest.Header(crypto.SHA256)
		one := e.Bytes()
		for len(b)+len(one) <= 1<<20 {
			b = append(b, one...)
		}
		return b
	}
	logs["events"] = fill(logtest.Measured(7, 0x8401, nil, crypto.SHA256))
	logs["images"] = fill(logtest.Measured(4, eventlog.EvEFIBootServicesApp, []byte("x"), crypto.SHA256))
	authority := shimVariable("MokListRT", []byte("0123456789abcdef0key"))
	authority.Digests = authority.Digests[1:2]
	sep := logtest.Measured(7, eventlog.EvSeparator, make([]byte, 4), crypto.SHA256)
	logs["authorities"] = append(logtest.Header(crypto.SHA256), sep.Bytes()...)
	for one := authority.Bytes(); len(logs["authorities"]) < 1<<20; {
		logs["authorities"] = append(logs["authorities"], one...)
	}
	tiny := bytes.Clone(list(28+17*60_000, 0, 17, make([]byte, 17*60_000)...))
	logs["signatures"] = logtest.Join(header, variableEvent("dbx", tiny)(append([]logtest.Event(nil), events...)))
	lists := bytes.Repeat(list(28+17, 0, 17, make([]byte, 17)...), 16000)
	logs["signature lists"] = logtest.Join(header, variableEvent("dbx", lists)(append([]logtest.Event(nil), events...)))
	certs := bytes.Repeat(list(28+17, 0, 17, append(make([]byte, 16), 0x30)...), 16000)
	logs["test keys"] = logtest.Join(header, variableEvent("db", certs)(append([]logtest.Event(nil), events...)))

	m := map[string]secureboot.Evidence{}
	for name, log := range logs {
		ev := good
		ev.EventLog = log
		_, es := logtest.Split(log)
		ev.PCRs = logtest.Values(crypto.SHA256, es)
		m[name] = ev
	}
	for name, content := range map[string]string{"IMA entries": "", "IMA entries of one name": "/x"} {
		ev := boot(tb, "uki-sb-on", crypto.SHA256)
		for len(ev.IMALog) < 1<<20 {
			n := len(ev.IMALog)
			measure(&ev, content, nil, nil)
			more := bytes.Repeat(ev.IMALog[n:], 200) // the same again; PCR 10 is then ahead, found before
			ev.IMALog = append(ev.IMALog, more...)
		}
		m[name] = ev
	}
	cel := good
	record := []byte(`{"pcr":13,"digests":[{"hashAlg":"sha256","digest":"` + hexOf(hashSHA256("x")) + `"}]}` + "\n")
	cel.UserspaceLog = bytes.Repeat(record, 1<<20/len(record))
	m["user space records"] = cel
	return m
}
