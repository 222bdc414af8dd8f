package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/attest/bootid"
	"github.com/trusttree/trusttree/attest/internal/softnode"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
)

// victim is an enrolled node, its cloud, and the attacker's hand between them.
type victim struct {
	*testing.T
	*cloud
	m *softnode.Maker
	n *softnode.Node
}

// appraise has the cloud appraise evidence that forge has changed.
func (v *victim) appraise(forge func(s *attest.Session, e *attest.Evidence)) error {
	ch, err := v.verifier.Challenge(v.Context(), v.n.Session(nil))
	if err != nil {
		return err
	}
	s := v.n.Session(ch.Nonce)
	e := v.n.Evidence(v.Context(), s, ch)
	if forge != nil {
		forge(&s, e)
	}
	_, err = v.verifier.Appraise(v.Context(), s, e)
	return err
}

// signed has the node's attestation key sign what was changed in a quote over
// the PCRs that are demanded.
func (v *victim) signed(change func(a *softnode.Attested)) error {
	return v.appraise(func(_ *attest.Session, e *attest.Evidence) {
		a := softnode.Attested{ExtraData: e.Quote[44:76]} // behind magic, kind and the signer's name
		for i, p := range []int{0, 7, 13} {
			a.PCRs = append(a.PCRs, softnode.PCR{Bank: crypto.SHA256, Index: p, Value: e.PCRValues[32*i : 32*i+32]})
		}
		change(&a)
		e.Quote = a.Encode()
		e.Signature = v.n.AK.Sign(e.Quote)
	})
}

func (v *victim) begin() (*attest.ActivationChallenge, *attest.ActivationResponse) {
	ch, err := v.registrar.Begin(v.Context(), v.n.EnrollmentRequest())
	require.NoError(v, err)
	rsp, err := v.n.Activate(ch)
	require.NoError(v, err)
	return ch, rsp
}

// keys has the node attest a further key under a quote that holds.
func (v *victim) keys(public func() []byte, nonce func([]byte) []byte) error {
	type attestation struct {
		Public    []byte `json:"public"`
		Certify   []byte `json:"certify"`
		Signature []byte `json:"signature"`
	}
	ch, err := v.verifier.Challenge(v.Context(), v.n.Session(nil))
	require.NoError(v, err)
	s, p := v.n.Session(ch.Nonce), public()
	v.n.Bodies = []attest.Body{{MediaType: attest.KeysType, Data: keysBody(1, attestation{p, v.n.CertifyKey(s, nonce(ch.Nonce), p), nil}, v.n.AK)}}
	_, err = v.verifier.Appraise(v.Context(), s, v.n.Evidence(v.Context(), s, ch))
	return err
}

