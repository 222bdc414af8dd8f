package attest

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/attest/registry"
	"github.com/trusttree/trusttree/internal/tpm"
)

// NodeConfig configures a Node.
type NodeConfig struct {
	// EKName pins the endorsement key by its TPM name, as EndorsementKey.Name
	// gave it when the node was provisioned. Salts of sessions that carry
	// secrets are encrypted to this key, so a probe on the bus that poses as the
	// TPM learns nothing.
	EKName []byte
	// Endorsers is used to tell a real endorsement key where EKName is empty:
	// the certificate in the TPM must be from one of them. One of both is
	// required.
	Endorsers Endorsers
	// OwnerAuth is the auth value of the owner hierarchy, mostly empty; without
	// zero bytes. It is proven in sessions salted to the endorsement key and
	// never sent. The endorsement hierarchy's must be empty.
	OwnerAuth []byte
	// KeyAlgorithm is what DeviceKey makes: P-256 (when empty), P-384 or
	// RSA-2048. A TLS key that is there already must be of the kind named; see
	// NextDeviceKey for a change.
	KeyAlgorithm string
	// AttestationKey says which key quotes. Empty: a primary key of the
	// endorsement hierarchy, which needs no storage and outlives TPM2_Clear.
	// "LAK": the owner's key below the storage root key, made when it is not
	// there and persistent; TPM2_Clear removes it, and the TPM obscures counters
	// and firmware version in its quotes, so that Endorsers.MinFirmware refuses
	// it and the enrolment in one round trip too. "IAK-P-256", "IAK-P-384": the
	// machine maker's own key of the TCG's exact template (package devid), whose
	// policy guards its activation and which failed authorisations lock out.
	AttestationKey string
	// AKLabel, of at most 32 bytes, makes another primary attestation key:
	// "IAK" when empty. To change it is to change the key, which a registrar
	// takes only from a device that was revoked and released.
	AKLabel string
	// Collectors gather the bodies of evidence. Each media type comes once.
	Collectors []Collector
	// Keys are the persistent handles of further signing keys, at most 8, with
	// empty auth values, which all evidence attests: that they were made in this
	// TPM and stay there. Appraisers find them in Input.Keys.
	Keys []tpm2.TPMHandle
	Now  func() time.Time // time.Now when nil
	Log  *slog.Logger     // nothing is logged when nil
}

// Node is the attester: the identity of the machine it runs on. It is safe for
// concurrent use. It leaves nothing in the TPM but the persistent TLS key and
// the NV index of its certificate.
type Node struct {
	c      NodeConfig
	dev    *tpm.Device
	ek     EndorsementKey // the one this node enrols with
	device registry.DeviceID
	ak     *quote.Key
	akPub  []byte
}

// EndorsementKey is an endorsement key of the TPM for which NV holds a
// certificate.
type EndorsementKey struct {
	Template    string              // as in the TCG EK Credential Profile, such as "L-1"
	Name        []byte              // TPM name, for NodeConfig.EKName
	Certificate *x509.Certificate   // not verified
	Chain       []*x509.Certificate // issuers found in NV, not verified
	template    ekTemplate
	handle      tpm2.TPMHandle // 0 when the key is not persistent
	create      tpm2.TPMTPublic
}

