package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// missing skips a test, or fails it in CI.
func missing(t testing.TB, what string) {
	if os.Getenv("CI") == "true" {
		t.Fatalf("missing under CI: %s", what)
	}
	t.Skipf("missing: %s", what)
}

// machine is a node's TPM, for commands in other processes.
type machine struct {
	t      *testing.T
	dir    string
	socket string
	stop   func()
}

func newMachine(t *testing.T) *machine {
	if _, err := exec.LookPath("swtpm"); err != nil {
		missing(t, "swtpm (apt-get install swtpm)")
	}
	dir, err := os.MkdirTemp("", "volume") // a socket's path is short
	require.NoError(t, err)
	m := &machine{t: t, dir: dir, socket: filepath.Join(dir, "tpm"), stop: func() {}}
	t.Cleanup(func() { m.stop(); _ = os.RemoveAll(dir) })
	m.boot("image 1")
	return m
}

// boot starts the TPM anew, with what an image measures into PCR 7 and 11.
func (m *machine) boot(image string) {
	m.start()
	m.extend(7, image)
	m.extend(11, image)
}

func (m *machine) start() {
	m.stop()
	_ = os.Remove(m.socket)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+m.dir, "--server", "type=unixio,path="+m.socket, "--flags", "not-need-init,startup-clear")
	require.NoError(m.t, cmd.Start())
	m.stop = func() { cancel(); _ = cmd.Wait() }
	require.Eventually(m.t, func() bool {
		c, err := net.Dial("unix", m.socket)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
}

func (m *machine) extend(pcr tpm2.TPMHandle, what ...string) {
	dev, err := linuxudstpm.Open(m.socket)
	require.NoError(m.t, err)
	defer dev.Close()
	for _, s := range what {
		d := sha256.Sum256([]byte(s))
		_, err := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: pcr, Auth: tpm2.PasswordAuth(nil)},
			Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: d[:]}}}}.Execute(dev)
		require.NoError(m.t, err)
	}
}

// TestVolumeUnderATPM goes through every command with -json on a volume that a
// TPM, a counter, a PIN and a recovery key guard.
func TestVolumeUnderATPM(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	d := filepath.Join(dir, "v")
	id, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
		return p
	}
	key, pin, wrong := file("key", id.String()), file("pin", "1234\n"), file("wrong", "4321")
	tpmFlags := []string{"-tpm", "unix:" + m.socket, "-pcrs", "7,11"}
	run := func(want int, in string, args ...string) (out map[string]any, errs string) {
		t.Helper()
		code, text, errs := volume(t, in, args...)
		require.Equal(t, want, code, "%v: %s", args, errs)
		if want == 0 && !strings.HasPrefix(text, "[") {
			require.NoError(t, json.Unmarshal([]byte(text), &out), "%v: %s", args, text)
		}
		return out, errs
	}
	with := func(command string, more ...string) []string {
		return append(append([]string{command, "-json", "-dir", d}, tpmFlags...), more...)
	}
	keep := filepath.Join("/dev/shm", filepath.Base(dir)+".keep")
	t.Cleanup(func() { _ = os.Remove(keep) })

	made, _ := run(0, "", with("create", "-label", "data", "-pin-file", pin, "-counter", "0x01800112", "-share", "0x01800134", "-revocation", "0x01800118", "-recipient", id.Recipient().String())...)
	latch := made["latch"].(string)
	require.Len(t, latch, 64)
	assert.Equal(t, "witnessed", made["freshness"])
	_, errs := run(3, "", with("ls", "-pin-file", pin)...)
	assert.Contains(t, errs, "reboot")

	m.boot("image 1")
	_, errs = run(3, "", with("ls", "-pin-file", wrong)...)
	assert.Contains(t, errs, "wrong PIN")
	_, _ = run(3, "", with("ls")...)
	st, _ := run(0, "", with("unlock", "-pin-file", pin, "-keep", keep, "-latch", latch)...)
	assert.Equal(t, "tpm", st["slot"])
	put, _ := run(0, "picture", with("put", "-keep", keep, "-name", "camera/1")...)
	assert.EqualValues(t, 7, put["bytes"])
	got, _ := run(0, "", with("get", "-keep", keep, "-name", "camera/1", "-file", filepath.Join(dir, "out"))...)
	assert.EqualValues(t, 7, got["bytes"])
	run(0, "", with("ls", "-keep", keep)...)
	st, _ = run(0, "", with("status", "-keep", keep)...)
	assert.EqualValues(t, 1, st["files"])
	un, _ := run(0, "", "status", "-json", "-dir", d)
	assert.Contains(t, un, "unverified")
	added, _ := run(0, "", with("add-protector", "-keep", keep, "-new-recipient", id.Recipient().String())...)
	slot := added["slots"].([]any)[0].(string)
	run(0, "", with("remove-protector", "-keep", keep, "-slot", slot)...)
	run(0, "", with("reseal", "-keep", keep, "-new-tpm", "unix:"+m.socket, "-new-pcrs", "7,11", "-new-share", "0x01800134", "-new-revocation", "0x01800118")...)
	run(0, "", with("rotate", "-keep", keep, "-new-tpm", "unix:"+m.socket, "-new-pcrs", "7,11", "-new-share", "0x01800134", "-new-revocation", "0x01800118", "-new-recipient", id.Recipient().String())...)
	run(0, "", with("rotate", "-keep", keep)...)
	run(0, "", "recover", "-json", "-dir", d, "-identity", key, "-to", filepath.Join(dir, "all"))
	b, err := os.ReadFile(filepath.Join(dir, "all", "camera", "1"))
	require.NoError(t, err)
	assert.Equal(t, "picture", string(b))
	run(0, "", "lock", "-json", "-dir", d, "-keep", keep)
	_, err = os.Stat(keep)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, errs = run(3, "", with("ls", "-keep", keep)...)
	assert.Contains(t, errs, "reboot")
	require.NoError(t, os.Remove(keep))

	m.boot("image of an attacker")
	// The PCRs as they are now are not those that the volume was sealed to.
	_, errs = run(3, "", with("ls")...)
	assert.Contains(t, errs, "boot an approved image")
	old := filepath.Join(dir, "old")
	require.NoError(t, os.CopyFS(old, os.DirFS(d)))
	m.boot("image 1")
	_, errs = run(3, "", with("ls", "-latch", strings.Repeat("00", 32))...)
	assert.Contains(t, errs, "not the volume that was created")
	m.boot("image 1")
	run(0, "new", with("put", "-name", "camera/2")...)
	m.boot("image 1")
	_, errs = run(3, "", append([]string{"ls", "-dir", old}, tpmFlags...)...)
	assert.Contains(t, errs, "put back", "the disk of before")
	m.boot("image 1")
	run(2, "", with("destroy")...)
	run(0, "", with("destroy", "-yes")...)
	run(1, "", "status", "-json", "-dir", d)
	m.stop()
	_, errs = run(4, "", with("ls")...)
	assert.Contains(t, errs, "unavailable")
}

