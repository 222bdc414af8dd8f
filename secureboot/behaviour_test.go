package secureboot_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
	"github.com/trusttree/trusttree/secureboot/internal/logtest"
)

// Behaviour 10: a resettable PCR must be listed to be ignored, and a PCR with a
// value but no event is unexplained.
func TestPCRWithoutEventsIsUnexplained(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	for _, pcr := range []int{8, 12, 13, 14, 17, 23} {
		ev := boot(t, "uki-sb-on", crypto.SHA256)
		ev.PCRs[pcr] = bytes.Repeat([]byte{5}, 32)
		r := p.Appraise(ev, now)
		if pcr == 23 {
			assert.Equal(t, secureboot.Affirming, r.Status, "listed in Ignore")
			continue
		}
		assert.Equal(t, secureboot.Contraindicated, r.Status, "PCR %d", pcr)
		assert.Contains(t, codes(r), secureboot.CodePCRUnexplained)
	}
	p.Ignore = []int{15}
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	ev.PCRs[23] = bytes.Repeat([]byte{5}, 32)
	assert.Contains(t, codes(p.Appraise(ev, now)), secureboot.CodePCRUnexplained)
}

// Behaviour 17: dbx may name a certificate by the hash of its to-be-signed
// part.
func TestRevocationByToBeSignedHash(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "db"}, NotBefore: now, NotAfter: now.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	tbs := sha256.Sum256(cert.RawTBSCertificate)

	db := list(uint32(28+16+len(der)), 0, uint32(16+len(der)), append(make([]byte, 16), der...)...)
	dbx := list(28+64, 0, 64, append(append(make([]byte, 16), tbs[:]...), make([]byte, 16)...)...)
	copy(dbx, []byte{0x92, 0xa4, 0xd2, 0x3b, 0xc0, 0x96, 0x79, 0x40, 0xb4, 0x20, 0xfc, 0xf9, 0x8e, 0xf1, 0x03, 0xed})
	build := func(dbx []byte) *secureboot.State {
		r := secureboot.Inspect(forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
			events = variableEvent("dbx", dbx)(variableEvent("db", db)(events))
			i := find(events, 7, eventlog.EvEFIVariableAuthority)
			head := bytes.Clone(events[i].Data[:32+4])
			binary.LittleEndian.PutUint64(head[24:], uint64(16+len(der)))
			events[i] = logtest.Measured(7, events[i].Type, append(append(head, make([]byte, 16)...), der...), banks...)
			return events
		}, true))
		return r.SecureBoot
	}
	on, why := build(nil).Enforcing()
	require.True(t, on, "%v", why)
	on, why = build(dbx).Enforcing()
	require.False(t, on)
	assert.Equal(t, secureboot.CodeSBRevoked, why[0].Code)
}

// Behaviour 17: firmware with SHA-384 or SHA-512 entries in dbx revokes by them.
func TestRevocationByLongerHashes(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "db"}, NotBefore: now, NotAfter: now.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	db := list(uint32(28+16+len(der)), 0, uint32(16+len(der)), append(make([]byte, 16), der...)...)
	entry := func(typ string, more int, sum []byte) []byte {
		size := uint32(16 + len(sum) + more)
		l := list(28+size, 0, size, append(append(make([]byte, 16), sum...), make([]byte, more)...)...)
		raw, err := hex.DecodeString(typ)
		require.NoError(t, err)
		copy(l, raw)
		return l
	}
	state := func(bank crypto.Hash, dbx func(image []byte) []byte) *secureboot.State {
		ev := forge(t, "uki-sb-on", func(events []logtest.Event) []logtest.Event {
			i := find(events, 4, eventlog.EvEFIBootServicesApp)
			var image []byte
			for _, d := range events[i].Digests {
				if d.Hash == bank {
					image = d.Value
				}
			}
			events = variableEvent("dbx", dbx(image))(variableEvent("db", db)(events))
			i = find(events, 7, eventlog.EvEFIVariableAuthority)
			head := bytes.Clone(events[i].Data[:32+4])
			binary.LittleEndian.PutUint64(head[24:], uint64(16+len(der)))
			events[i] = logtest.Measured(7, events[i].Type, append(append(head, make([]byte, 16)...), der...), banks...)
			return events
		}, true)
		if bank != ev.Bank {
			_, events := logtest.Split(ev.EventLog)
			ev.Bank, ev.PCRs = bank, logtest.Values(bank, events)
		}
		s := secureboot.Inspect(ev).SecureBoot
		require.NotNil(t, s)
		return s
	}
	revoked := func(s *secureboot.State) bool {
		_, why := s.Enforcing()
		return slices.ContainsFunc(why, func(f secureboot.Finding) bool { return f.Code == secureboot.CodeSBRevoked })
	}
	sum384, sum512 := sha512.Sum384(cert.RawTBSCertificate), sha512.Sum512(cert.RawTBSCertificate)
	require.False(t, revoked(state(crypto.SHA384, func([]byte) []byte { return nil })))
	assert.True(t, revoked(state(crypto.SHA256, func([]byte) []byte { return entry("6e877670c280e64eaad228b349a6865b", 16, sum384[:]) })))
	assert.True(t, revoked(state(crypto.SHA256, func([]byte) []byte { return entry("63bf6d440225da4cbcfa2465d2b0fe9d", 16, sum512[:]) })))
	assert.True(t, revoked(state(crypto.SHA384, func(image []byte) []byte { return entry("07533effd09fc94885f18ad56c701e01", 0, image) })))
}

