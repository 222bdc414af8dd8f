package softtpm_test

import (
	"bytes"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// policyKeyScenario uses policies that a key's signature or a ticket meets.
func policyKeyScenario(t transport.TPM) {
	// The key whose secret is one, so that its name is known: the pair to sign
	// with, the public part to verify with.
	public := tpm2.New2B(knownKey())
	k := try(tpm2.LoadExternal{InPublic: public, Hierarchy: tpm2.TPMRHOwner}, t)
	pair := try(tpm2.LoadExternal{InPublic: public, Hierarchy: tpm2.TPMRHNull, InPrivate: tpm2.New2B(tpm2.TPMTSensitive{SensitiveType: tpm2.TPMAlgECC,
		Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: append(make([]byte, 31), 1)})})}, t)
	key := named(pair.ObjectHandle, pair.Name, tpm2.PasswordAuth(nil))
	session := func(f func(h tpm2.TPMHandle, nonce []byte)) {
		s, closer, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16)
		if err != nil {
			return
		}
		f(s.Handle(), s.NonceTPM().Buffer)
		try(tpm2.PolicyGetDigest{PolicySession: s.Handle()}, t)
		_ = closer()
	}
	var ticket tpm2.TPMTTKAuth
	var timeout tpm2.TPM2BTimeout
	session(func(h tpm2.TPMHandle, nonce []byte) {
		for _, use := range [][]byte{nonce, nil, []byte("another nonce...")} {
			for _, expiration := range []int32{0, -1000, 1000} {
				signed := sha(string(use) + string(u32(uint32(expiration))) + "ref")
				sig := try(tpm2.Sign{KeyHandle: key, Digest: tpm2.TPM2BDigest{Buffer: signed}, Validation: nullTicket}, t)
				r := try(tpm2.PolicySigned{AuthObject: tpm2.NamedHandle{Handle: k.ObjectHandle, Name: k.Name}, PolicySession: h, NonceTPM: tpm2.TPM2BNonce{Buffer: use}, PolicyRef: tpm2.TPM2BNonce{Buffer: []byte("ref")},
					Expiration: expiration, Auth: sig.Signature}, t)
				if expiration < 0 && bytes.Equal(use, nonce) {
					ticket, timeout = r.PolicyTicket, r.Timeout
				}
				try(tpm2.PolicySigned{AuthObject: tpm2.NamedHandle{Handle: k.ObjectHandle, Name: k.Name}, PolicySession: h, PolicyRef: tpm2.TPM2BNonce{Buffer: []byte("other")}, Auth: sig.Signature}, t)
			}
		}
	})
	var w []byte
	w = append(w, b2(timeout.Buffer)...)
	w = append(w, b2(nil)...)
	w = append(w, b2([]byte("ref"))...)
	w = append(w, b2(k.Name.Buffer)...)
	w = append(w, u16(uint16(ticket.Tag))...)
	w = append(w, u32(uint32(ticket.Hierarchy))...)
	w = append(w, b2(ticket.Digest.Buffer)...)
	session(func(h tpm2.TPMHandle, _ []byte) {
		raw(t, 0x172, []uint32{uint32(h)}, 0, w) // PolicyTicket
		bad := bytes.Clone(w)
		bad[len(bad)-1] ^= 1
		raw(t, 0x172, []uint32{uint32(h)}, 0, bad)
	})
	// PolicyAuthorize with a signature over the policy of another session.
	session(func(h tpm2.TPMHandle, _ []byte) {
		try(tpm2.PolicyCommandCode{PolicySession: h, Code: tpm2.TPMCCUnseal}, t)
		approved := try(tpm2.PolicyGetDigest{PolicySession: h}, t).PolicyDigest
		aHash := sha(string(approved.Buffer) + "ref")
		sig := try(tpm2.Sign{KeyHandle: key, Digest: tpm2.TPM2BDigest{Buffer: aHash}, Validation: nullTicket}, t)
		v := try(tpm2.VerifySignature{KeyHandle: k.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: aHash}, Signature: sig.Signature}, t)
		for _, ref := range []string{"other", "ref"} {
			try(tpm2.PolicyAuthorize{PolicySession: h, ApprovedPolicy: approved, PolicyRef: tpm2.TPM2BDigest{Buffer: []byte(ref)}, KeySign: k.Name, CheckTicket: v.Validation}, t)
		}
		try(tpm2.PolicyAuthorize{PolicySession: h, ApprovedPolicy: approved, PolicyRef: tpm2.TPM2BDigest{Buffer: []byte("ref")}, KeySign: k.Name, CheckTicket: v.Validation}, t)
	})
	session(func(h tpm2.TPMHandle, _ []byte) {
		for _, loc := range []byte{0, 3, 1, 2, 32, 33} {
			raw(t, 0x16F, []uint32{uint32(h)}, 0, []byte{loc}) // PolicyLocality
		}
		raw(t, 0x187, []uint32{uint32(h)}, 0) // PolicyPhysicalPresence
		raw(t, 0x18C, []uint32{uint32(h)}, 0) // PolicyPassword
		raw(t, 0x170, []uint32{uint32(h)}, 0, b2(sha("names")))
		raw(t, 0x190, []uint32{uint32(h)}, 0, b2(sha("template")))
		raw(t, 0x170, []uint32{uint32(h)}, 0, b2(sha("names")))
		raw(t, 0x180, []uint32{uint32(h)}, 0) // PolicyRestart
		raw(t, 0x190, []uint32{uint32(h)}, 0, b2(sha("template")))
		raw(t, 0x190, []uint32{uint32(h)}, 0, b2(sha("template")[1:]))
	})
	session(func(h tpm2.TPMHandle, _ []byte) {
		for _, op := range []uint16{0, 3, 5, 20} { // PolicyCounterTimer on resetCount
			raw(t, 0x16D, []uint32{uint32(h)}, 0, b2(u32(0)), u16(16), u16(op))
		}
		raw(t, 0x16D, []uint32{uint32(h)}, 0, b2(u32(0)), u16(26), u16(0))
		raw(t, 0x16D, []uint32{uint32(h)}, 0, b2(u32(0)), u16(23), u16(0))
	})
	flush(t, k.ObjectHandle, pair.ObjectHandle)
}

