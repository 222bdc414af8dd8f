package attest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/internal/tpm"
	"github.com/trusttree/trusttree/internal/tpm/tpmtest"
)

// T5 (CVE-2021-42299): a bank that firmware does not extend proves nothing,
// and it is the policy that chooses the bank.
func TestT5UnextendedBank(t *testing.T) {
	c, m := softCloud(t, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) { v.Extended = nil })
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	for name, value := range map[string][]byte{"all zero": nil, "all one": bytes.Repeat([]byte{0xff}, 32)} {
		n.PCRs = map[int][]byte{0: value}
		_, err = softAttest(c, n)
		require.ErrorIs(t, err, attest.ErrUnmeasured, name)
	}
	n.PCRs = map[int][]byte{0: bytes.Repeat([]byte{1}, 32)}
	_, err = softAttest(c, n)
	require.NoError(t, err)
	_, err = attest.NewVerifier(attest.VerifierConfig{
		Devices: c.devices, Challenges: c.challenges, Appraisers: []attest.Appraiser{func(context.Context, attest.Input) attest.Opinion { return attest.Opinion{} }},
		PCRs: []quote.Selection{{Bank: 3, PCRs: []int{0}}},
	})
	require.ErrorIs(t, err, quote.ErrSelection, "SHA-1")
	require.ErrorIs(t, err, reason.SHA1Bank)
	_, err = attest.NewVerifier(attest.VerifierConfig{
		Devices: c.devices, Challenges: c.challenges, Appraisers: []attest.Appraiser{func(context.Context, attest.Input) attest.Opinion { return attest.Opinion{} }},
		PCRs: []quote.Selection{{Bank: 5, PCRs: []int{0}}}, Extended: []int{7},
	})
	require.ErrorContains(t, err, "PCR 7 is in Extended and not demanded")
}

// T7 (CVE-2021-3406): whoever shows another TPM's certificate gets a
// credential that only that TPM opens. The key is the certificate's; a public
// area is not part of the request.
func TestT7EndorsementKeyOfAnother(t *testing.T) {
	victimTPM, endorsers := newTPM(t)
	victim := open(t, victimTPM, attest.NodeConfig{Endorsers: endorsers})
	thiefTPM, _ := newTPM(t)
	thief := open(t, thiefTPM, attest.NodeConfig{Endorsers: endorsers})
	c := newCloud(t, endorsers)
	req := thief.EnrollmentRequest(nil)
	req.EKCertificates = victim.EnrollmentRequest(nil).EKCertificates
	ch, err := c.registrar.Begin(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, victim.Device(), ch.Device)
	key, err := thief.DeviceKey(t.Context())
	require.NoError(t, err)
	_, err = thief.Activate(t.Context(), ch, key)
	require.ErrorIs(t, err, attest.ErrChallenge, "an honest node sees that it is not meant")
	require.ErrorIs(t, err, reason.OtherDevice)
	ch.Device = thief.Device()
	_, err = thief.Activate(t.Context(), ch, key)
	require.ErrorIs(t, err, attest.ErrActivation)
	require.ErrorIs(t, err, reason.OtherTPM)
	_, err = c.devices.Get(t.Context(), victim.Device())
	require.ErrorIs(t, err, registry.ErrNotFound, "nothing was bound")
}

// T13: known bad firmware is refused by what the quote signs; a maker without
// a floor is refused once there are floors.
func TestT13FirmwareFloor(t *testing.T) {
	for floor, ok := range map[string]bool{"id:54524553": true, "id:4E544300": false} {
		c, m := softCloud(t, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) {
			v.Endorsers.MinFirmware = map[string]uint64{floor: 1}
		})
		n := softnode.NewNode(m)
		_, err := softEnroll(c, n)
		require.NoError(t, err)
		_, err = softAttest(c, n)
		if ok {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, attest.ErrFirmware)
			require.ErrorIs(t, err, reason.NoFloor)
		}
	}
}

// T13: outside the endorsement hierarchy a TPM adds a secret number to its
// firmware version: old firmware looks like new one, and does not pass for it.
func TestT13ObscuredFirmware(t *testing.T) {
	c, m := softCloud(t, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) {
		v.Endorsers.MinFirmware = map[string]uint64{"id:54524553": 7}
	})
	n := softnode.NewNode(m)
	n.Hierarchy, n.Firmware = 0x40000001, 0x8fc0_1234_5678_9abc // the owner's
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	_, err = softAttest(c, n)
	require.ErrorIs(t, err, attest.ErrFirmware)
	require.ErrorIs(t, err, reason.ObscuredFirmware)
	n.Hierarchy, n.Firmware = 0x4000000B, 7
	_, err = softAttest(c, n)
	require.NoError(t, err)
}

