package softtpm_test

import (
	"bytes"
	"crypto/sha256"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// scenario is a sequence of commands that is run on two TPMs. It goes on when
// a command fails: the failures are compared too.
type scenario struct {
	name  string
	run   func(t transport.TPM)
	plain bool // not with mutations
}

var scenarios = []scenario{
	{"pcr", pcrScenario, false}, {"objects", objectScenario, false}, {"keys", keyScenario, false}, {"attest", attestScenario, false},
	{"nv", nvScenario, false}, {"policy", policyScenario, false}, {"sessions", sessionScenario, false}, {"hash", hashScenario, false},
	{"power", powerScenario, true}, {"lockout", lockoutScenario, true}, {"hierarchy", hierarchyScenario, true},
	{"unknown", unknownScenario, true}, {"policykeys", policyKeyScenario, false}, {"move", moveScenario, false},
	{"rsa", rsaScenario, true}, {"symmetric", symmetricScenario, false}, {"pin", pinScenario, true},
}

// try runs a command and returns its response, or an empty one.
func try[R any](c interface {
	Execute(transport.TPM, ...tpm2.Session) (*R, error)
}, t transport.TPM, s ...tpm2.Session) *R {
	if r, err := c.Execute(t, s...); err == nil {
		return r
	}
	return new(R)
}

func flush(t transport.TPM, handles ...tpm2.TPMHandle) {
	for _, h := range handles {
		try(tpm2.FlushContext{FlushHandle: h}, t)
	}
}

func password(h tpm2.TPMHandle, pw string) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Auth: tpm2.PasswordAuth([]byte(pw))}
}

func named(h tpm2.TPMHandle, name tpm2.TPM2BName, s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: name, Auth: s}
}

func sha(s string) []byte {
	d := sha256.Sum256([]byte(s))
	return d[:]
}

func selection(pcrs ...uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)}}}
}

func pcrScenario(t transport.TPM) {
	for _, pcr := range []tpm2.TPMHandle{0, 16, 17, 23, tpm2.TPMRHNull} {
		try(tpm2.PCRExtend{PCRHandle: password(pcr, ""), Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sha("a")}}}}, t)
	}
	try(tpm2.PCREvent{PCRHandle: password(8, ""), EventData: tpm2.TPM2BEvent{Buffer: []byte("event")}}, t)
	try(tpm2.PCRRead{PCRSelectionIn: selection(0, 8, 16, 17, 23)}, t)
	try(tpm2.PCRReset{PCRHandle: password(16, "")}, t)
	try(tpm2.PCRReset{PCRHandle: password(0, "")}, t)
	try(tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA1, PCRSelect: []byte{0xFF, 0, 0}}, {Hash: tpm2.TPMAlgSHA512, PCRSelect: []byte{0xFF, 0, 0}}}}}, t)
	try(tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}, t)
	try(tpm2.GetCapability{Capability: tpm2.TPMCapECCCurves, Property: 3, PropertyCount: 2}, t)
	try(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x40000000, PropertyCount: 1}, t)
	try(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x50000000, PropertyCount: 1}, t)
	try(tpm2.GetCapability{Capability: 99, PropertyCount: 1}, t)
	try(tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, Property: 1, PropertyCount: 1}, t)
	try(tpm2.GetRandom{BytesRequested: 100}, t)
}

func sealTemplate(attrs tpm2.TPMAObject, policy []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attrs, AuthPolicy: tpm2.TPM2BDigest{Buffer: policy}}
}

func sensitive(auth, data string) tpm2.TPM2BSensitiveCreate {
	s := &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte(auth)}}
	if data != "" {
		s.Data = tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: []byte(data)})
	}
	return tpm2.TPM2BSensitiveCreate{Sensitive: s}
}

var fixed = tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true}