// knownKey is a P-256 signing key whose private scalar is one.
func knownKey() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true, NoDA: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unhex("6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")},
			Y: tpm2.TPM2BECCParameter{Buffer: unhex("4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")},
		})}
}

// moveScenario saves and loads contexts, and moves keys between parents.
func moveScenario(t transport.TPM) {
	p := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
	parent := named(p.ObjectHandle, p.Name, tpm2.PasswordAuth(nil))
	saved := try(tpm2.ContextSave{SaveHandle: p.ObjectHandle}, t)
	l := try(tpm2.ContextLoad{Context: saved.Context}, t)
	try(tpm2.ReadPublic{ObjectHandle: l.LoadedHandle}, t)
	flush(t, l.LoadedHandle)
	bad := saved.Context
	bad.ContextBlob.Buffer = bytes.Clone(bad.ContextBlob.Buffer)
	if n := len(bad.ContextBlob.Buffer); n > 0 {
		bad.ContextBlob.Buffer[n-1] ^= 1
	}
	try(tpm2.ContextLoad{Context: bad}, t)
	s, _, err := tpm2.HMACSession(t, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return
	}
	ss := try(tpm2.ContextSave{SaveHandle: s.Handle()}, t)
	try(tpm2.ContextSave{SaveHandle: s.Handle()}, t)
	try(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x02000000, PropertyCount: 9}, t)
	try(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x03000000, PropertyCount: 9}, t)
	sl := try(tpm2.ContextLoad{Context: ss.Context}, t)
	try(tpm2.ContextLoad{Context: ss.Context}, t)
	flush(t, sl.LoadedHandle)
	try(tpm2.ContextLoad{Context: ss.Context}, t)
	// Duplication under a policy.
	trial, closer, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16, tpm2.Trial())
	if err != nil {
		return
	}
	try(tpm2.PolicyCommandCode{PolicySession: trial.Handle(), Code: tpm2.TPMCCDuplicate}, t)
	policy := try(tpm2.PolicyGetDigest{PolicySession: trial.Handle()}, t).PolicyDigest
	_ = closer()
	template := signTemplate(false)
	template.ObjectAttributes.FixedTPM, template.ObjectAttributes.FixedParent = false, false
	template.AuthPolicy = policy
	c := try(tpm2.Create{ParentHandle: parent, InPublic: tpm2.New2B(template)}, t)
	k := try(tpm2.Load{ParentHandle: parent, InPrivate: c.OutPrivate, InPublic: c.OutPublic}, t)
	np := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHEndorsement, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
	may := tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(t transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicyCommandCode{PolicySession: h, Code: tpm2.TPMCCDuplicate}.Execute(t)
		return err
	})
	none := tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull}
	newParent := tpm2.NamedHandle{Handle: np.ObjectHandle, Name: np.Name}
	try(tpm2.Duplicate{ObjectHandle: named(k.ObjectHandle, k.Name, tpm2.PasswordAuth(nil)), NewParentHandle: newParent, Symmetric: none}, t)
	d := try(tpm2.Duplicate{ObjectHandle: named(k.ObjectHandle, k.Name, may), NewParentHandle: newParent, Symmetric: none}, t)
	into := named(np.ObjectHandle, np.Name, tpm2.PasswordAuth(nil))
	im := try(tpm2.Import{ParentHandle: into, ObjectPublic: c.OutPublic, Duplicate: d.Duplicate, InSymSeed: d.OutSymSeed, Symmetric: none}, t)
	try(tpm2.Import{ParentHandle: parent, ObjectPublic: c.OutPublic, Duplicate: d.Duplicate, InSymSeed: d.OutSymSeed, Symmetric: none}, t)
	flush(t, k.ObjectHandle)
	k = try(tpm2.Load{ParentHandle: into, InPrivate: im.OutPrivate, InPublic: c.OutPublic}, t)
	try(tpm2.ReadPublic{ObjectHandle: k.ObjectHandle}, t)
	plain := try(tpm2.Duplicate{ObjectHandle: named(k.ObjectHandle, k.Name, may), NewParentHandle: tpm2.TPMRHNull, Symmetric: none}, t)
	try(tpm2.Import{ParentHandle: parent, ObjectPublic: c.OutPublic, Duplicate: plain.Duplicate, Symmetric: none}, t)
	flush(t, k.ObjectHandle)
	// A key pair that is loaded in the clear, and CreateLoaded.
	cl := try(tpm2.CreateLoaded{ParentHandle: parent, InPublic: tpm2.New2BTemplate(&template)}, t)
	try(tpm2.ReadPublic{ObjectHandle: cl.ObjectHandle}, t)
	flush(t, cl.ObjectHandle)
	cl = try(tpm2.CreateLoaded{ParentHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2BTemplate(&tpm2.ECCSRKTemplate)}, t)
	try(tpm2.ReadPublic{ObjectHandle: cl.ObjectHandle}, t)
	flush(t, cl.ObjectHandle, p.ObjectHandle, np.ObjectHandle)
}

