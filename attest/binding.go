package attest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/trusttree/trusttree/attest/registry"
)

// Purposes that this package knows. An application may add its own; evidence
// for one purpose is refused for every other.
const (
	PurposeAttest = "attest" // admission to the tunnel
	purposeEnroll = "enroll" // certification of the TLS key; made by Registrar only
	purposeImport = "import" // of both keys, when the registrar speaks first
	purposeKey    = "key"    // certification of keys in evidence
)

// bindingLabel starts what is hashed into the TPM's qualifying data.
const bindingLabel = "trusttree attest v1"

// Session names the one TLS session, node and purpose for which evidence
// counts. Both sides fill it from their own end of the connection, never from
// what the peer says.
type Session struct {
	Device  registry.DeviceID
	Purpose string // PurposeAttest, or the application's own: 1 to 32 of a-z, 0-9 and -
	// LeafSPKI is SHA-256 of the SubjectPublicKeyInfo of the node's TLS
	// certificate in this session.
	LeafSPKI [32]byte
	// Binding is ExportKeyingMaterial(label, challenge nonce, 32) of the TLS 1.3
	// session, with the label EXPORTER-trusttree-attest-node where the node
	// attests, EXPORTER-trusttree-attest-gateway where the gateway does. It is
	// not known yet, and not used, when the Challenge is minted. The zero value
	// is refused.
	Binding [32]byte
}

// qualifyingData is DESIGN's one formula: SHA-256 over the fields, each with
// its length in four bytes (big endian) before it. testdata/binding.json has
// vectors.
func (s Session) qualifyingData(nonce []byte, binding []byte, bodies [32]byte) []byte {
	return hashFields([]byte(bindingLabel), []byte(s.Purpose), s.Device[:], nonce, binding, s.LeafSPKI[:], bodies[:])
}

func hashFields(fields ...[]byte) []byte {
	h := sha256.New()
	for _, f := range fields {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(f)))
		h.Write(n[:])
		h.Write(f)
	}
	return h.Sum(nil)
}

// bodiesDigest is SHA-256 over media type and data of each body in order, each
// with its length before it; of no bodies it is SHA-256 of nothing.
func bodiesDigest(list []Body) (d [32]byte) {
	parts := make([][]byte, 0, 2*len(list))
	for _, b := range list {
		parts = append(parts, []byte(b.MediaType), b.Data)
	}
	copy(d[:], hashFields(parts...))
	return d
}

func (s Session) check() error {
	var f fields
	f.purpose(s.Purpose)
	switch {
	case f.err != nil:
		return fmt.Errorf("attest: session: %w", f.err)
	case s.Purpose == purposeEnroll || s.Purpose == purposeImport || s.Purpose == purposeKey:
		return fmt.Errorf("attest: session: purpose %q is used by this package itself", s.Purpose)
	case s.Device == registry.DeviceID{}:
		return fmt.Errorf("attest: session: no device")
	case s.LeafSPKI == [32]byte{}:
		return fmt.Errorf("attest: session: no hash of the node's TLS key")
	}
	return nil
}