// Open returns the Node of a TPM. It finds the endorsement key to use: the
// pinned one, or else the first in the order L-2, H-2, H-3, L-1, H-1, H-6, H-7
// that NV has a certificate for and c.Endorsers vouches for. Errors are ErrPin,
// ErrNoKey, ErrUntrustedEK and those of the TPM. The TPM stays the caller's to
// close.
func Open(ctx context.Context, t transport.TPM, c NodeConfig) (*Node, error) {
	if len(c.EKName) == 0 && len(c.Endorsers.Anchors) == 0 {
		return nil, reason.Because(reason.NotPinned, fmt.Errorf("%w: give NodeConfig.EKName or Endorsers: an unknown key protects no session", ErrPin))
	}
	if bytes.IndexByte(c.OwnerAuth, 0) >= 0 {
		return nil, errors.New("attest: NodeConfig.OwnerAuth has a zero byte")
	}
	if _, err := deviceKeyTemplate(c.KeyAlgorithm); err != nil {
		return nil, err
	}
	switch {
	case t == nil:
		return nil, errors.New("attest: no TPM was given")
	case slices.ContainsFunc(c.Collectors, func(f Collector) bool { return f == nil }):
		return nil, errors.New("attest: a collector in NodeConfig.Collectors is nil")
	case len(c.Keys) > maxKeys:
		return nil, fmt.Errorf("attest: %d keys in NodeConfig.Keys, limit %d", len(c.Keys), maxKeys)
	case !slices.Contains([]string{"", lak, iak256, iak384}, c.AttestationKey):
		return nil, fmt.Errorf("attest: NodeConfig.AttestationKey %q: want nothing, %q, %q or %q", c.AttestationKey, lak, iak256, iak384)
	case len(c.AKLabel) > 32 || c.AKLabel != "" && c.AttestationKey != "":
		return nil, errors.New("attest: NodeConfig.AKLabel is longer than 32 bytes, or given for a LAK or IAK")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	n := &Node{c: c, dev: tpm.Wrap(t)}
	err := n.do(ctx, n.open)
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (n *Node) open(d *tpm.Device) error {
	var refused error
	for _, t := range ekTemplates() {
		ek, err := n.readEK(d, t)
		if errors.Is(err, ErrNoKey) {
			continue
		}
		if err != nil {
			return err
		}
		if len(n.c.EKName) > 0 {
			if !bytes.Equal(ek.Name, n.c.EKName) {
				refused = reason.Because(reason.NotPinned, fmt.Errorf("%w: template %s has name %x", ErrPin, t.name, ek.Name))
				continue
			}
		} else if _, err := n.c.Endorsers.Verify(ek.ders(), n.c.Now()); err != nil {
			refused = errors.Join(refused, err)
			continue
		}
		n.ek = *ek
		break
	}
	if n.ek.Certificate == nil {
		if refused == nil {
			refused = fmt.Errorf("%w: NV has no endorsement certificate that this package knows", ErrNoKey)
		}
		return refused
	}
	var err error
	if n.device, err = registry.IDOf(n.ek.Certificate.PublicKey); err != nil {
		return err
	}
	return n.withAK(d, func(ak *tpm.Key) error {
		n.akPub = tpm2.Marshal(ak.Public)
		n.ak, err = quote.ParseKey(n.akPub)
		return err
	})
}

// Device returns the node's DeviceID, which follows from its endorsement key.
func (n *Node) Device() registry.DeviceID { return n.device }

// EndorsementKey returns the endorsement key that this node enrols with.
func (n *Node) EndorsementKey() EndorsementKey { return n.ek }

// EndorsementKeys returns every endorsement key that NV has a certificate for
// and that the TPM holds or can make again.
func (n *Node) EndorsementKeys(ctx context.Context) ([]EndorsementKey, error) {
	var list []EndorsementKey
	err := n.do(ctx, func(d *tpm.Device) error {
		for _, t := range ekTemplates() {
			ek, err := n.readEK(d, t)
			if errors.Is(err, ErrNoKey) {
				continue
			}
			if err != nil {
				return err
			}
			list = append(list, *ek)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

func (e *EndorsementKey) ders() [][]byte {
	ders := [][]byte{e.Certificate.Raw}
	for _, c := range e.Chain {
		if len(ders) < maxCertificates {
			ders = append(ders, c.Raw)
		}
	}
	return ders
}

// readEK reads one template's certificate and finds or makes its key, which
// must be the certified one.
func (n *Node) readEK(d *tpm.Device, t ekTemplate) (*EndorsementKey, error) {
	der, err := readNV(d, t.cert)
	if err != nil {
		return nil, err
	}
	cert, err := parseEKCertificate(der)
	if err != nil {
		n.c.Log.Warn("endorsement certificate can't be read", "event", "attest.ek-unreadable", "template", t.name, "error", err.Error())
		return nil, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	want, err := t.public(cert.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: template %s: %w", ErrNoKey, t.name, err)
	}
	name, err := tpm2.ObjectName(&want)
	if err != nil {
		return nil, fmt.Errorf("attest: name of endorsement key: %w", err)
	}
	ek := &EndorsementKey{Template: t.name, Name: name.Buffer, Certificate: cert, template: t}
	if k, err := tpm.ReadKey(d, t.handle); err == nil && bytes.Equal(k.Name.Buffer, name.Buffer) {
		ek.handle = t.handle
	} else {
		if ek.create, err = t.primary(d); err != nil {
			return nil, err
		}
		k, err := tpm.CreatePrimary(d, tpm2.TPMRHEndorsement, nil, ek.create)
		if err != nil {
			return nil, fmt.Errorf("attest: endorsement key %s: %w", t.name, err)
		}
		if err := k.Flush(); err != nil {
			return nil, err
		}
		if !bytes.Equal(k.Name.Buffer, name.Buffer) {
			n.c.Log.Warn("TPM has another endorsement key than the certified one", "event", "attest.ek-mismatch", "template", t.name)
			return nil, fmt.Errorf("%w: template %s: the certificate is for another key", ErrNoKey, t.name)
		}
	}
	ek.Chain = readChain(d)
	return ek, nil
}

// withEK calls f with the pinned endorsement key loaded.
func (n *Node) withEK(d *tpm.Device, f func(ek *tpm.Key) error) (err error) {
	var k *tpm.Key
	if n.ek.handle != 0 {
		k, err = tpm.ReadKey(d, n.ek.handle)
	} else {
		k, err = tpm.CreatePrimary(d, tpm2.TPMRHEndorsement, nil, n.ek.create)
	}
	if err != nil {
		return fmt.Errorf("attest: endorsement key: %w", err)
	}
	defer func() { err = errors.Join(err, k.Flush()) }()
	if err := k.Pin(n.ek.Name); err != nil {
		return reason.Because(reason.NotPinned, fmt.Errorf("%w: %w", ErrPin, err))
	}
	return f(k)
}

// withOwner calls f with the owner hierarchy's authorisation, which holds for
// any number of commands.
func (n *Node) withOwner(d *tpm.Device, f func(owner tpm2.AuthHandle) error) error {
	if len(n.c.OwnerAuth) == 0 {
		return f(tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)})
	}
	return n.withEK(d, func(ek *tpm.Key) error {
		sess, done, err := ek.HMACSession(d, tpm2.Auth(n.c.OwnerAuth))
		if err != nil {
			return fmt.Errorf("attest: owner session: %w", err)
		}
		return errors.Join(f(tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: sess}), done())
	})
}

// EnrollmentRequest returns the first message of an enrolment. token is what
// the owner asks for admission, if anything.
func (n *Node) EnrollmentRequest(token []byte) *EnrollmentRequest {
	return &EnrollmentRequest{Version: messageVersion, EKCertificates: n.ek.ders(), AKPublic: bytes.Clone(n.akPub), Token: bytes.Clone(token)}
}

// Activate answers the cloud's challenge: it has the TPM open the credential,
// in a session that a probe on the bus can't read, and has the attestation key
// certify the TLS key. Errors are ErrMalformed, ErrChallenge when the challenge
// is for another device, and those of the TPM.
func (n *Node) Activate(ctx context.Context, c *ActivationChallenge, key *DeviceKey) (*ActivationResponse, error) {
	if err := check(c); err != nil {
		return nil, err
	}
	if c.Device != n.device {
		return nil, reason.Because(reason.OtherDevice, fmt.Errorf("%w: it is for device %s, this is %s", ErrChallenge, c.Device, n.device))
	}
	spki, err := key.spki()
	if err != nil {
		return nil, err
	}
	rsp := &ActivationResponse{Version: messageVersion, ID: c.ID, KeyPublic: tpm2.Marshal(key.pub)}
	err = n.do(ctx, func(d *tpm.Device) error {
		if err := n.withEK(d, func(ek *tpm.Key) error {
			return n.withAK(d, func(ak *tpm.Key) (err error) {
				rsp.Secret, err = n.activate(d, ek, ak, c)
				return err
			})
		}); err != nil {
			return err
		}
		return n.withAK(d, func(ak *tpm.Key) (err error) {
			object := tpm2.AuthHandle{Handle: key.handle, Name: key.name, Auth: tpm2.PasswordAuth(nil)}
			rsp.Certify, rsp.Signature, err = certify(d, object, ak, enrollBinding(purposeEnroll, n.device, c.Nonce, spki))
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if rsp.CSR, err = key.CSR(); err != nil {
		return nil, err
	}
	return rsp, nil
}

// activate opens a credential. The secret comes out encrypted to a session
// whose salt only the pinned endorsement key can read.
func (n *Node) activate(d *tpm.Device, ek, ak *tpm.Key, c *ActivationChallenge) (secret []byte, err error) {
	err = n.withAdmin(d, ak, tpm2.TPMCCActivateCredential, func(admin tpm2.AuthHandle) error {
		return n.authorised(d, ek, func(auth tpm2.Session) error {
			r, err := tpm2.ActivateCredential{
				ActivateHandle: admin,
				KeyHandle:      ek.Auth(auth),
				CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential},
				Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
			}.Execute(d)
			if err != nil {
				return reason.Because(reason.OtherTPM, fmt.Errorf("%w: %w", ErrActivation, err))
			}
			secret = r.CertInfo.Buffer
			return nil
		})
	})
	return secret, err
}

// authorised calls f with a session that authorises one use of the endorsement
// key and encrypts what comes out: by the profile's PolicyA in the low range,
// by the empty auth value in the high range.
func (n *Node) authorised(d *tpm.Device, ek *tpm.Key, f func(auth tpm2.Session) error) (err error) {
	session := ek.HMACSession
	if !n.ek.template.high {
		session = ek.PolicySession
	}
	sess, done, err := session(d, tpm.EncryptOut())
	if err != nil {
		return fmt.Errorf("attest: session with the endorsement key: %w", err)
	}
	defer func() { err = errors.Join(err, done()) }()
	if !n.ek.template.high {
		_, err = tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: sess.Handle(),
			NonceTPM:      sess.NonceTPM(),
		}.Execute(d)
		if err != nil {
			return fmt.Errorf("attest: endorsement policy: %w", err)
		}
	}
	return f(sess)
}

// do keeps the TPM for a sequence of commands and gives errors of the TPM their
// class. When ctx ends under a command that hangs, the sequence is left behind
// and ends by itself: what f sets is the caller's only without an error.
func (n *Node) do(ctx context.Context, f func(*tpm.Device) error) error {
	_, err := patient(ctx, "the TPM", func() (struct{}, error) { return struct{}{}, n.dev.Do(ctx, f) })
	return classified(err)
}

// grace is how long what is under way has to end after its context did.
const grace = 500 * time.Millisecond

// patient calls f, and leaves it behind when it goes on after ctx ended.
func patient[T any](ctx context.Context, who string, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case r := <-done:
		return r.v, r.err
	case <-late.C:
		var none T
		return none, fmt.Errorf("attest: %s did not answer in time: %w", who, ctx.Err())
	}
}

// classified tells a TPM that locks out from one that fails.
func classified(err error) error {
	if errors.Is(err, tpm2.TPMRCLockout) {
		return fmt.Errorf("%w: %w", ErrLockout, err)
	}
	return err
}
