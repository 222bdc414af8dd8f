package atecc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/internal/testenv"
)

// Checksums as Microchip's host library and chips send them.
func TestKnownChecksums(t *testing.T) {
	for packet, sum := range map[string]string{
		"0411": "3343", "0400": "0340", "0401": "00C3", "0403": "8342", "0405": "C343", "0408": "60C0", "040F": "2342", "04FF": "0142", "04EE": "3141",
		"0730000000": "035D", "071B000000": "24CD", "0702800000": "09AD", "0702001500": "175D", "0740040000": "8387", "0740000000": "0005",
		"0741800000": "2805", "0741A00000": "7B85", "0747000000": "2E85",
	} {
		p, err := hex.DecodeString(packet)
		require.NoError(t, err)
		assert.Equal(t, sum, strings.ToUpper(hex.EncodeToString(binary.LittleEndian.AppendUint16(nil, crc16(p)))), packet)
	}
}

// The vendor's host library against an independent simulated chip: our packets
// are the same bytes, and its answers parse.
func TestVendorTrace(t *testing.T) {
	data, err := os.ReadFile(testenv.Corpus(t, "spdm-atecc", "atecc608-cryptoauthlib-vs-wolfsim.trace.txt"))
	require.NoError(t, err)
	send := regexp.MustCompile(`SEND word_addr=0x03 txlen=(\d+): ([0-9A-F ]+)`)
	recv := regexp.MustCompile(`RECV rxlen=\d+: ([0-9A-F ]+)`)
	var digest [32]byte
	for i := range digest {
		digest[i] = byte(3 + 7*i)
	}
	ours := map[byte]command{0x30: info(), 0x1b: random(), opSign: sign(0x20, 0), opNonce: load(0x40, digest)}
	var cmd *command
	var answer, pub []byte
	compared, verified := 0, 0
	for _, line := range strings.Split(string(data), "\n") {
		if m := send.FindStringSubmatch(line); m != nil {
			p := unhex(t, m[2])
			cmd, answer = nil, nil
			c, ok := ours[p[1]]
			switch {
			case p[1] == opRead && p[2] == 0x80:
				c, ok = read32(zoneConfig, 0, 0), true
			case p[1] == opGenKey && p[3] == 0: // the vendor's test makes new keys; we only ask for them
				c, ok = public(0), true
				c.p1 = p[2]
			case p[1] == opNonce && p[5] != 3:
				ok = false // another digest than the one below
			}
			if ok {
				want := c.packet()
				assert.Equal(t, p, want[:len(p)], c.name)
				cmd = &c
				compared++
			}
			continue
		}
		m := recv.FindStringSubmatch(line)
		if m == nil || cmd == nil {
			continue
		}
		if answer = append(answer, unhex(t, m[1])...); int(answer[0]) != len(answer) {
			continue
		}
		out, err := cmd.parseResponse(answer)
		require.NoError(t, err, cmd.name)
		switch cmd.op {
		case opGenKey:
			pub = out
		case opSign:
			k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, pub...))
			require.NoError(t, err)
			if verify(k, digest[:], out) == nil {
				verified++
			}
		}
		cmd = nil
	}
	assert.Greater(t, compared, 10)
	assert.Positive(t, verified, "the chip's signature over the vendor's digest")
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	p, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), " ", ""))
	require.NoError(t, err)
	return p
}

// Microchip's published test certificates, compressed and made again.
func TestVendorCertificateRoundTrip(t *testing.T) {
	load := func(name string) *x509.Certificate {
		der, err := os.ReadFile(testenv.Corpus(t, "spdm-atecc", "certs", name))
		require.NoError(t, err)
		c, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		return c
	}
	device, signer := load("tng-template-device3.der"), load("tng-template-signer1.der")
	require.NoError(t, device.CheckSignatureFrom(signer))
	sn := [9]byte(unhex(t, "012301020304050601"))
	signerKey := pointOf(t, signer)
	got, err := rebuild(device.Raw, fields{compressed: compress(t, device, 28), key: pointOf(t, device), issuerKey: signerKey, serial: sn, eui48: []byte("682719000000")})
	require.NoError(t, err)
	assert.Equal(t, device.Raw, got)
	got, err = rebuild(signer.Raw, fields{compressed: compress(t, signer, 31), key: signerKey, serial: sn})
	require.NoError(t, err)
	assert.Equal(t, signer.Raw, got)
}

func pointOf(t testing.TB, c *x509.Certificate) []byte {
	t.Helper()
	b, err := c.PublicKey.(*ecdsa.PublicKey).Bytes()
	require.NoError(t, err)
	return b[1:]
}

// compress is the reverse of rebuild, with serial numbers of source A.
func compress(t testing.TB, c *x509.Certificate, years int) []byte {
	t.Helper()
	out, err := rawSignature(c.Signature)
	require.NoError(t, err)
	from := c.NotBefore.UTC()
	bits := uint32(from.Year()-2000)<<19 | uint32(from.Month())<<15 | uint32(from.Day())<<10 | uint32(from.Hour())<<5 | uint32(years)
	id := unhex(t, "FFFF")
	return append(out, byte(bits>>16), byte(bits>>8), byte(bits), id[0], id[1], 0x30, 0xa0, 0)
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte{4, 0x11, 0x33, 0x43})
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, c := range []command{info(), random(), sign(0x20, 0), load(0x40, [32]byte{})} {
			out, err := c.parseResponse(p)
			if err == nil {
				require.Len(t, out, c.answer)
			}
		}
		if len(p) >= 4 {
			_ = checkWake([4]byte(p[:4]))
		}
	})
}

func FuzzCompressed(f *testing.F) {
	sample, key := ownTemplate(f)
	c, err := x509.ParseCertificate(sample)
	require.NoError(f, err)
	f.Add(compress(f, c, 10))
	f.Fuzz(func(t *testing.T, p []byte) {
		der, err := rebuild(sample, fields{compressed: p, key: key})
		if err == nil {
			_, _ = x509.ParseCertificate(der)
		}
	})
}
