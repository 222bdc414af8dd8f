package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/moduleid"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
	"github.com/trusttree/trusttree/moduleid/spdm"
)

// bench is a workbench with an ATECC608 and an SPDM module behind sockets.
type bench struct {
	root, stranger  string // files
	registry        string // with the SPDM module alone
	atecc, spdm     string // addresses
	bare, emulator  string // addresses: a chip without certificates; the SPDM module as an emulator
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
	bare, err := moduleidtest.NewATECC608(moduleidtest.Instant)
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
		bare: listen(bare.ServeTCP),
		emulator: "emu:" + listen(func(ctx context.Context, l net.Listener) error {
			return responder.ServeEmulator(ctx, l, spdm.BindingMCTP)
		})[4:],
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
	b := newBench(t)
	for name, module := range map[string][]string{
		"ATECC": {"-atecc", b.atecc, b.ateccID}, "SPDM": {"-spdm", b.spdm, b.spdmID}, "emulator": {"-spdm", b.emulator, b.spdmID},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := scan(t, module[:2]...)
			assert.Equal(t, exitRefused, code)
			assert.Contains(t, out, "refused")
			assert.Contains(t, out, module[2][:16], "its ID, for a registry")
			assert.Contains(t, errs, "nothing to trust")
		})
	}
	code, out, _ := scan(t, "-json", "-atecc", b.bare)
	assert.Equal(t, exitRefused, code)
	assert.Contains(t, out, "no certificate in slot 8")
	assert.Contains(t, out, `"authenticated": false`)
	code, _, errs := scan(t, "-spdm", "tcp:127.0.0.1:1")
	assert.Equal(t, exitRefused, code, "also where nobody answers")
	assert.Contains(t, errs, "nothing to trust")
}

// The registry names the keys: it needs no roots.
func TestRegistryAlone(t *testing.T) {
	b := newBench(t)
	code, out, errs := scan(t, "-registry", b.registry, "-spdm", b.spdm)
	assert.Equal(t, 0, code, out+errs)
	code, out, _ = scan(t, "-registry", b.registry, "-spdm", b.spdm, "-atecc", b.atecc)
	assert.Equal(t, exitRefused, code)
	assert.Contains(t, out, "foreign")
}

// The reference emulator's socket, as `modulescan -spdm emu:HOST:PORT` meets it.
func TestEmulator(t *testing.T) {
	for prefix, binding := range map[string]spdm.Binding{"emu": spdm.BindingMCTP, "emu+doe": spdm.BindingPCIDOE, "emu+tcp": spdm.BindingTCP, "emu+none": spdm.BindingNone} {
		for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
			for _, v := range []spdm.Version{spdm.Version11, spdm.Version12, spdm.Version13} {
				t.Run(prefix+" "+curve.Params().Name+" "+v.String(), func(t *testing.T) {
					ca, err := moduleidtest.NewCA("Owner CA")
					require.NoError(t, err)
					key, err := ecdsa.GenerateKey(curve, rand.Reader)
					require.NoError(t, err)
					cert, err := ca.Issue("radio", key.Public(), nil)
					require.NoError(t, err)
					chain := []*x509.Certificate{cert, ca.Certificate}
					r, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: chain, Slots: map[int]spdm.Slot{1: {Key: key, Chain: chain}},
						Versions: []spdm.Version{v}, Measurements: []moduleid.Measurement{{Index: 1, Kind: "firmware", Value: []byte("v1")}}})
					require.NoError(t, err)
					l, err := net.Listen("tcp", "127.0.0.1:0")
					require.NoError(t, err)
					go func() { _ = r.ServeEmulator(t.Context(), l, binding) }()
					root := filepath.Join(t.TempDir(), "ca.cert.der")
					require.NoError(t, os.WriteFile(root, ca.Certificate.Raw, 0o600))
					args := []string{"-spdm", prefix + ":" + l.Addr().String(), "-root", root}
					code, out, errs := scan(t, args...)
					if v < spdm.Version12 {
						assert.Equal(t, exitRefused, code)
						assert.Contains(t, out, "at least 1.2")
						args = append(args, "-min-version", v.String())
						code, out, errs = scan(t, args...)
					}
					require.Equal(t, 0, code, out+errs)
					code, out, errs = scan(t, append(args, "-measurements", "-slot", "1")...)
					require.Equal(t, 0, code, out+errs)
					assert.Contains(t, out, "1 firmware 7631")
					code, out, _ = scan(t, append(args, "-slot", "2")...)
					assert.Equal(t, exitRefused, code)
					assert.Contains(t, out, "no certificate in slot 2")
				})
			}
		}
	}
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

