package softtpm

import (
	"crypto"
	_ "crypto/sha1" // PCR bank and name algorithm
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// Algorithm identifiers (TCG Algorithm Registry, table 3).
const (
	algRSA       uint16 = 0x01
	algSHA1      uint16 = 0x04
	algHMAC      uint16 = 0x05
	algAES       uint16 = 0x06
	algMGF1      uint16 = 0x07
	algKeyedHash uint16 = 0x08
	algXOR       uint16 = 0x0A
	algSHA256    uint16 = 0x0B
	algSHA384    uint16 = 0x0C
	algSHA512    uint16 = 0x0D
	algNull      uint16 = 0x10
	algRSASSA    uint16 = 0x14
	algRSAES     uint16 = 0x15
	algRSAPSS    uint16 = 0x16
	algOAEP      uint16 = 0x17
	algECDSA     uint16 = 0x18
	algECDH      uint16 = 0x19
	algKDF1_56A  uint16 = 0x20
	algKDF1_108  uint16 = 0x22
	algECC       uint16 = 0x23
	algSymCipher uint16 = 0x25
	algCTR       uint16 = 0x40
	algOFB       uint16 = 0x41
	algCBC       uint16 = 0x42
	algCFB       uint16 = 0x43
	algECB       uint16 = 0x44
)

// Permanent handles.
const (
	rhOwner       uint32 = 0x40000001
	rhNull        uint32 = 0x40000007
	rhPassword    uint32 = 0x40000009
	rhLockout     uint32 = 0x4000000A
	rhEndorsement uint32 = 0x4000000B
	rhPlatform    uint32 = 0x4000000C
	rhPlatformNV  uint32 = 0x4000000D
	rhACT         uint32 = 0x40000110 // the first of sixteen
)

// Handle types.
const (
	htPCR        = 0x00
	htNV         = 0x01
	htHMAC       = 0x02
	htPolicy     = 0x03
	htPermanent  = 0x40
	htTransient  = 0x80
	htPersistent = 0x81
)

func handleType(h uint32) uint32 { return h >> 24 }

// Object attributes (TPMA_OBJECT).
const (
	attrFixedTPM     uint32 = 1 << 1
	attrSTClear      uint32 = 1 << 2
	attrFixedParent  uint32 = 1 << 4
	attrDataOrigin   uint32 = 1 << 5
	attrUserWithAuth uint32 = 1 << 6
	attrAdminPolicy  uint32 = 1 << 7
	attrNoDA         uint32 = 1 << 10
	attrEncryptedDup uint32 = 1 << 11
	attrRestricted   uint32 = 1 << 16
	attrDecrypt      uint32 = 1 << 17
	attrSign         uint32 = 1 << 18
	attrX509Sign     uint32 = 1 << 19
	attrDefined             = attrFixedTPM | attrSTClear | attrFixedParent | attrDataOrigin | attrUserWithAuth |
		attrAdminPolicy | attrNoDA | attrEncryptedDup | attrRestricted | attrDecrypt | attrSign | attrX509Sign
)

// Structure tags.
const (
	stNoSessions     uint16 = 0x8001
	stSessions       uint16 = 0x8002
	stAttestNV       uint16 = 0x8014
	stAttestAudit    uint16 = 0x8016
	stAttestTime     uint16 = 0x8019
	stAttestQuote    uint16 = 0x8018
	stAttestCertify  uint16 = 0x8017
	stAttestCreation uint16 = 0x801A
	stAttestNVDigest uint16 = 0x801C
	stCreation       uint16 = 0x8021
	stVerified       uint16 = 0x8022
	stAuthSecret     uint16 = 0x8023
	stHashCheck      uint16 = 0x8024
	stAuthSigned     uint16 = 0x8025
)

// knownTag says whether a structure tag is one of part 2, section 6.9.
func knownTag(tag uint16) bool {
	switch {
	case tag == 0x00C4, tag >= 0x8000 && tag <= stSessions, tag >= stAttestNV && tag <= stAttestCreation, tag == stAttestNVDigest,
		tag >= stCreation && tag <= stAuthSigned, tag == 0x8029:
		return true
	}
	return false
}

// banks are the PCR banks and hashes, in the order in which they are listed.
var banks = [...]uint16{algSHA1, algSHA256, algSHA384, algSHA512}

// hashOf returns the hash of an algorithm, or 0.
func hashOf(alg uint16) crypto.Hash {
	switch alg {
	case algSHA1:
		return crypto.SHA1
	case algSHA256:
		return crypto.SHA256
	case algSHA384:
		return crypto.SHA384
	case algSHA512:
		return crypto.SHA512
	}
	return 0
}

// hashSize returns the size of a hash's digest, or 0 for an unknown one.
func hashSize(alg uint16) int {
	if h := hashOf(alg); h != 0 {
		return h.Size()
	}
	return 0
}

// digest hashes parts, one after the other. An unknown hash gives nothing.
func digest(alg uint16, parts ...[]byte) []byte {
	h := hashOf(alg)
	if h == 0 {
		return nil
	}
	d := h.New()
	for _, p := range parts {
		d.Write(p)
	}
	return d.Sum(nil)
}
