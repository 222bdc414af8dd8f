package softtpm_test

import (
	"bytes"
	"encoding/binary"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// raw sends a command that go-tpm lacks or can't encode: code, handles with an
// empty password each, and parameters.
func raw(t transport.TPM, cc uint32, handles []uint32, auths int, params ...[]byte) {
	var b []byte
	for _, h := range handles {
		b = binary.BigEndian.AppendUint32(b, h)
	}
	tag := uint16(0x8001)
	if auths > 0 {
		tag = 0x8002
		b = binary.BigEndian.AppendUint32(b, uint32(9*auths))
		for range auths {
			b = append(b, 0x40, 0, 0, 9, 0, 0, 1, 0, 0)
		}
	}
	b = append(b, bytes.Join(params, nil)...)
	head := binary.BigEndian.AppendUint16(nil, tag)
	head = binary.BigEndian.AppendUint32(head, uint32(10+len(b)))
	_, _ = t.Send(append(binary.BigEndian.AppendUint32(head, cc), b...))
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func b2(b []byte) []byte  { return append(u16(uint16(len(b))), b...) }

const (
	owner       = 0x40000001
	null        = 0x40000007
	lockoutAuth = 0x4000000A
	endorsement = 0x4000000B
	platform    = 0x4000000C
)

// powerScenario goes through reboots and power cuts.
func powerScenario(t transport.TPM) {
	cycle := func(cut bool) {
		if r, ok := t.(*recorder); ok {
			r.cycle(cut)
		}
	}
	raw(t, 0x181, nil, 0)
	owner := password(tpm2.TPMRHOwner, "")
	rw := tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, AuthWrite: true, NoDA: true}
	locks, counter, volatile, define := rw, rw, rw, rw
	locks.WriteSTClear, locks.ReadSTClear = true, true
	counter.NT = tpm2.TPMNTCounter
	volatile.ClearSTClear = true
	define.WriteDefine = true
	for i, a := range []tpm2.TPMANV{rw, locks, volatile, define} {
		h := tpm2.TPMHandle(0x01800030 + i)
		try(tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: nvPublic(h, a, 4, nil)}, t)
		try(tpm2.NVWrite{AuthHandle: owner, NVIndex: nvName(t, h), Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte{1, 2, 3, 4}}}, t)
		try(tpm2.NVReadLock{AuthHandle: owner, NVIndex: nvName(t, h)}, t)
		try(tpm2.NVWriteLock{AuthHandle: owner, NVIndex: nvName(t, h)}, t)
	}
	try(tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: nvPublic(0x01800034, counter, 8, nil)}, t)
	p := try(tpm2.CreatePrimary{PrimaryHandle: owner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
	try(tpm2.EvictControl{Auth: owner, ObjectHandle: tpm2.NamedHandle{Handle: p.ObjectHandle, Name: p.Name}, PersistentHandle: 0x81000001}, t)
	for _, cut := range []bool{false, true, false} {
		try(tpm2.PCRExtend{PCRHandle: password(7, ""), Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sha("a")}}}}, t)
		try(tpm2.NVIncrement{AuthHandle: owner, NVIndex: nvName(t, 0x01800034)}, t)
		s, _, _ := tpm2.HMACSession(t, tpm2.TPMAlgSHA256, 16)
		cycle(cut)
		raw(t, 0x181, nil, 0)
		try(tpm2.PCRRead{PCRSelectionIn: selection(7)}, t)
		for h := tpm2.TPMHandle(0x01800030); h <= 0x01800034; h++ {
			n := nvName(t, h)
			try(tpm2.NVRead{AuthHandle: owner, NVIndex: n, Size: 4}, t)
			try(tpm2.NVWrite{AuthHandle: owner, NVIndex: n, Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte{1, 2, 3, 4}}}, t)
		}
		try(tpm2.NVRead{AuthHandle: owner, NVIndex: nvName(t, 0x01800034), Size: 8}, t)
		try(tpm2.ReadPublic{ObjectHandle: p.ObjectHandle}, t)
		try(tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81000001)}, t)
		if s != nil {
			flush(t, s.Handle())
		}
	}
	// A restart after TPM2_Shutdown(STATE), and commands between the two.
	raw(t, 0x145, nil, 0, u16(1))
	cycle(true)
	raw(t, 0x181, nil, 0)
	raw(t, 0x145, nil, 0, u16(0))
	cycle(true)
	raw(t, 0x181, nil, 0)
	raw(t, 0x145, nil, 0, u16(2))
	raw(t, 0x144, nil, 0, u16(0))
	// Changed authorisation values survive, platform's does not.
	try(tpm2.HierarchyChangeAuth{AuthHandle: owner, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("o")}}, t)
	try(tpm2.HierarchyChangeAuth{AuthHandle: password(platform, ""), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("p")}}, t)
	cycle(true)
	for _, h := range []tpm2.TPMHandle{tpm2.TPMRHOwner, platform} {
		for _, pw := range []string{"", "o", "p"} {
			k := try(tpm2.CreatePrimary{PrimaryHandle: password(h, pw), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
			if k.ObjectHandle != 0 {
				flush(t, k.ObjectHandle)
			}
		}
	}
}

// lockoutScenario tries what a thief with a screwdriver tries: guessing, and
// cutting the power between guess and punishment.
func lockoutScenario(t transport.TPM) {
	cycle := func(cut bool) {
		if r, ok := t.(*recorder); ok {
			r.cycle(cut)
		}
	}
	state := func() {
		try(tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: 0x20E, PropertyCount: 4}, t)
		raw(t, 0x17A, nil, 0, u32(6), u32(0x200), u32(1))
	}
	raw(t, 0x13A, []uint32{lockoutAuth}, 1, u32(4), u32(1000000), u32(1000000))
	state()
	make := func() *tpm2.CreatePrimaryResponse {
		return try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InSensitive: sensitive("pin", "x"), InPublic: tpm2.New2B(sealTemplate(fixed, nil))}, t)
	}
	guess := func(c *tpm2.CreatePrimaryResponse, pin string) {
		try(tpm2.Unseal{ItemHandle: named(c.ObjectHandle, c.Name, tpm2.PasswordAuth([]byte(pin)))}, t)
		state()
	}
	c := make()
	guess(c, "pin")
	guess(c, "no")
	cycle(true) // an unorderly end after use of what is protected counts
	state()
	cycle(false)
	state()
	c = make()
	guess(c, "pin")
	cycle(true)
	state()
	c = make()
	guess(c, "pin")
	guess(c, "no")
	guess(c, "pin")
	cycle(false)
	state()
	c = make()
	guess(c, "pin")
	raw(t, 0x139, []uint32{lockoutAuth}, 1)
	guess(c, "pin")
	// Sessions bound to, and HMACs of, what is protected.
	try(tpm2.Unseal{ItemHandle: named(c.ObjectHandle, c.Name, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth([]byte("no"))))}, t)
	state()
	try(tpm2.Unseal{ItemHandle: named(c.ObjectHandle, c.Name, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth([]byte("pin")), tpm2.Bound(c.ObjectHandle, c.Name, []byte("no"))))}, t)
	state()
	// The lockout authorisation itself.
	try(tpm2.HierarchyChangeAuth{AuthHandle: password(lockoutAuth, ""), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("lo")}}, t)
	raw(t, 0x139, []uint32{lockoutAuth}, 1)
	raw(t, 0x139, []uint32{lockoutAuth}, 1)
	state()
	cycle(false)
	raw(t, 0x139, []uint32{lockoutAuth}, 1)
	state()
}

