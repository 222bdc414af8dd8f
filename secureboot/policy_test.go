package secureboot_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
)

var update = flag.Bool("update", false, "write golden files")

func TestZeroPolicyDenies(t *testing.T) {
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	for name, p := range map[string]*secureboot.Policy{
		"nil": nil, "zero": {}, "no end": {Bank: crypto.SHA256, Require: []int{0}},
		"no bank":            {NotAfter: nextYear, Require: []int{0}},
		"no reference":       {NotAfter: nextYear, Bank: crypto.SHA256, Require: []int{0}, Ignore: []int{1, 2, 3, 4, 5, 6, 7, 9, 10, 11}},
		"requires nothing":   {NotAfter: nextYear, Bank: crypto.SHA256, Ignore: []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11}},
		"resettable":         {NotAfter: nextYear, Bank: crypto.SHA256, Require: []int{16}},
		"SHA-1":              {NotAfter: nextYear, Bank: crypto.SHA1, Require: []int{0}},
		"required, replayed": {NotAfter: nextYear, Bank: crypto.SHA256, Require: []int{0}, Replay: []int{0}},
	} {
		r := p.Appraise(ev, now)
		assert.Equal(t, secureboot.Contraindicated, r.Status, name)
		assert.ErrorIs(t, r.Err(), secureboot.ErrNotAffirming, name)
	}
	var r secureboot.Result
	require.Error(t, r.Err())
}

func TestPolicyThatEndedDenies(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	assert.Contains(t, codes(p.Appraise(ev, nextYear.Add(time.Second))), secureboot.CodePolicyExpired)
	assert.Contains(t, codes(p.Appraise(ev, time.Time{})), secureboot.CodePolicyExpired)
}

func TestPCRThatThePolicyNeedsMustBeQuoted(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	for pcr := range 12 {
		ev := boot(t, "uki-sb-on", crypto.SHA256)
		delete(ev.PCRs, pcr)
		r := p.Appraise(ev, now)
		if pcr == 8 { // never extended in this boot, but IMA's boot_aggregate needs it
			assert.Equal(t, secureboot.Warning, r.Status)
			continue
		}
		assert.Equal(t, secureboot.Contraindicated, r.Status, "PCR %d", pcr)
		assert.Contains(t, codes(r), secureboot.CodePCRNotQuoted)
	}
}

func TestQuotedPCRThatNoListNames(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	p.Replay = nil
	assert.Contains(t, codes(p.Appraise(boot(t, "uki-sb-on", crypto.SHA256), now)), secureboot.CodePCRUnlisted)
}

func TestOtherBankThanThePolicysIsRefused(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	assert.Equal(t, []secureboot.Code{secureboot.CodeEvidenceBank}, codes(p.Appraise(boot(t, "uki-sb-on", crypto.SHA384), now)))
	_, err := secureboot.Learn(secureboot.LearnOptions{NotAfter: nextYear}, boot(t, "uki-sb-on", crypto.SHA1))
	require.ErrorContains(t, err, "SHA-1")
}

func TestLearnRefusesABootThatIsNotGood(t *testing.T) {
	for _, name := range []string{"uki-sb-off", "uki-sb-setup", "direct-sb-on-unsigned", "uki-ima-violation"} {
		_, err := secureboot.Learn(secureboot.LearnOptions{NotAfter: nextYear}, boot(t, name, crypto.SHA256))
		assert.Error(t, err, name)
	}
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	ev.PCRs[4] = make([]byte, 32)
	_, err := secureboot.Learn(secureboot.LearnOptions{NotAfter: nextYear}, ev)
	assert.ErrorContains(t, err, "PCR 4")
}

func TestTwoGoodBootsBecomeVariants(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{MaxFailedBoots: 1}, "uki-sb-on", "shim-sb-on")
	for _, name := range []string{"uki-sb-on", "shim-sb-on", "uki-first-refused"} {
		r := p.Appraise(boot(t, name, crypto.SHA256), now)
		assert.Equal(t, secureboot.Affirming, r.Status, "%s: %v", name, r.Findings)
	}
	assert.Equal(t, secureboot.Contraindicated, p.Appraise(boot(t, "shim-mok-kernel", crypto.SHA256), now).Status)
}

