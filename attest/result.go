package attest

import (
	"maps"
	"slices"
	"time"

	"github.com/trusttree/trusttree/attest/quote"
	"github.com/trusttree/trusttree/attest/registry"
)

// Result is an Attestation Result (RFC 9334): the node's TPM proved, over a
// fresh nonce and in this TLS session, a state that every appraiser affirms.
// Only Appraise makes one.
type Result struct {
	device          registry.DeviceID
	purpose         string
	leafSPKI        [32]byte
	values          quote.Values
	issued, expires time.Time
	reasons         []Reason
	claims          map[string]Status
}

// Device returns whose evidence it was.
func (r *Result) Device() registry.DeviceID { return r.device }

// Purpose returns what the evidence was given for.
func (r *Result) Purpose() string { return r.purpose }

// LeafSPKI returns the hash of the TLS key of the session.
func (r *Result) LeafSPKI() [32]byte { return r.leafSPKI }

// IssuedAt returns when the evidence was appraised.
func (r *Result) IssuedAt() time.Time { return r.issued }

// Expires returns until when the result counts; the node must have attested
// anew by then.
func (r *Result) Expires() time.Time { return r.expires }

// Values returns the PCR values, clock and firmware version that were quoted.
func (r *Result) Values() quote.Values { return r.values }

// Reasons returns what the appraisers noted beside affirming.
func (r *Result) Reasons() []Reason { return slices.Clone(r.reasons) }

// Claims returns the claims of the AR4SI trustworthiness vector that were
// affirmed: "instance-identity", which every result has, and what the appraisers
// said.
func (r *Result) Claims() map[string]Status { return maps.Clone(r.claims) }