// Each forgery and each threat that ends in a refusal is refused with an error
// of its own: no two give the same class and code, so that a program can tell
// what was tried.
//
// One digest covers nonce, session and bodies: evidence that is relayed (T1)
// gives what a cut log gives (F3), and TestT1ReplayedAndRelayedEvidence says so;
// what is T1's own is that each challenge counts once.
//
// Not here, as nothing is refused: T20 (goroutines that share a TPM) and T21
// (secrets in logs). T10 is refused at the operators' pages by TLS itself.
func TestEachRefusalIsItsOwn(t *testing.T) {
	same := func(b []byte) []byte { return b }
	type refusal struct {
		class error
		code  reason.Code
	}
	seen := map[refusal]string{}
	for _, tt := range []struct {
		name   string
		attack func(v *victim) error
		refusal
	}{
		{"F1 a PCR twice", func(v *victim) error {
			return v.appraise(func(_ *attest.Session, e *attest.Evidence) {
				e.PCRValues = append(bytes.Repeat([]byte{1}, 32), e.PCRValues...)
			})
		}, refusal{quote.ErrPCRMismatch, reason.TooManyValues}},
		{"F2 other PCRs of the same length", func(v *victim) error {
			return v.signed(func(a *softnode.Attested) { a.PCRs[2].Index = 12 })
		}, refusal{quote.ErrSelection, reason.OtherPCRs}},
		{"F3 the log stripped", func(v *victim) error {
			v.n.Bodies = []attest.Body{{MediaType: "application/x-log", Data: []byte("event, event")}}
			return v.appraise(func(_ *attest.Session, e *attest.Evidence) {
				e.Bodies = []attest.Body{{MediaType: "application/x-log", Data: []byte("event")}}
			})
		}, refusal{quote.ErrNonce, reason.QuoteNonce}},
		{"F4 nothing quoted", func(v *victim) error {
			return v.signed(func(a *softnode.Attested) { a.PCRs = nil })
		}, refusal{quote.ErrSelection, reason.NothingSelected}},
		{"F5 SHA-1 quoted", func(v *victim) error {
			return v.signed(func(a *softnode.Attested) { a.Selection = []byte{0, 0, 0, 1, 0, 4, 3, 0x81, 0x20, 0} })
		}, refusal{quote.ErrSelection, reason.SHA1Bank}},
		{"F6 no nonce", func(v *victim) error {
			return v.signed(func(a *softnode.Attested) { a.ExtraData = nil })
		}, refusal{quote.ErrNonce, reason.NoNonce}},
		{"F7 an attestation key without a scheme", func(v *victim) error {
			n := softnode.NewNode(v.m)
			n.AK.Public = n.AK.Encode(softnode.AKAttributes, 0x10, 0)
			_, err := v.registrar.Begin(v.Context(), n.EnrollmentRequest())
			return err
		}, refusal{quote.ErrKey, reason.NullScheme}},
		{"F8 an RSA signature for an ECDSA key", func(v *victim) error {
			return v.appraise(func(_ *attest.Session, e *attest.Evidence) {
				e.Signature = softnode.NewKey(softnode.RSA(), softnode.AKAttributes).Sign(e.Quote)
			})
		}, refusal{quote.ErrSignature, reason.SignatureScheme}},
		{"F9 an old certification", func(v *victim) error {
			return v.keys(func() []byte { return v.n.Key.Public }, func([]byte) []byte { return make([]byte, 32) })
		}, refusal{quote.ErrNonce, reason.CertifyNonce}},
		{"F10 a software key certified", func(v *victim) error {
			return v.keys(func() []byte { return v.n.Key.Encode(1<<18|1<<6, 0x18, 0x0B) }, same)
		}, refusal{quote.ErrKey, reason.SoftwareKey}},
		{"F11 a byte behind", func(v *victim) error {
			return v.signed(func(a *softnode.Attested) { a.Trailing = []byte{0} })
		}, refusal{quote.ErrMalformed, reason.TrailingBytes}},

		{"T1 replayed", func(v *victim) error {
			return v.appraise(func(s *attest.Session, e *attest.Evidence) {
				_, err := v.verifier.Appraise(v.Context(), *s, e)
				require.NoError(v, err)
			})
		}, refusal{attest.ErrChallenge, reason.NoChallenge}},
		{"T2 made by no TPM", func(v *victim) error {
			return v.signed(func(a *softnode.Attested) { a.Magic = 0xFF544348 })
		}, refusal{quote.ErrMalformed, reason.NotFromTPM}},
		{"T3 PCRs that nobody asked for", func(v *victim) error {
			return v.signed(func(a *softnode.Attested) {
				a.PCRs = append(a.PCRs, softnode.PCR{Bank: crypto.SHA256, Index: 14, Value: make([]byte, 32)})
			})
		}, refusal{quote.ErrSelection, reason.MorePCRs}},
		{"T4 boot's PCRs left out", func(v *victim) error {
			return v.signed(func(a *softnode.Attested) { a.PCRs = a.PCRs[2:] })
		}, refusal{quote.ErrSelection, reason.FewerPCRs}},
		{"T5 a bank that boot does not extend", func(v *victim) error {
			v.n.PCRs[0] = nil
			return v.appraise(nil)
		}, refusal{attest.ErrUnmeasured, reason.Unmeasured}},
		{"T6 what the boot's appraiser finds in a log", func(v *victim) error {
			v.opinion = func(attest.Input) attest.Opinion {
				return attest.Opinion{Status: attest.StatusContraindicated, Reasons: []attest.Reason{{Code: "event-retyped", Detail: "PCR 4"}}}
			}
			return v.appraise(nil)
		}, refusal{attest.ErrNotAffirming, "event-retyped"}},
		{"T7 the certificate of another TPM", func(v *victim) error {
			_, err := thief(v)
			return err
		}, refusal{attest.ErrActivation, reason.OtherTPM}},
		{"T8 another attestation key", func(v *victim) error {
			v.n.AK = softnode.NewKey(softnode.P256(), softnode.AKAttributes)
			_, err := v.registrar.Begin(v.Context(), v.n.EnrollmentRequest())
			return err
		}, refusal{attest.ErrBound, reason.Bound}},
		{"T9 a second try", func(v *victim) error {
			_, rsp := v.begin()
			bad := *rsp
			bad.Secret = make([]byte, 32)
			_, err := v.registrar.Complete(v.Context(), &bad)
			require.ErrorIs(v, err, reason.WrongSecret)
			_, err = v.registrar.Complete(v.Context(), rsp)
			return err
		}, refusal{attest.ErrChallenge, reason.NoActivation}},
		{"T11 an attestation key that the TPM lacks", func(v *victim) error {
			_, rsp := v.begin()
			rsp.Secret = make([]byte, 32)
			_, err := v.registrar.Complete(v.Context(), rsp)
			return err
		}, refusal{attest.ErrActivation, reason.WrongSecret}},
		{"T12 a TPM answered for by another", func(v *victim) error {
			dev, _ := newTPM(v)
			_, err := attest.Open(v.Context(), dev, attest.NodeConfig{EKName: bytes.Repeat([]byte{1}, 34)})
			return err
		}, refusal{attest.ErrPin, reason.NotPinned}},
		{"T12 a TPM reset beside the machine", func(v *victim) error {
			v.n.Bodies = boot("0a1b2c3d-0000-4000-8000-0123456789ab")
			require.NoError(v, v.appraise(nil))
			v.n.Reset++
			return v.appraise(nil)
		}, refusal{attest.ErrReset, reason.ResetWithoutReboot}},
		{"T13 firmware with known holes", func(v *victim) error {
			v.n.Firmware = 0
			return v.appraise(nil)
		}, refusal{attest.ErrFirmware, reason.Firmware}},
		{"T14 too large", func(v *victim) error {
			return v.appraise(func(_ *attest.Session, e *attest.Evidence) {
				e.Bodies = []attest.Body{{MediaType: "application/x-log", Data: make([]byte, 12<<20)}}
			})
		}, refusal{attest.ErrMalformed, reason.TooLarge}},
		{"T15 a certificate for something else", func(v *victim) error {
			n := softnode.NewNode(v.m)
			ek, err := x509.ParseCertificate(n.EKCert[0])
			require.NoError(v, err)
			template := v.m.EKTemplate(ek.PublicKey)
			template.UnknownExtKeyUsage = nil
			n.EKCert[0] = v.m.Sign(template, ek.PublicKey)
			_, err = v.registrar.Begin(v.Context(), n.EnrollmentRequest())
			return err
		}, refusal{attest.ErrUntrustedEK, reason.ExtendedKeyUsage}},
		{"T16 a certificate whose key Go can't read", func(v *victim) error {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			require.NoError(v, err)
			c, err := x509.ParseCertificate(v.m.Sign(v.m.EKTemplate(key.Public()), key.Public()))
			require.NoError(v, err)
			oid := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1}
			n := softnode.NewNode(v.m)
			n.EKCert[0] = v.m.Resign(bytes.Replace(c.RawTBSCertificate, oid, append(oid[:8:8], 10), 1))
			_, err = v.registrar.Begin(v.Context(), n.EnrollmentRequest())
			return err
		}, refusal{attest.ErrUntrustedEK, reason.UnreadableKey}},
		{"T17 revoked", func(v *victim) error {
			require.NoError(v, v.registrar.Revoke(v.Context(), v.n.Device, "stolen"))
			return v.appraise(nil)
		}, refusal{attest.ErrRevoked, reason.Revoked}},
		{"T18 an older state", func(v *victim) error {
			require.NoError(v, v.appraise(nil))
			v.n.Reset--
			return v.appraise(nil)
		}, refusal{attest.ErrRolledBack, reason.ResetCount}},
		{"T19 a TPM that was cleared", func(v *victim) error {
			dev, endorsers := newTPM(v)
			_, err := open(v, dev, attest.NodeConfig{Endorsers: endorsers}).Certificate(v.Context())
			return err
		}, refusal{attest.ErrNoKey, ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, m := softCloud(t, func(_ *attest.RegistrarConfig, v *attest.VerifierConfig) {
				v.Extended = nil
				v.Endorsers.MinFirmware = map[string]uint64{"id:54524553": 1}
			})
			v := &victim{t, c, m, softnode.NewNode(m)}
			v.n.PCRs, v.n.Reset = map[int][]byte{0: bytes.Repeat([]byte{7}, 32)}, 5
			_, err := softEnroll(c, v.n)
			require.NoError(t, err)
			err = tt.attack(v)
			require.ErrorIs(t, err, tt.class)
			code := reason.Of(err)
			var a *attest.AppraisalError
			if errors.As(err, &a) {
				require.Len(t, a.Reasons, 1)
				code = reason.Code(a.Reasons[0].Code)
			}
			require.Equal(t, tt.code, code)
			assert.Empty(t, seen[tt.refusal], "another attack is refused alike")
			seen[tt.refusal] = tt.name
		})
	}
	assert.Len(t, seen, 11+18+1) // F1 to F11, T1 to T19 without T10, T12 twice
}

