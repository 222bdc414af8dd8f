package secureboot_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/secureboot"
)

// measure appends a file to the IMA log of evidence and extends PCR 10.
func measure(ev *secureboot.Evidence, name string, content, signature []byte) {
	d := sha256.Sum256(content)
	var data []byte
	for _, f := range [][]byte{append([]byte("sha256:\x00"), d[:]...), []byte(name + "\x00"), signature} {
		data = append(binary.LittleEndian.AppendUint32(data, uint32(len(f))), f...)
	}
	b := binary.LittleEndian.AppendUint32(bytes.Clone(ev.IMALog), 10)
	fips140.WithoutEnforcement(func() { // the kernel's own column
		t := sha1.Sum(data)
		b = append(b, t[:]...)
	})
	b = append(binary.LittleEndian.AppendUint32(b, 7), "ima-sig"...)
	ev.IMALog = append(binary.LittleEndian.AppendUint32(b, uint32(len(data))), data...)
	t2 := sha256.Sum256(data)
	v := sha256.Sum256(append(bytes.Clone(ev.PCRs[10]), t2[:]...))
	ev.PCRs[10] = v[:]
}

// imaSignature makes a security.ima signature of version 2 over SHA-256.
func imaSignature(t *testing.T, key crypto.Signer, content []byte) []byte {
	d := sha256.Sum256(content)
	sig, err := key.Sign(rand.Reader, d[:], crypto.SHA256)
	require.NoError(t, err)
	b := []byte{3, 2, 4, 0xDE, 0xAD, 0xBE, 0xEF}
	return append(binary.BigEndian.AppendUint16(b, uint16(len(sig))), sig...)
}

