package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
)

const recorded = "../../secureboot/testdata/vm/"

func bootcheck(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(args, &o, &e)
	return code, o.String(), e.String()
}

func files(name, bank string) []string {
	d := recorded + name + "/"
	return []string{"-bank", bank, "-log", d + "binary_bios_measurements", "-pcrs", d + "pcrs.txt", "-ima", d + "ima_binary_runtime_measurements"}
}

func quoteOf(name, bank string) []string {
	d := recorded + name + "/"
	return []string{"-ak", d + "ak_pub.tpm2b", "-quote", d + "quote_" + bank + ".tpms_attest", "-sig", d + "quote_" + bank + ".tpmt_signature", "-nonce", d + "nonce.bin"}
}

func learned(t *testing.T, bank string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "policy.json")
	code, _, stderr := bootcheck(t, append([]string{"learn", "-out", out, "-bank", bank}, args...)...)
	require.Zero(t, code, stderr)
	return out
}

func TestExitStatusAndJSON(t *testing.T) {
	for _, bank := range []string{"sha256", "sha384"} {
		policy := learned(t, bank, "-sha1-padded="+map[string]string{"sha256": "false", "sha384": "true"}[bank], recorded+"uki-sb-on")
		for _, c := range []struct {
			name   string
			args   []string
			code   int
			status string
			quote  string
		}{
			{"good", append(append(files("uki-sb-on", bank), quoteOf("uki-sb-on", bank)...), "-policy", policy), 0, "affirming", "verified"},
			{"good, no policy", append(files("uki-sb-on", bank), quoteOf("uki-sb-on", bank)...), 1, "warning", "verified"},
			{"good, no quote", append(files("uki-sb-on", bank), "-policy", policy), 1, "warning", "absent"},
			{"good, neither", files("uki-sb-on", bank), 1, "warning", "absent"},
			{"Secure Boot off", append(append(files("uki-sb-off", bank), quoteOf("uki-sb-off", bank)...), "-policy", policy), 2, "contraindicated", "verified"},
			{"another boot's quote", append(append(files("uki-sb-on", bank), quoteOf("uki-sb-off", bank)...), "-policy", policy), 2, "contraindicated", "broken"},
			{"another boot's log", append(append(files("uki-sb-off", bank)[:4], files("uki-sb-on", bank)[4:]...), quoteOf("uki-sb-on", bank)...), 2, "contraindicated", "verified"},
		} {
			code, out, stderr := bootcheck(t, append(c.args, "-json")...)
			require.Equal(t, c.code, code, "%s: %s%s", c.name, out, stderr)
			var r struct {
				Status, Quote string
				SecureBoot    struct {
					Enabled   *bool
					Mode      string
					Enforcing bool
				} `json:"secure_boot"`
				Findings []map[string]any
				PCRs     map[string]any
			}
			require.NoError(t, json.Unmarshal([]byte(out), &r), c.name)
			assert.Equal(t, c.status, r.Status, c.name)
			assert.Equal(t, c.quote, r.Quote, c.name)
			assert.NotEmpty(t, r.PCRs, c.name)
			if c.name == "good" {
				assert.True(t, *r.SecureBoot.Enabled)
				assert.Equal(t, "user", r.SecureBoot.Mode)
				assert.True(t, r.SecureBoot.Enforcing)
			}
			code, out, _ = bootcheck(t, c.args...)
			assert.Equal(t, c.code, code)
			assert.Contains(t, out, "verdict      "+c.status)
		}
	}
}

