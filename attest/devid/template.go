package devid

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/trusttree/trusttree/attest/internal/initial"
)

// IAK returns the template of the initial attestation key for a curve, P-256
// or P-384: a primary of the endorsement hierarchy.
func IAK(curve tpm2.TPMECCCurve) (tpm2.TPMTPublic, error) { return template(initial.IAK, curve) }

// IDevID returns the template of the initial device identity key for a curve,
// P-256 or P-384: a primary of the endorsement hierarchy.
func IDevID(curve tpm2.TPMECCCurve) (tpm2.TPMTPublic, error) {
	return template(initial.IDevID, curve)
}

func template(k initial.Kind, curve tpm2.TPMECCCurve) (tpm2.TPMTPublic, error) {
	t, err := k.Template(curve)
	if err != nil {
		return t, fmt.Errorf("devid: %w", err)
	}
	return t, nil
}