// Behaviour 19: attempts that were left out are said; "Booting to …" is no
// image.
func TestBootAttemptStrings(t *testing.T) {
	with := func(s string) func([]logtest.Event) []logtest.Event {
		return func(events []logtest.Event) []logtest.Event {
			return append(events, logtest.Measured(4, eventlog.EvEFIAction, []byte(s), banks...))
		}
	}
	r := secureboot.Inspect(forge(t, "uki-sb-on", with("BOOT ATTEMPTS OMITTED"), true))
	assert.True(t, r.SecureBoot.AttemptsOmitted)
	assert.Contains(t, codes(r), secureboot.CodeBootOmitted)
	r = secureboot.Inspect(forge(t, "uki-sb-on", with("Booting to Linux Option"), true))
	assert.Len(t, r.SecureBoot.Images, 1)
	judge(t, forge(t, "uki-sb-on", with("Booting to Linux Option"), true)) // and it is no reference value
	r = secureboot.Inspect(boot(t, "uki-first-refused", crypto.SHA256))
	assert.Equal(t, 1, r.SecureBoot.FailedAttempts)
}

// Behaviour 26: every reason is listed, each with PCR, event and digests.
func TestEveryReasonIsListed(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	r := p.Appraise(boot(t, "uki-sb-setup", crypto.SHA256), now)
	perPCR := map[int]int{}
	for _, f := range r.Findings {
		perPCR[f.PCR]++
		if f.Code == secureboot.CodePCRReference {
			assert.Len(t, f.Got, 32)
			assert.GreaterOrEqual(t, f.Event, 0)
		}
		assert.NotEmpty(t, f.Code)
		assert.NotEmpty(t, f.Detail)
	}
	assert.Positive(t, perPCR[4])
	assert.Greater(t, perPCR[7], 2)
}

// TestSecureBootOfOtherFirmware reads the state out of logs of real machines.
func TestSecureBootOfOtherFirmware(t *testing.T) {
	dir := testenv.Corpus(t, "secureboot")
	raw, err := os.ReadFile(dir + "/thirdparty/manifest.json")
	require.NoError(t, err)
	var all map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(raw, &all))
	type entry struct {
		File   string
		Replay struct {
			Error    string
			Variable *string  `json:"secure_boot_variable"`
			Config   []string `json:"pcr7_driver_config"`
		}
	}
	var cases []entry
	for _, v := range all {
		if json.Unmarshal(v, &cases) == nil && len(cases) > 0 {
			break
		}
	}
	require.NotEmpty(t, cases)
	for _, c := range cases {
		if c.Replay.Error != "" || c.Replay.Variable == nil || strings.HasSuffix(c.File, "event-uefivar.bin") {
			continue
		}
		log, err := os.ReadFile(dir + "/" + c.File)
		require.NoError(t, err)
		l, err := eventlog.Parse(log, nil)
		require.NoError(t, err)
		bank := l.Banks()[len(l.Banks())-1]
		values, err := l.Replay(bank)
		require.NoError(t, err)
		v, err := l.Verify(bank, values)
		require.NoError(t, err, c.File)
		s := secureboot.SecureBootState(v)
		want := map[string]secureboot.Tristate{"01": secureboot.Yes, "00": secureboot.No}[*c.Replay.Variable]
		assert.Equal(t, want, s.Enabled, c.File)
		assert.Equal(t, secureboot.ModeUser, s.Mode, c.File)
		assert.NotEmpty(t, s.PK, c.File)
		on, why := s.Enforcing()
		t.Logf("%s: enabled %v, enforcing %v %v", c.File, s.Enabled, on, why)
		if want != secureboot.Yes {
			assert.False(t, on, c.File)
		}
	}
}
