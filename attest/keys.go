package attest

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/internal/strict"
	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/reason"
	"github.com/trusttree/trusttree/internal/tpm"
)

// keysType is the media type of the body with the key attestations.
const keysType = "application/vnd.trusttree.keys+json"

const maxKeys = 8 // key attestations in one evidence

// keyAttestations is a body of evidence: signing keys of the node's TPM,
// certified by its attestation key for this challenge, in the order in which
// the node has them configured.
type keyAttestations struct {
	Version int              `json:"version"`
	Keys    []keyAttestation `json:"keys"`
}

type keyAttestation struct {
	Public    []byte `json:"public"`    // TPMT_PUBLIC
	Certify   []byte `json:"certify"`   // TPMS_ATTEST
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
}

// keysBinding is what the attestation key signs beside the name of a key: the
// one formula, with a purpose of its own and no bodies.
func (s Session) keysBinding(nonce []byte) []byte {
	s.Purpose = purposeKey
	return s.qualifyingData(nonce, s.Binding[:], bodiesDigest(nil))
}

// attestKeys certifies the keys that NodeConfig.Keys names.
func (n *Node) attestKeys(d *tpm.Device, s Session, nonce []byte) (Body, error) {
	list := keyAttestations{Version: messageVersion}
	for _, at := range n.c.Keys {
		key, err := tpm.ReadKey(d, at)
		if errors.Is(err, tpm2.TPMRCHandle) {
			return Body{}, fmt.Errorf("%w: key at 0x%08x", ErrNoKey, uint32(at))
		}
		if err != nil {
			return Body{}, err
		}
		if err := n.withAK(d, func(ak *tpm.Key) error {
			certified, signature, err := certify(d, key.Auth(nil), ak, s.keysBinding(nonce))
			list.Keys = append(list.Keys, keyAttestation{tpm2.Marshal(key.Public), certified, signature})
			return err
		}); err != nil {
			return Body{}, err
		}
	}
	data, err := json.Marshal(list)
	return Body{keysType, data}, err
}

// verifyKeys returns the keys that evidence attests, or nil without any.
func verifyKeys(ak *quote.Key, s Session, nonce []byte, bodies []Body) ([]crypto.PublicKey, error) {
	for _, b := range bodies {
		if b.MediaType != keysType {
			continue
		}
		var list keyAttestations
		if len(b.Data) > maxKeys*6*maxTPM {
			return nil, reason.Because(reason.TooLarge, fmt.Errorf("%w: key attestations of %d bytes", ErrMalformed, len(b.Data)))
		}
		if err := strict.Decode(b.Data, &list); err != nil {
			return nil, reason.Because(reason.Malformed, fmt.Errorf("%w: key attestations: %w", ErrMalformed, err))
		}
		if list.Version != messageVersion || len(list.Keys) == 0 || len(list.Keys) > maxKeys {
			return nil, reason.Because(reason.Malformed, fmt.Errorf("%w: version %d with %d key attestations, want 1 to %d", ErrMalformed, list.Version, len(list.Keys), maxKeys))
		}
		keys := make([]crypto.PublicKey, 0, len(list.Keys))
		for i, a := range list.Keys {
			key, err := ak.VerifyCertify(a.Certify, a.Signature, a.Public, s.keysBinding(nonce))
			if err != nil {
				return nil, fmt.Errorf("key attestation %d: %w", i+1, err)
			}
			keys = append(keys, key)
		}
		return keys, nil
	}
	return nil, nil
}