// hierarchyScenario changes hierarchies, clears, and tries what is forbidden.
func hierarchyScenario(t transport.TPM) {
	props := func() { raw(t, 0x17A, nil, 0, u32(6), u32(0x200), u32(2)) }
	props()
	p := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
	try(tpm2.EvictControl{Auth: password(tpm2.TPMRHOwner, ""), ObjectHandle: tpm2.NamedHandle{Handle: p.ObjectHandle, Name: p.Name}, PersistentHandle: 0x81000001}, t)
	try(tpm2.NVDefineSpace{AuthHandle: password(tpm2.TPMRHOwner, ""), PublicInfo: nvPublic(0x01800040, tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true}, 4, nil)}, t)
	pa := tpm2.TPMANV{PPWrite: true, PPRead: true, PlatformCreate: true, NoDA: true}
	try(tpm2.NVDefineSpace{AuthHandle: password(platform, ""), PublicInfo: nvPublic(0x01400041, pa, 4, nil)}, t)
	try(tpm2.NVUndefineSpace{AuthHandle: password(tpm2.TPMRHOwner, ""), NVIndex: nvName(t, 0x01400041)}, t)
	pa.PolicyDelete = true
	try(tpm2.NVDefineSpace{AuthHandle: password(platform, ""), PublicInfo: nvPublic(0x01400042, pa, 4, sha("policy"))}, t)
	try(tpm2.NVUndefineSpace{AuthHandle: password(platform, ""), NVIndex: nvName(t, 0x01400042)}, t)
	raw(t, 0x127, []uint32{lockoutAuth}, 1, []byte{1}) // ClearControl
	raw(t, 0x126, []uint32{lockoutAuth}, 1)            // Clear is disabled
	raw(t, 0x127, []uint32{lockoutAuth}, 1, []byte{0})
	raw(t, 0x127, []uint32{platform}, 1, []byte{0})
	raw(t, 0x127, []uint32{owner}, 1, []byte{0})
	raw(t, 0x12E, []uint32{owner}, 1, b2(sha("policy")), u16(0x0B)) // SetPrimaryPolicy
	raw(t, 0x12E, []uint32{owner}, 1, b2(sha("policy")[:5]), u16(0x0B))
	raw(t, 0x12E, []uint32{owner}, 1, b2(nil), u16(0x10))
	raw(t, 0x126, []uint32{lockoutAuth}, 1)
	props()
	raw(t, 0x181, nil, 0)
	try(tpm2.ReadPublic{ObjectHandle: p.ObjectHandle}, t)
	try(tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81000001)}, t)
	nvName(t, 0x01800040)
	nvName(t, 0x01400041)
	for _, h := range []uint32{owner, endorsement, platform, 0x4000000D, null} { // HierarchyControl
		raw(t, 0x121, []uint32{h}, 1, u32(h), []byte{0})
		props()
		k := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMHandle(h), ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
		if k.ObjectHandle != 0 {
			flush(t, k.ObjectHandle)
		}
		raw(t, 0x121, []uint32{h}, 1, u32(h), []byte{1})
		raw(t, 0x121, []uint32{platform}, 1, u32(h), []byte{1})
		props()
	}
	raw(t, 0x128, []uint32{owner}, 1, bytes.Repeat([]byte{0xFF}, 8)) // ClockSet
	raw(t, 0x124, []uint32{owner}, 1)
	raw(t, 0x125, []uint32{owner}, 1)
}