// rsaScenario makes RSA keys, which takes time.
func rsaScenario(t transport.TPM) {
	p := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.RSASRKTemplate)}, t)
	pub, err := p.OutPublic.Contents()
	if err != nil {
		return
	}
	try(tpm2.ReadPublic{ObjectHandle: p.ObjectHandle}, t)
	salted := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(p.ObjectHandle, *pub), tpm2.AESEncryption(128, tpm2.EncryptInOut))
	template := tpm2.TPMTPublic{Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true, Decrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048})}
	c := try(tpm2.Create{ParentHandle: named(p.ObjectHandle, p.Name, salted), InPublic: tpm2.New2B(template)}, t)
	k := try(tpm2.Load{ParentHandle: named(p.ObjectHandle, p.Name, tpm2.PasswordAuth(nil)), InPrivate: c.OutPrivate, InPublic: c.OutPublic}, t)
	key := named(k.ObjectHandle, k.Name, tpm2.PasswordAuth(nil))
	for _, alg := range []tpm2.TPMAlgID{tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS} {
		for _, h := range []tpm2.TPMAlgID{tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA1} {
			scheme := tpm2.TPMTSigScheme{Scheme: alg, Details: tpm2.NewTPMUSigScheme(alg, &tpm2.TPMSSchemeHash{HashAlg: h})}
			s := try(tpm2.Sign{KeyHandle: key, Digest: tpm2.TPM2BDigest{Buffer: sha("m")}, InScheme: scheme, Validation: nullTicket}, t)
			if h == tpm2.TPMAlgSHA256 {
				try(tpm2.VerifySignature{KeyHandle: k.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: sha("m")}, Signature: s.Signature}, t)
				try(tpm2.VerifySignature{KeyHandle: k.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: sha("n")}, Signature: s.Signature}, t)
			}
		}
	}
	try(tpm2.Sign{KeyHandle: key, Digest: tpm2.TPM2BDigest{Buffer: sha("m")}, Validation: nullTicket}, t)
	for _, scheme := range []tpm2.TPMTRSADecrypt{
		{Scheme: tpm2.TPMAlgOAEP, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgOAEP, &tpm2.TPMSEncSchemeOAEP{HashAlg: tpm2.TPMAlgSHA256})},
		{Scheme: tpm2.TPMAlgRSAES, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAES, &tpm2.TPMSEncSchemeRSAES{})},
		{Scheme: tpm2.TPMAlgNull},
	} {
		for _, label := range []string{"", "label\x00", "label"} {
			e := try(tpm2.RSAEncrypt{KeyHandle: k.ObjectHandle, Message: tpm2.TPM2BPublicKeyRSA{Buffer: []byte("message")}, InScheme: scheme, Label: tpm2.TPM2BData{Buffer: []byte(label)}}, t)
			try(tpm2.RSADecrypt{KeyHandle: key, CipherText: e.OutData, InScheme: scheme, Label: tpm2.TPM2BData{Buffer: []byte(label)}}, t)
		}
		try(tpm2.RSADecrypt{KeyHandle: key, CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{7}, 256)}, InScheme: tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgRSAES, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAES, &tpm2.TPMSEncSchemeRSAES{})}}, t)
		try(tpm2.RSADecrypt{KeyHandle: key, CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xFF}, 256)}, InScheme: scheme}, t)
		try(tpm2.RSADecrypt{KeyHandle: key, CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 255)}, InScheme: scheme}, t)
	}
	try(tpm2.RSADecrypt{KeyHandle: named(p.ObjectHandle, p.Name, tpm2.PasswordAuth(nil)), CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 256)}, InScheme: tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgNull}}, t)
	mc := try(tpm2.MakeCredential{Handle: p.ObjectHandle, Credential: tpm2.TPM2BDigest{Buffer: []byte("credential")}, ObjectName: k.Name}, t)
	try(tpm2.ActivateCredential{ActivateHandle: key, KeyHandle: named(p.ObjectHandle, p.Name, tpm2.PasswordAuth(nil)), CredentialBlob: mc.CredentialBlob, Secret: mc.Secret}, t)
	flush(t, k.ObjectHandle)
	// Templates that must be refused.
	for _, bits := range []uint16{512, 2047} {
		bad := template
		bad.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: tpm2.TPMIRSAKeyBits(bits)})
		try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(bad)}, t)
	}
	for _, exponent := range []uint32{1, 2, 3, 65535, 65536} {
		bad := template
		bad.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048, Exponent: exponent})
		if r := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(bad)}, t); r.ObjectHandle != 0 {
			flush(t, r.ObjectHandle)
		}
	}
	flush(t, p.ObjectHandle)
}

