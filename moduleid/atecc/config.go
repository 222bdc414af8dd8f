package atecc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Revision is the third and fourth byte of the chip's revision number.
type Revision uint16

// The generations.
const (
	ATECC508A Revision = 0x5000
	ATECC608A Revision = 0x6002
	ATECC608B Revision = 0x6003
)

// String names the generation.
func (r Revision) String() string {
	switch r {
	case ATECC508A:
		return "ATECC508A"
	case ATECC608A:
		return "ATECC608A"
	case ATECC608B:
		return "ATECC608B"
	}
	return fmt.Sprintf("chip of revision %04x", uint16(r))
}

// ConfigZone is the 128 bytes of the configuration zone. They are read without
// authentication.
type ConfigZone [128]byte

// Serial returns the 9-byte serial number.
func (z *ConfigZone) Serial() (sn [9]byte) {
	copy(sn[:4], z[0:4])
	copy(sn[4:], z[8:13])
	return sn
}

// Revision returns the generation.
func (z *ConfigZone) Revision() Revision { return Revision(binary.BigEndian.Uint16(z[6:])) }

// Locked reports whether the configuration zone, and the data and OTP zones,
// are locked for good.
func (z *ConfigZone) Locked() (config, data bool) { return z[87] == 0, z[86] == 0 }

// SlotConfig and KeyConfig return a slot's access rules.
func (z *ConfigZone) SlotConfig(slot int) uint16 { return binary.LittleEndian.Uint16(z[20+2*slot:]) }

// KeyConfig returns what a slot holds.
func (z *ConfigZone) KeyConfig(slot int) uint16 { return binary.LittleEndian.Uint16(z[96+2*slot:]) }

// Check is the provisioning check for a chip that signs the host's digests
// with the private key in a slot: both zones locked, a P-256 private key that
// can't be read nor written from outside, and that may sign.
func (z *ConfigZone) Check(slot int) error { return z.check(slot, false) }

func (z *ConfigZone) check(slot int, internal bool) error {
	if slot < 0 || slot > 15 {
		return fmt.Errorf("there is no slot %d", slot)
	}
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if z[0] != 0x01 || z[1] != 0x23 {
		bad("its serial number does not start with 01 23")
	}
	config, data := z.Locked()
	if !config {
		bad("its configuration zone is not locked: a development part")
	}
	if !data {
		bad("its data zone is not locked: a development part")
	}
	sc, kc := z.SlotConfig(slot), z.KeyConfig(slot)
	if kc&1 == 0 || kc>>2&7 != 4 {
		bad("slot %d holds no P-256 private key", slot)
	}
	if sc&0x80 == 0 {
		bad("slot %d is not secret", slot)
	}
	if internal {
		if sc&0x02 == 0 {
			bad("slot %d may not sign internal messages", slot)
		}
		if sc&0x01 != 0 {
			bad("slot %d also signs digests of the host, so that it proves nothing about where a message came from", slot)
		}
	} else if sc&0x01 == 0 {
		bad("slot %d may not sign digests of the host", slot)
	}
	// Bits 12 to 15 are WriteConfig; 14 lets PrivWrite store a key.
	if sc&0x4000 != 0 {
		bad("slot %d takes a private key from outside, of which there may be copies", slot)
	}
	return errors.Join(errs...)
}

// unlockedRandom recognises what a chip with an unlocked configuration zone
// answers to Random.
func unlockedRandom(p []byte) bool {
	return bytes.Equal(p, bytes.Repeat([]byte{0xff, 0xff, 0x00, 0x00}, 8))
}
