package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// bench is a workbench with an ATECC608 and an SPDM module behind sockets.
type bench struct {
	root, stranger  string // files
	registry        string // with the SPDM module alone
	atecc, spdm     string // addresses
	spdmID, ateccID string
}

func newBench(t *testing.T) bench {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, data, 0o600))
		return p
	}
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	other, err := moduleidtest.NewCA("Stranger")
	require.NoError(t, err)
	chip, err := moduleidtest.NewATECC608(moduleidtest.Instant)
	require.NoError(t, err)
	cert, err := ca.Issue("camera", chip.PublicKey(), nil)
	require.NoError(t, err)
	require.NoError(t, chip.Store(cert))
	responder, radio, err := moduleidtest.NewSPDM(ca, "radio", []byte("firmware"))
	require.NoError(t, err)
	listen := func(serve func(context.Context, net.Listener) error) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go func() { _ = serve(t.Context(), l) }()
		return "tcp:" + l.Addr().String()
	}
	b := bench{
		root:     write("root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw})),
		stranger: write("stranger.der", other.Certificate.Raw),
		atecc:    listen(chip.ServeTCP), spdm: listen(responder.ServeAll),
		ateccID: moduleid.ID(cert), spdmID: moduleid.ID(radio),
	}
	data, err := json.Marshal(moduleid.Records{b.spdmID: {ID: b.spdmID, Class: "radio", Model: "SPDM radio"}})
	require.NoError(t, err)
	b.registry = write("registry.json", data)
	return b
}

func scan(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestScan(t *testing.T) {
	b := newBench(t)
	for name, tc := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"all authenticated": {[]string{"-root", b.root, "-spdm", b.spdm, "-atecc", b.atecc, "-measurements"}, 0, []string{"authenticated", "CN=radio", "CN=camera", "firmware"}},
		"a foreign root":    {[]string{"-root", b.stranger, "-spdm", b.spdm}, exitRefused, []string{"untrusted"}},
		"not in the registry": {[]string{"-root", b.root, "-registry", b.registry, "-spdm", b.spdm, "-atecc", b.atecc}, exitRefused,
			[]string{"foreign", "authenticated"}},
		"version too low":    {[]string{"-root", b.root, "-min-version", "1.4", "-spdm", b.spdm}, exitRefused, []string{"at least 1.4"}},
		"nobody there":       {[]string{"-root", b.root, "-spdm", "tcp:127.0.0.1:1"}, exitUnavailable, []string{"no proof", "refused"}},
		"no such bus":        {[]string{"-root", b.root, "-i2c", "/dev/i2c-none", "-addr", "0x60,0x61"}, exitUnavailable, []string{"/dev/i2c-none"}},
		"silent to its time": {[]string{"-root", b.root, "-spdm", "emu:" + b.atecc[4:], "-timeout", "200ms"}, exitUnavailable, []string{"no proof"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := scan(t, tc.args...)
			assert.Equal(t, tc.code, code, out+errs)
			for _, w := range tc.want {
				assert.Contains(t, out, w)
			}
		})
	}
}

func TestNothingToTrustIsRefused(t *testing.T) {
	code, out, errs := scan(t, "-spdm", "tcp:127.0.0.1:1")
	assert.Equal(t, exitRefused, code)
	assert.Empty(t, out)
	assert.Contains(t, errs, "nothing to trust")
}

func TestJSON(t *testing.T) {
	b := newBench(t)
	code, out, _ := scan(t, "-root", b.root, "-registry", b.registry, "-spdm", b.spdm, "-atecc", b.atecc, "-json")
	assert.Equal(t, exitRefused, code)
	var got struct {
		Version int
		Modules []result
	}
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	require.Len(t, got.Modules, 2)
	assert.True(t, got.Modules[0].Authenticated)
	assert.Equal(t, b.spdmID, got.Modules[0].ID)
	assert.Equal(t, "SPDM radio", got.Modules[0].Model)
	assert.False(t, got.Modules[1].Authenticated)
	assert.Equal(t, moduleid.ReasonForeign, got.Modules[1].Findings[0].Reason)
}

func TestBadUsage(t *testing.T) {
	b := newBench(t)
	for name, args := range map[string][]string{
		"no module":         {"-root", b.root},
		"unknown flag":      {"-x"},
		"argument":          {"-root", b.root, "-spdm", b.spdm, "x"},
		"no scheme":         {"-root", b.root, "-spdm", "127.0.0.1:1"},
		"8-bit address":     {"-root", b.root, "-i2c", "/dev/i2c-1", "-addr", "0xc0"},
		"version":           {"-root", b.root, "-spdm", b.spdm, "-min-version", "2"},
		"no such root":      {"-root", "/nonexistent", "-spdm", b.spdm},
		"root is no cert":   {"-root", b.registry, "-spdm", b.spdm},
		"registry is a PEM": {"-root", b.root, "-registry", b.root, "-spdm", b.spdm},
		"timeout":           {"-root", b.root, "-spdm", b.spdm, "-timeout", "-1s"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, errs := scan(t, args...)
			assert.Equal(t, exitUsage, code)
			assert.NotEmpty(t, errs)
		})
	}
}
