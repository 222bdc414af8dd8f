package softtpm_test

import (
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

func nvPublic(index tpm2.TPMHandle, attrs tpm2.TPMANV, size uint16, policy []byte) tpm2.TPM2BNVPublic {
	return tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, Attributes: attrs, DataSize: size, AuthPolicy: tpm2.TPM2BDigest{Buffer: policy}})
}

func nvName(t transport.TPM, index tpm2.TPMHandle) tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: index, Name: try(tpm2.NVReadPublic{NVIndex: index}, t).NVName}
}

func nvScenario(t transport.TPM) {
	owner := password(tpm2.TPMRHOwner, "")
	rw := tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, AuthWrite: true, NoDA: true}
	with := func(edit func(*tpm2.TPMANV)) tpm2.TPMANV {
		a := rw
		edit(&a)
		return a
	}
	define := func(index tpm2.TPMHandle, attrs tpm2.TPMANV, size uint16) {
		try(tpm2.NVDefineSpace{AuthHandle: owner, Auth: tpm2.TPM2BAuth{Buffer: []byte("pw")}, PublicInfo: nvPublic(index, attrs, size, nil)}, t)
	}
	counter := with(func(a *tpm2.TPMANV) { a.NT = tpm2.TPMNTCounter })
	define(0x01800001, rw, 16)
	define(0x01800001, rw, 16)
	define(0x01800002, counter, 8)
	define(0x01800003, with(func(a *tpm2.TPMANV) { a.NT = tpm2.TPMNTBits }), 8)
	define(0x01800004, with(func(a *tpm2.TPMANV) { a.NT = tpm2.TPMNTExtend }), 32)
	define(0x01800005, with(func(a *tpm2.TPMANV) { a.WriteSTClear, a.ReadSTClear = true, true }), 4)
	define(0x01800006, with(func(a *tpm2.TPMANV) { a.WriteDefine, a.WriteAll = true, true }), 4)
	define(0x01800007, with(func(a *tpm2.TPMANV) { a.NoDA = false; a.OwnerRead = false }), 4)
	// Refused.
	define(0x01800010, counter, 9)
	define(0x01800010, with(func(a *tpm2.TPMANV) { a.NT = tpm2.TPMNTExtend }), 31)
	define(0x01800010, with(func(a *tpm2.TPMANV) { a.Written = true }), 4)
	define(0x01800010, with(func(a *tpm2.TPMANV) { a.PlatformCreate = true }), 4)
	define(0x01800010, with(func(a *tpm2.TPMANV) { a.PolicyDelete = true }), 4)
	define(0x01800010, with(func(a *tpm2.TPMANV) { a.NT = 3 }), 4)
	define(0x01800010, with(func(a *tpm2.TPMANV) { a.WriteAll = true }), 1500)
	define(0x01800010, rw, 3000)
	define(0x01800010, tpm2.TPMANV{OwnerWrite: true}, 4)
	define(0x01800010, tpm2.TPMANV{OwnerRead: true}, 4)
	define(0x02800010, rw, 4)
	for i := tpm2.TPMHandle(0x01800001); i <= 0x01800007; i++ {
		n := nvName(t, i)
		try(tpm2.NVRead{AuthHandle: owner, NVIndex: n, Size: 4}, t)
		auth := tpm2.AuthHandle{Handle: i, Name: n.Name, Auth: tpm2.PasswordAuth([]byte("pw"))}
		try(tpm2.NVWrite{AuthHandle: auth, NVIndex: n, Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte{1, 2, 3, 4}}}, t)
		n = nvName(t, i)
		try(tpm2.NVWrite{AuthHandle: owner, NVIndex: n, Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte{5}}, Offset: 3}, t)
		try(tpm2.NVIncrement{AuthHandle: owner, NVIndex: n}, t)
		n = nvName(t, i)
		try(tpm2.NVIncrement{AuthHandle: owner, NVIndex: n}, t)
		try(tpm2.NVRead{AuthHandle: owner, NVIndex: n, Size: 4}, t)
		try(tpm2.NVRead{AuthHandle: owner, NVIndex: n, Size: 8}, t)
		try(tpm2.NVRead{AuthHandle: owner, NVIndex: n, Size: 2, Offset: 15}, t)
		try(tpm2.NVRead{AuthHandle: owner, NVIndex: n, Size: 2, Offset: 17}, t)
		try(tpm2.NVRead{AuthHandle: owner, NVIndex: n, Size: 1025}, t)
		try(tpm2.NVReadLock{AuthHandle: owner, NVIndex: n}, t)
		n = nvName(t, i)
		try(tpm2.NVRead{AuthHandle: owner, NVIndex: n, Size: 4}, t)
		try(tpm2.NVWriteLock{AuthHandle: owner, NVIndex: n}, t)
		n = nvName(t, i)
		try(tpm2.NVWrite{AuthHandle: owner, NVIndex: n, Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte{1, 2, 3, 4}}}, t)
	}
	try(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x01000000, PropertyCount: 100}, t)
	k := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHEndorsement, ""), InPublic: tpm2.New2B(signTemplate(true))}, t)
	n := nvName(t, 0x01800001)
	for _, size := range []uint16{0, 8, 17} {
		try(tpm2.NVCertify{SignHandle: named(k.ObjectHandle, k.Name, tpm2.PasswordAuth(nil)), AuthHandle: owner, NVIndex: n,
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, Size: size}, t)
	}
	flush(t, k.ObjectHandle)
	for i := tpm2.TPMHandle(0x01800001); i <= 0x01800008; i++ {
		try(tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: nvName(t, i)}, t)
	}
	define(0x01800009, counter, 8)
	try(tpm2.NVIncrement{AuthHandle: owner, NVIndex: nvName(t, 0x01800009)}, t)
	try(tpm2.NVRead{AuthHandle: owner, NVIndex: nvName(t, 0x01800009), Size: 8}, t)
}

