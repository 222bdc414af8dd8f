package devid

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/trusttree/trusttree/attest"
	"github.com/trusttree/trusttree/internal/tpm"
)

// NV indices that the TCG reserves for certificates of initial keys and their
// issuers (Registry of Reserved TPM 2.0 Handles and Localities). FirstIndex is
// the IDevID certificate's (TPM v2.0 Provisioning Guidance 1.0, table 2); the
// others have no index of their own.
const (
	FirstIndex = tpm.NVIDevIDCertFirst
	LastIndex  = tpm.NVIDevIDCertLast
)

// Indices in the range that hold no certificates: the TCG has them for policies
// of keys that can be recovered (TPM 2.0 Keys for Device Identity and
// Attestation, section 7.3.2).
const (
	firstPolicy = FirstIndex + 0x10
	lastPolicy  = FirstIndex + 0x1F
)

// ErrIndex says that an NV index is outside the reserved range or in use.
var ErrIndex = errors.New("devid: NV index can't be used")

const nvChunk = 512 // bytes in one command

// Store writes the certificate of an initial key and its issuers into NV, one
// into each index from first on (FirstIndex when zero), and one that is larger
// than the TPM's largest index into several; it passes the sixteen indices from
// 0x01C90010 on, which are for policies. It defines the indices as the TCG has it: by the platform
// (tpm2.TPMRHPlatform) on the maker's line, or by the owner; either can write,
// everybody can read, and nothing that is there is overwritten. hierarchy
// authorises that. Where it fails, what it defined is removed. It returns the
// index after the last used.
func Store(ctx context.Context, t transport.TPM, hierarchy tpm2.AuthHandle, first tpm2.TPMHandle, chain ...*x509.Certificate) (next tpm2.TPMHandle, err error) {
	if hierarchy.Handle != tpm2.TPMRHPlatform && hierarchy.Handle != tpm2.TPMRHOwner {
		return first, fmt.Errorf("%w: hierarchy 0x%08x defines none", ErrIndex, uint32(hierarchy.Handle))
	}
	if len(chain) == 0 {
		return first, errors.New("devid: no certificate to store")
	}
	if first == 0 {
		first = FirstIndex
	}
	next = first
	var defined []tpm2.TPMHandle
	err = tpm.Wrap(t).Do(ctx, func(d *tpm.Device) (err error) {
		most, err := largestIndex(d)
		if err != nil {
			return err
		}
		defer func() {
			if err == nil {
				return
			}
			for _, i := range defined {
				err = errors.Join(err, undefine(d, hierarchy, i))
			}
		}()
		for _, c := range chain {
			for der := c.Raw; len(der) > 0; der = der[min(most, len(der)):] {
				if next >= firstPolicy && next <= lastPolicy {
					next = lastPolicy + 1
				}
				if next < FirstIndex || next > LastIndex {
					return fmt.Errorf("%w: 0x%08x is outside 0x%08x to 0x%08x", ErrIndex, uint32(next), uint32(FirstIndex), uint32(LastIndex))
				}
				if _, err := (tpm2.NVReadPublic{NVIndex: next}).Execute(d); err == nil {
					return fmt.Errorf("%w: 0x%08x is in use", ErrIndex, uint32(next))
				} else if !errors.Is(err, tpm2.TPMRCHandle) {
					return err
				}
				defined = append(defined, next)
				next++
				if err := write(d, hierarchy, next-1, der[:min(most, len(der))]); err != nil {
					return fmt.Errorf("NV index 0x%08x: %w", uint32(next-1), err)
				}
			}
		}
		return nil
	})
	if err != nil {
		if !errors.Is(err, ErrIndex) {
			err = fmt.Errorf("devid: store certificates: %w", err)
		}
		return first, err
	}
	return next, nil
}

// largestIndex is how much one index holds (TPM_PT_NV_INDEX_MAX).
func largestIndex(d *tpm.Device) (int, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTNVIndexMax), PropertyCount: 1}.Execute(d)
	if err != nil {
		return 0, err
	}
	p, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, err
	}
	if len(p.TPMProperty) != 1 || p.TPMProperty[0].Property != tpm2.TPMPTNVIndexMax || p.TPMProperty[0].Value < nvChunk {
		return 0, errors.New("the TPM does not say how much an NV index holds")
	}
	return int(min(p.TPMProperty[0].Value, 2048)), nil
}

func write(d *tpm.Device, hierarchy tpm2.AuthHandle, index tpm2.TPMHandle, data []byte) error {
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
	}
	if hierarchy.Handle == tpm2.TPMRHPlatform {
		public.Attributes = tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true}
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: hierarchy, PublicInfo: tpm2.New2B(public)}).Execute(d); err != nil {
		return err
	}
	for off := 0; off < len(data); off += nvChunk {
		pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d) // the first write changes the name
		if err != nil {
			return err
		}
		if _, err := (tpm2.NVWrite{
			AuthHandle: hierarchy, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[off:min(off+nvChunk, len(data))]}, Offset: uint16(off),
		}).Execute(d); err != nil {
			return err
		}
	}
	return nil
}

func undefine(d *tpm.Device, hierarchy tpm2.AuthHandle, index tpm2.TPMHandle) error {
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = tpm2.NVUndefineSpace{AuthHandle: hierarchy, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName}}.Execute(d)
	return err
}

// Certificate returns the certificate of a key among those that the machine's
// maker left in NV (attest.Node.InitialCertificates), followed by the others
// as candidates for its issuers. Nothing is verified. attest.ErrNoKey says that
// there is none.
func (k *Key) Certificate(ctx context.Context, n *attest.Node) (leaf *x509.Certificate, issuers []*x509.Certificate, err error) {
	certs, err := n.InitialCertificates(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range certs {
		if key, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && leaf == nil && key.Equal(k.key) {
			leaf = c
		} else if c.IsCA {
			issuers = append(issuers, c)
		}
	}
	if leaf == nil {
		return nil, nil, fmt.Errorf("devid: %w: certificate of the key %x", attest.ErrNoKey, k.name)
	}
	return leaf, issuers, nil
}