func TestPolicyJSONGolden(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	b, err := json.MarshalIndent(p, "", " ")
	require.NoError(t, err)
	const golden = "testdata/policy-v1.json"
	if *update {
		require.NoError(t, os.WriteFile(golden, append(b, '\n'), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(b)+"\n")
	q, err := secureboot.ParsePolicy(want)
	require.NoError(t, err)
	assert.Equal(t, p.Components, q.Components)
	assert.Equal(t, secureboot.Affirming, q.Appraise(boot(t, "uki-sb-on", crypto.SHA256), now).Status)
}

func TestPolicyJSONIsStrict(t *testing.T) {
	good, err := os.ReadFile("testdata/policy-v1.json")
	require.NoError(t, err)
	replace := func(old, new string) []byte {
		require.Contains(t, string(good), old)
		return bytes.Replace(good, []byte(old), []byte(new), 1)
	}
	for name, b := range map[string][]byte{
		"empty":                      nil,
		"truncated":                  good[:len(good)-3],
		"bytes after it":             append(bytes.Clone(good), "{}"...),
		"unknown field":              replace(`"name"`, `"accept-all": true, "name"`),
		"unknown field in rules":     replace(`"enforcing"`, `"enforce": true, "enforcing"`),
		"repeated field":             replace(`"enforcing"`, `"enforcing": false, "enforcing"`),
		"repeated in another case":   replace(`"enforcing"`, `"Enforcing": false, "enforcing"`),
		"version 0":                  replace(`"version": 1`, `"version": 0`),
		"version 2":                  replace(`"version": 1`, `"version": 2`),
		"no end":                     replace(`"notAfter": "`+nextYear.Format(time.RFC3339)+`",`, ""),
		"requires nothing":           []byte(`{"version":1,"name":"n","serial":1,"notAfter":"2030-01-01T00:00:00Z","bank":"sha256","require":[],"components":[]}`),
		"bank sha1":                  replace(`"bank": "sha256"`, `"bank": "sha1"`),
		"unknown bank":               replace(`"bank": "sha256"`, `"bank": "md5"`),
		"digest of another size":     replace(`"hashAlg": "sha256"`, `"hashAlg": "sha384"`),
		"PCR out of range":           replace(`"require": [`, `"require": [24,`),
		"PCR twice":                  replace(`"require": [`, `"require": [1,`),
		"level that can't be read":   replace(`"enforcing"`, `"minSBAT": "grub", "enforcing"`),
		"negative attempts":          replace(`"name"`, `"maxFailedAttempts": -1, "name"`),
		"nested too deep":            []byte(fmt.Sprintf("%s%s", bytes.Repeat([]byte("["), 100), bytes.Repeat([]byte("]"), 100))),
		"larger than the size limit": append(bytes.Clone(good), bytes.Repeat([]byte(" "), 8<<20)...),
	} {
		_, err := secureboot.ParsePolicy(b)
		assert.Error(t, err, name)
	}
}

func TestSignedPolicy(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	edPub, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	signed, err := secureboot.SignPolicy(p, ed, ec)
	require.NoError(t, err)

	for name, key := range map[string]crypto.PublicKey{"Ed25519": edPub, "P-384": ec.Public()} {
		q, err := secureboot.VerifyPolicy(signed, []crypto.PublicKey{other.Public(), key}, 7, now)
		require.NoError(t, err, name)
		assert.Equal(t, secureboot.Affirming, q.Appraise(boot(t, "uki-sb-on", crypto.SHA256), now).Status)
	}
	_, err = secureboot.VerifyPolicy(signed, nil, 0, now)
	assert.ErrorIs(t, err, secureboot.ErrPolicySignature, "no trusted key")
	_, err = secureboot.VerifyPolicy(signed, []crypto.PublicKey{other.Public()}, 0, now)
	assert.ErrorIs(t, err, secureboot.ErrPolicySignature, "another key")
	_, err = secureboot.VerifyPolicy(signed, []crypto.PublicKey{edPub}, 8, now)
	assert.ErrorIs(t, err, secureboot.ErrPolicyRollback)
	_, err = secureboot.VerifyPolicy(signed, []crypto.PublicKey{edPub}, 0, nextYear.Add(1))
	assert.ErrorIs(t, err, secureboot.ErrPolicyExpired)
	_, err = secureboot.VerifyPolicy(signed, []crypto.PublicKey{edPub}, 0, time.Time{})
	assert.ErrorIs(t, err, secureboot.ErrPolicyExpired, "no clock")

	var env map[string]any
	require.NoError(t, json.Unmarshal(signed, &env))
	env["payloadType"] = "application/octet-stream"
	b, err := json.Marshal(env)
	require.NoError(t, err)
	_, err = secureboot.VerifyPolicy(b, []crypto.PublicKey{edPub}, 0, now)
	assert.Error(t, err, "another type")
	i := bytes.Index(signed, []byte(`"payload":"`)) + 300
	tampered := bytes.Clone(signed)
	tampered[i] ^= 1
	_, err = secureboot.VerifyPolicy(tampered, []crypto.PublicKey{edPub}, 0, now)
	assert.Error(t, err, "changed payload")
}

// celRecord is a CEL record as a node's runtime writes one for a module.
func celRecord(n int, content string) (line string, digest [32]byte) {
	digest = sha256.Sum256([]byte(content))
	return fmt.Sprintf(`{"recnum":%d,"pcr":13,"digests":[{"hashAlg":"sha256","digest":"%x"}],"content_type":"module","content":{"text":%q}}`, n, digest, content), digest
}

func TestModuleInventoryIsReplayedFromUserSpaceLog(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	a, da := celRecord(0, "camera admitted")
	b, db := celRecord(1, "radio admitted")
	value := sha256.Sum256(append(make([]byte, 32), da[:]...))
	value = sha256.Sum256(append(value[:], db[:]...))
	ev.PCRs[13] = value[:]

	assert.Contains(t, codes(p.Appraise(ev, now)), secureboot.CodePCRUnexplained, "no log")
	for name, log := range map[string]string{"array": "[" + a + "," + b + "]", "lines": a + "\n" + b + "\n", "RFC 7464": "\x1e" + a + "\n\x1e" + b + "\n"} {
		ev.UserspaceLog = []byte(log)
		r := p.Appraise(ev, now)
		assert.Equal(t, secureboot.Affirming, r.Status, "%s: %v", name, r.Findings)
		assert.Equal(t, 2, r.PCRs[13].Events)
	}
	ev.UserspaceLog = []byte(a)
	assert.Contains(t, codes(p.Appraise(ev, now)), secureboot.CodePCRMismatch, "an event is missing")
	ev.UserspaceLog = []byte(b + a)
	assert.Contains(t, codes(p.Appraise(ev, now)), secureboot.CodeEvidenceMalformed, "records out of order")
	ev.UserspaceLog = bytes.Replace([]byte(a+b), []byte(`"pcr":13`), []byte(`"pcr":4`), 1)
	assert.Contains(t, codes(p.Appraise(ev, now)), secureboot.CodeEvidenceMalformed, "a firmware PCR")
}

// TestFileNamesAreBytesInPolicies: Linux' own modules xt_DSCP.ko and
// xt_dscp.ko must both find room in an allow-list, as must names of any bytes.
func TestFileNamesAreBytesInPolicies(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	names := []string{"/lib/xt_DSCP.ko", "/lib/xt_dscp.ko", "/tmp/\xff\xfe", "/tmp/\xef\xbf\xbd", "hex:00", "hex:nothex", "files", "/with\nnewline"}
	for i, name := range names {
		p.IMA.Files[name] = []string{fmt.Sprintf("sha256:%064x", i)}
	}
	b, err := json.Marshal(p)
	require.NoError(t, err)
	q, err := secureboot.ParsePolicy(b)
	require.NoError(t, err)
	assert.Equal(t, p.IMA.Files, q.IMA.Files)
	for name, s := range map[string]string{
		"same name twice":      `{"files":{"/a":[],"/a":[]}}`,
		"not hexadecimal":      `{"files":{"hex:zz":[]}}`,
		"long s for an s":      "{\"files\":{},\"file\u017f\":{\"/evil\":[]}}",
		"unknown field":        `{"files":{},"any":true}`,
		"files in two cases":   `{"files":{},"Files":{}}`,
		"keys in two cases":    `{"keys":[],"KEYS":[]}`,
		"Kelvin sign for a k":  "{\"keys\":[],\"\u212aeys\":[]}",
		"bytes after the JSON": `{"files":{}}{}`,
	} {
		assert.Error(t, json.Unmarshal([]byte(s), &secureboot.IMAPolicy{}), name)
	}
}
