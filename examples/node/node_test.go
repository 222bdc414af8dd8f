package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/wire"
	"github.com/trusttree/trusttree/update"
)

func goodConfig(t *testing.T) map[string]any {
	dir := t.TempDir()
	return map[string]any{
		"version": 1, "state": filepath.Join(dir, "state"), "run": filepath.Join(dir, "run"), "bootstrap": filepath.Join(dir, "bootstrap.json"),
		"tpm": "unix:" + filepath.Join(dir, "tpm"), "tpm_makers": "makers.pem", "policies": dir, "flows": "flows.json",
		"hardware": "streetlight-1", "channel": "stable",
	}
}

func writeConfig(t *testing.T, cfg map[string]any) string {
	data, err := json.Marshal(cfg)
	require.NoError(t, err)
	name := filepath.Join(t.TempDir(), "node.json")
	require.NoError(t, os.WriteFile(name, data, 0o600))
	return name
}

func TestConfigIsStrict(t *testing.T) {
	_, err := loadConfig(writeConfig(t, goodConfig(t)))
	require.NoError(t, err)
	for name, change := range map[string]func(map[string]any){
		"unknown key":    func(m map[string]any) { m["tmp"] = 1 },
		"other version":  func(m map[string]any) { m["version"] = 2 },
		"relative state": func(m map[string]any) { m["state"] = "state" },
		"no policies":    func(m map[string]any) { delete(m, "policies") },
		"module without CA": func(m map[string]any) {
			m["modules"] = []any{map[string]any{"bay": "1", "class": "c", "chip": "atecc"}}
		},
		"module, odd chip": func(m map[string]any) {
			m["modules"] = []any{map[string]any{"bay": "1", "class": "c", "ca": "x", "chip": "?"}}
		},
		"one slot":       func(m map[string]any) { m["slots"] = []string{"a"} },
		"unknown mode":   func(m map[string]any) { m["volumes"] = map[string]any{"system": map[string]any{"mode": "luks"}} },
		"unknown volume": func(m map[string]any) { m["volumes"] = map[string]any{"swap": map[string]any{"mode": "kernel"}} },
		"relative path":  func(m map[string]any) { m["volumes"] = map[string]any{"data": map[string]any{"path": "data"}} },
		"one directory": func(m map[string]any) {
			m["volumes"] = map[string]any{"data": map[string]any{"path": filepath.Join(m["state"].(string), "system")}}
		},
		"one within the other": func(m map[string]any) {
			m["volumes"] = map[string]any{"data": map[string]any{"path": filepath.Join(m["state"].(string), "system", "tree")}}
		},
		"boot entries without slots": func(m map[string]any) { m["boot_entries"] = map[string]string{"a": "0001", "b": "0002"} },
		"boot entry of one digit": func(m map[string]any) {
			m["slots"], m["boot_entries"] = []string{"a", "b"}, map[string]string{"a": "1", "b": "0002"}
		},
		"boot entry of both slots": func(m map[string]any) {
			m["slots"], m["boot_entries"] = []string{"a", "b"}, map[string]string{"a": "0001", "b": "0001"}
		},
		"boot entry of a third slot": func(m map[string]any) {
			m["slots"], m["boot_entries"] = []string{"a", "b"}, map[string]string{"a": "0001", "b": "0002", "c": "0003"}
		},
		"stream with a slash": func(m map[string]any) { m["streams"] = []any{map[string]any{"name": "../x", "every_seconds": 1}} },
		"stream without rate": func(m map[string]any) { m["streams"] = []any{map[string]any{"name": "x"}} },
	} {
		cfg := goodConfig(t)
		change(cfg)
		_, err := loadConfig(writeConfig(t, cfg))
		assert.Error(t, err, name)
	}
}

func TestConfigOfVolumesAndBootEntries(t *testing.T) {
	m := goodConfig(t)
	m["slots"], m["boot_entries"] = []string{"/dev/disk/by-partlabel/a", "/dev/disk/by-partlabel/b"}, map[string]string{"a": "0001", "b": "00aB"}
	m["volumes"] = map[string]any{"data": map[string]any{"mode": "kernel", "path": "/srv/data"}}
	m["exit_for_reboot"] = true
	cfg, err := loadConfig(writeConfig(t, m))
	require.NoError(t, err)
	assert.Equal(t, volume{Mode: "portable", Path: filepath.Join(cfg.State, "system")}, cfg.volume("system"))
	assert.Equal(t, volume{Mode: "kernel", Path: "/srv/data"}, cfg.volume("data"))
	entries, err := cfg.entries()
	require.NoError(t, err)
	assert.Equal(t, map[update.Slot]uint16{"a": 1, "b": 0xAB}, entries)
}

