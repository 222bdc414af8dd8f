package registry

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/trusttree/trusttree/attest/internal/strict"
)

// DeviceID names a node for ever: SHA-256 of the SubjectPublicKeyInfo (DER) of
// its TPM's endorsement key.
type DeviceID [32]byte

// IDOf returns the DeviceID of an endorsement key.
func IDOf(ek crypto.PublicKey) (DeviceID, error) {
	spki, err := x509.MarshalPKIXPublicKey(ek)
	if err != nil {
		return DeviceID{}, fmt.Errorf("registry: endorsement key: %w", err)
	}
	return sha256.Sum256(spki), nil
}

// ParseDeviceID parses the 64 hexadecimal digits that String returns.
func ParseDeviceID(s string) (id DeviceID, err error) {
	return id, id.UnmarshalText([]byte(s))
}

// String returns 64 lower-case hexadecimal digits.
func (d DeviceID) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d DeviceID) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *DeviceID) UnmarshalText(text []byte) error {
	var id DeviceID
	if len(text) != 64 || !bytes.Equal(bytes.ToLower(text), text) {
		return errors.New("registry: a device ID has 64 lower-case hexadecimal digits")
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return errors.New("registry: a device ID has 64 lower-case hexadecimal digits")
	}
	*d = id
	return nil
}

// State is what the owner's cloud thinks of a device.
type State string

// The states. Any other value is refused.
const (
	Enrolled  State = "enrolled"  // identity proven, never appraised since
	Affirming State = "affirming" // last appraisal succeeded
	Failing   State = "failing"   // last appraisal failed, or a deadline was missed
	Revoked   State = "revoked"   // final until the owner releases the device
	Released  State = "released"  // revoked before; may enrol anew, with another attestation key too
)

// Device is one entry of the registry. ID, EKCertificate and AKPublic do not
// change until the device was revoked and released.
type Device struct {
	// Version counts the writes of this entry; 0 means that it is not stored.
	// It is the token of compare-and-swap.
	Version uint64 `json:"version"`
	// Format is the format of the entry, FormatVersion when written.
	Format int `json:"format"`

	ID            DeviceID `json:"id"`
	State         State    `json:"state"`
	Reason        string   `json:"reason,omitempty"` // why it is failing or revoked; at most 512 bytes are kept
	EKCertificate []byte   `json:"ek_certificate"`   // DER
	AKPublic      []byte   `json:"ak_public"`        // TPMT_PUBLIC of the attestation key
	KeySPKI       []byte   `json:"key_spki"`         // SHA-256 of the SubjectPublicKeyInfo of the certified TLS key
	Manufacturer  string   `json:"manufacturer"`     // of the TPM, from its EK certificate

	Enrolled time.Time `json:"enrolled"` // of the first enrolment
	Expires  time.Time `json:"expires"`  // of the certificate issued last

	// What the last successful appraisal saw: clock and counters may not go
	// back.
	Appraised    time.Time `json:"appraised"`
	Deadline     time.Time `json:"deadline"` // by when the next appraisal must have succeeded
	Clock        uint64    `json:"clock"`    // milliseconds
	ResetCount   uint32    `json:"reset_count"`
	RestartCount uint32    `json:"restart_count"`
	Firmware     uint64    `json:"firmware"`
	// BootID is the kernel's boot ID seen last, where the node sends it (package
	// bootid).
	BootID string `json:"boot_id,omitempty"`
}

// FormatVersion is the format that Marshal writes. ParseDevice reads it and,
// once there is one, its predecessor.
const FormatVersion = 1

// maxDevice is the largest encoded entry, in bytes.
const maxDevice = 64 << 10

// Marshal encodes an entry for storage.
func (d Device) Marshal() ([]byte, error) {
	d.Format = FormatVersion
	if len(d.Reason) > 512 {
		d.Reason = d.Reason[:512]
	}
	return json.Marshal(d)
}

// ParseDevice decodes an entry strictly: an unknown field, format or state is
// an error.
func ParseDevice(data []byte) (Device, error) {
	var d Device
	if len(data) > maxDevice {
		return d, fmt.Errorf("registry: entry of %d bytes, limit %d", len(data), maxDevice)
	}
	if err := strict.Decode(data, &d); err != nil {
		return Device{}, fmt.Errorf("registry: entry: %w", err)
	}
	switch {
	case d.Format != FormatVersion:
		return Device{}, fmt.Errorf("registry: entry of format %d: this program reads %d", d.Format, FormatVersion)
	case d.State != Enrolled && d.State != Affirming && d.State != Failing && d.State != Revoked && d.State != Released:
		return Device{}, fmt.Errorf("registry: entry with unknown state %q", d.State)
	case d.ID == DeviceID{}:
		return Device{}, errors.New("registry: entry without device ID")
	}
	return d, nil
}
