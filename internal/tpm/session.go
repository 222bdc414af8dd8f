package tpm

import (
	"crypto/fips140"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// ErrName says that a key in the TPM is not the key that was pinned.
var ErrName = errors.New("tpm: key does not have the pinned name")

// Key is an object in the TPM, with the name computed from its public area.
type Key struct {
	Handle tpm2.TPMHandle
	Name   tpm2.TPM2BName
	Public tpm2.TPMTPublic

	t         transport.TPM
	transient bool
}

// Flush removes a transient key from the TPM; a persistent one stays. It may
// be called on a nil Key.
func (k *Key) Flush() error {
	if k == nil || !k.transient {
		return nil
	}
	k.transient = false
	return Flush(k.t, k.Handle)
}

// Named returns the handle with its name, for use in commands.
func (k *Key) Named() tpm2.NamedHandle { return tpm2.NamedHandle{Handle: k.Handle, Name: k.Name} }

// Auth returns the key authorised by sess; a nil sess means empty auth value.
func (k *Key) Auth(sess tpm2.Session) tpm2.AuthHandle {
	if sess == nil {
		sess = tpm2.PasswordAuth(nil)
	}
	return tpm2.AuthHandle{Handle: k.Handle, Name: k.Name, Auth: sess}
}

// Pin returns ErrName unless the key's name is want. An empty want is an error.
func (k *Key) Pin(want []byte) error {
	if len(want) == 0 || subtle.ConstantTimeCompare(k.Name.Buffer, want) != 1 {
		return fmt.Errorf("%w: handle 0x%08x has name %x, want %x", ErrName, uint32(k.Handle), k.Name.Buffer, want)
	}
	return nil
}

// Session is a session salted to this key with AES-128-CFB parameter
// encryption (TPM 2.0 part 1, sections 19 and 21): what passes through it
// can't be read on the bus. It is made when used and flushed after one use.
// Use tpm2.EncryptIn for a secret that goes in, tpm2.EncryptOut for one that
// comes out.
func (k *Key) Session(opts ...tpm2.AuthOption) tpm2.Session {
	return session{tpm2.HMAC(tpm2.TPMAlgSHA256, 16, k.salted(opts)...)}
}

// session exempts parameter encryption, and nothing else, from FIPS 140-only
// mode: AES in CFB mode (SP 800-38A) is the only mode that TPMs have for it, and
// Go's module does not have that mode. Without the exemption go-tpm panics.
type session struct{ tpm2.Session }

func (s session) Encrypt(parameter []byte) (err error) {
	fips140.WithoutEnforcement(func() { err = s.Session.Encrypt(parameter) })
	return err
}

func (s session) Decrypt(parameter []byte) (err error) {
	fips140.WithoutEnforcement(func() { err = s.Session.Decrypt(parameter) })
	return err
}

// keyless exempts the HMACs of a session without salt, whose key is empty: what
// authorises is the policy. Go's FIPS module has no HMAC with so short a key.
type keyless struct{ tpm2.Session }

func (s keyless) Authorize(cc tpm2.TPMCC, parms, addNonces []byte, names []tpm2.TPM2BName, i int) (auth *tpm2.TPMSAuthCommand, err error) {
	fips140.WithoutEnforcement(func() { auth, err = s.Session.Authorize(cc, parms, addNonces, names, i) })
	return auth, err
}

func (s keyless) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, parms []byte, names []tpm2.TPM2BName, i int, auth *tpm2.TPMSAuthResponse) (err error) {
	fips140.WithoutEnforcement(func() { err = s.Session.Validate(rc, cc, parms, names, i, auth) })
	return err
}

// UnsaltedPolicySession starts a policy session for what needs no secrecy and
// no integrity on the bus. The caller closes it on every path.
func UnsaltedPolicySession(t transport.TPM) (tpm2.Session, func() error, error) {
	sess, end, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return nil, nil, err
	}
	return keyless{sess}, end, nil
}

// exempt wraps what starts a session.
func exempt(s tpm2.Session, end func() error, err error) (tpm2.Session, func() error, error) {
	if err != nil {
		return nil, nil, err
	}
	return session{s}, end, nil
}

// EncryptIn encrypts the first parameter of a command.
func EncryptIn() tpm2.AuthOption { return tpm2.AESEncryption(128, tpm2.EncryptIn) }

