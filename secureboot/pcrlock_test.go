package secureboot_test

import (
	"crypto"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

// pcrlock writes events of a boot as a .pcrlock file.
func pcrlock(t *testing.T, events []logtest.Event, pick func(logtest.Event) bool) *fstest.MapFile {
	t.Helper()
	v := struct {
		Records []secureboot.Record `json:"records"`
	}{[]secureboot.Record{}}
	for _, e := range events {
		if pick(e) {
			v.Records = append(v.Records, secureboot.Record{PCR: int(e.PCR), Digests: []secureboot.Digest{{Hash: crypto.SHA256, Value: e.Digests[1].Value}}})
		}
	}
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return &fstest.MapFile{Data: b}
}

// vendorDir is what an OS vendor and systemd-pcrlock would put on disk.
func vendorDir(t *testing.T) fstest.MapFS {
	_, events := logtest.Split(boot(t, "uki-sb-on", crypto.SHA256).EventLog)
	app := func(e logtest.Event) bool { return e.PCR == 4 && e.Type == eventlog.EvEFIBootServicesApp }
	firmware := func(e logtest.Event) bool { return e.PCR == 0 && e.Type != eventlog.EvSeparator }
	old := pcrlock(t, events, app)
	old.Data = []byte(strings.Replace(string(old.Data), `"digest":"6c`, `"digest":"00`, 1))
	return fstest.MapFS{
		"lib/250-firmware-code-early.pcrlock":             pcrlock(t, events, firmware),
		"lib/630-uki.pcrlock.d/1.0.pcrlock":               old,
		"lib/630-uki.pcrlock.d/2.0.pcrlock":               pcrlock(t, events, app),
		"lib/650-uki-sections.pcrlock":                    pcrlock(t, events, func(e logtest.Event) bool { return e.PCR == 11 }),
		"lib/680-initrd.pcrlock":                          pcrlock(t, events, func(e logtest.Event) bool { return e.PCR == 9 }),
		"lib/README":                                      {Data: []byte("not a component")},
		"lib/630-uki.pcrlock.d/notes.txt":                 {Data: []byte("not a variant")},
		"lib/620-secureboot-authority.pcrlock.d/x/y.json": {Data: []byte("not a variant")},
	}
}

func TestPCRLockFilesOfAVendorJudgeABoot(t *testing.T) {
	comps, err := secureboot.LoadPCRLock(vendorDir(t), "lib", secureboot.StandardComponents(crypto.SHA256)...)
	require.NoError(t, err)
	p := &secureboot.Policy{Name: "pcrlock", Serial: 1, NotAfter: nextYear, Bank: crypto.SHA256, Components: comps,
		Require: []int{0, 2, 3, 4, 6, 9, 11}, Replay: []int{1, 5, 7, 10}, Ignore: []int{15, 16, 23}}
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	p.IMA, p.Replay = &secureboot.IMAPolicy{IgnoreFileNames: true}, []int{1, 5, 7}
	p.Require = append(p.Require, 10)
	r := p.Appraise(ev, now)
	assert.Equal(t, secureboot.Affirming, r.Status, "%v", r.Findings)
	for _, bad := range []string{"uki-sb-off", "shim-sb-on", "direct-sb-on-unsigned"} {
		assert.Equal(t, secureboot.Contraindicated, p.Appraise(boot(t, bad, crypto.SHA256), now).Status, bad)
	}
}

func TestPCRLockIsStrict(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	for name, s := range map[string]string{
		"empty":          ``,
		"no records":     `{}`,
		"unknown field":  `{"records":[],"optional":true}`,
		"PCR 24":         `{"records":[{"pcr":24,"digests":[{"hashAlg":"sha256","digest":"` + digest + `"}]}]}`,
		"no digest":      `{"records":[{"pcr":4,"digests":[]}]}`,
		"short digest":   `{"records":[{"pcr":4,"digests":[{"hashAlg":"sha256","digest":"ab"}]}]}`,
		"unknown hash":   `{"records":[{"pcr":4,"digests":[{"hashAlg":"md5","digest":"` + digest + `"}]}]}`,
		"bytes after it": `{"records":[]} x`,
		"large":          `{"records":[]}` + strings.Repeat(" ", 1<<20),
	} {
		_, err := secureboot.LoadPCRLock(fstest.MapFS{"d/a.pcrlock": {Data: []byte(s)}}, "d")
		assert.Error(t, err, name)
	}
	_, err := secureboot.LoadPCRLock(fstest.MapFS{}, "absent")
	require.Error(t, err)
}

// TestVariantsOfOneComponentBelongTogether: loader of one release with the
// sections of another is no release.
func TestVariantsOfOneComponentBelongTogether(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	for i := range p.Components {
		c := &p.Components[i]
		if c.Name != "system" {
			continue
		}
		mix := func(pcr int) (rs []secureboot.Record) {
			for _, r := range c.Variants[0].Records {
				if r.PCR == pcr {
					r.Digests = []secureboot.Digest{{Hash: crypto.SHA256, Value: make([]byte, 32)}}
				}
				rs = append(rs, r)
			}
			return rs
		}
		c.Variants = []secureboot.Variant{{Name: "a", Records: mix(4)}, {Name: "b", Records: mix(11)}}
	}
	r := p.Appraise(boot(t, "uki-sb-on", crypto.SHA256), now)
	assert.Equal(t, []secureboot.Code{secureboot.CodePCRInconsistent}, codes(r))
}

// TestManyReadingsAreBounded: a policy whose variants are prefixes of one
// another can't make the matcher explode.
func TestManyReadingsAreBounded(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	rec := secureboot.Record{PCR: 11, Digests: []secureboot.Digest{{Hash: crypto.SHA256, Value: make([]byte, 32)}}}
	header, events := logtest.Split(boot(t, "uki-sb-on", crypto.SHA256).EventLog)
	for range 3000 {
		e := logtest.Event{PCR: 11, Type: eventlog.EvIPL}
		for _, b := range banks {
			e.Digests = append(e.Digests, logtest.Digest{Hash: b, Value: make([]byte, b.Size())})
		}
		events = append(events, e)
	}
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	ev.EventLog = logtest.Join(header, events)
	ev.PCRs[11] = logtest.Values(crypto.SHA256, events)[11]
	for i := range 12 {
		c := secureboot.Component{Name: fmt.Sprint("x", i)}
		var rs []secureboot.Record
		for range 1 << i {
			rs = append(rs, rec)
		}
		c.Variants = []secureboot.Variant{{Records: []secureboot.Record{}}, {Records: rs}}
		p.Components = append(p.Components, c)
	}
	r := p.Appraise(ev, now)
	assert.Equal(t, secureboot.Contraindicated, r.Status)
	assert.Contains(t, codes(r), secureboot.CodePolicyReference)
}

// systemdDir is the directory of components that systemd-pcrlock brings, by the
// strings that they are the digests of, each in four banks.
func systemdDir(t *testing.T) fstest.MapFS {
	t.Helper()
	dir := fstest.MapFS{}
	component := func(name string, records ...[2]any) {
		v := struct {
			Records []map[string]any `json:"records"`
		}{[]map[string]any{}}
		for _, r := range records {
			var ds []map[string]string
			for _, h := range []crypto.Hash{crypto.SHA512, crypto.SHA384, crypto.SHA256, crypto.SHA1} {
				w := h.New()
				w.Write([]byte(r[1].(string)))
				ds = append(ds, map[string]string{"hashAlg": eventlog.HashName(h), "digest": fmt.Sprintf("%x", w.Sum(nil))})
			}
			v.Records = append(v.Records, map[string]any{"pcr": r[0], "digests": ds})
		}
		b, err := json.Marshal(v)
		require.NoError(t, err)
		dir["pcrlock.d/"+name+".pcrlock"] = &fstest.MapFile{Data: append(b, '\n')}
	}
	var zero, ones [][2]any
	for pcr := range 7 {
		zero, ones = append(zero, [2]any{pcr, "\x00\x00\x00\x00"}), append(ones, [2]any{pcr, "\xff\xff\xff\xff"})
	}
	component("350-action-efi-application", [2]any{4, "Calling EFI Application from Boot Option"})
	component("400-secureboot-separator.pcrlock.d/300-0x00000000", [2]any{7, "\x00\x00\x00\x00"})
	component("400-secureboot-separator.pcrlock.d/600-0xffffffff", [2]any{7, "\xff\xff\xff\xff"})
	component("500-separator.pcrlock.d/300-0x00000000", zero...)
	component("500-separator.pcrlock.d/600-0xffffffff", ones...)
	component("700-action-efi-exit-boot-services.pcrlock.d/300-present", [2]any{5, "Exit Boot Services Invocation"}, [2]any{5, "Exit Boot Services Returned with Success"})
	component("700-action-efi-exit-boot-services.pcrlock.d/600-absent")
	component("750-enter-initrd", [2]any{11, "enter-initrd"})
	component("800-leave-initrd", [2]any{11, "leave-initrd"})
	component("850-sysinit", [2]any{11, "sysinit"})
	component("900-ready", [2]any{11, "ready"})
	component("950-shutdown", [2]any{11, "shutdown"})
	component("990-final", [2]any{11, "final"})
	return dir
}

// TestSystemdsOwnComponentsWorkUnchanged: systemd's directory and a vendor's
// judge a boot in each phase that a running system is in.
func TestSystemdsOwnComponentsWorkUnchanged(t *testing.T) {
	vendor, err := secureboot.LoadPCRLock(vendorDir(t), "lib")
	require.NoError(t, err)
	comps, err := secureboot.LoadPCRLock(systemdDir(t), "pcrlock.d", vendor...)
	require.NoError(t, err)
	p := &secureboot.Policy{Name: "pcrlock", Serial: 1, NotAfter: nextYear, Bank: crypto.SHA256, Components: comps,
		Require: []int{0, 2, 3, 4, 6, 9, 10, 11}, Replay: []int{1, 5, 7}, Ignore: []int{15, 16, 23}, IMA: &secureboot.IMAPolicy{IgnoreFileNames: true}}
	after := func(phases ...string) secureboot.Status {
		r := p.Appraise(forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
			for _, s := range phases {
				events = append(events, logtest.Measured(11, eventlog.EvIPL, []byte(s), banks...))
			}
			return events
		}, true), now)
		return r.Status
	}
	all := []string{"enter-initrd", "leave-initrd", "sysinit", "ready"}
	for n := 1; n <= len(all); n++ {
		assert.Equal(t, secureboot.Affirming, after(all[:n]...), "%v", all[:n])
	}
	for _, bad := range [][]string{{}, {"leave-initrd"}, {"enter-initrd", "enter-initrd"}, {"enter-initrd", "ready", "sysinit"}, {"enter-initrd", "evil"}, append(all, "shutdown")} {
		assert.Equal(t, secureboot.Contraindicated, after(bad...), "%v", bad)
	}
}
