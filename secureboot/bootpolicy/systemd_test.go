package bootpolicy_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
	"github.com/trusttree/trusttree/secureboot/bootpolicy"
)

// systemdTPM starts a software TPM for systemd's own programs, and returns the
// argument that names it.
func systemdTPM(t *testing.T) string {
	t.Helper()
	swtpm, setup := testenv.Tool(t, "swtpm", "swtpm"), testenv.Tool(t, "swtpm_setup", "swtpm-tools")
	if libs, _ := filepath.Glob("/usr/lib/*/libtss2-tcti-swtpm.so*"); len(libs) == 0 {
		testenv.Missing(t, "libtss2-tcti-swtpm (apt-get install libtss2-tcti-swtpm0)")
	}
	dir := t.TempDir()
	out, err := exec.Command(setup, "--tpm2", "--tpmstate", dir, "--pcr-banks", "sha256").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for range 20 { // the control port must be the next one
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port := l.Addr().(*net.TCPAddr).Port
		require.NoError(t, l.Close())
		ctx, cancel := context.WithCancel(context.Background())
		cmd := exec.CommandContext(ctx, swtpm, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--flags", "not-need-init,startup-clear",
			"--server", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1,disconnect", port), "--ctrl", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", port+1))
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			cancel()
			_ = cmd.Wait()
		})
		for range 100 {
			c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port+1), time.Second)
			if err == nil {
				require.NoError(t, c.Close())
				return fmt.Sprintf("--tpm2-device=swtpm:host=127.0.0.1,port=%d", port)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	t.Fatal("swtpm did not start")
	return ""
}

func keyFiles(t *testing.T) (private, public string) {
	t.Helper()
	dir := t.TempDir()
	p8, err := x509.MarshalPKCS8PrivateKey(rsaKey())
	require.NoError(t, err)
	spki, err := x509.MarshalPKIXPublicKey(rsaKey().Public())
	require.NoError(t, err)
	private, public = filepath.Join(dir, "key.pem"), filepath.Join(dir, "pub.pem")
	require.NoError(t, os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8}), 0o600))
	require.NoError(t, os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), 0o600))
	return private, public
}