func objectScenario(t transport.TPM) {
	p := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(tpm2.ECCSRKTemplate),
		OutsideInfo: tpm2.TPM2BData{Buffer: []byte("outside")}, CreationPCR: selection(0, 7)}, t)
	parent := named(p.ObjectHandle, p.Name, tpm2.PasswordAuth(nil))
	try(tpm2.ReadPublic{ObjectHandle: p.ObjectHandle}, t)
	c := try(tpm2.Create{ParentHandle: parent, InSensitive: sensitive("pw", "sealed"), InPublic: tpm2.New2B(sealTemplate(fixed, nil)),
		CreationPCR: selection(1)}, t)
	l := try(tpm2.Load{ParentHandle: parent, InPrivate: c.OutPrivate, InPublic: c.OutPublic}, t)
	try(tpm2.ReadPublic{ObjectHandle: l.ObjectHandle}, t)
	try(tpm2.Unseal{ItemHandle: named(p.ObjectHandle, p.Name, tpm2.PasswordAuth(nil))}, t)
	noDA := fixed
	noDA.NoDA = true
	c2 := try(tpm2.Create{ParentHandle: parent, InSensitive: sensitive("pw", "sealed"), InPublic: tpm2.New2B(sealTemplate(noDA, nil))}, t)
	flush(t, l.ObjectHandle)
	l2 := try(tpm2.Load{ParentHandle: parent, InPrivate: c2.OutPrivate, InPublic: c2.OutPublic}, t)
	try(tpm2.Unseal{ItemHandle: named(l2.ObjectHandle, l2.Name, tpm2.PasswordAuth([]byte("pw")))}, t)
	try(tpm2.Unseal{ItemHandle: named(l2.ObjectHandle, l2.Name, tpm2.PasswordAuth([]byte("wrong")))}, t)
	try(tpm2.ObjectChangeAuth{ObjectHandle: named(l2.ObjectHandle, l2.Name, tpm2.PasswordAuth([]byte("pw"))), ParentHandle: parent,
		NewAuth: tpm2.TPM2BAuth{Buffer: []byte("new")}}, t)
	// Loading what belongs to another object.
	try(tpm2.Load{ParentHandle: parent, InPrivate: c.OutPrivate, InPublic: c2.OutPublic}, t)
	// Slots run out.
	l3 := try(tpm2.Load{ParentHandle: parent, InPrivate: c.OutPrivate, InPublic: c.OutPublic}, t)
	try(tpm2.Load{ParentHandle: parent, InPrivate: c.OutPrivate, InPublic: c.OutPublic}, t)
	try(tpm2.Create{ParentHandle: parent, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}, t)
	flush(t, l2.ObjectHandle, l3.ObjectHandle, l3.ObjectHandle)
	// Persistence.
	for _, h := range []tpm2.TPMHandle{0x81000010, 0x81000010, 0x81800000, 0x80000000} {
		try(tpm2.EvictControl{Auth: password(tpm2.TPMRHOwner, ""), ObjectHandle: tpm2.NamedHandle{Handle: p.ObjectHandle, Name: p.Name}, PersistentHandle: h}, t)
	}
	try(tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81000010)}, t)
	try(tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81000011)}, t)
	try(tpm2.EvictControl{Auth: password(tpm2.TPMRHOwner, ""), ObjectHandle: tpm2.NamedHandle{Handle: 0x81000010, Name: p.Name}, PersistentHandle: 0x81000011}, t)
	try(tpm2.EvictControl{Auth: password(tpm2.TPMRHOwner, ""), ObjectHandle: tpm2.NamedHandle{Handle: 0x81000010, Name: p.Name}, PersistentHandle: 0x81000010}, t)
	// Templates that must be refused.
	for _, edit := range []func(*tpm2.TPMTPublic){
		func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false },
		func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = true },
		func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		func(p *tpm2.TPMTPublic) { p.ObjectAttributes.EncryptedDuplication = true },
		func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false },
		func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = false },
		func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = []byte{1, 2, 3} },
		func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgNull },
		func(p *tpm2.TPMTPublic) {
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256})
		},
		func(p *tpm2.TPMTPublic) {
			d, _ := p.Parameters.ECCDetail()
			e := *d
			e.CurveID = tpm2.TPMECCNistP384
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &e)
		},
	} {
		template := tpm2.ECCSRKTemplate
		edit(&template)
		r := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHNull, ""), InPublic: tpm2.New2B(template)}, t)
		if r.ObjectHandle != 0 {
			flush(t, r.ObjectHandle)
		}
		try(tpm2.Create{ParentHandle: parent, InPublic: tpm2.New2B(template)}, t)
	}
	flush(t, p.ObjectHandle)
}

