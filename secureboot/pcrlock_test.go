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