func TestUnusableInput(t *testing.T) {
	d := recorded + "uki-sb-on/"
	dir := t.TempDir()
	bad := func(name, s string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, []byte(s), 0o600))
		return p
	}
	good := files("uki-sb-on", "sha256")
	with := func(flag, value string) []string { // the good files, one of them replaced
		args := append([]string{}, good...)
		for i, a := range args {
			if a == flag {
				args[i+1] = value
				return args
			}
		}
		return append(args, flag, value)
	}
	huge := filepath.Join(dir, "huge")
	f, err := os.Create(huge)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(maxFile+1))
	require.NoError(t, f.Close())
	policy, err := os.ReadFile(learned(t, "sha256", recorded+"uki-sb-on"))
	require.NoError(t, err)
	cases := map[string][]string{}
	for _, flag := range []string{"-log", "-pcrs", "-ima", "-userspace", "-policy"} {
		cases[flag+" is a directory"] = with(flag, dir)
		cases[flag+" is absent"] = with(flag, dir+"/absent")
		cases[flag+" is too large"] = with(flag, huge)
	}
	for _, flag := range []string{"-ak", "-quote", "-sig", "-nonce"} {
		cases[flag+" is absent"] = append(append([]string{}, append(good, quoteOf("uki-sb-on", "sha256")...)...), flag, dir+"/absent")
		cases[flag+" is a directory"] = append(append([]string{}, append(good, quoteOf("uki-sb-on", "sha256")...)...), flag, dir)
		cases["without "+flag] = append(append([]string{}, append(good, quoteOf("uki-sb-on", "sha256")...)...), flag, "")
	}
	for name, args := range map[string][]string{
		"PCRs are empty":             with("-pcrs", bad("h", "")),
		"PCRs are cut off":           with("-pcrs", bad("i", "sha256 0 3d89")),
		"PCRs are one long line":     with("-pcrs", bad("j", strings.Repeat("sha256 ", 100_000))),
		"PCRs are binary":            with("-pcrs", d+"binary_bios_measurements"),
		"PCR 24":                     with("-pcrs", bad("k", "sha256 24 "+strings.Repeat("00", 32))),
		"PCR -1":                     with("-pcrs", bad("l", "sha256 -1 "+strings.Repeat("00", 32))),
		"policy is empty":            with("-policy", bad("m", "")),
		"policy is cut off":          with("-policy", bad("n", string(policy[:len(policy)/2]))),
		"policy, then more":          with("-policy", bad("o", string(policy)+"{}")),
		"policy is the log":          with("-policy", d+"binary_bios_measurements"),
		"policy with a new field":    with("-policy", bad("p", strings.Replace(string(policy), `"version"`, `"accept": true, "version"`, 1))),
		"policy is not signed":       append(with("-policy", bad("q", string(policy))), "-policy-key", bad("r", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n")),
		"a flag without its value":   append(append([]string{}, good...), "-policy"),
		"a number of another kind":   {"learn", "-days", "many", d},
		"learn for no day":           {"learn", "-days", "0", d},
		"learn of another bank":      {"learn", "-bank", "md5", d},
		"learn to a directory":       {"learn", "-out", dir, d},
		"learn with an unknown flag": {"learn", "-accept-all", d},
		"predict a directory":        {"predict", "-uki", dir},
		"predict the log":            {"predict", "-uki", d + "binary_bios_measurements"},
		"predict an unknown flag":    {"predict", "-frobnicate"},
		"predict of another bank":    {"predict", "-uki", d + "binary_bios_measurements", "-bank", "crc32"},
		"an unknown command":         {"frobnicate"},
		"nothing":                    {},
		"no PCRs":                    {"-log", d + "binary_bios_measurements"},
		"no such file":               {"-log", dir + "/absent", "-pcrs", d + "pcrs.txt"},
		"unknown bank":               files("uki-sb-on", "md5"),
		"unknown flag":               {"-frobnicate"},
		"stray argument":             append(files("uki-sb-on", "sha256"), "x"),
		"half a quote":               append(files("uki-sb-on", "sha256"), "-ak", d+"ak_pub.tpm2b"),
		"PCRs are no PCRs":           {"-log", d + "binary_bios_measurements", "-pcrs", bad("a", "sha256 0 zz\n")},
		"PCR twice":                  {"-log", d + "binary_bios_measurements", "-pcrs", bad("b", "sha1 0 0000000000000000000000000000000000000000\nsha1 0 0000000000000000000000000000000000000000\n"), "-bank", "sha1"},
		"PCRs of another bank":       files("uki-sb-on", "sha512"),
		"policy is none":             append(files("uki-sb-on", "sha256"), "-policy", bad("c", "{}")),
		"policy key is none":         append(files("uki-sb-on", "sha256"), "-policy", bad("d", "{}"), "-policy-key", bad("e", "x")),
		"learn nothing":              {"learn"},
		"learn of a bad boot":        {"learn", recorded + "uki-sb-off"},
		"learn of no directory":      {"learn", dir},
		"predict nothing":            {"predict"},
		"predict no image":           {"predict", "-uki", bad("f", "MZ")},
	} {
		cases[name] = args
	}
	for name, args := range cases {
		code, out, stderr := bootcheck(t, args...)
		assert.Equal(t, exitUnusable, code, name)
		assert.Empty(t, out, name)
		assert.Contains(t, stderr, "bootcheck: ", name)
	}
	code, out, _ := bootcheck(t, "-log", bad("g", ""), "-pcrs", d+"pcrs.txt")
	assert.Equal(t, exitContraindicated, code, "a log of zero bytes is broken evidence")
	assert.Contains(t, out, string(secureboot.CodeEvidenceMalformed))
}
