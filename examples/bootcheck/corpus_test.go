package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// verdict is the whole of the command's JSON: any other field is an error.
type verdict struct {
	Status     string `json:"status"`
	Quote      string `json:"quote"`
	SecureBoot struct {
		Enabled   *bool  `json:"enabled"`
		Mode      string `json:"mode"`
		Enforcing bool   `json:"enforcing"`
	} `json:"secure_boot"`
	Findings []struct {
		Code   string `json:"code"`
		PCR    int    `json:"pcr"`
		Event  int    `json:"event"`
		Detail string `json:"detail"`
	} `json:"findings"`
	PCRs map[string]struct {
		Status string `json:"status"`
		Events int    `json:"events"`
		Detail string `json:"detail"`
		Value  string `json:"value"`
	} `json:"pcrs"`
}

func decode(t *testing.T, out string) (v verdict) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&v), "%s", out)
	assert.False(t, dec.More(), "one JSON value")
	var fields map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(out), &fields))
	for _, name := range []string{"status", "quote", "secure_boot", "findings", "pcrs"} {
		assert.Contains(t, fields, name)
		assert.NotEqual(t, "null", string(fields[name]), name)
	}
	return v
}

// wanted are the exit statuses that a case's class demands under its family's
// reference policy: learned with no option, with -pin-keys, and with
// -max-failed-attempts 1.
var wanted = map[string][3]int{
	"reference":                {0, 0, 0},
	"good":                     {0, 0, 0},
	"good-updated":             {0, 2, 0}, // dbx grew
	"good-with-failed-attempt": {2, 2, 0},
	"bad":                      {2, 2, 2},
	"bad-runtime":              {2, 2, 2},
}

// TestEveryCorpusCaseGetsTheVerdictOfItsClass runs the command over every boot
// that is recorded: learn from the family's reference, then check.
func TestEveryCorpusCaseGetsTheVerdictOfItsClass(t *testing.T) {
	dir := testenv.Corpus(t, "secureboot", "vm")
	raw, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	require.NoError(t, err)
	var m struct {
		Cases []struct {
			Case, Class, Note string
			Banks             []string
		}
	}
	require.NoError(t, json.Unmarshal(raw, &m))
	require.NotEmpty(t, m.Cases)
	policies := map[string]string{}
	policy := func(family, bank string, args ...string) string {
		key := strings.Join(append(args, family, bank), " ")
		if policies[key] == "" {
			policies[key] = learned(t, bank, append(append(args, "-sha1-padded"), filepath.Join(dir, family))...)
		}
		return policies[key]
	}
	for _, c := range m.Cases {
		want, ok := wanted[c.Class]
		require.True(t, ok, "%s is of class %q, which this test does not know", c.Case, c.Class)
		family := "uki-sb-on"
		if strings.HasPrefix(c.Case, "shim-") {
			family = "shim-sb-on"
		}
		for _, bank := range c.Banks {
			t.Run(c.Case+" "+bank, func(t *testing.T) {
				d := filepath.Join(dir, c.Case)
				args := []string{"-json", "-bank", bank, "-log", d + "/binary_bios_measurements", "-pcrs", d + "/pcrs.txt", "-ima", d + "/ima_binary_runtime_measurements",
					"-ak", d + "/ak_pub.tpm2b", "-quote", d + "/quote_" + bank + ".tpms_attest", "-sig", d + "/quote_" + bank + ".tpmt_signature", "-nonce", d + "/nonce.bin"}
				code, out, stderr := bootcheck(t, args...)
				v := decode(t, out)
				assert.Equal(t, "verified", v.Quote, stderr)
				if want[0] == 0 || c.Class == "good-with-failed-attempt" {
					assert.Equal(t, exitWarning, code, "without a policy")
				}
				assert.NotEqual(t, exitAffirming, code, "without a policy")
				if bank == "sha1" {
					code, _, stderr = bootcheck(t, "learn", "-bank", bank, filepath.Join(dir, family))
					assert.Equal(t, exitUnusable, code)
					assert.Contains(t, stderr, "SHA-1")
					return
				}
				for i, opts := range [][]string{nil, {"-pin-keys"}, {"-max-failed-attempts", "1"}} {
					code, out, stderr = bootcheck(t, append(args, "-policy", policy(family, bank, opts...))...)
					assert.Equal(t, want[i], code, "%v: %s %s%s", opts, c.Note, out, stderr)
					v = decode(t, out)
					assert.Equal(t, map[int]string{0: "affirming", 2: "contraindicated"}[want[i]], v.Status)
					assert.Equal(t, want[i] == 0 || len(v.Findings) > 0, true)
					if want[i] == 0 {
						assert.True(t, v.SecureBoot.Enforcing)
						assert.True(t, *v.SecureBoot.Enabled)
					}
				}
			})
		}
	}
}