// What a module's certificate says neither writes rows of its own nor reaches
// the terminal.
func TestNamesOfAModuleStayInTheirCell(t *testing.T) {
	ca, err := moduleidtest.NewCA("Maker\x1b[2J\nmodule  authenticated")
	require.NoError(t, err)
	responder, _, err := moduleidtest.NewSPDM(ca, "radio\x1b]0;owned\x07\nfake authenticated\u009b2J", []byte("firmware"))
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = responder.ServeAll(t.Context(), l) }()
	root := filepath.Join(t.TempDir(), "root.der")
	require.NoError(t, os.WriteFile(root, ca.Certificate.Raw, 0o600))
	b := newBench(t)
	for name, args := range map[string][]string{"authenticated": {"-root", root}, "refused": {"-root", b.stranger}, "nothing to trust": nil} {
		_, out, errs := scan(t, append(args, "-spdm", "tcp:"+l.Addr().String())...)
		for _, r := range out + errs {
			require.False(t, r != '\n' && unicode.IsControl(r), "%s: %q", name, out+errs)
		}
		assert.NotRegexp(t, "(?m)^(fake|module )", out, name)
	}
}

// Two places, one identity: neither is authenticated. One place asked twice is
// one place.
func TestOneIdentityInTwoPlaces(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("radio", key.Public(), nil)
	require.NoError(t, err)
	root := filepath.Join(t.TempDir(), "root.der")
	require.NoError(t, os.WriteFile(root, ca.Certificate.Raw, 0o600))
	var places []string
	for range 2 {
		responder, err := spdm.NewResponder(spdm.ResponderConfig{Key: key, Chain: []*x509.Certificate{cert, ca.Certificate}})
		require.NoError(t, err)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go func() { _ = responder.ServeAll(t.Context(), l) }()
		places = append(places, "tcp:"+l.Addr().String())
	}
	code, out, _ := scan(t, "-root", root, "-spdm", places[0], "-spdm", places[1])
	assert.Equal(t, exitRefused, code)
	assert.Equal(t, 2, strings.Count(out, "duplicate"), out)
	assert.NotContains(t, out, "authenticated")
	code, out, _ = scan(t, "-root", root, "-spdm", places[0], "-spdm", places[0])
	assert.Equal(t, 0, code, out)
}

// A slot that does not exist is a wrong command, not an absent module.
func TestUsage(t *testing.T) {
	for name, args := range map[string][]string{
		"SPDM slot 8":      {"-spdm", "tcp:127.0.0.1:1", "-slot", "8"},
		"ATECC slot 16":    {"-atecc", "tcp:127.0.0.1:1", "-slot", "16"},
		"slot -1":          {"-atecc", "tcp:127.0.0.1:1", "-slot", "-1"},
		"no module":        nil,
		"an argument":      {"-atecc", "tcp:127.0.0.1:1", "x"},
		"unknown flag":     {"-x"},
		"8-bit address":    {"-i2c", "/dev/i2c-1", "-addr", "0xc0"},
		"version":          {"-spdm", "tcp:127.0.0.1:1", "-min-version", "2.0"},
		"transport":        {"-spdm", "udp:127.0.0.1:1"},
		"timeout":          {"-spdm", "tcp:127.0.0.1:1", "-timeout", "-1s"},
		"no such root":     {"-spdm", "tcp:127.0.0.1:1", "-root", "/nonexistent"},
		"endless root":     {"-spdm", "tcp:127.0.0.1:1", "-root", "/dev/zero"},
		"endless registry": {"-spdm", "tcp:127.0.0.1:1", "-registry", "/dev/zero"},
		"empty registry":   {"-spdm", "tcp:127.0.0.1:1", "-registry", "/dev/null"},
	} {
		code, out, errs := scan(t, args...)
		assert.Equal(t, exitUsage, code, name)
		assert.Empty(t, out, name)
		assert.NotEmpty(t, errs, name)
	}
}