func signTemplate(restricted bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true, Restricted: restricted, NoDA: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

var nullTicket = tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}

func keyScenario(t transport.TPM) {
	for _, restricted := range []bool{false, true} {
		k := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(signTemplate(restricted))}, t)
		key := named(k.ObjectHandle, k.Name, tpm2.PasswordAuth(nil))
		sig := try(tpm2.Sign{KeyHandle: key, Digest: tpm2.TPM2BDigest{Buffer: sha("m")}, Validation: nullTicket}, t)
		try(tpm2.Sign{KeyHandle: key, Digest: tpm2.TPM2BDigest{Buffer: sha("m")[:20]}, Validation: nullTicket}, t)
		h := try(tpm2.Hash{Data: tpm2.TPM2BMaxBuffer{Buffer: []byte("m")}, HashAlg: tpm2.TPMAlgSHA256, Hierarchy: tpm2.TPMRHOwner}, t)
		if len(h.OutHash.Buffer) > 0 {
			sig = try(tpm2.Sign{KeyHandle: key, Digest: h.OutHash, Validation: h.Validation}, t)
		}
		try(tpm2.VerifySignature{KeyHandle: k.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: sha("m")}, Signature: sig.Signature}, t)
		try(tpm2.VerifySignature{KeyHandle: k.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: sha("other")}, Signature: sig.Signature}, t)
		try(tpm2.RSADecrypt{KeyHandle: key, CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 256)}, InScheme: tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgNull}}, t)
		try(tpm2.ECDHZGen{KeyHandle: key, InPoint: tpm2.New2B(tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte{1}}, Y: tpm2.TPM2BECCParameter{Buffer: []byte{1}}})}, t)
		flush(t, k.ObjectHandle)
	}
	// A key of the owner, loaded from outside.
	k := knownKey()
	k.ObjectAttributes.NoDA = false
	k.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256})
	for _, h := range []tpm2.TPMHandle{tpm2.TPMRHOwner, tpm2.TPMRHNull, tpm2.TPMRHEndorsement} {
		l := try(tpm2.LoadExternal{InPublic: tpm2.New2B(k), Hierarchy: h}, t)
		try(tpm2.ReadPublic{ObjectHandle: l.ObjectHandle}, t)
		try(tpm2.Sign{KeyHandle: named(l.ObjectHandle, l.Name, tpm2.PasswordAuth(nil)), Digest: tpm2.TPM2BDigest{Buffer: sha("m")}, Validation: nullTicket}, t)
		try(tpm2.EvictControl{Auth: password(tpm2.TPMRHOwner, ""), ObjectHandle: tpm2.NamedHandle{Handle: l.ObjectHandle, Name: l.Name}, PersistentHandle: 0x81000020}, t)
		flush(t, l.ObjectHandle)
	}
	k.NameAlg = tpm2.TPMAlgNull
	l := try(tpm2.LoadExternal{InPublic: tpm2.New2B(k), Hierarchy: tpm2.TPMRHNull}, t)
	flush(t, l.ObjectHandle)
	// Credentials.
	ek := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHEndorsement, ""), InPublic: tpm2.New2B(tpm2.ECCEKTemplate)}, t)
	ak := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHEndorsement, ""), InPublic: tpm2.New2B(signTemplate(true))}, t)
	mc := try(tpm2.MakeCredential{Handle: ek.ObjectHandle, Credential: tpm2.TPM2BDigest{Buffer: []byte("credential")}, ObjectName: ak.Name}, t)
	policy := tpm2.Policy(tpm2.TPMAlgSHA256, 16, tpm2.PolicyCallback(func(t transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{AuthHandle: password(tpm2.TPMRHEndorsement, ""), PolicySession: h}.Execute(t)
		return err
	}))
	try(tpm2.ActivateCredential{ActivateHandle: named(ak.ObjectHandle, ak.Name, tpm2.PasswordAuth(nil)), KeyHandle: named(ek.ObjectHandle, ek.Name, policy),
		CredentialBlob: mc.CredentialBlob, Secret: mc.Secret}, t)
	try(tpm2.ActivateCredential{ActivateHandle: named(ak.ObjectHandle, ak.Name, tpm2.PasswordAuth(nil)), KeyHandle: named(ek.ObjectHandle, ek.Name, tpm2.PasswordAuth(nil)),
		CredentialBlob: mc.CredentialBlob, Secret: mc.Secret}, t)
	try(tpm2.MakeCredential{Handle: ak.ObjectHandle, Credential: tpm2.TPM2BDigest{Buffer: []byte("credential")}, ObjectName: ak.Name}, t)
	flush(t, ek.ObjectHandle, ak.ObjectHandle)
}

