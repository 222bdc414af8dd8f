package testvm

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"unicode/utf16"
)

// guid returns an EFI_GUID as in memory.
func guid(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		panic("testvm: GUID " + s)
	}
	return []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

// Owner is the owner GUID of the keys that are enrolled.
const Owner = "77fa9abd-0359-4d32-bd60-28f4e78f784b"

const (
	global     = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	security   = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
	sbEnable   = "f0a30bc7-af08-4556-99c4-001009c93a44"
	customMode = "c076ec0c-7028-4399-a072-71ee5c448b9f"
	vendorKeys = "9073e4e0-60ec-4b6e-9903-4c223c260f3c"
	certX509   = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
)

// variables appends to an empty OVMF variable store.
type variables struct {
	fd  []byte
	pos int
}

// put writes an authenticated variable header (EDK2 VariableFormat.h) and data.
func (v *variables) put(name, owner string, attributes uint32, data []byte) {
	n := binary.LittleEndian.AppendUint16(nil, 0)[:0]
	for _, u := range utf16.Encode([]rune(name + "\x00")) {
		n = binary.LittleEndian.AppendUint16(n, u)
	}
	b := []byte{0xAA, 0x55, 0x3F, 0}
	b = binary.LittleEndian.AppendUint32(b, attributes)
	b = append(b, make([]byte, 8)...)
	stamp := make([]byte, 16)
	if attributes&0x20 != 0 {
		binary.LittleEndian.PutUint16(stamp, 2025)
		stamp[2], stamp[3] = 1, 1
	}
	b = append(b, stamp...)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(n)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	b = append(append(append(b, guid(owner)...), n...), data...)
	for len(b)%4 != 0 {
		b = append(b, 0xFF)
	}
	copy(v.fd[v.pos:], b)
	v.pos += len(b)
}

// SignatureList is an EFI_SIGNATURE_LIST with one certificate: the content of
// PK, KEK and db as they are enrolled.
func SignatureList(der []byte) []byte {
	b := guid(certX509)
	b = binary.LittleEndian.AppendUint32(b, uint32(28+16+len(der)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(16+len(der)))
	return append(append(b, guid(Owner)...), der...)
}

// enrol returns a variable store with our keys, and Secure Boot on or off.
func enrol(empty []byte, keys map[string]*key, on bool) []byte {
	v := &variables{fd: append([]byte(nil), empty...), pos: 0x48 + 28}
	const auth = 0x27
	v.put("PK", global, auth, SignatureList(keys["PK"].der))
	v.put("KEK", global, auth, SignatureList(keys["KEK"].der))
	v.put("db", security, auth, SignatureList(keys["db"].der))
	enable := byte(0)
	if on {
		enable = 1
	}
	v.put("SecureBootEnable", sbEnable, 3, []byte{enable})
	v.put("CustomMode", customMode, 3, []byte{0})
	v.put("VendorKeysNv", vendorKeys, 0x23, []byte{0})
	return v.fd
}