func policyScenario(t transport.TPM) {
	owner := password(tpm2.TPMRHOwner, "")
	// An index that PolicyNV and PolicyAuthorizeNV look at.
	try(tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: nvPublic(0x01800020, tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true}, 34, nil)}, t)
	n := nvName(t, 0x01800020)
	for _, trial := range []bool{true, false} {
		start := func() (tpm2.TPMHandle, func()) {
			var opts []tpm2.AuthOption
			if trial {
				opts = append(opts, tpm2.Trial())
			}
			s, closer, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16, opts...)
			if err != nil {
				return 0, func() {}
			}
			return s.Handle(), func() { _ = closer() }
		}
		digest := func(s tpm2.TPMHandle) []byte {
			return try(tpm2.PolicyGetDigest{PolicySession: s}, t).PolicyDigest.Buffer
		}
		s, closer := start()
		try(tpm2.PolicyPCR{PolicySession: s, Pcrs: selection(0, 7)}, t)
		pcr := digest(s)
		try(tpm2.PolicyPCR{PolicySession: s, PcrDigest: tpm2.TPM2BDigest{Buffer: sha("no")}, Pcrs: selection(0)}, t)
		try(tpm2.PolicyCommandCode{PolicySession: s, Code: tpm2.TPMCCUnseal}, t)
		try(tpm2.PolicyCommandCode{PolicySession: s, Code: tpm2.TPMCCNVRead}, t)
		digest(s)
		try(tpm2.PolicyAuthValue{PolicySession: s}, t)
		try(tpm2.PolicyNVWritten{PolicySession: s, WrittenSet: true}, t)
		try(tpm2.PolicyNVWritten{PolicySession: s, WrittenSet: false}, t)
		digest(s)
		closer()
		s, closer = start()
		try(tpm2.PolicyPCR{PolicySession: s, Pcrs: selection(0, 7)}, t)
		try(tpm2.PolicyOr{PolicySession: s, PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{{Buffer: sha("a")}, {Buffer: sha("b")}}}}, t)
		try(tpm2.PolicyOr{PolicySession: s, PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{{Buffer: sha("a")}, {Buffer: pcr}}}}, t)
		digest(s)
		try(tpm2.PolicyCPHash{PolicySession: s, CPHashA: tpm2.TPM2BDigest{Buffer: sha("cp")}}, t)
		try(tpm2.PolicyCPHash{PolicySession: s, CPHashA: tpm2.TPM2BDigest{Buffer: sha("cp2")}}, t)
		digest(s)
		closer()
		s, closer = start()
		try(tpm2.PolicyNVWritten{PolicySession: s, WrittenSet: true}, t)
		try(tpm2.PolicySecret{AuthHandle: owner, PolicySession: s, PolicyRef: tpm2.TPM2BNonce{Buffer: []byte("ref")}}, t)
		try(tpm2.PolicySecret{AuthHandle: owner, PolicySession: s, Expiration: -100}, t)
		try(tpm2.PolicySecret{AuthHandle: password(tpm2.TPMRHEndorsement, "wrong"), PolicySession: s}, t)
		try(tpm2.PolicySecret{AuthHandle: owner, PolicySession: s, CPHashA: tpm2.TPM2BDigest{Buffer: []byte("short")}}, t)
		digest(s)
		try(tpm2.PolicyDuplicationSelect{PolicySession: s, ObjectName: tpm2.TPM2BName{Buffer: []byte("object")}, NewParentName: tpm2.TPM2BName{Buffer: []byte("parent")}, IncludeObject: true}, t)
		digest(s)
		try(tpm2.PolicyDuplicationSelect{PolicySession: s, ObjectName: tpm2.TPM2BName{Buffer: []byte("object")}, NewParentName: tpm2.TPM2BName{Buffer: []byte("parent")}}, t)
		closer()
		s, closer = start()
		for _, op := range []tpm2.TPMEO{tpm2.TPMEOUnsignedGE, tpm2.TPMEOEq, tpm2.TPMEOSignedLT, 12} {
			try(tpm2.PolicyNV{AuthHandle: owner, NVIndex: n, PolicySession: s, OperandB: tpm2.TPM2BOperand{Buffer: []byte{0, 0}}, Operation: op}, t)
		}
		digest(s)
		try(tpm2.PolicyAuthorizeNV{AuthHandle: owner, NVIndex: n, PolicySession: s}, t)
		digest(s)
		closer()
		if trial {
			try(tpm2.NVWrite{AuthHandle: owner, NVIndex: n, Data: tpm2.TPM2BMaxNVBuffer{Buffer: append([]byte{0, 0xB}, make([]byte, 32)...)}}, t)
			n = nvName(t, 0x01800020)
			for _, op := range []uint16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11} {
				s, closer, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16)
				if err != nil {
					return
				}
				for _, b := range [][]byte{{0, 0xB}, {0, 0xC}, {0, 0xA}, {0xFF, 0}, make([]byte, 40)} {
					try(tpm2.PolicyNV{AuthHandle: owner, NVIndex: n, PolicySession: s.Handle(), OperandB: tpm2.TPM2BOperand{Buffer: b}, Operation: tpm2.TPMEO(op)}, t)
				}
				try(tpm2.PolicyNV{AuthHandle: owner, NVIndex: n, PolicySession: s.Handle(), OperandB: tpm2.TPM2BOperand{Buffer: []byte{1}}, Offset: 40, Operation: tpm2.TPMEO(op)}, t)
				try(tpm2.PolicyGetDigest{PolicySession: s.Handle()}, t)
				_ = closer()
			}
		}
	}
	policySealed(t)
}

