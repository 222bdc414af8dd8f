package update

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/trusttree/trusttree/update/internal/lint"
	"github.com/trusttree/trusttree/update/internal/tufmeta"
)

const maxEnvelope = 1 << 20

// envelope is a DSSE envelope (github.com/secure-systems-lab/dsse, version 1).
type envelope struct {
	PayloadType string         `json:"payloadType"`
	Payload     string         `json:"payload"`
	Signatures  []envelopeSign `json:"signatures"`
}

type envelopeSign struct {
	KeyID string `json:"keyid,omitempty"`
	Sig   string `json:"sig"`
}

// pae is DSSE's pre-authentication encoding.
func pae(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

func sealEnvelope(payloadType string, payload []byte, key crypto.Signer) ([]byte, error) {
	sig, err := tufmeta.Sign(pae(payloadType, payload), key)
	if err != nil {
		return nil, err
	}
	_, id, err := tufmeta.KeyOf(key.Public())
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope{payloadType, base64.StdEncoding.EncodeToString(payload),
		[]envelopeSign{{id, base64.StdEncoding.EncodeToString(sig)}}})
}

// openEnvelope returns the payload of an envelope that one of keys has signed.
func openEnvelope(data []byte, payloadType string, keys []crypto.PublicKey) ([]byte, error) {
	var e envelope
	if err := lint.Strict(data, maxEnvelope, &e); err != nil {
		return nil, err
	}
	if e.PayloadType != payloadType {
		return nil, fmt.Errorf("payload type %.80q, want %q", e.PayloadType, payloadType)
	}
	payload, err := decode64(e.Payload)
	if err != nil {
		return nil, err
	}
	if len(e.Signatures) > 16 {
		return nil, fmt.Errorf("%d signatures, limit 16", len(e.Signatures))
	}
	msg := pae(payloadType, payload)
	for _, s := range e.Signatures {
		sig, err := decode64(s.Sig)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if tufmeta.Verify(msg, sig, k) {
				return payload, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: none of %d signatures is by one of %d keys", ErrSignature, len(e.Signatures), len(keys))
}

func decode64(s string) ([]byte, error) {
	if b, err := base64.StdEncoding.DecodeString(s); err == nil {
		return b, nil
	}
	return base64.URLEncoding.DecodeString(s)
}
