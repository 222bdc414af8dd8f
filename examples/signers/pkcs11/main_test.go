package main

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ThalesGroup/crypto11"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/signers/prove"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// driver finds SoftHSM2, Debian's package softhsm2.
func driver(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("missing: softhsm2 (apt-get install softhsm2)")
	}
	t.Skip("missing: softhsm2 (apt-get install softhsm2)")
	return ""
}

// token makes a token with a P-256 and an RSA key that the CA certifies, and
// one key without a certificate.
func token(t *testing.T, ca *moduleidtest.CA) (module string) {
	t.Helper()
	module = driver(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "tokens"), 0o700))
	require.NoError(t, os.WriteFile(conf, []byte("directories.tokendir = "+dir+"/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600))
	t.Setenv("SOFTHSM2_CONF", conf)
	out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "modules", "--so-pin", "12345678", "--pin", "1234").CombinedOutput()
	require.NoError(t, err, "%s", out)
	session, err := crypto11.Configure(&crypto11.Config{Path: module, TokenLabel: "modules", Pin: "1234"})
	require.NoError(t, err)
	defer func() { require.NoError(t, session.Close()) }()
	ec, err := session.GenerateECDSAKeyPairWithLabel([]byte{1}, []byte("camera-7"), elliptic.P256())
	require.NoError(t, err)
	rsa, err := session.GenerateRSAKeyPairWithLabel([]byte{2}, []byte("radio-7"), 2048)
	require.NoError(t, err)
	for label, key := range map[string]crypto.Signer{"camera-7": ec, "radio-7": rsa} {
		cert, err := ca.Issue(label, key.Public(), nil)
		require.NoError(t, err)
		require.NoError(t, session.ImportCertificateWithLabel([]byte(label), []byte(label), cert))
	}
	_, err = session.GenerateECDSAKeyPairWithLabel([]byte{3}, []byte("bare"), elliptic.P256())
	require.NoError(t, err)
	return module
}

func file(t *testing.T, name string, data []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(p, data, 0o600))
	return p
}

func TestTokenProvesItself(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	other, err := moduleidtest.NewCA("Stranger")
	require.NoError(t, err)
	module := token(t, ca)
	root := file(t, "root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw}))
	stranger := file(t, "stranger.der", other.Certificate.Raw)
	pin, wrong := file(t, "pin", []byte("1234\n")), file(t, "wrong", []byte("9999"))
	with := func(key, root, pin string, more ...string) []string {
		return append([]string{"-module", module, "-token", "modules", "-key", key, "-root", root, "-pin-file", pin}, more...)
	}
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"P-256":                 {with("camera-7", root, pin), 0, "authenticated: CN=camera-7"},
		"RSA-2048":              {with("radio-7", root, pin), 0, "authenticated: CN=radio-7"},
		"a stranger's root":     {with("camera-7", stranger, pin), prove.ExitRefused, "refused"},
		"another's certificate": {with("camera-7", root, pin, "-chain", stranger), prove.ExitFailed, "does not certify"},
		"no certificate":        {with("bare", root, pin), prove.ExitUnavailable, "-chain"},
		"no such key":           {with("x", root, pin), prove.ExitUnavailable, "no key pair"},
		"no such token":         {[]string{"-module", module, "-token", "x", "-key", "x", "-root", root}, prove.ExitUnavailable, "not available"},
		"wrong PIN":             {with("camera-7", root, wrong), prove.ExitUnavailable, "PIN"},
		"no root":               {[]string{"-module", module, "-token", "modules", "-key", "camera-7"}, prove.ExitUsage, "usage"},
		"root that is none":     {with("camera-7", pin, pin), prove.ExitUsage, "no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			assert.Equal(t, tc.code, run(t.Context(), tc.args, &out, &out), out.String())
			assert.Contains(t, out.String(), tc.want)
			assert.NotContains(t, out.String(), "9999", "a PIN is never shown")
		})
	}
}