// TestSignedPolicyIsSystemdMeasures: the same key and PCR 11 give what
// systemd-measure signs, to the byte of the signature (it needs a TPM for that, we don't).
func TestSignedPolicyIsSystemdMeasures(t *testing.T) {
	const measure = "/usr/lib/systemd/systemd-measure"
	if _, err := os.Stat(measure); err != nil {
		testenv.Missing(t, measure+" (apt-get install systemd)")
	}
	device := systemdTPM(t)
	private, public := keyFiles(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/linux", []byte("kernel\n"), 0o600))
	out, err := exec.Command(measure, "sign", "--linux="+dir+"/linux", "--bank=sha256", "--phase=enter-initrd", "--private-key="+private, "--public-key="+public, device).Output()
	require.NoError(t, err)
	pcr := make([]byte, 32)
	kernel := sha256.Sum256([]byte("kernel\n"))
	section, phase := sha256.Sum256([]byte(".linux\x00")), sha256.Sum256([]byte("enter-initrd"))
	for _, d := range [][32]byte{section, kernel, phase} {
		s := sha256.Sum256(append(bytes.Clone(pcr), d[:]...))
		pcr = s[:]
	}
	ours, err := bootpolicy.SignPCRs(rsaKey(), crypto.SHA256, map[int][]byte{11: pcr})
	require.NoError(t, err)
	var doc map[string][]map[string]any
	require.NoError(t, json.Unmarshal(ours, &doc))
	delete(doc["sha256"][0], "values") // our addition, which systemd reads over
	plain, err := json.Marshal(doc)
	require.NoError(t, err)
	assert.JSONEq(t, string(out), string(plain))
	_, err = bootpolicy.Signed(rsaKey().Public(), out)
	require.NoError(t, err)
}

// TestSystemdSealsUnderOurDigest: systemd-creds seals to the public key under
// exactly the policy digest that Signed computes, and opens with our signature.
func TestSystemdSealsUnderOurDigest(t *testing.T) {
	creds := testenv.Tool(t, "systemd-creds", "systemd")
	device := systemdTPM(t)
	_, public := keyFiles(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/plain", []byte("secret"), 0o600))
	out, err := exec.Command(creds, "encrypt", "--with-key=tpm2-with-public-key", device, "--tpm2-public-key="+public, "--tpm2-public-key-pcrs=11", "--tpm2-pcrs=", "--name=x", dir+"/plain", dir+"/cred").CombinedOutput()
	require.NoError(t, err, "%s", out)
	text, err := os.ReadFile(dir + "/cred")
	require.NoError(t, err)
	blob, err := base64.StdEncoding.DecodeString(string(bytes.ReplaceAll(text, []byte("\n"), nil)))
	require.NoError(t, err)
	p, err := bootpolicy.Signed(rsaKey().Public(), nil)
	require.NoError(t, err)
	require.True(t, bytes.Contains(blob, p.Digest()), "systemd's policy digest is another")

	decrypt := func(pcr11 []byte) error {
		js, err := bootpolicy.SignPCRs(rsaKey(), crypto.SHA256, map[int][]byte{11: pcr11})
		require.NoError(t, err)
		require.True(t, json.Valid(js))
		require.NoError(t, os.WriteFile(dir+"/sig.json", js, 0o600))
		got, err := exec.Command(creds, "decrypt", device, "--tpm2-signature="+dir+"/sig.json", "--name=x", dir+"/cred", "-").Output()
		if err == nil {
			assert.Equal(t, "secret", string(got))
		}
		return err
	}
	require.NoError(t, decrypt(make([]byte, 32)), "systemd unseals with our signature of the PCR as it is")
	require.Error(t, decrypt(after("another")))
}

// TestSystemdCryptenrollTakesOurSignature: systemd-cryptenroll binds a LUKS2
// volume to exactly the digest that Signed computes; it accepts our signature
// of the PCR as it is (it unseals once to see that it works), and no other.
func TestSystemdCryptenrollTakesOurSignature(t *testing.T) {
	enroll, cryptsetup := testenv.Tool(t, "systemd-cryptenroll", "systemd"), testenv.Tool(t, "cryptsetup", "cryptsetup-bin")
	device := systemdTPM(t)
	_, public := keyFiles(t)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/key", []byte("first key"), 0o600))
	require.NoError(t, os.WriteFile(dir+"/volume", nil, 0o600))
	require.NoError(t, os.Truncate(dir+"/volume", 20<<20))
	out, err := exec.Command(cryptsetup, "luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", dir+"/volume", dir+"/key").CombinedOutput()
	require.NoError(t, err, "%s", out)
	try := func(pcr11 []byte) error {
		js, err := bootpolicy.SignPCRs(rsaKey(), crypto.SHA256, map[int][]byte{11: pcr11})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(dir+"/sig.json", js, 0o600))
		out, err := exec.Command(enroll, device, "--unlock-key-file="+dir+"/key", "--tpm2-public-key="+public, "--tpm2-public-key-pcrs=11", "--tpm2-pcrs=", "--tpm2-signature="+dir+"/sig.json", dir+"/volume").CombinedOutput()
		if err != nil {
			t.Logf("%s", out)
		}
		return err
	}
	require.Error(t, try(after("another image")))
	require.NoError(t, try(make([]byte, 32)))
	out, err = exec.Command(cryptsetup, "luksDump", "--dump-json-metadata", dir+"/volume").Output()
	require.NoError(t, err)
	var meta struct {
		Tokens map[string]struct {
			Type       string `json:"type"`
			PolicyHash string `json:"tpm2-policy-hash"`
			PublicPCRs []int  `json:"tpm2_pubkey_pcrs"`
		}
	}
	require.NoError(t, json.Unmarshal(out, &meta))
	p, err := bootpolicy.Signed(rsaKey().Public(), nil)
	require.NoError(t, err)
	require.Len(t, meta.Tokens, 1)
	for _, tok := range meta.Tokens {
		assert.Equal(t, "systemd-tpm2", tok.Type)
		assert.Equal(t, fmt.Sprintf("%x", p.Digest()), tok.PolicyHash)
		assert.Equal(t, []int{11}, tok.PublicPCRs)
	}
}