// thief has a TPM that shows the certificate of another one answer for it.
func thief(v *victim) (*attest.ActivationResponse, error) {
	ownTPM, endorsers := newTPM(v)
	own := open(v, ownTPM, attest.NodeConfig{Endorsers: endorsers})
	key, err := own.DeviceKey(v.Context())
	require.NoError(v, err)
	ch, _ := v.begin()
	ch.Device = own.Device()
	return own.Activate(v.Context(), ch, key)
}

func boot(id string) []attest.Body {
	return []attest.Body{{MediaType: bootid.MediaType, Data: []byte(id + "\n")}}
}

// T12: what sits on the bus resets the TPM while the machine runs on, to have
// it measure another boot; or keeps it from being reset while the machine
// boots. The reset count and the kernel's boot ID tell.
func TestT12ResetWithoutReboot(t *testing.T) {
	c, m := softCloud(t)
	n := softnode.NewNode(m)
	_, err := softEnroll(c, n)
	require.NoError(t, err)
	id := func(i int) string { return fmt.Sprintf("0a1b2c3d-0000-4000-8000-%012x", i) }
	for _, step := range []struct {
		name  string
		boot  []attest.Body
		reset uint32
		class error
		code  reason.Code
	}{
		{"without a boot ID", nil, 1, nil, ""},
		{"a first one, after a reset", boot(id(1)), 2, nil, ""},
		{"the same boot", boot(id(1)), 2, nil, ""},
		{"reset without reboot", boot(id(1)), 3, attest.ErrReset, reason.ResetWithoutReboot},
		{"reboot without reset", boot(id(2)), 2, attest.ErrReset, reason.RebootWithoutReset},
		{"boot ID left out", nil, 2, attest.ErrReset, reason.NoBootID},
		{"boot ID left out after a reset", nil, 3, attest.ErrReset, reason.NoBootID},
		{"no boot ID", boot("x"), 2, attest.ErrMalformed, reason.Malformed},
		{"an older state", boot(id(3)), 1, attest.ErrRolledBack, reason.ResetCount},
		{"the same boot still", boot(id(1)), 2, nil, ""},
		{"a reboot", boot(id(2)), 3, nil, ""},
		{"two reboots", boot(id(3)), 5, nil, ""},
	} {
		c.now = c.now.Add(time.Second)
		n.Bodies, n.Reset = step.boot, step.reset
		_, err := softAttest(c, n)
		if step.class == nil {
			require.NoError(t, err, step.name)
			continue
		}
		require.ErrorIs(t, err, step.class, step.name)
		require.ErrorIs(t, err, step.code, step.name)
		var a *attest.AppraisalError
		require.ErrorAs(t, err, &a, step.name)
		assert.Equal(t, step.class == attest.ErrMalformed, a.Broken, step.name)
	}
	// what the owner releases starts anew
	require.NoError(t, c.registrar.Revoke(t.Context(), n.Device, "repair"))
	require.NoError(t, c.registrar.Release(t.Context(), n.Device))
	_, err = softEnroll(c, n)
	require.NoError(t, err)
	n.Bodies = nil
	_, err = softAttest(c, n)
	require.NoError(t, err)
	d, err := c.devices.Get(t.Context(), n.Device)
	require.NoError(t, err)
	assert.Equal(t, registry.Affirming, d.State)
	assert.Empty(t, d.BootID)
}

// T12: on a TPM, the machine's and the TPM's start go together.
func TestT12BootIDOnTPM(t *testing.T) {
	dev, endorsers := newTPM(t)
	id := "0a1b2c3d-0000-4000-8000-0123456789ab"
	collect := func(context.Context, []byte) (string, []byte, error) { return bootid.MediaType, []byte(id), nil }
	c := newCloud(t, endorsers)
	n := open(t, dev, attest.NodeConfig{Endorsers: endorsers, Collectors: []attest.Collector{collect}})
	key, _ := c.enroll(n)
	_, err := c.attest(n, session(t, n, key))
	require.NoError(t, err)
	require.NoError(t, dev.Reboot(t.Context()))
	again := open(t, dev, attest.NodeConfig{EKName: n.EndorsementKey().Name, Collectors: []attest.Collector{collect}})
	key, err = again.DeviceKey(t.Context())
	require.NoError(t, err)
	_, err = c.attest(again, session(t, again, key))
	require.ErrorIs(t, err, reason.ResetWithoutReboot)
	id = "1a1b2c3d-0000-4000-8000-0123456789ab"
	_, err = c.attest(again, session(t, again, key))
	require.NoError(t, err)
}
