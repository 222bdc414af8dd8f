package attest

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/internal/initial"
	"github.com/trusttree/trusttree/internal/tpm"
)

// NodeConfig.AttestationKey's other values.
const (
	lak    = "LAK"
	iak256 = "IAK-P-256"
	iak384 = "IAK-P-384"
)

// initialKey returns the curve of the maker's IAK, where it is to be used.
func (c NodeConfig) initialKey() (curve tpm2.TPMECCCurve, ok bool) {
	switch c.AttestationKey {
	case iak256:
		return tpm2.TPMECCNistP256, true
	case iak384:
		return tpm2.TPMECCNistP384, true
	}
	return 0, false
}

// withAK calls f with the attestation key loaded, which must be the same as
// when the Node was opened.
func (n *Node) withAK(d *tpm.Device, f func(ak *tpm.Key) error) (err error) {
	var k *tpm.Key
	if n.c.AttestationKey == lak {
		k, err = n.localAK(d)
	} else {
		template := akTemplate(n.c.AKLabel)
		if curve, ok := n.c.initialKey(); ok {
			if template, err = initial.IAK.Template(curve); err != nil {
				return fmt.Errorf("attest: attestation key: %w", err)
			}
		}
		k, err = tpm.CreatePrimary(d, tpm2.TPMRHEndorsement, nil, template)
	}
	if err != nil {
		return fmt.Errorf("attest: attestation key: %w", err)
	}
	defer func() { err = errors.Join(err, k.Flush()) }()
	if n.ak != nil {
		if err := k.Pin(n.ak.Name()); err != nil {
			return fmt.Errorf("attest: attestation key: %w", err)
		}
	}
	return f(k)
}

// withAdmin calls f with the attestation key authorised for a command in the
// ADMIN role: by the TCG's policy for an IAK, by the empty auth value else.
func (n *Node) withAdmin(d *tpm.Device, ak *tpm.Key, command tpm2.TPMCC, f func(tpm2.AuthHandle) error) (err error) {
	if _, ok := n.c.initialKey(); !ok {
		return f(ak.Auth(nil))
	}
	sess, done, err := initial.IAK.Authorise(d, ak, command)
	if err != nil {
		return fmt.Errorf("attest: attestation key: %w", err)
	}
	defer func() { err = errors.Join(err, done()) }()
	return f(ak.Auth(sess))
}

// localAK returns the owner's attestation key (LAK; TCG TPM 2.0 Keys for Device
// Identity and Attestation 1.0, section 7.4) and makes it when there is none.
func (n *Node) localAK(d *tpm.Device) (*tpm.Key, error) {
	want := akTemplate("")
	want.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	k, err := tpm.ReadKey(d, tpm.HandleLAK)
	if errors.Is(err, tpm2.TPMRCHandle) && n.ak == nil { // later it is a key that went away
		if err := n.makePersistent(d, want, tpm.HandleLAK); err != nil {
			return nil, err
		}
		k, err = tpm.ReadKey(d, tpm.HandleLAK)
	}
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("%w: LAK at 0x%08x: %w", ErrNoKey, uint32(tpm.HandleLAK), err)
	}
	if err != nil {
		return nil, err
	}
	if k.Public.ObjectAttributes != want.ObjectAttributes || k.Public.Type != want.Type {
		return nil, fmt.Errorf("handle 0x%08x holds a key of another kind: it was not made by this package; evict it if it is not needed", uint32(tpm.HandleLAK))
	}
	return k, nil
}

// makePersistent makes a key below the storage root key and has the TPM keep
// it. Nothing is stored elsewhere.
func (n *Node) makePersistent(d *tpm.Device, template tpm2.TPMTPublic, at tpm2.TPMHandle) error {
	return n.withOwner(d, func(owner tpm2.AuthHandle) (err error) {
		srk, err := tpm.ReadKey(d, tpm.HandleSRK)
		if err != nil {
			if srk, err = tpm.CreatePrimaryAs(d, owner, tpm2.ECCSRKTemplate); err != nil {
				return fmt.Errorf("attest: storage root key: %w", err)
			}
		}
		defer func() { err = errors.Join(err, srk.Flush()) }()
		made, err := tpm2.Create{ParentHandle: srk.Auth(nil), InPublic: tpm2.New2B(template)}.Execute(d)
		if err != nil {
			return fmt.Errorf("attest: make key: %w", err)
		}
		key, err := tpm.Load(d, srk, nil, made.OutPrivate, made.OutPublic)
		if err != nil {
			return fmt.Errorf("attest: make key: %w", err)
		}
		defer func() { err = errors.Join(err, key.Flush()) }()
		_, err = tpm2.EvictControl{Auth: owner, ObjectHandle: key.Named(), PersistentHandle: at}.Execute(d)
		if err != nil {
			return fmt.Errorf("attest: keep key at 0x%08x: %w", uint32(at), err)
		}
		return nil
	})
}

// evict removes a persistent key, if it is there.
func (n *Node) evict(d *tpm.Device, at tpm2.TPMHandle) error {
	k, err := tpm.ReadKey(d, at)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil
	}
	if err != nil {
		return err
	}
	return n.withOwner(d, func(owner tpm2.AuthHandle) error {
		if _, err := (tpm2.EvictControl{Auth: owner, ObjectHandle: k.Named(), PersistentHandle: at}).Execute(d); err != nil {
			return fmt.Errorf("attest: remove key at 0x%08x: %w", uint32(at), err)
		}
		return nil
	})
}