// symmetricScenario encrypts with a symmetric key and computes HMACs.
func symmetricScenario(t transport.TPM) {
	for _, mode := range []tpm2.TPMAlgID{tpm2.TPMAlgCFB, tpm2.TPMAlgCTR, tpm2.TPMAlgCBC, tpm2.TPMAlgECB, tpm2.TPMAlgOFB, tpm2.TPMAlgNull} {
		k := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InSensitive: sensitive("", "0123456789abcdef"), InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgSymCipher, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, SignEncrypt: true, Decrypt: true},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgSymCipher, &tpm2.TPMSSymCipherParms{Sym: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES,
				KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)), Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, mode)}}),
		})}, t)
		for _, size := range []int{0, 5, 16, 40} {
			for _, m := range []uint16{0x10, 0x43} {
				raw(t, 0x193, []uint32{uint32(k.ObjectHandle)}, 1, b2(bytes.Repeat([]byte{7}, size)), []byte{0}, u16(m), b2(bytes.Repeat([]byte{9}, 16)))
				raw(t, 0x164, []uint32{uint32(k.ObjectHandle)}, 1, []byte{1}, u16(m), b2(bytes.Repeat([]byte{9}, 16)), b2(bytes.Repeat([]byte{7}, size)))
			}
		}
		raw(t, 0x193, []uint32{uint32(k.ObjectHandle)}, 1, b2(make([]byte, 16)), []byte{0}, u16(0x10), b2(nil))
		if k.ObjectHandle != 0 {
			flush(t, k.ObjectHandle)
		}
	}
	for _, alg := range []tpm2.TPMAlgID{tpm2.TPMAlgSHA256, tpm2.TPMAlgNull} {
		params := &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}
		if alg != tpm2.TPMAlgNull {
			params.Scheme = tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgHMAC, Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: alg})}
		}
		k := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InSensitive: sensitive("", "hmac key"), InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, SignEncrypt: true, Decrypt: alg == tpm2.TPMAlgNull},
			Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, params)})}, t)
		for _, h := range []uint16{0x10, 0x0B, 0x04} {
			raw(t, 0x155, []uint32{uint32(k.ObjectHandle)}, 1, b2([]byte("data")), u16(h))
		}
		try(tpm2.Sign{KeyHandle: named(k.ObjectHandle, k.Name, tpm2.PasswordAuth(nil)), Digest: tpm2.TPM2BDigest{Buffer: sha("m")}, Validation: nullTicket}, t)
		try(tpm2.Unseal{ItemHandle: named(k.ObjectHandle, k.Name, tpm2.PasswordAuth(nil))}, t)
		if k.ObjectHandle != 0 {
			flush(t, k.ObjectHandle)
		}
	}
	for _, n := range []int{1, 127, 128, 129} {
		k := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InSensitive: sensitive("", string(make([]byte, n))), InPublic: tpm2.New2B(sealTemplate(fixed, nil))}, t)
		if k.ObjectHandle != 0 {
			flush(t, k.ObjectHandle)
		}
	}
}