// policySealed unseals under policies that are met and not met.
func policySealed(t transport.TPM) {
	p := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
	parent := named(p.ObjectHandle, p.Name, tpm2.PasswordAuth(nil))
	steps := map[string][]func(transport.TPM, tpm2.TPMISHPolicy, tpm2.TPM2BNonce) error{
		"pcr": {func(t transport.TPM, s tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicyPCR{PolicySession: s, Pcrs: selection(9)}.Execute(t)
			return err
		}},
		"auth": {func(t transport.TPM, s tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicyAuthValue{PolicySession: s}.Execute(t)
			return err
		}},
		"cc": {func(t transport.TPM, s tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicyCommandCode{PolicySession: s, Code: tpm2.TPMCCUnseal}.Execute(t)
			return err
		}},
		"wrong cc": {func(t transport.TPM, s tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicyCommandCode{PolicySession: s, Code: tpm2.TPMCCNVRead}.Execute(t)
			return err
		}},
	}
	for _, name := range []string{"pcr", "auth", "cc", "wrong cc"} {
		s, closer, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
		if err != nil {
			return
		}
		for _, f := range steps[name] {
			_ = f(t, s.Handle(), tpm2.TPM2BNonce{})
		}
		policy := try(tpm2.PolicyGetDigest{PolicySession: s.Handle()}, t).PolicyDigest.Buffer
		_ = closer()
		c := try(tpm2.Create{ParentHandle: parent, InSensitive: sensitive("pw", "sealed"),
			InPublic: tpm2.New2B(sealTemplate(tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: name == "auth"}, policy))}, t)
		l := try(tpm2.Load{ParentHandle: parent, InPrivate: c.OutPrivate, InPublic: c.OutPublic}, t)
		for _, with := range []string{name, "pcr"} {
			s := tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(t transport.TPM, h tpm2.TPMISHPolicy, n tpm2.TPM2BNonce) error {
				return steps[with][0](t, h, n)
			}, tpm2.Auth([]byte("pw")))
			try(tpm2.Unseal{ItemHandle: named(l.ObjectHandle, l.Name, s)}, t)
		}
		try(tpm2.Unseal{ItemHandle: named(l.ObjectHandle, l.Name, tpm2.PasswordAuth([]byte("pw")))}, t)
		flush(t, l.ObjectHandle)
		try(tpm2.PCRExtend{PCRHandle: password(9, ""), Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sha(name)}}}}, t)
	}
	flush(t, p.ObjectHandle)
}

