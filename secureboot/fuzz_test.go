package secureboot_test

import (
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

// FuzzAppraise judges hostile logs whose PCRs fit: nothing but the reference
// boot's own digests is affirmed.
func FuzzAppraise(f *testing.F) {
	p := learn(f, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	good := boot(f, "uki-sb-on", crypto.SHA256)
	for _, name := range slices.Sorted(maps.Keys(recordings)) {
		f.Add(boot(f, name, crypto.SHA256).EventLog, true)
	}
	f.Add(good.EventLog, false)
	for _, log := range otherLogs(f) {
		f.Add(log, true)
	}
	f.Fuzz(func(t *testing.T, log []byte, fit bool) {
		ev := good
		ev.EventLog = log
		if fit {
			l, err := eventlog.Parse(log, nil)
			if err != nil {
				return
			}
			values, err := l.Replay(crypto.SHA256)
			if err != nil {
				return
			}
			ev.PCRs = make(map[int][]byte)
			for pcr, v := range good.PCRs {
				ev.PCRs[pcr] = v
				if w, ok := values[pcr]; ok {
					ev.PCRs[pcr] = w
				}
			}
		}
		r := p.Appraise(ev, now)
		assert.Equal(t, r.Status == secureboot.Affirming, r.Err() == nil)
		if r.Status != secureboot.Affirming {
			return
		}
		require.True(t, r.Enforcing)
		for _, pcr := range []int{0, 2, 3, 4, 6, 9, 11} {
			require.Equal(t, good.PCRs[pcr], ev.PCRs[pcr], "affirmed with another PCR %d", pcr)
		}
	})
}

// FuzzSignatureDatabase: db and dbx of any content.
func FuzzSignatureDatabase(f *testing.F) {
	f.Add(list(76, 0, 48, make([]byte, 48)...))
	f.Add([]byte{})
	header, events := logtest.Split(boot(f, "uki-sb-on", crypto.SHA256).EventLog)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range []string{"db", "dbx"} {
			es := variableEvent(name, data)(append([]logtest.Event(nil), events...))
			l, err := eventlog.Parse(logtest.Join(header, es), nil)
			require.NoError(t, err)
			v, err := l.Verify(crypto.SHA256, logtest.Values(crypto.SHA256, es))
			require.NoError(t, err)
			s := secureboot.SecureBootState(v)
			for _, sig := range append(s.DB, s.DBX...) {
				_ = sig.ID()
			}
			s.Enforcing()
		}
	})
}

func FuzzParsePolicy(f *testing.F) {
	golden, err := os.ReadFile("testdata/policy-v1.json")
	require.NoError(f, err)
	f.Add(golden)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := secureboot.ParsePolicy(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(p)
		require.NoError(t, err)
		_, err = secureboot.ParsePolicy(again)
		require.NoError(t, err)
	})
}

func FuzzLoadPCRLock(f *testing.F) {
	f.Add([]byte(`{"records":[{"pcr":4,"digests":[{"hashAlg":"sha1","digest":"0123456789012345678901234567890123456789"}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = secureboot.LoadPCRLock(fstest.MapFS{"d/a.pcrlock": {Data: b}}, "d")
	})
}

// otherLogs are logs of other firmware, where the corpus is there.
func otherLogs(f *testing.F) (logs [][]byte) {
	files, _ := filepath.Glob(filepath.Join(os.Getenv("TRUSTTREE_CORPUS"), "secureboot", "thirdparty", "*", "*"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(f, err)
		logs = append(logs, b)
	}
	return logs
}

// FuzzVerifyPolicy: nothing but what the key signed is opened.
func FuzzVerifyPolicy(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	p := learn(f, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	signed, err := secureboot.SignPolicy(p, key)
	require.NoError(f, err)
	f.Add(signed)
	f.Add([]byte(`{"payloadType":"","payload":"","signatures":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := secureboot.VerifyPolicy(b, []crypto.PublicKey{key.Public()}, 0, now)
		if err != nil {
			return
		}
		want, err := json.Marshal(p)
		require.NoError(t, err)
		have, err := json.Marshal(got)
		require.NoError(t, err)
		require.JSONEq(t, string(want), string(have))
	})
}

// FuzzShim: what shim, or whoever runs later, says in PCR 7, and a policy's
// demand for an SBAT level.
func FuzzShim(f *testing.F) {
	f.Add("SbatLevel", []byte("sbat,1,2021030218\nshim,2\n"), "sbat,1,2021030218\nshim,2\n")
	f.Add("MokListRT", append(make([]byte, 16), 0x30, 0x82), "")
	f.Add("MokSBState", []byte{1}, "grub,3\n")
	f.Add("Shim", []byte{0x30, 1}, ",,\n")
	header, events := logtest.Split(boot(f, "uki-sb-on", crypto.SHA256).EventLog)
	p := learn(f, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	f.Fuzz(func(t *testing.T, name string, data []byte, min string) {
		if len(name) > 200 || len(data) > 1<<16 {
			return
		}
		es := append(append([]logtest.Event(nil), events...), shimVariable(name, data))
		ev := boot(t, "uki-sb-on", crypto.SHA256)
		ev.EventLog = logtest.Join(header, es)
		ev.PCRs[7] = logtest.Values(crypto.SHA256, es)[7]
		q, rules := *p, *p.SecureBoot
		rules.MinSBAT = min
		q.SecureBoot = &rules
		r := q.Appraise(ev, now)
		if r.Status == secureboot.Affirming {
			require.Equal(t, "SbatLevel", name, "what no policy names was affirmed")
			require.NotEmpty(t, min)
		}
	})
}
