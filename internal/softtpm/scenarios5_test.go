package softtpm_test

import (
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// pinScenario uses PIN indices, which count how often a value is used or
// missed.
func pinScenario(t transport.TPM) {
	owner := password(tpm2.TPMRHOwner, "")
	for i, nt := range []tpm2.TPMNT{tpm2.TPMNTPinFail, tpm2.TPMNTPinPass} {
		h := tpm2.TPMHandle(0x01800050 + i)
		attrs := tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, NT: nt}
		try(tpm2.NVDefineSpace{AuthHandle: owner, Auth: tpm2.TPM2BAuth{Buffer: []byte("pin")}, PublicInfo: nvPublic(h, attrs, 8, nil)}, t)
		secret := func(pin string) {
			s, closer, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16)
			if err != nil {
				return
			}
			n := nvName(t, h)
			try(tpm2.PolicySecret{AuthHandle: tpm2.AuthHandle{Handle: h, Name: n.Name, Auth: tpm2.PasswordAuth([]byte(pin))}, PolicySession: s.Handle()}, t)
			try(tpm2.PolicySecret{AuthHandle: tpm2.AuthHandle{Handle: h, Name: n.Name, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth([]byte(pin)))}, PolicySession: s.Handle()}, t)
			_ = closer()
			try(tpm2.NVRead{AuthHandle: owner, NVIndex: nvName(t, h), Size: 8}, t)
		}
		secret("pin") // not written yet
		try(tpm2.NVWrite{AuthHandle: owner, NVIndex: nvName(t, h), Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte{0, 0, 0, 0, 0, 0, 0, 5}}}, t)
		for _, pin := range []string{"pin", "no", "pin", "no", "no", "no", "pin"} {
			secret(pin)
		}
		n := nvName(t, h)
		try(tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: h, Name: n.Name, Auth: tpm2.PasswordAuth([]byte("pin"))}, NVIndex: n, Size: 8}, t)
		attrs.NoDA = false
		try(tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: nvPublic(h+0x10, attrs, 8, nil)}, t)
		attrs.AuthWrite = true
		try(tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: nvPublic(h+0x10, attrs, 8, nil)}, t)
	}
}