func sessionScenario(t transport.TPM) {
	p := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
	pub, err := p.OutPublic.Contents()
	if err != nil {
		return
	}
	seal := sealTemplate(fixed, nil)
	for _, s := range [][]tpm2.AuthOption{
		{},
		{tpm2.Salted(p.ObjectHandle, *pub)},
		{tpm2.Bound(p.ObjectHandle, p.Name, nil)},
		{tpm2.Salted(p.ObjectHandle, *pub), tpm2.AESEncryption(128, tpm2.EncryptInOut)},
		{tpm2.AESEncryption(256, tpm2.EncryptIn)},
		{tpm2.Bound(p.ObjectHandle, p.Name, nil), tpm2.AESEncryption(128, tpm2.EncryptOut)},
		{tpm2.Auth([]byte("wrong"))},
	} {
		try(tpm2.Create{ParentHandle: named(p.ObjectHandle, p.Name, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, s...)), InSensitive: sensitive("pw", "sealed"),
			InPublic: tpm2.New2B(seal)}, t)
		// The same session beside a password, only for encryption or audit.
		try(tpm2.GetRandom{BytesRequested: 8}, t, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, s...))
	}
	for _, alg := range []tpm2.TPMAlgID{tpm2.TPMAlgSHA1, tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA512} {
		try(tpm2.GetRandom{BytesRequested: 8}, t, tpm2.HMAC(alg, 16, tpm2.AESEncryption(128, tpm2.EncryptOut)))
	}
	// Sessions that go on, and running out of them.
	var closers []func() error
	for range 4 {
		s, closer, err := tpm2.HMACSession(t, tpm2.TPMAlgSHA256, 16)
		if err != nil {
			break
		}
		closers = append(closers, closer)
		for range 2 {
			try(tpm2.Create{ParentHandle: named(p.ObjectHandle, p.Name, s), InSensitive: sensitive("pw", "sealed"), InPublic: tpm2.New2B(seal)}, t)
		}
	}
	try(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x02000000, PropertyCount: 10}, t)
	for _, c := range closers {
		_ = c()
	}
	// Auth values with zeros and of full length.
	for _, pw := range []string{"\x01\x00\x00", "0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef0"} {
		c := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InSensitive: sensitive(pw, "sealed"), InPublic: tpm2.New2B(seal)}, t)
		if c.ObjectHandle == 0 {
			continue
		}
		try(tpm2.Unseal{ItemHandle: named(c.ObjectHandle, c.Name, tpm2.PasswordAuth([]byte(pw)))}, t)
		try(tpm2.Unseal{ItemHandle: named(c.ObjectHandle, c.Name, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth([]byte("no"))))}, t)
		flush(t, c.ObjectHandle)
	}
	try(tpm2.HierarchyChangeAuth{AuthHandle: password(tpm2.TPMRHOwner, ""), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("owner")}}, t)
	try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
	try(tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth([]byte("owner")))}, NewAuth: tpm2.TPM2BAuth{}}, t)
	flush(t, p.ObjectHandle)
	// Lockout: three wrong tries of a protected object.
	c := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InSensitive: sensitive("pin", "x"), InPublic: tpm2.New2B(sealTemplate(fixed, nil))}, t)
	for range 5 {
		try(tpm2.Unseal{ItemHandle: named(c.ObjectHandle, c.Name, tpm2.PasswordAuth([]byte("no")))}, t)
	}
	try(tpm2.Unseal{ItemHandle: named(c.ObjectHandle, c.Name, tpm2.PasswordAuth([]byte("pin")))}, t)
	try(tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: 0x20E, PropertyCount: 4}, t)
	flush(t, c.ObjectHandle)
}