func attestScenario(t transport.TPM) {
	k := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHEndorsement, ""), InPublic: tpm2.New2B(signTemplate(true))}, t)
	o := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InPublic: tpm2.New2B(signTemplate(false))}, t)
	key, other := named(k.ObjectHandle, k.Name, tpm2.PasswordAuth(nil)), named(o.ObjectHandle, o.Name, tpm2.PasswordAuth(nil))
	extra := tpm2.TPM2BData{Buffer: []byte("nonce")}
	ecdsa := func(h tpm2.TPMAlgID) tpm2.TPMTSigScheme {
		return tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: h})}
	}
	try(tpm2.Quote{SignHandle: key, QualifyingData: extra, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selection(0, 7, 17)}, t)
	try(tpm2.Quote{SignHandle: key, QualifyingData: extra, InScheme: ecdsa(tpm2.TPMAlgSHA256), PCRSelect: tpm2.TPMLPCRSelection{}}, t)
	try(tpm2.Quote{SignHandle: key, QualifyingData: extra, InScheme: ecdsa(tpm2.TPMAlgSHA384), PCRSelect: selection(1)}, t)
	try(tpm2.Certify{ObjectHandle: other, SignHandle: key, QualifyingData: extra, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}, t)
	try(tpm2.CertifyCreation{SignHandle: key, ObjectHandle: tpm2.NamedHandle{Handle: o.ObjectHandle, Name: o.Name}, QualifyingData: extra,
		CreationHash: o.CreationHash, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, CreationTicket: o.CreationTicket}, t)
	try(tpm2.CertifyCreation{SignHandle: key, ObjectHandle: tpm2.NamedHandle{Handle: k.ObjectHandle, Name: k.Name}, QualifyingData: extra,
		CreationHash: o.CreationHash, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, CreationTicket: o.CreationTicket}, t)
	seal := try(tpm2.CreatePrimary{PrimaryHandle: password(tpm2.TPMRHOwner, ""), InSensitive: sensitive("", "x"), InPublic: tpm2.New2B(sealTemplate(fixed, nil))}, t)
	try(tpm2.Quote{SignHandle: named(seal.ObjectHandle, seal.Name, tpm2.PasswordAuth(nil)), QualifyingData: extra, InScheme: ecdsa(tpm2.TPMAlgSHA256), PCRSelect: selection(1)}, t)
	flush(t, k.ObjectHandle, o.ObjectHandle, seal.ObjectHandle)
}

func unhex(s string) []byte {
	out := make([]byte, len(s)/2)
	for i := range out {
		for _, c := range []byte(s[2*i : 2*i+2]) {
			out[i] = out[i]<<4 | byte(bytes.IndexByte([]byte("0123456789abcdef"), c))
		}
	}
	return out
}
