package moduleid

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"
)

// Identity is a module that proved itself. Only [Verifier.Verify] makes one
// that is authenticated: the zero value is nobody. It is immutable.
type Identity struct {
	ok           bool
	id           string
	class        string
	model        string
	node         string
	connector    string
	scheme       string
	cert         *x509.Certificate
	measurements []Measurement
	at           time.Time
}

// Authenticated reports whether the module proved itself.
func (i *Identity) Authenticated() bool { return i != nil && i.ok }

// ID returns the module's name for life: the SHA-256 of its device key's
// SubjectPublicKeyInfo, in hexadecimal.
func (i *Identity) ID() string { return i.id }

// Class returns the class that the registry or the owner's CA gave the module.
func (i *Identity) Class() string { return i.class }

// Model returns the chip's model from the registry, if it names one.
func (i *Identity) Model() string { return i.model }

// Node returns the node that the proof is bound to.
func (i *Identity) Node() string { return i.node }

// Connector returns the connector that the proof is bound to.
func (i *Identity) Connector() string { return i.connector }

// Scheme returns the name of the scheme of the proof.
func (i *Identity) Scheme() string { return i.scheme }

// Certificate returns the device certificate.
func (i *Identity) Certificate() *x509.Certificate { return i.cert }

// Measurements returns what the module signed about itself.
func (i *Identity) Measurements() []Measurement {
	return cloneMeasurements(i.measurements)
}

func cloneMeasurements(list []Measurement) []Measurement {
	var out []Measurement
	for _, m := range list {
		m.Value = bytes.Clone(m.Value)
		out = append(out, m)
	}
	return out
}

// VerifiedAt returns the verifier's time of the proof.
func (i *Identity) VerifiedAt() time.Time { return i.at }

// ID returns the name that a module with this device certificate has in
// registries, revocation lists and inventories: the SHA-256 of the
// certificate's SubjectPublicKeyInfo, in hexadecimal.
func ID(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