func hashScenario(t transport.TPM) {
	for _, h := range []tpm2.TPMHandle{tpm2.TPMRHOwner, tpm2.TPMRHNull} {
		for _, data := range []string{"data", "\xffTCG...."} {
			try(tpm2.Hash{Data: tpm2.TPM2BMaxBuffer{Buffer: []byte(data)}, HashAlg: tpm2.TPMAlgSHA256, Hierarchy: h}, t)
			s := try(tpm2.HashSequenceStart{HashAlg: tpm2.TPMAlgSHA256, Auth: tpm2.TPM2BAuth{Buffer: []byte("pw")}}, t)
			seq := tpm2.AuthHandle{Handle: s.SequenceHandle, Auth: tpm2.PasswordAuth([]byte("pw"))}
			try(tpm2.SequenceUpdate{SequenceHandle: seq, Buffer: tpm2.TPM2BMaxBuffer{Buffer: []byte(data)}}, t)
			try(tpm2.ReadPublic{ObjectHandle: s.SequenceHandle}, t)
			try(tpm2.SequenceComplete{SequenceHandle: seq, Buffer: tpm2.TPM2BMaxBuffer{Buffer: []byte(data)}, Hierarchy: h}, t)
			flush(t, s.SequenceHandle)
		}
	}
	k := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InSensitive: sensitive("", "hmac key"), InPublic: tpm2.New2B(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgHMAC,
			Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256})}}),
	})}, t)
	for _, alg := range []tpm2.TPMAlgID{tpm2.TPMAlgNull, tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA1} {
		try(tpm2.HmacStart{Handle: named(k.ObjectHandle, k.Name, tpm2.PasswordAuth(nil)), HashAlg: alg}, t)
	}
	flush(t, 0x80000001, 0x80000002, k.ObjectHandle)
	for _, c := range []byte{3, 4, 5, 99} { // TPM2_ECC_Parameters, which go-tpm lacks
		_, _ = t.Send([]byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x78, 0, c})
	}
}