// EncryptOut encrypts the first parameter of a response.
func EncryptOut() tpm2.AuthOption { return tpm2.AESEncryption(128, tpm2.EncryptOut) }

// EncryptInOut encrypts the first parameter of both.
func EncryptInOut() tpm2.AuthOption { return tpm2.AESEncryption(128, tpm2.EncryptInOut) }

// PolicySession starts a policy session salted to this key. The caller closes
// it on every path; a just-in-time policy session would leak when its callback
// fails.
func (k *Key) PolicySession(t transport.TPM, opts ...tpm2.AuthOption) (tpm2.Session, func() error, error) {
	return exempt(tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16, k.salted(opts)...))
}

// HMACSession starts an HMAC session salted to this key that serves several
// commands. The caller closes it on every path; a just-in-time session would
// leak when the transport fails under its command.
func (k *Key) HMACSession(t transport.TPM, opts ...tpm2.AuthOption) (tpm2.Session, func() error, error) {
	return exempt(tpm2.HMACSession(t, tpm2.TPMAlgSHA256, 16, k.salted(opts)...))
}

func (k *Key) salted(opts []tpm2.AuthOption) []tpm2.AuthOption {
	return append([]tpm2.AuthOption{tpm2.Salted(k.Handle, k.Public)}, opts...)
}

// ReadKey reads the public area of a loaded or persistent key and computes its
// name itself rather than believing the one in the answer.
func ReadKey(t transport.TPM, h tpm2.TPMHandle) (*Key, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpm: read public area of 0x%08x: %w", uint32(h), err)
	}
	return newKey(t, h, rsp.OutPublic, false)
}

func newKey(t transport.TPM, h tpm2.TPMHandle, public tpm2.TPM2BPublic, transient bool) (*Key, error) {
	pub, err := public.Contents()
	if err != nil {
		return nil, fmt.Errorf("tpm: public area of 0x%08x: %w", uint32(h), err)
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, fmt.Errorf("tpm: name of 0x%08x: %w", uint32(h), err)
	}
	return &Key{Handle: h, Name: *name, Public: *pub, t: t, transient: transient}, nil
}

// CreatePrimary makes the primary key of a template in a hierarchy. The same
// template gives the same key until the hierarchy's seed changes. Flush it.
func CreatePrimary(t transport.TPM, hierarchy tpm2.TPMHandle, auth []byte, template tpm2.TPMTPublic) (*Key, error) {
	return CreatePrimaryAs(t, tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(auth)}, template)
}

// CreatePrimaryAs is CreatePrimary with the hierarchy authorised in any way,
// such as a salted session that does not send the auth value.
func CreatePrimaryAs(t transport.TPM, hierarchy tpm2.AuthHandle, template tpm2.TPMTPublic) (*Key, error) {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpm: create primary key: %w", err)
	}
	k, err := newKey(t, rsp.ObjectHandle, rsp.OutPublic, true)
	if err != nil {
		return nil, errors.Join(err, Flush(t, rsp.ObjectHandle))
	}
	return k, nil
}

// SRK returns the storage root key: the persistent one at HandleSRK when it is
// there, else the ECC P-256 primary of the TCG template (TCG TPM v2.0
// Provisioning Guidance, section 7.5.1). Flush it.
func SRK(t transport.TPM, ownerAuth []byte) (*Key, error) {
	if k, err := ReadKey(t, HandleSRK); err == nil {
		return k, nil
	}
	return CreatePrimary(t, tpm2.TPMRHOwner, ownerAuth, tpm2.ECCSRKTemplate)
}

// Load loads a key below a parent. sess authorises the parent; nil means empty
// auth value. Flush the key.
func Load(t transport.TPM, parent *Key, sess tpm2.Session, private tpm2.TPM2BPrivate, public tpm2.TPM2BPublic) (*Key, error) {
	rsp, err := tpm2.Load{ParentHandle: parent.Auth(sess), InPrivate: private, InPublic: public}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpm: load key: %w", err)
	}
	k, err := newKey(t, rsp.ObjectHandle, public, true)
	if err != nil {
		return nil, errors.Join(err, Flush(t, rsp.ObjectHandle))
	}
	return k, nil
}

// Flush removes a transient object or a session from the TPM.
func Flush(t transport.TPM, h tpm2.TPMHandle) error {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(t); err != nil {
		return fmt.Errorf("tpm: flush 0x%08x: %w", uint32(h), err)
	}
	return nil
}
