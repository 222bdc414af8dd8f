package attest

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/internal/tpm"
)

// NextDeviceKey makes the successor of the node's TLS key, of the kind that
// NodeConfig.KeyAlgorithm names, and returns it. The present key stays in use:
// enrol with the successor (Activate or Import), and StoreCertificate of its
// certificate makes it the TLS key and removes the old one. The registry takes
// the new key from the moment of its enrolment on. A successor that was made
// before and never certified is removed first.
func (n *Node) NextDeviceKey(ctx context.Context) (*DeviceKey, error) {
	var key *DeviceKey
	err := n.do(ctx, func(d *tpm.Device) error {
		present, err := n.presentKey(d)
		if err != nil {
			return err
		}
		at := otherHandle(present.handle)
		if err := n.evict(d, at); err != nil {
			return err
		}
		if err := n.makeDeviceKey(d, at); err != nil {
			return err
		}
		key, err = n.deviceKeyAt(d, at)
		return err
	})
	if err != nil {
		return nil, err
	}
	return key, nil
}

func otherHandle(h tpm2.TPMHandle) tpm2.TPMHandle {
	if h == tpm.HandleLDevID {
		return tpm.HandleLDevIDOther
	}
	return tpm.HandleLDevID
}

func (n *Node) makeDeviceKey(d *tpm.Device, at tpm2.TPMHandle) error {
	template, err := deviceKeyTemplate(n.c.KeyAlgorithm)
	if err != nil {
		return err
	}
	return n.makePersistent(d, template, at)
}

// loadDeviceKey returns the present TLS key, which must be of the kind
// configured.
func (n *Node) loadDeviceKey(d *tpm.Device) (*DeviceKey, error) {
	k, err := n.presentKey(d)
	if err != nil {
		return nil, err
	}
	if a := algorithmOf(k.key); n.c.KeyAlgorithm != "" && n.c.KeyAlgorithm != a {
		return nil, fmt.Errorf("attest: the TLS key is %s, NodeConfig.KeyAlgorithm is %s: enrol anew with NextDeviceKey", a, n.c.KeyAlgorithm)
	}
	return k, nil
}

// presentKey returns the TLS key. Of two it is the one whose certificate lasts
// longer, or the first when none has a certificate.
func (n *Node) presentKey(d *tpm.Device) (*DeviceKey, error) {
	first, err := n.deviceKeyAt(d, tpm.HandleLDevID)
	if err != nil && !errors.Is(err, ErrNoKey) {
		return nil, err
	}
	second, serr := n.deviceKeyAt(d, tpm.HandleLDevIDOther)
	switch {
	case serr != nil && !errors.Is(serr, ErrNoKey):
		return nil, serr
	case serr != nil:
		return first, err
	case err != nil:
		return second, nil
	}
	a, err := n.readCertificate(d, first)
	if err != nil && a.failed {
		return nil, err
	}
	b, err := n.readCertificate(d, second)
	if err != nil && b.failed {
		return nil, err
	}
	if b.chain != nil && (a.chain == nil || b.chain[0].NotAfter.After(a.chain[0].NotAfter)) {
		return second, nil
	}
	return first, nil
}

// storeChain writes the certificate of the TLS key or of its successor, and
// removes the key that it replaces.
func (n *Node) storeChain(d *tpm.Device, leaf *x509.Certificate, chain []byte) error {
	var key *DeviceKey
	for _, at := range []tpm2.TPMHandle{tpm.HandleLDevID, tpm.HandleLDevIDOther} {
		k, err := n.deviceKeyAt(d, at)
		if err != nil && !errors.Is(err, ErrNoKey) {
			return err
		}
		if err == nil && k.is(leaf.PublicKey) {
			key = k
		}
	}
	if key == nil {
		return reason.Because(reason.OtherKey, fmt.Errorf("%w: the certificate is for another key than the TPM's", ErrKeyMismatch))
	}
	// The new certificate goes beside the old one, which goes when the new one
	// is whole, and then its key: a power cut leaves a key with its certificate.
	next, last := tpm.NVLDevIDCert, tpm.NVLDevIDCertOther
	present, err := n.presentKey(d)
	if err != nil {
		return err
	}
	if old, _ := n.readCertificate(d, present); old.index == next {
		next, last = last, next
	}
	if err := n.withOwner(d, func(owner tpm2.AuthHandle) error {
		if err := writeNV(d, owner, next, chain); err != nil {
			return err
		}
		return undefineNV(d, owner, last)
	}); err != nil {
		return err
	}
	if key.handle == present.handle {
		return nil // renewed: a successor that is under way stays
	}
	return n.evict(d, present.handle)
}
