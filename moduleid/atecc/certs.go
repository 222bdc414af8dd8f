package atecc

import (
	"context"
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
)

// ErrNoCertificate says that a chip carries no chain that can be read.
var ErrNoCertificate = errors.New("atecc: no certificate")

// Device is what a chip says about itself, without proof.
type Device struct {
	Config    ConfigZone
	Serial    [9]byte
	Revision  Revision
	PublicKey *ecdsa.PublicKey // of the configured slot

	chip *Chip
}

// slotSizes are the sizes of the data slots in bytes.
func slotSize(slot int) int {
	switch {
	case slot < 8:
		return 36
	case slot == 8:
		return 416
	}
	return 72
}

// ReadSlot reads the whole of a data slot that may be read in clear.
func (d *Device) ReadSlot(ctx context.Context, slot int) (data []byte, err error) {
	if slot < 0 || slot > 15 {
		return nil, fmt.Errorf("atecc: there is no slot %d", slot)
	}
	size := slotSize(slot)
	err = d.chip.awake(ctx, func() error {
		data = data[:0]
		for block := 0; len(data) < size; block++ {
			if size-len(data) >= 32 {
				p, err := d.chip.run(ctx, read32(zoneData, slot, block))
				if err != nil {
					return err
				}
				data = append(data, p...)
				continue
			}
			for word := 0; len(data) < size; word++ {
				p, err := d.chip.run(ctx, read4(slot, block, word))
				if err != nil {
					return err
				}
				data = append(data, p...)
			}
		}
		return nil
	})
	return data, err
}

// CertSource finds a chip's certificate chain as DER, leaf first. Where there
// is none, its error is [ErrNoCertificate].
type CertSource func(ctx context.Context, d *Device) ([][]byte, error)

// FixedChain is a chain that the caller knows, such as from the owner's
// registry.
func FixedChain(chain ...[]byte) CertSource {
	return func(context.Context, *Device) ([][]byte, error) {
		if len(chain) == 0 {
			return nil, fmt.Errorf("%w was given for the chip", ErrNoCertificate)
		}
		return chain, nil
	}
}

// StoredChain reads DER certificates, one after the other, from a data slot
// (slot 8 has room for 416 bytes), and appends issuers that were too large for
// the slot.
func StoredChain(slot int, issuers ...[]byte) CertSource {
	return func(ctx context.Context, d *Device) ([][]byte, error) {
		data, err := d.ReadSlot(ctx, slot)
		if err != nil {
			return nil, unreadable(slot, err)
		}
		var chain [][]byte
		for len(data) > 0 && data[0] == 0x30 {
			var raw asn1.RawValue
			rest, err := asn1.Unmarshal(data, &raw)
			if err != nil {
				return nil, fmt.Errorf("%w: slot %d: %w", ErrNoCertificate, slot, err)
			}
			chain, data = append(chain, raw.FullBytes), rest
		}
		if len(chain) == 0 {
			return nil, fmt.Errorf("%w in slot %d", ErrNoCertificate, slot)
		}
		return append(chain, issuers...), nil
	}
}

// unreadable turns a chip's own refusal to show a slot into ErrNoCertificate.
func unreadable(slot int, err error) error {
	var status *StatusError
	if errors.As(err, &status) {
		return fmt.Errorf("%w: slot %d can't be read: %w", ErrNoCertificate, slot, err)
	}
	return err
}