// unknownScenario sends what no TPM understands, and every code.
func unknownScenario(t transport.TPM) {
	for cc := uint32(0x118); cc < 0x1A0; cc++ {
		switch cc {
		case 0x144, 0x145, 0x17B, 0x17C: // change the state or answer at random
			continue
		}
		if libtpmsOnly(cc) {
			continue
		}
		raw(t, cc, nil, 0)
		raw(t, cc, []uint32{0x80000002, 0x01FFFFFF, 0x03000001}, 0)
		raw(t, cc, []uint32{0x80000002, 0x01FFFFFF, 0x03000001}, 1)
		raw(t, cc, []uint32{owner}, 1)
		raw(t, cc, []uint32{owner, owner}, 2)
	}
	for _, cc := range []uint32{0, 1, 0x20000000, 0xFFFFFFFF, 0x10000, 0x20000001} {
		raw(t, cc, nil, 0)
	}
}

// libtpmsOnly are the commands that swtpm has and this TPM has not.
func libtpmsOnly(cc uint32) bool {
	switch cc {
	case 0x12B, // PCR_Allocate
		0x12C, // PCR_SetAuthPolicy
		0x12D, // PP_Commands
		0x133, // GetCommandAuditDigest
		0x13F, // SetAlgorithmSet
		0x140, // SetCommandCodeAuditStatus
		0x152, // Rewrap
		0x183, // PCR_SetAuthValue
		0x18B, // Commit
		0x18D, // ZGen_2Phase
		0x18E, // EC_Ephemeral
		0x197, // CertifyX509
		0x199, // ECC_Encrypt
		0x19A, // ECC_Decrypt
		0x193, 0x194, 0x195, 0x196, 0x198:
		return true
	}
	return false
}
