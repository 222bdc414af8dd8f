package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-piv/piv-go/v2/piv"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/examples/signers/prove"
	"github.com/trusttree/trusttree/moduleid/moduleidtest"
)

// card is a PIV application on an emulated card: it answers the commands of
// SP 800-73-4 that signing needs, and the vendor's one for its version.
type card struct {
	key  *ecdsa.PrivateKey
	cert []byte
	pin  string

	open bool   // after VERIFY
	more []byte // what GET RESPONSE is asked for
}

func tlv(tag byte, v []byte) []byte {
	switch {
	case len(v) < 0x80:
		return append([]byte{tag, byte(len(v))}, v...)
	case len(v) < 0x100:
		return append([]byte{tag, 0x81, byte(len(v))}, v...)
	}
	return append([]byte{tag, 0x82, byte(len(v) >> 8), byte(len(v))}, v...)
}

// apdu answers one command.
func (c *card) apdu(p []byte) []byte {
	if len(p) < 4 {
		return []byte{0x67, 0x00}
	}
	var data []byte
	if len(p) > 5 && len(p) >= 5+int(p[4]) {
		data = p[5 : 5+int(p[4])]
	}
	switch p[1] {
	case 0xa4: // SELECT
		c.open = false
		return c.reply([]byte{0x61, 0x02, 0x4f, 0x00})
	case 0xfd: // GET VERSION
		return c.reply([]byte{5, 7, 1})
	case 0xc0: // GET RESPONSE
		return c.reply(c.more)
	case 0x20: // VERIFY
		want := append([]byte(c.pin), bytes.Repeat([]byte{0xff}, 8-len(c.pin))...)
		if c.open = bytes.Equal(data, want); !c.open {
			return []byte{0x63, 0xc2}
		}
		return c.reply(nil)
	case 0xcb: // GET DATA
		if !bytes.Equal(data, []byte{0x5c, 3, 0x5f, 0xc1, 0x0a}) {
			return []byte{0x6a, 0x82}
		}
		return c.reply(tlv(0x53, append(tlv(0x70, c.cert), 0x71, 1, 0, 0xfe, 0)))
	case 0x87: // GENERAL AUTHENTICATE: 7c { 82 {} 81 { digest } }
		if !c.open {
			return []byte{0x69, 0x82}
		}
		if p[2] != 0x11 || p[3] != 0x9c || len(data) != 38 {
			return []byte{0x6a, 0x80}
		}
		sig, err := ecdsa.SignASN1(rand.Reader, c.key, data[6:])
		if err != nil {
			return []byte{0x6f, 0x00}
		}
		c.open = false // the PIN is for one signature
		return c.reply(tlv(0x7c, tlv(0x82, sig)))
	}
	return []byte{0x6d, 0x00}
}

// reply sends 256 bytes at most, and keeps the rest.
func (c *card) reply(p []byte) []byte {
	n := min(len(p), 256)
	c.more = append([]byte(nil), p[n:]...)
	out := append([]byte(nil), p[:n]...)
	if len(c.more) > 0 {
		return append(out, 0x61, byte(min(len(c.more), 255)))
	}
	return append(out, 0x90, 0x00)
}

// insert puts the card into the virtual reader behind the address.
func (c *card) insert(conn net.Conn) {
	atr, _ := hex.DecodeString("3bfc1300008131fe15597562696b65794e454f7233e1")
	r := bufio.NewReader(conn)
	send := func(p []byte) {
		_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
	}
	for {
		var n [2]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return
		}
		p := make([]byte, binary.BigEndian.Uint16(n[:]))
		if _, err := io.ReadFull(r, p); err != nil {
			return
		}
		switch {
		case len(p) == 1 && p[0] == 4:
			send(atr)
		case len(p) == 1: // power off, on, reset
			c.open = false
		default:
			send(c.apdu(p))
		}
	}
}