// TestEveryChangedByteOfAQuote: every single-byte change and truncation of
// quote, signature, key and nonce of every recorded boot is refused, or the
// quote vouches for the very same values.
func TestEveryChangedByteOfAQuote(t *testing.T) {
	dirs, err := filepath.Glob(recorded + "*")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	step, masks := 5, []byte{0x10}
	if testenv.Long() {
		step, masks = 1, []byte{0x01, 0x04, 0x20, 0x80, 0xFF}
	}
	for _, dir := range dirs {
		for _, bank := range []string{"sha256", "sha384"} {
			if _, err := os.Stat(filepath.Join(dir, "quote_"+bank+".tpms_attest")); err != nil {
				continue
			}
			t.Run(filepath.Base(dir)+" "+bank, func(t *testing.T) {
				ev, q, err := directory(dir, bank).load(eventlog.HashByName(bank))
				require.NoError(t, err)
				require.Equal(t, quoteVerified, q.state)
				var parts [4][]byte
				for i, n := range []string{"ak_pub.tpm2b", "quote_" + bank + ".tpms_attest", "quote_" + bank + ".tpmt_signature", "nonce.bin"} {
					parts[i], err = os.ReadFile(filepath.Join(dir, n))
					require.NoError(t, err)
				}
				refused := func(i, j int, what string, part []byte) {
					p := parts
					p[i] = part
					values, err := verifyQuote(p[0], p[1], p[2], p[3], ev.Bank, ev.PCRs)
					if err == nil {
						require.Zero(t, i, "part %d, byte %d %s is accepted", i, j, what)
						require.Equal(t, ev.PCRs, values)
					}
				}
				for i := range parts {
					for j := i; j < len(parts[i]); j += step {
						for _, mask := range masks {
							b := bytes.Clone(parts[i])
							b[j] ^= mask
							refused(i, j, "changed", b)
						}
						p := parts
						p[i] = parts[i][:j]
						_, err := verifyQuote(p[0], p[1], p[2], p[3], ev.Bank, ev.PCRs)
						require.Error(t, err, "part %d, cut after %d bytes", i, j)
					}
				}
				for pcr, v := range ev.PCRs {
					values := map[int][]byte{}
					for k, b := range ev.PCRs {
						values[k] = b
					}
					values[pcr] = bytes.Clone(v)
					values[pcr][len(v)-1] ^= 1
					_, err := verifyQuote(parts[0], parts[1], parts[2], parts[3], ev.Bank, values)
					require.Error(t, err, "PCR %d", pcr)
				}
			})
		}
	}
}

// TestChangedFilesThroughTheCommand changes each of a boot's files in the
// middle, and cuts it: the verdict is contraindicated, and nothing is claimed.
func TestChangedFilesThroughTheCommand(t *testing.T) {
	policy := learned(t, "sha256", recorded+"uki-sb-on")
	good := append(files("uki-sb-on", "sha256"), quoteOf("uki-sb-on", "sha256")...)
	for i := 2; i < len(good); i += 2 {
		raw, err := os.ReadFile(good[i+1])
		require.NoError(t, err)
		changed := bytes.Clone(raw)
		at := len(raw) / 2
		changed[at] ^= 0x08
		for what, b := range map[string][]byte{"changed": changed, "cut": raw[:at], "empty": {}, "longer": append(bytes.Clone(raw), 1, 2, 3)} {
			name := filepath.Join(t.TempDir(), "file")
			require.NoError(t, os.WriteFile(name, b, 0o600))
			args := slices.Clone(good)
			args[i+1] = name
			code, out, stderr := bootcheck(t, append(args, "-json", "-policy", policy)...)
			if good[i] == "-pcrs" && code == exitUnusable {
				assert.Empty(t, out)
				assert.NotEmpty(t, stderr)
				continue
			}
			assert.Equal(t, exitContraindicated, code, "%s %s: %s", good[i], what, out)
			v := decode(t, out)
			assert.Equal(t, "contraindicated", v.Status)
			for _, s := range v.PCRs {
				if v.Quote == "broken" {
					assert.NotEqual(t, "affirming", s.Status, "%s %s", good[i], what)
				}
			}
			if v.Quote == "broken" {
				assert.False(t, v.SecureBoot.Enforcing)
				assert.Nil(t, v.SecureBoot.Enabled)
			}
		}
	}
}

// TestBoardWithoutSecureBoot learns from and checks a boot by U-Boot, where it
// must be said that there is no Secure Boot.
func TestBoardWithoutSecureBoot(t *testing.T) {
	const d = "../../secureboot/testdata/uboot/qemu-arm64"
	code, _, stderr := bootcheck(t, "learn", d)
	assert.Equal(t, exitUnusable, code)
	assert.Contains(t, stderr, "Secure Boot")
	policy := learned(t, "sha256", "-insecure-no-secure-boot", d)
	args := []string{"-json", "-log", d + "/binary_bios_measurements", "-pcrs", d + "/pcrs.txt", "-ak", d + "/ak_pub.tpm2b", "-quote", d + "/quote_sha256.tpms_attest",
		"-sig", d + "/quote_sha256.tpmt_signature", "-nonce", d + "/nonce.bin", "-policy", policy}
	code, out, stderr := bootcheck(t, args...)
	assert.Equal(t, exitAffirming, code, stderr)
	v := decode(t, out)
	assert.Equal(t, "setup", v.SecureBoot.Mode)
	assert.False(t, *v.SecureBoot.Enabled)
	assert.False(t, v.SecureBoot.Enforcing)
	code, _, _ = bootcheck(t, append(append(files("uki-sb-off", "sha256"), quoteOf("uki-sb-off", "sha256")...), "-policy", policy)...)
	assert.Equal(t, exitContraindicated, code)
}