// T16: a key that Go can't read is an error that says so, never a nil key.
func TestT16RSASSAPSSCertificate(t *testing.T) {
	m := softnode.NewMaker()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	c, err := x509.ParseCertificate(m.Sign(m.EKTemplate(key.Public()), key.Public()))
	require.NoError(t, err)
	for name, last := range map[string]byte{"RSASSA-PSS": 10, "RSAES-OAEP": 7} {
		der := m.Resign(bytes.Replace(c.RawTBSCertificate, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1}, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last}, 1))
		_, err = attest.Endorsers{Anchors: []*x509.Certificate{m.Issuer}}.Verify([][]byte{der}, time.Now())
		require.ErrorIs(t, err, attest.ErrUntrustedEK, name)
		require.ErrorIs(t, err, reason.UnreadableKey, name)
	}
}

// T8: while evidence was under way its device was revoked, released and
// enrolled anew with another attestation key: what the old key said is void.
func TestT8KeyReplacedUnderWay(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	c.opinion = func(attest.Input) attest.Opinion {
		require.NoError(t, c.registrar.Revoke(t.Context(), n.Device, "repair"))
		require.NoError(t, c.registrar.Release(t.Context(), n.Device))
		n.AK = softnode.NewKey(softnode.P256(), softnode.AKAttributes)
		_, err := softEnroll(c, n)
		require.NoError(t, err)
		return attest.Opinion{Status: attest.StatusAffirming}
	}
	_, err = softAttest(c, n)
	require.ErrorIs(t, err, attest.ErrKeyMismatch)
	require.ErrorIs(t, err, reason.AttestationKey)
	d, err := c.devices.Get(t.Context(), n.Device)
	require.NoError(t, err)
	assert.Equal(t, registry.Enrolled, d.State)
}

// T19: errors of the TPM can be told apart.
func TestT19TPMErrorsKeepTheirClass(t *testing.T) {
	dev, endorsers := newTPM(t)
	_, err := tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}.Execute(dev)
	require.NoError(t, err)
	for _, auth := range []string{"", "wrong"} {
		n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, OwnerAuth: []byte(auth)})
		_, err = n.DeviceKey(t.Context())
		require.ErrorIs(t, err, tpm2.TPMRCBadAuth, "owner auth %q", auth)
	}
	h, err := tpm.LoadedHandles(dev)
	require.NoError(t, err)
	assert.Zero(t, h.Count())
	_, err = attest.Open(t.Context(), dev, attest.NodeConfig{Endorsers: endorsers, OwnerAuth: []byte("a\x00b")})
	require.ErrorContains(t, err, "zero byte", "a value that go-tpm would cut short")
}

// T21: neither logs nor errors hold a secret.
func TestT21LogsHoldNoSecret(t *testing.T) {
	var logs bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c, m := softCloud(t, func(r *attest.RegistrarConfig, v *attest.VerifierConfig) { r.Log, v.Log = log, log })
	n := softnode.NewNode(m)
	req := n.EnrollmentRequest()
	req.Token = []byte("the owner's token")
	ch, err := c.registrar.Begin(t.Context(), req)
	require.NoError(t, err)
	rsp, err := n.Activate(ch)
	require.NoError(t, err)
	bad := *rsp
	bad.Secret = bytes.Clone(rsp.Secret)
	bad.Secret[0] ^= 1
	_, err = c.registrar.Complete(t.Context(), &bad)
	require.ErrorIs(t, err, attest.ErrActivation)
	logs.WriteString(err.Error())
	_, err = softEnroll(c, n)
	require.NoError(t, err)
	_, err = softAttest(c, n)
	require.NoError(t, err)
	require.NoError(t, c.registrar.Revoke(t.Context(), n.Device, "stolen"))
	_, err = softAttest(c, n)
	require.ErrorIs(t, err, attest.ErrRevoked)
	text := logs.String()
	for _, event := range []string{"event=attest.enroll-refused", "event=attest.enrolled", "event=attest.appraised", "event=attest.revoked"} {
		assert.Contains(t, text, event)
	}
	for name, secret := range map[string][]byte{"activation secret": rsp.Secret, "guessed secret": bad.Secret, "token": req.Token, "nonce": ch.Nonce} {
		for _, form := range []string{string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret)} {
			assert.NotContains(t, text, form, name)
		}
	}
}

