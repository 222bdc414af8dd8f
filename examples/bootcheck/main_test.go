package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
	"github.com/trusttree/trusttree/secureboot/eventlog"
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

// TestAnyChangedByteOfAQuoteIsRefused flips each byte of quote, signature,
// key and nonce.
func TestAnyChangedByteOfAQuoteIsRefused(t *testing.T) {
	ev, q, err := directory(recorded+"uki-sb-on", "sha256").load(eventlog.HashByName("sha256"))
	require.NoError(t, err)
	require.Equal(t, quoteVerified, q.state)
	var parts [4][]byte
	for i, n := range []string{"ak_pub.tpm2b", "quote_sha256.tpms_attest", "quote_sha256.tpmt_signature", "nonce.bin"} {
		parts[i], err = os.ReadFile(recorded + "uki-sb-on/" + n)
		require.NoError(t, err)
	}
	for i := range parts {
		for j := range parts[i] {
			p := parts
			p[i] = bytes.Clone(parts[i])
			p[i][j] ^= 1
			_, err := verifyQuote(p[0], p[1], p[2], p[3], ev.Bank, ev.PCRs)
			assert.Error(t, err, "part %d, byte %d", i, j)
		}
		p := parts
		p[i] = parts[i][:len(parts[i])-1]
		_, err := verifyQuote(p[0], p[1], p[2], p[3], ev.Bank, ev.PCRs)
		assert.Error(t, err, "part %d, truncated", i)
	}
	for pcr := range ev.PCRs {
		v := map[int][]byte{}
		for k, b := range ev.PCRs {
			v[k] = b
		}
		v[pcr] = bytes.Repeat([]byte{1}, 32)
		_, err := verifyQuote(parts[0], parts[1], parts[2], parts[3], ev.Bank, v)
		assert.Error(t, err, "PCR %d", pcr)
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
	for name, args := range map[string][]string{
		"nothing":               {},
		"no PCRs":               {"-log", d + "binary_bios_measurements"},
		"no such file":          {"-log", dir + "/absent", "-pcrs", d + "pcrs.txt"},
		"unknown bank":          files("uki-sb-on", "md5"),
		"unknown flag":          {"-frobnicate"},
		"stray argument":        append(files("uki-sb-on", "sha256"), "x"),
		"half a quote":          append(files("uki-sb-on", "sha256"), "-ak", d+"ak_pub.tpm2b"),
		"PCRs are no PCRs":      {"-log", d + "binary_bios_measurements", "-pcrs", bad("a", "sha256 0 zz\n")},
		"PCR twice":             {"-log", d + "binary_bios_measurements", "-pcrs", bad("b", "sha1 0 0000000000000000000000000000000000000000\nsha1 0 0000000000000000000000000000000000000000\n"), "-bank", "sha1"},
		"PCRs of another bank":  files("uki-sb-on", "sha512"),
		"policy is none":        append(files("uki-sb-on", "sha256"), "-policy", bad("c", "{}")),
		"policy key is none":    append(files("uki-sb-on", "sha256"), "-policy", bad("d", "{}"), "-policy-key", bad("e", "x")),
		"learn nothing":         {"learn"},
		"learn of a bad boot":   {"learn", recorded + "uki-sb-off"},
		"learn of no directory": {"learn", dir},
		"predict nothing":       {"predict"},
		"predict no image":      {"predict", "-uki", bad("f", "MZ")},
	} {
		code, out, stderr := bootcheck(t, args...)
		assert.Equal(t, exitUnusable, code, name)
		assert.Empty(t, out, name)
		assert.NotEmpty(t, stderr, name)
	}
	code, out, _ := bootcheck(t, "-log", bad("g", ""), "-pcrs", d+"pcrs.txt")
	assert.Equal(t, exitContraindicated, code, "a log of zero bytes is broken evidence")
	assert.Contains(t, out, string(secureboot.CodeEvidenceMalformed))
}
