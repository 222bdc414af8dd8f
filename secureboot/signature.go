package secureboot

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/trusttree/trusttree/secureboot/eventlog"
)

// Signature is an entry of a Secure Boot database (EFI_SIGNATURE_DATA, UEFI
// 2.10 section 32.4.1).
type Signature struct {
	Type  [16]byte // EFI_CERT_…_GUID as in memory
	Owner [16]byte // who enrolled it: a note, compared with nothing
	Data  []byte   // certificate in DER, raw; or a hash
}

var (
	typeX509       = guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
	typeSHA256     = guid("c1c41626-504c-4092-aca9-41f936934328")
	typeX509SHA256 = guid("3bd2a492-96c0-4079-b420-fcf98ef103ed")
	typeSHA384     = guid("ff3e5307-9fd0-48c9-85f1-8ad56c701e01")
	typeSHA512     = guid("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a")
)

// tbsHashes are the types that revoke certificates by the hash of their
// to-be-signed part.
var tbsHashes = map[[16]byte]crypto.Hash{
	typeX509SHA256: crypto.SHA256,
	guid("7076876e-80c2-4ee6-aad2-28b349a6865b"): crypto.SHA384,
	guid("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): crypto.SHA512,
}

// signatureSizes are the sizes that the type fixes, with the owner's 16 bytes.
var signatureSizes = map[[16]byte]uint32{
	typeSHA256:     48,
	typeX509SHA256: 64,
	guid("826ca512-cf10-4ac9-b187-be01496631bd"): 36, // SHA-1
	typeSHA384: 64,
	typeSHA512: 80,
	guid("3c5766e8-269c-4e34-aa14-ed776e85b3b6"): 272, // RSA-2048
	guid("7076876e-80c2-4ee6-aad2-28b349a6865b"): 80,  // X509 SHA-384
	guid("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): 96,  // X509 SHA-512
}

// maxSignatures bounds one database; the largest dbx known has some 500.
const maxSignatures = 16384

// ID names the entry in a policy: "x509:" and the SHA-256 fingerprint of a
// certificate, "sha256:" and the hash of an image, "x509-sha256:" and the hash
// of a certificate's to-be-signed part; "data:" and a SHA-256 for the rest. The
// owner takes no part.
func (s Signature) ID() string {
	switch s.Type {
	case typeSHA256:
		return "sha256:" + hex.EncodeToString(s.Data)
	case typeX509SHA256:
		return "x509-sha256:" + hex.EncodeToString(s.Data[:min(32, len(s.Data))])
	case typeX509:
		d := sha256.Sum256(s.Data)
		return "x509:" + hex.EncodeToString(d[:])
	}
	d := sha256.Sum256(s.Data)
	return "data:" + hex.EncodeToString(d[:])
}

// isHash says whether the entry is the hash of an image.
func (s Signature) isHash() bool {
	return s.Type == typeSHA256 || s.Type == typeSHA384 || s.Type == typeSHA512
}

func (s Signature) same(o Signature) bool { return s.Type == o.Type && bytes.Equal(s.Data, o.Data) }

// testKey reports whether a certificate calls itself a test key that must not
// ship (PKfail, CVE-2024-8105).
func (s Signature) testKey() bool {
	if s.Type != typeX509 {
		return false
	}
	const trust, ship = "DO NOT TRUST", "DO NOT SHIP"
	for i, c := range s.Data {
		if c|0x20 != 'd' {
			continue
		}
		rest := s.Data[i:]
		if len(rest) >= len(trust) && bytes.EqualFold(rest[:len(trust)], []byte(trust)) || len(rest) >= len(ship) && bytes.EqualFold(rest[:len(ship)], []byte(ship)) {
			return true
		}
	}
	return false
}

// parseSignatures reads EFI_SIGNATURE_LISTs. Every size is bounded by what is
// there, and by what the type fixes. Certificates are not parsed.
func parseSignatures(b []byte) ([]Signature, error) {
	var sigs []Signature
	for len(b) > 0 {
		if len(b) < 28 {
			return nil, errors.New("signature list is truncated")
		}
		var typ [16]byte
		copy(typ[:], b)
		list, header, size := binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[20:]), binary.LittleEndian.Uint32(b[24:])
		if list < 28 || uint64(list) > uint64(len(b)) || header > list-28 {
			return nil, fmt.Errorf("signature list of %d bytes does not fit the %d that are left", list, len(b))
		}
		body := b[28+header : list]
		b = b[list:]
		if want, ok := signatureSizes[typ]; ok && size != want || size <= 16 || len(body)%int(size) != 0 {
			return nil, fmt.Errorf("signatures of %d bytes do not fit their list of %d", size, len(body))
		}
		for len(body) > 0 {
			if len(sigs) == maxSignatures {
				return nil, fmt.Errorf("more than %d signatures", maxSignatures)
			}
			s := Signature{Type: typ, Data: body[16:size:size]}
			copy(s.Owner[:], body)
			sigs = append(sigs, s)
			body = body[size:]
		}
	}
	return sigs, nil
}

// authoritySignature reads the EFI_SIGNATURE_DATA of an authority event. Its
// type is not in it: 32 bytes are a hash, DER is a certificate.
func authoritySignature(v eventlog.Variable) Signature {
	if len(v.Data) < 16 || v.GUID == guidShim && !strings.HasPrefix(v.Name, "Mok") && v.Name != "Shim" {
		return Signature{Data: v.Data}
	}
	s := Signature{Data: v.Data[16:]}
	copy(s.Owner[:], v.Data)
	switch {
	case len(s.Data) == 32:
		s.Type = typeSHA256
	case len(s.Data) > 2 && s.Data[0] == 0x30:
		s.Type = typeX509
	case len(v.Data) > 2 && v.Data[0] == 0x30: // shim before 15.3 measured its certificate without an owner
		return Signature{Type: typeX509, Data: v.Data}
	default:
		return Signature{Data: v.Data}
	}
	return s
}

// revoked reports whether dbx names a certificate, as such or by the hash of
// its to-be-signed part, or an image's hash.
func revoked(s Signature, dbx []Signature) bool {
	var tbs []byte
	for _, x := range dbx {
		if x.same(s) {
			return true
		}
		if h := tbsHashes[x.Type]; h != 0 && s.Type == typeX509 {
			if tbs == nil {
				tbs = toBeSigned(s.Data)
			}
			if len(tbs) == 0 { // not readable: can't be ruled out
				return true
			}
			w := h.New()
			w.Write(tbs)
			if bytes.Equal(x.Data[:h.Size()], w.Sum(nil)) {
				return true
			}
		}
	}
	return false
}

// toBeSigned returns a certificate's TBSCertificate without judging the rest, so
// that certificates which crypto/x509 refuses can still be revoked.
func toBeSigned(der []byte) []byte {
	var outer, tbs asn1.RawValue
	if _, err := asn1.Unmarshal(der, &outer); err == nil {
		if _, err := asn1.Unmarshal(outer.Bytes, &tbs); err == nil {
			return tbs.FullBytes
		}
	}
	return []byte{}
}

// guid parses an EFI_GUID into its bytes in memory.
func guid(s string) (g [16]byte) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		panic("secureboot: malformed GUID constant " + s)
	}
	copy(g[:], b)
	g[0], g[1], g[2], g[3] = b[3], b[2], b[1], b[0]
	g[4], g[5] = b[5], b[4]
	g[6], g[7] = b[7], b[6]
	return g
}
