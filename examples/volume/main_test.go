package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// volume runs the command and returns its exit code and what it printed.
func volume(t *testing.T, in string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(in), &o, &e)
	return code, o.String(), e.String()
}

func TestVolumeFromCreateToDestroy(t *testing.T) {
	dir := t.TempDir()
	d := filepath.Join(dir, "v")
	id, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
		return p
	}
	pass, other, key := file("pass", "a passphrase\n"), file("other", "another"), file("key", id.String())
	do := func(in string, args ...string) string {
		t.Helper()
		code, out, errs := volume(t, in, args...)
		require.Equal(t, 0, code, errs)
		return out
	}
	do("", "create", "-dir", d, "-label", "data", "-unsafe-no-freshness", "-work-factor", "10", "-passphrase-file", pass, "-recipient", id.Recipient().String())
	do("picture", "put", "-dir", d, "-passphrase-file", pass, "-name", "camera/1", "-pad")
	do("", "put", "-dir", d, "-passphrase-file", pass, "-name", "pass", "-file", pass)
	assert.Equal(t, "picture", do("", "get", "-dir", d, "-identity", key, "-name", "camera/1"))
	assert.Contains(t, do("", "ls", "-dir", d, "-passphrase-file", pass), "camera/1")
	var files []struct {
		Name string
		Size int64
	}
	require.NoError(t, json.Unmarshal([]byte(do("", "ls", "-json", "-dir", d, "-passphrase-file", pass)), &files))
	require.Len(t, files, 2)
	assert.EqualValues(t, 7, files[0].Size)
	assert.Contains(t, do("", "status", "-dir", d), "unverified")
	assert.Contains(t, do("", "status", "-dir", d, "-passphrase-file", pass), "freshness  none")
	do("", "rotate", "-dir", d, "-passphrase-file", pass, "-new-work-factor", "10", "-new-passphrase-file", other, "-new-recipient", id.Recipient().String())
	code, _, errs := volume(t, "", "get", "-dir", d, "-passphrase-file", pass, "-name", "camera/1")
	assert.Equal(t, 3, code, errs)
	slot := strings.TrimSpace(do("", "add-protector", "-dir", d, "-passphrase-file", other, "-new-work-factor", "10", "-new-passphrase-file", pass))
	do("", "remove-protector", "-dir", d, "-passphrase-file", other, "-slot", slot)
	do("", "reseal", "-dir", d, "-identity", key, "-new-work-factor", "10", "-new-passphrase-file", pass)
	do("", "unlock", "-dir", d, "-passphrase-file", pass)
	do("", "lock", "-dir", d)
	do("", "recover", "-dir", d, "-identity", key, "-to", filepath.Join(dir, "out"))
	b, err := os.ReadFile(filepath.Join(dir, "out", "camera", "1"))
	require.NoError(t, err)
	assert.Equal(t, "picture", string(b))
	code, _, _ = volume(t, "", "destroy", "-dir", d, "-passphrase-file", pass)
	assert.Equal(t, 2, code, "without -yes")
	do("", "destroy", "-dir", d, "-passphrase-file", pass, "-yes")
	code, _, _ = volume(t, "", "status", "-dir", d)
	assert.Equal(t, 1, code)
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, make([]byte, 5000), 0o600))
	for name, c := range map[string]struct {
		code int
		args []string
	}{
		"no command":           {2, nil},
		"help":                 {0, []string{"-h"}},
		"help of a command":    {0, []string{"put", "-h"}},
		"unknown command":      {2, []string{"format"}},
		"unknown flag":         {2, []string{"ls", "-dir", dir, "-x"}},
		"no directory":         {2, []string{"ls"}},
		"no protector":         {2, []string{"ls", "-dir", dir}},
		"stray argument":       {2, []string{"ls", "-dir", dir, "x"}},
		"no volume":            {1, []string{"status", "-dir", dir}},
		"TPM without policy":   {2, []string{"ls", "-dir", dir, "-tpm", "/dev/null"}},
		"TPM that is not one":  {4, []string{"ls", "-dir", dir, "-tpm", filepath.Join(dir, "none"), "-pcrs", "7"}},
		"bad recipient":        {2, []string{"create", "-dir", dir, "-recipient", "age1x", "-label", "x"}},
		"missing identity":     {1, []string{"ls", "-dir", dir, "-identity", filepath.Join(dir, "none")}},
		"NV index too large":   {2, []string{"ls", "-dir", dir, "-tpm", "/dev/null", "-pcrs", "7", "-counter", "0x100000000"}},
		"NV index of a key":    {2, []string{"ls", "-dir", dir, "-tpm", "/dev/null", "-pcrs", "7", "-share", "0x81000001"}},
		"latch of 3 bytes":     {2, []string{"ls", "-dir", dir, "-tpm", "/dev/null", "-pcrs", "7", "-after", "abcdef"}},
		"latch not in hex":     {2, []string{"ls", "-dir", dir, "-passphrase-file", file, "-latch", "xyz"}},
		"name not in hex":      {2, []string{"ls", "-dir", dir, "-tpm", "/dev/null", "-pcrs", "7", "-parent", "xyz"}},
		"keep on a disk":       {2, []string{"ls", "-dir", dir, "-tpm", "/dev/null", "-pcrs", "7", "-keep", filepath.Join(dir, "keep")}},
		"missing PIN file":     {1, []string{"ls", "-dir", dir, "-tpm", "/dev/null", "-pcrs", "7", "-pin-file", filepath.Join(dir, "none")}},
		"PCR 24":               {2, []string{"ls", "-dir", dir, "-tpm", "unix:/nowhere", "-pcrs", "24"}},
		"no label":             {2, []string{"create", "-dir", dir, "-recipient", hybrid(t)}},
		"put without a name":   {2, []string{"put", "-dir", dir, "-passphrase-file", file}},
		"resume of a pipe":     {2, []string{"put", "-dir", dir, "-passphrase-file", file, "-name", "x", "-resume"}},
		"put of nothing":       {1, []string{"put", "-dir", dir, "-passphrase-file", file, "-name", "x", "-file", filepath.Join(dir, "none")}},
		"content as JSON":      {2, []string{"get", "-json", "-dir", dir, "-passphrase-file", file, "-name", "x"}},
		"get without a name":   {2, []string{"get", "-dir", dir, "-passphrase-file", file}},
		"recover to nowhere":   {2, []string{"recover", "-dir", dir, "-passphrase-file", file}},
		"remove no slot":       {2, []string{"remove-protector", "-dir", dir, "-passphrase-file", file}},
		"reseal to nothing":    {2, []string{"reseal", "-dir", dir, "-passphrase-file", file}},
		"add nothing":          {2, []string{"add-protector", "-dir", dir, "-passphrase-file", file}},
		"keep that is not one": {2, []string{"lock", "-dir", dir, "-keep", file}},
		"freshness not waived": {1, []string{"create", "-dir", filepath.Join(dir, "v"), "-label", "x", "-recipient", hybrid(t)}},
	} {
		code, _, errs := volume(t, "", c.args...)
		assert.Equal(t, c.code, code, "%s: %s", name, errs)
		assert.NotEmpty(t, errs, name)
	}
}

func hybrid(t *testing.T) string {
	id, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	return id.Recipient().String()
}