// T14: an appraiser sees nothing that no TPM vouches for, however large it is.
func TestT14AppraisersSeeOnlyWhatIsSigned(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	c.opinion = func(attest.Input) attest.Opinion {
		t.Error("an appraiser was asked")
		return attest.Opinion{Status: attest.StatusAffirming}
	}
	n.Bodies = []attest.Body{{MediaType: "application/x-log", Data: make([]byte, 10<<20)}}
	for name, tt := range map[string]struct {
		forge func(*attest.Evidence)
		class error
		code  reason.Code
	}{
		"signature": {func(e *attest.Evidence) { e.Signature[len(e.Signature)-1] ^= 1 }, quote.ErrSignature, reason.BadSignature},
		"log": {func(e *attest.Evidence) {
			e.Bodies = []attest.Body{{MediaType: "application/x-log", Data: make([]byte, 9<<20)}}
		}, quote.ErrNonce, reason.QuoteNonce},
		"F3 log stripped":  {func(e *attest.Evidence) { e.Bodies = nil }, quote.ErrNonce, reason.QuoteNonce},
		"PCR values":       {func(e *attest.Evidence) { e.PCRValues[0] ^= 1 }, quote.ErrPCRMismatch, reason.OtherValues},
		"log twice":        {func(e *attest.Evidence) { e.Bodies = append(e.Bodies, e.Bodies[0]) }, attest.ErrMalformed, reason.Malformed},
		"log too large":    {func(e *attest.Evidence) { e.Bodies[0].Data = make([]byte, 12<<20) }, attest.ErrMalformed, reason.TooLarge},
		"unknown version":  {func(e *attest.Evidence) { e.Version = 2 }, attest.ErrMalformed, reason.Version},
		"quote too large":  {func(e *attest.Evidence) { e.Quote = make([]byte, 2000) }, attest.ErrMalformed, reason.TooLarge},
		"PCR values short": {func(e *attest.Evidence) { e.PCRValues = e.PCRValues[:64] }, quote.ErrPCRMismatch, reason.TooFewValues},
	} {
		ch, err := c.verifier.Challenge(t.Context(), n.Session(nil))
		require.NoError(t, err)
		s := n.Session(ch.Nonce)
		e := n.Evidence(t.Context(), s, ch)
		e.Bodies = append([]attest.Body(nil), e.Bodies...)
		tt.forge(e)
		_, err = c.verifier.Appraise(t.Context(), s, e)
		require.ErrorIs(t, err, tt.class, name)
		require.ErrorIs(t, err, tt.code, name)
	}
}

// T19: in a TPM that is locked out after failed authorisations the node keeps
// its identity: it attests and serves TLS, and what has to wait says why.
func TestT19LockedOutTPM(t *testing.T) {
	onEach(t, func(t *testing.T, dev *tpmtest.TPM, endorsers attest.Endorsers) {
		keys, err := open(t, dev, attest.NodeConfig{Endorsers: endorsers}).EndorsementKeys(t.Context())
		require.NoError(t, err)
		n := open(t, dev, attest.NodeConfig{Endorsers: endorsers})
		c := newCloud(t, endorsers)
		key, _ := c.enroll(n)
		sealed, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHOwner,
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")}, Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: []byte("x")}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true},
				Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}),
			}),
		}.Execute(dev)
		require.NoError(t, err)
		rsp, err := dev.Send([]byte{ // TPM2_DictionaryAttackParameters: lock out after one failure
			0x80, 2, 0, 0, 0, 39, 0, 0, 1, 0x3A, 0x40, 0, 0, 0x0A, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0,
			0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0x10, 0,
		})
		require.NoError(t, err)
		require.Equal(t, []byte{0, 0, 0, 0}, rsp[6:10])
		for range 2 {
			_, err = tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: sealed.ObjectHandle, Name: sealed.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))}}.Execute(dev)
			require.Error(t, err)
		}
		require.ErrorIs(t, err, tpm2.TPMRCLockout)
		require.NoError(t, tpm.Flush(dev, sealed.ObjectHandle))

		for _, ek := range keys {
			locked := open(t, dev, attest.NodeConfig{EKName: ek.Name})
			again := newCloud(t, endorsers)
			ch, err := again.registrar.Begin(t.Context(), locked.EnrollmentRequest(nil))
			require.NoError(t, err)
			_, err = locked.Activate(t.Context(), ch, key)
			if ek.Template[0] == 'L' {
				require.NoError(t, err, "authorised by policy")
			} else {
				require.ErrorIs(t, err, attest.ErrLockout)
			}
		}
		_, err = c.attest(n, session(t, n, key))
		require.NoError(t, err)
		cert, err := n.Certificate(t.Context())
		require.NoError(t, err)
		require.NoError(t, handshake(t, c, cert, tls.VersionTLS13))
	})
}