func TestCommandExitCodes(t *testing.T) {
	good := writeConfig(t, goodConfig(t))
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing":            {nil, wire.ExitUsage, "say what to do"},
		"unknown verb":       {[]string{"dance"}, wire.ExitUsage, "say what to do"},
		"unknown flag":       {[]string{"run", "-x"}, wire.ExitUsage, "flag provided but not defined"},
		"extra argument":     {[]string{"run", "-config", good, "y"}, wire.ExitUsage, `unexpected argument "y"`},
		"absent config":      {[]string{"run", "-config", "/absent"}, wire.ExitFailed, "/absent"},
		"absent bootstrap":   {[]string{"run", "-config", good}, wire.ExitFailed, "bootstrap.json"},
		"status, no daemon":  {[]string{"status", "-config", good}, wire.ExitUnavailable, "is the node running?"},
		"config of no bytes": {[]string{"run", "-config", "/dev/null"}, wire.ExitUsage, "/dev/null"},
	} {
		var stderr bytes.Buffer
		code := wire.Report(&stderr, "node", command(t.Context(), c.args, &stderr))
		assert.Equal(t, c.code, code, name)
		assert.Contains(t, stderr.String(), c.says, name)
	}
}

// TestCheckReadsWhatIsNamed: what would stop a link of the running node is said
// before, file by file.
func TestCheckReadsWhatIsNamed(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
		return name
	}
	cfg := &config{Flows: file("flows.json", `{"version":1,"serial":1,"rule":[]}`), TPMMakers: file("makers.pem", "no PEM"), Policies: dir,
		Modules: []module{{Bay: "b", CA: filepath.Join(dir, "absent.pem"), Chip: "atecc", Address: "/dev/i2c-1:0x600"}}}
	err := checkFiles(cfg, &wire.Bootstrap{})
	for _, says := range []string{"flows.json", "makers.pem", "absent.pem", "0x600", "policy_key"} {
		assert.ErrorContains(t, err, says)
	}
}

// TestUnfinishedVolume: a cut, or a full disk, while a volume was made does not
// strand the node.
func TestUnfinishedVolume(t *testing.T) {
	n := &node{log: slog.New(slog.DiscardHandler)}
	dir := filepath.Join(t.TempDir(), "system")
	made := func() bool {
		ok, _, err := n.volumeMade(dir)
		require.NoError(t, err)
		return ok
	}
	assert.False(t, made(), "no directory")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	assert.False(t, made(), "an empty one")
	require.NoError(t, os.Mkdir(filepath.Join(dir, ".fscrypt"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".fscrypt", "header.a.tmp"), nil, 0o600))
	assert.False(t, made(), "without a header")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries, "room for a new one")
	aside, err := filepath.Glob(dir + ".unfinished-*/header.a.tmp")
	require.NoError(t, err)
	assert.Len(t, aside, 1)
	require.NoError(t, os.Mkdir(filepath.Join(dir, ".fscrypt"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".fscrypt", "header.b"), nil, 0o600))
	assert.True(t, made(), "one of the two headers is enough")
}

func TestStatusShowsEachLink(t *testing.T) {
	cfg := goodConfig(t)
	require.NoError(t, os.MkdirAll(cfg["state"].(string), 0o700))
	data, err := json.Marshal([]link{{Name: "tpm", OK: true, Detail: "device 00"}, {Name: "modules", Detail: "bay-1 refused"}})
	require.NoError(t, err)
	require.NoError(t, writeFile(filepath.Join(cfg["state"].(string), "status.json"), data))
	var out bytes.Buffer
	show := func() error {
		out.Reset()
		return command(t.Context(), []string{"status", "-config", writeConfig(t, cfg)}, &out)
	}
	err = show()
	require.ErrorContains(t, err, "the daemon does not run", "what a dead daemon proved is no news")
	assert.Equal(t, wire.ExitUnavailable, wire.Report(&bytes.Buffer{}, "node", err))
	daemon, err := lockState(cfg["state"].(string), 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = daemon.Close() })
	require.NoError(t, show())
	assert.Contains(t, out.String(), "tpm      ok")
	assert.Contains(t, out.String(), "modules  FAILED")
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"version":1,"modules":[{"bay":"1"}]}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(dir, "node.json")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if cfg, err := loadConfig(name); err == nil && cfg.Version != 1 {
			t.Fatal("accepted another version")
		}
	})
}