// TestSystemdMeasureOpensAVolume seals a volume to a key and opens it with
// what systemd-measure signed for two images, each in its boot.
func TestSystemdMeasureOpensAVolume(t *testing.T) {
	const measure = "/usr/lib/systemd/systemd-measure"
	if _, err := os.Stat(measure); err != nil {
		missing(t, measure+" (apt-get install systemd)")
	}
	m := newMachine(t)
	dir := t.TempDir()
	file := func(name string, text []byte) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, text, 0o600))
		return p
	}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	p8, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(t, err)
	spki, err := x509.MarshalPKIXPublicKey(k.Public())
	require.NoError(t, err)
	private := file("private", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8}))
	public := file("public", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	sign := func(image, key, pub string) string {
		kernel := file("linux", []byte(image))
		out, err := exec.Command(measure, "sign", "--linux="+kernel, "--bank=sha256", "--phase=enter-initrd", "--private-key="+key, "--public-key="+pub, systemdTPM(t)).Output()
		if err != nil {
			var ee *exec.ExitError
			require.ErrorAs(t, err, &ee)
			t.Fatalf("systemd-measure: %s", ee.Stderr)
		}
		return file(strings.ReplaceAll(image, " ", "-")+".json", out)
	}
	one, two := sign("image 1", private, public), sign("image 2", private, public)
	d := filepath.Join(dir, "v")
	flags := func(command, policy string, more ...string) []string {
		return append([]string{command, "-dir", d, "-tpm", "unix:" + m.socket, "-policy-key", public, "-policy", policy}, more...)
	}
	do := func(want int, args ...string) string {
		t.Helper()
		code, _, errs := volume(t, "", args...)
		require.Equal(t, want, code, errs)
		return errs
	}
	m.measured("image 1")
	do(0, flags("create", one, "-label", "system", "-counter", "0x01800112")...)
	m.measured("image 1")
	do(0, flags("ls", one)...)
	m.measured("image 2")
	do(0, flags("ls", one+","+two)...) // without sealing anew
	m.measured("image 3")
	assert.Contains(t, do(3, flags("ls", one+","+two)...), "PCR 11")

	other, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	p8, err = x509.MarshalPKCS8PrivateKey(other)
	require.NoError(t, err)
	spki, err = x509.MarshalPKIXPublicKey(other.Public())
	require.NoError(t, err)
	evilKey := file("evil", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8}))
	evilPub := file("evil.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	three := sign("image 3", evilKey, evilPub)
	m.measured("image 3")
	code, _, errs := volume(t, "", "ls", "-dir", d, "-tpm", "unix:"+m.socket, "-policy-key", evilPub, "-policy", three)
	assert.Equal(t, 3, code, errs)
	// A file of another kind of key is no policy at all.
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	spki, err = x509.MarshalPKIXPublicKey(ec.Public())
	require.NoError(t, err)
	code, _, errs = volume(t, "", "ls", "-dir", d, "-tpm", "unix:"+m.socket, "-policy-key", file("ec.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})), "-policy", one)
	assert.NotZero(t, code, errs)
}

// measured boots, and extends PCR 11 as systemd-stub does for an image.
func (m *machine) measured(image string) {
	m.start()
	m.extend(11, ".linux\x00", image, "enter-initrd")
}

// systemdTPM starts a TPM for systemd-measure, which signs with one only, and
// returns the argument that names it.
func systemdTPM(t *testing.T) string {
	if libs, _ := filepath.Glob("/usr/lib/*/libtss2-tcti-swtpm.so*"); len(libs) == 0 {
		missing(t, "libtss2-tcti-swtpm (apt-get install libtss2-tcti-swtpm0)")
	}
	for range 20 { // the control port must be the next one
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port := l.Addr().(*net.TCPAddr).Port
		require.NoError(t, l.Close())
		ctx, cancel := context.WithCancel(context.Background())
		cmd := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.TempDir(), "--flags", "not-need-init,startup-clear",
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
			time.Sleep(20 * time.Millisecond)
		}
	}
	t.Fatal("swtpm did not start")
	return ""
}
