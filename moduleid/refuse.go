package moduleid

import (
	"errors"
	"strings"
)

// ErrRefused is the class of every [RefusedError].
var ErrRefused = errors.New("moduleid: module refused")

// ErrUnproven is returned for the use of a module that is not, or no longer,
// proven: it was removed, replaced or re-enumerated, or its lease ended.
var ErrUnproven = errors.New("moduleid: module not proven")

// ErrAbsent is returned by a chip or a bay with no module in it.
var ErrAbsent = errors.New("moduleid: no module present")

// Reason names why a module was refused, in a word that stays.
type Reason string

// The reasons. Unknown means refused; there is no reason to accept.
const (
	ReasonMalformed   Reason = "malformed"   // evidence or certificate that can't be read
	ReasonScheme      Reason = "scheme"      // a kind of proof that the verifier does not list
	ReasonProof       Reason = "proof"       // the signature does not answer this challenge
	ReasonCertificate Reason = "certificate" // the leaf is no module's certificate
	ReasonUntrusted   Reason = "untrusted"   // no trusted root issued the chain
	ReasonExpired     Reason = "expired"     // outside a certificate's validity
	ReasonClock       Reason = "clock"       // the verifier's clock is not set
	ReasonRevoked     Reason = "revoked"     // on the revocation list
	ReasonStaleList   Reason = "stale-list"  // no revocation list, or one that is too old
	ReasonForeign     Reason = "foreign"     // genuine, but not the owner's
	ReasonClass       Reason = "class"       // unknown class, or not allowed in this connector
	ReasonModel       Reason = "model"       // a chip below the class's minimum
	ReasonMeasurement Reason = "measurement" // not what the class's reference values say
	ReasonDuplicate   Reason = "duplicate"   // the same identity in two places
	ReasonSilent      Reason = "silent"      // present, but gave no proof in time
	ReasonUnstable    Reason = "unstable"    // it came and went more often than can be measured
	ReasonInventory   Reason = "inventory"   // the report contradicts the node's measured inventory
	ReasonMissing     Reason = "missing"     // a required connector without an admitted module
)

// Finding is one reason with its detail for people.
type Finding struct {
	Reason Reason `json:"reason"`
	Detail string `json:"detail,omitempty"`
}

// RefusedError says why a module was refused. errors.Is finds [ErrRefused] in
// it. The first finding is the one to act on.
type RefusedError struct {
	Node      string
	Connector string
	ID        string // what the module claims to be, when its evidence names a key; not verified
	Findings  []Finding

	// Read is what the driver read of a module that it refused by itself, such
	// as an ATECC's configuration zone or the transcript of an SPDM exchange
	// so far. It is for people who look into the case: nothing proves it.
	Read []byte
}

// Error lists every finding.
func (e *RefusedError) Error() string {
	var b strings.Builder
	b.WriteString("moduleid: module in connector " + e.Connector + " of node " + e.Node + " refused")
	for i, f := range e.Findings {
		b.WriteString([]string{": ", "; "}[min(i, 1)] + string(f.Reason))
		if f.Detail != "" {
			b.WriteString(" (" + f.Detail + ")")
		}
	}
	return b.String()
}

// Is makes errors.Is(err, ErrRefused) true.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// Reason returns the reason of the first finding.
func (e *RefusedError) Reason() Reason {
	if len(e.Findings) == 0 {
		return ReasonMalformed
	}
	return e.Findings[0].Reason
}

// clean makes findings of a driver such that they can be measured and reported:
// a reason that is no word, or none, is ReasonMalformed, and an ID that is too
// long is none.
func (e *RefusedError) clean() {
	for i, f := range e.Findings {
		if checkName("reason", string(f.Reason)) != nil {
			e.Findings[i].Reason = ReasonMalformed
		}
	}
	if len(e.ID) > maxName {
		e.ID = ""
	}
}

func (e *RefusedError) add(r Reason, detail string) {
	e.Findings = append(e.Findings, Finding{r, detail})
}

// malformed is a scheme's error for evidence that can't be read.
func malformed(err error) error {
	return &RefusedError{Findings: []Finding{{ReasonMalformed, err.Error()}}}
}