// reader starts the PC/SC daemon with a virtual reader and the card in it.
func reader(t *testing.T, c *card) {
	t.Helper()
	missing := func(what string) {
		if os.Getenv("CI") == "true" {
			t.Fatal("missing: " + what)
		}
		t.Skip("missing: " + what)
	}
	daemon, err := exec.LookPath("pcscd")
	if err != nil {
		missing("pcscd (apt-get install pcscd)")
	}
	drivers, _ := filepath.Glob("/usr/lib/pcsc/drivers/serial/libifdvpcd.so*")
	if len(drivers) == 0 {
		missing("vsmartcard-vpcd (apt-get install vsmartcard-vpcd)")
	}
	if os.Geteuid() != 0 {
		missing("root, whom the PC/SC daemon needs")
	}
	if _, err := piv.Cards(); err == nil {
		t.Skip("a PC/SC daemon runs already: it is left alone")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().(*net.TCPAddr)
	require.NoError(t, l.Close())
	dir := t.TempDir()
	conf := "FRIENDLYNAME \"Virtual PCD\"\nDEVICENAME /dev/null:0x" + hex.EncodeToString(binary.BigEndian.AppendUint16(nil, uint16(address.Port))) + "\nLIBPATH " + drivers[0] + "\nCHANNELID 0x1\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vpcd"), []byte(conf), 0o600))
	require.NoError(t, os.MkdirAll("/run/pcscd", 0o755))
	cmd := exec.Command(daemon, "--foreground", "--config", dir)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	var conn net.Conn
	t.Cleanup(func() {
		if conn != nil {
			_ = conn.Close()
		}
		_ = cmd.Process.Signal(os.Interrupt)
		late := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
		if t.Failed() {
			t.Logf("pcscd: %s", log.String())
		}
	})
	require.Eventually(t, func() bool {
		conn, err = net.Dial("tcp", address.String())
		return err == nil
	}, 10*time.Second, 50*time.Millisecond)
	go c.insert(conn)
	require.Eventually(t, func() bool {
		k, err := open("00 00") // the virtual reader has two slots
		if err == nil {
			_ = k.Close()
		}
		return err == nil
	}, 15*time.Second, 100*time.Millisecond)
}

func TestCardProvesItself(t *testing.T) {
	ca, err := moduleidtest.NewCA("Owner CA")
	require.NoError(t, err)
	other, err := moduleidtest.NewCA("Stranger")
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, err := ca.Issue("technician 7", key.Public(), nil)
	require.NoError(t, err)
	reader(t, &card{key: key, cert: cert.Raw, pin: "123456"})
	file := func(name string, data []byte) string {
		p := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(p, data, 0o600))
		return p
	}
	root := file("root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw}))
	stranger, pin := file("stranger.der", other.Certificate.Raw), file("pin", []byte("123456\n"))
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"the owner's card":  {[]string{"-root", root, "-pin-file", pin}, 0, "authenticated: CN=technician 7"},
		"by reader":         {[]string{"-reader", "PCD 00 00", "-root", root, "-pin-file", pin}, 0, "authenticated"},
		"a stranger's root": {[]string{"-root", stranger, "-pin-file", pin}, prove.ExitRefused, "refused"},
		"no PIN":            {[]string{"-root", root}, prove.ExitFailed, "security status"},
		"wrong PIN":         {[]string{"-root", root, "-pin-file", file("wrong", []byte("654321"))}, prove.ExitFailed, "verify pin"},
		"an empty slot":     {[]string{"-slot", "9a", "-root", root, "-pin-file", pin}, prove.ExitUnavailable, "no certificate"},
		"no such reader":    {[]string{"-reader", "yubikey", "-root", root}, prove.ExitUnavailable, "0 of the readers"},
		"which of two?":     {[]string{"-reader", "", "-root", root}, prove.ExitUnavailable, "2 of the readers"},
		"no root":           {nil, prove.ExitUsage, "usage"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			args := append([]string{"-reader", "00 00"}, tc.args...)
			assert.Equal(t, tc.code, run(t.Context(), args, &out, &out), out.String())
			assert.Contains(t, out.String(), tc.want)
			assert.NotContains(t, out.String(), "654321", "a PIN is never shown")
		})
	}
}