func TestFilesAreAllowedByDigestOrKey(t *testing.T) {
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	thief, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	for _, k := range []crypto.Signer{rk, ek} {
		der, err := x509.MarshalPKIXPublicKey(k.Public())
		require.NoError(t, err)
		p.IMA.Keys = append(p.IMA.Keys, der)
	}
	anyName := sha256.Sum256([]byte("library"))
	p.IMA.Files["*"] = []string{"sha256:" + hexOf(anyName[:])}
	good := []byte("#!/bin/sh\n")
	badSHA1 := imaSignature(t, ek, good)
	badSHA1[2] = 2
	for name, c := range map[string]struct {
		file      string
		content   []byte
		signature []byte
		allowed   bool
	}{
		"signed, RSA":               {"/usr/bin/new", good, imaSignature(t, rk, good), true},
		"signed, ECDSA":             {"/usr/bin/new", good, imaSignature(t, ek, good), true},
		"digest under any name":     {"/opt/x", []byte("library"), nil, true},
		"neither":                   {"/usr/bin/new", good, nil, false},
		"another key":               {"/usr/bin/new", good, imaSignature(t, thief, good), false},
		"signature of another file": {"/usr/bin/new", good, imaSignature(t, ek, []byte("other")), false},
		"signature says SHA-1":      {"/usr/bin/new", good, badSHA1, false},
		"signature is truncated":    {"/usr/bin/new", good, imaSignature(t, ek, good)[:20], false},
		"known name, other content": {"/data/bin/busybox", good, nil, false},
	} {
		ev := boot(t, "uki-sb-on", crypto.SHA256)
		measure(&ev, c.file, c.content, c.signature)
		r := p.Appraise(ev, now)
		if c.allowed {
			assert.Equal(t, secureboot.Affirming, r.Status, "%s: %v", name, r.Findings)
		} else {
			assert.Equal(t, []secureboot.Code{secureboot.CodeIMAFile}, codes(r), name)
		}
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s []byte
	for _, c := range b {
		s = append(s, digits[c>>4], digits[c&15])
	}
	return string(s)
}

func TestIMALogAheadOfTheQuoteIsReportedNotJudged(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	quoted := ev.PCRs[10]
	measure(&ev, "/tmp/evil", []byte("evil"), nil)
	behind := ev
	behind.IMALog = boot(t, "uki-sb-on", crypto.SHA256).IMALog
	assert.Contains(t, codes(p.Appraise(behind, now)), secureboot.CodeIMABehind, "the log lacks an entry")

	ahead := ev
	ahead.PCRs = boot(t, "uki-sb-on", crypto.SHA256).PCRs
	ahead.PCRs[10] = quoted
	r := p.Appraise(ahead, now)
	assert.Equal(t, secureboot.Affirming, r.Status, "%v", r.Findings)
	found := false
	for _, f := range r.Findings {
		found = found || f.Code == secureboot.CodeIMAUnverified
	}
	assert.True(t, found, "unverified entries are said")
	p.IMA.MaxUnverified = 1
	measure(&ahead, "/tmp/more", []byte("more"), nil)
	ahead.PCRs[10] = quoted
	assert.Equal(t, []secureboot.Code{secureboot.CodeIMAUnverified}, codes(p.Appraise(ahead, now)))
}

func TestKexecAddsABootAggregate(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	measure(&ev, "boot_aggregate", []byte("x"), nil)
	assert.Contains(t, codes(p.Appraise(ev, now)), secureboot.CodeIMABootAggregate)
}

func TestPaddedBankNeedsTheOption(t *testing.T) {
	p := learn(t, crypto.SHA384, secureboot.LearnOptions{}, "uki-sb-on")
	assert.Contains(t, codes(p.Appraise(boot(t, "uki-sb-on", crypto.SHA384), now)), secureboot.CodeIMAPaddedBank)
}

func TestIMALogIsDemanded(t *testing.T) {
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	ev := boot(t, "uki-sb-on", crypto.SHA256)
	ev.IMALog = nil
	assert.Equal(t, []secureboot.Code{secureboot.CodeIMAMissing}, codes(p.Appraise(ev, now)))
	ev.IMALog = []byte("short")
	assert.Equal(t, []secureboot.Code{secureboot.CodeIMAMalformed}, codes(p.Appraise(ev, now)))
}

// measureSigned appends an entry of template ima-sigv2 to the IMA log.
func measureSigned(ev *secureboot.Evidence, alg, name string, digest, signature []byte) {
	var data []byte
	for _, f := range [][]byte{append([]byte(alg+":\x00"), digest...), []byte(name + "\x00"), signature} {
		data = append(binary.LittleEndian.AppendUint32(data, uint32(len(f))), f...)
	}
	b := binary.LittleEndian.AppendUint32(bytes.Clone(ev.IMALog), 10)
	fips140.WithoutEnforcement(func() { // the kernel's own column
		t := sha1.Sum(data)
		b = append(b, t[:]...)
	})
	b = append(binary.LittleEndian.AppendUint32(b, 9), "ima-sigv2"...)
	ev.IMALog = append(binary.LittleEndian.AppendUint32(b, uint32(len(data))), data...)
	t2 := sha256.Sum256(data)
	v := sha256.Sum256(append(bytes.Clone(ev.PCRs[10]), t2[:]...))
	ev.PCRs[10] = v[:]
}

// TestSignaturesOfEvmctl: files signed by the usual tool, with both kinds of
// key, are admitted by the key; a fs-verity signature is over another digest.
func TestSignaturesOfEvmctl(t *testing.T) {
	file := func(name string) []byte {
		b, err := os.ReadFile("testdata/imasig/" + name)
		require.NoError(t, err)
		return b
	}
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	for _, name := range []string{"rsa.pem", "ecdsa.pem"} {
		block, _ := pem.Decode(file(name))
		require.NotNil(t, block)
		p.IMA.Keys = append(p.IMA.Keys, block.Bytes)
	}
	content := file("file")
	d256, d512 := sha256.Sum256(content), sha512.Sum512(content)
	changed := sha256.Sum256(append(bytes.Clone(content), '#'))
	for name, c := range map[string]struct {
		alg       string
		digest    []byte
		signature []byte
		allowed   bool
	}{
		"RSA":                        {"ima:sha256", d256[:], file("rsa-sha256.sig"), true},
		"RSA, old template field":    {"sha256", d256[:], file("rsa-sha256.sig"), true},
		"ECDSA over SHA-512":         {"ima:sha512", d512[:], file("ecdsa-sha512.sig"), true},
		"file changed":               {"ima:sha256", changed[:], file("rsa-sha256.sig"), false},
		"signature of another hash":  {"ima:sha256", d256[:], file("ecdsa-sha512.sig"), false},
		"said to be fs-verity's":     {"verity:sha256", d256[:], file("rsa-sha256.sig"), false},
		"digest called another hash": {"ima:sha384", d256[:], file("rsa-sha256.sig"), false},
		"no signature":               {"ima:sha256", d256[:], nil, false},
	} {
		ev := boot(t, "uki-sb-on", crypto.SHA256)
		measureSigned(&ev, c.alg, "/usr/bin/vendor", c.digest, c.signature)
		r := p.Appraise(ev, now)
		if c.allowed {
			assert.Equal(t, secureboot.Affirming, r.Status, "%s: %v", name, r.Findings)
		} else {
			assert.Equal(t, []secureboot.Code{secureboot.CodeIMAFile}, codes(r), name)
		}
	}
}

// TestVeritySignature: version 3 signs a hash of type, algorithm and fs-verity
// digest (Linux Documentation/ABI/testing/ima_policy, ima_file_id).
func TestVeritySignature(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	require.NoError(t, err)
	p := learn(t, crypto.SHA256, secureboot.LearnOptions{}, "uki-sb-on")
	p.IMA.Keys = [][]byte{der}
	root := sha256.Sum256([]byte("Merkle tree"))
	sign := func(typ, version byte, signed []byte) []byte {
		d := sha256.Sum256(signed)
		sig, err := key.Sign(rand.Reader, d[:], crypto.SHA256)
		require.NoError(t, err)
		return append(binary.BigEndian.AppendUint16([]byte{typ, version, 4, 1, 2, 3, 4}, uint16(len(sig))), sig...)
	}
	id := append([]byte{6, 4}, root[:]...)
	for name, c := range map[string]struct {
		alg       string
		signature []byte
		allowed   bool
	}{
		"good":                      {"verity:sha256", sign(6, 3, id), true},
		"of a plain file digest":    {"ima:sha256", sign(6, 3, id), false},
		"of another type":           {"verity:sha256", sign(3, 3, id), false},
		"of another version":        {"verity:sha256", sign(6, 2, id), false},
		"over the digest itself":    {"verity:sha256", sign(6, 3, root[:]), false},
		"over another type's bytes": {"verity:sha256", sign(6, 3, append([]byte{5, 4}, root[:]...)), false},
	} {
		ev := boot(t, "uki-sb-on", crypto.SHA256)
		measureSigned(&ev, c.alg, "/usr/bin/vendor", root[:], c.signature)
		assert.Equal(t, c.allowed, p.Appraise(ev, now).Status == secureboot.Affirming, name)
	}
}
