package testvm

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
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

// bootEntry is an EFI_LOAD_OPTION for the fallback loader of an EFI system
// partition (UEFI 2.10, sections 3.1.3, 10.3.5.1 and 10.3.5.4).
func bootEntry(description string, number int, start, sectors uint64, id string) []byte {
	text := func(s string) (b []byte) {
		for _, u := range utf16.Encode([]rune(s + "\x00")) {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		return b
	}
	path := []byte{4, 1, 42, 0}
	path = binary.LittleEndian.AppendUint32(path, uint32(number))
	path = binary.LittleEndian.AppendUint64(path, start)
	path = binary.LittleEndian.AppendUint64(path, sectors)
	path = append(append(path, guid(id)...), 2, 2)
	file := text(`\EFI\BOOT\BOOTX64.EFI`)
	path = append(path, 4, 4)
	path = binary.LittleEndian.AppendUint16(path, uint16(4+len(file)))
	path = append(append(path, file...), 0x7F, 0xFF, 4, 0)
	b := binary.LittleEndian.AppendUint32(nil, 1) // LOAD_OPTION_ACTIVE
	b = binary.LittleEndian.AppendUint16(b, uint16(len(path)))
	return append(append(b, text(description)...), path...)
}

// firstEntry is the number of the first boot entry of our own. Firmware gives
// low numbers that are not in BootOrder to what it finds by itself, even when
// there is an entry of that number.
const firstEntry = 0x0100

// enrol returns a variable store with our keys, Secure Boot on or off, and the
// boot entries given, of which the first alone is in BootOrder.
func enrol(empty []byte, keys map[string]*key, on bool, entries ...[]byte) []byte {
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
	for i, e := range entries {
		v.put(fmt.Sprintf("Boot%04X", firstEntry+i), global, 7, e)
	}
	if len(entries) > 0 {
		v.put("BootOrder", global, 7, binary.LittleEndian.AppendUint16(nil, firstEntry))
	}
	return v.fd
}
