package secureboot

import (
	"errors"
	"fmt"
	"strings"
)

// Status is the verdict in the words of AR4SI (draft-ietf-rats-ar4si).
type Status int

// Statuses. The zero value is none: nothing was judged.
const (
	None            Status = iota
	Affirming              // everything quoted is explained and matches
	Warning                // nothing speaks against the boot, but not all was judged
	Contraindicated        // something speaks against the boot
)

// String returns the status as AR4SI spells it.
func (s Status) String() string {
	return [...]string{"none", "affirming", "warning", "contraindicated"}[min(max(s, 0), 3)]
}

// MarshalText implements encoding.TextMarshaler.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Severity is what one finding does to the status: Affirming leaves it (a
// note), Warning and Contraindicated lower it.
type Severity = Status

// Code names a kind of finding. Codes are stable: alarms may key on them.
type Code string

// Codes of findings.
const (
	CodeEvidenceMalformed Code = "evidence.malformed"    // a log can't be read
	CodeEvidenceBank      Code = "evidence.bank"         // not the policy's bank
	CodeEvidenceUnquoted  Code = "evidence.unquoted"     // no verified quote stands behind the PCR values
	CodePolicyEmpty       Code = "policy.empty"          // the policy requires nothing: it denies
	CodePolicyExpired     Code = "policy.expired"        // or the verifier has no time
	CodePolicyNone        Code = "policy.none"           // nothing was compared with reference values
	CodePolicyReference   Code = "policy.no-reference"   // a PCR is required but the policy has no reference values for it
	CodePCRNotQuoted      Code = "pcr.not-quoted"        // the policy names a PCR that the evidence does not have
	CodePCRMismatch       Code = "pcr.mismatch"          // the log's events do not lead to the value
	CodePCRUnexplained    Code = "pcr.unexplained"       // a value without events
	CodePCRUnlisted       Code = "pcr.unlisted"          // quoted and extended, but the policy does not say what to do with it
	CodePCRReference      Code = "pcr.reference"         // an event that no reference value allows here
	CodePCRIncomplete     Code = "pcr.incomplete"        // reference values expect more events
	CodePCRInconsistent   Code = "pcr.inconsistent"      // each PCR matches, but not all in one variant
	CodeLogSeparator      Code = "log.separator"         // not exactly one separator, or a disguised one
	CodeLogUnbound        Code = "log.unbound"           // an event of PCR 7 whose data is not what was measured
	CodeLogFirmwareError  Code = "log.firmware-error"    // the firmware measured an error
	CodeBootAttempts      Code = "boot.failed-attempts"  // more boot options returned than allowed
	CodeBootOmitted       Code = "boot.attempts-omitted" // the firmware left out boot attempts
	CodeMore              Code = "more"                  // there are more findings than are listed

	CodeSBUnknown              Code = "sb.unknown"
	CodeSBDisabled             Code = "sb.disabled"
	CodeSBSetupMode            Code = "sb.setup-mode"
	CodeSBAuditMode            Code = "sb.audit-mode"
	CodeSBNothingAuthenticated Code = "sb.nothing-authenticated"
	CodeSBNothingMeasured      Code = "sb.nothing-measured"
	CodeSBAuthorityUnknown     Code = "sb.authority-not-in-db"
	CodeSBAuthorityNotAllowed  Code = "sb.authority-not-allowed"
	CodeSBRevoked              Code = "sb.revoked"
	CodeSBKeyNotAllowed        Code = "sb.key-not-allowed"
	CodeSBDBXIncomplete        Code = "sb.dbx-incomplete"
	CodeSBTestKey              Code = "sb.test-key"
	CodeSBDatabase             Code = "sb.database"
	CodeSBUnknownEvent         Code = "sb.unknown-event"
	CodeSBShimValidation       Code = "sb.shim-validation-disabled"
	CodeSBSBATLevel            Code = "sb.sbat-level"
	CodeSBDebugMode            Code = "sb.debug-mode"
	CodeSBDMAUnprotected       Code = "sb.dma-unprotected"

	CodeIMAMalformed     Code = "ima.malformed"
	CodeIMAMissing       Code = "ima.missing"
	CodeIMABehind        Code = "ima.behind"         // the log does not lead to PCR 10
	CodeIMAUnverified    Code = "ima.unverified"     // entries after the quote: a note
	CodeIMAPaddedBank    Code = "ima.sha1-padded"    // the bank has SHA-1 strength
	CodeIMAViolation     Code = "ima.violation"      // a file was written while it was measured
	CodeIMABootAggregate Code = "ima.boot-aggregate" // not this boot's firmware PCRs
	CodeIMAFile          Code = "ima.file"           // a file that the policy does not allow
	CodeIMATemplate      Code = "ima.template"       // an entry that can't be interpreted
	CodeIMAState         Code = "ima.state"          // the state to continue from is of another boot or policy
)

// Finding is one reason, with where it was found.
type Finding struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	PCR      int      `json:"pcr"`   // -1: of no PCR
	Event    int      `json:"event"` // number in the log; -1: of no event
	Want     []byte   `json:"want,omitempty"`
	Got      []byte   `json:"got,omitempty"`
	Detail   string   `json:"detail"` // for people; text from logs in it is escaped
}

func (f Finding) String() string {
	var b strings.Builder
	b.WriteString(string(f.Code))
	if f.PCR >= 0 {
		fmt.Fprintf(&b, ", PCR %d", f.PCR)
	}
	if f.Event >= 0 {
		fmt.Fprintf(&b, ", event %d", f.Event)
	}
	if f.Detail != "" {
		b.WriteString(": " + f.Detail)
	}
	return b.String()
}

// PCRStatus says how one quoted PCR was explained.
type PCRStatus struct {
	Status Status `json:"status"` // None: ignored by the policy
	Events int    `json:"events"` // events of the logs that explain it
	Detail string `json:"detail"` // "reference", "rules", "replayed", "unused", "ignored" or the reason against it
}

// Result is an appraisal's outcome. The zero value is None: not affirming.
type Result struct {
	Status     Status
	Findings   []Finding         // every reason, not the first alone; at most 257
	PCRs       map[int]PCRStatus // every quoted or required PCR
	SecureBoot *State            // nil when no log was verified
	Enforcing  bool              // SecureBoot was, see State.Enforcing
	Policy     string            // name and serial of the policy that was applied
	IMA        *IMAState         // of an affirming result whose policy judges IMA: see Evidence.IMAState
}

// ErrNotAffirming is in the chain of every error that Result.Err returns.
var ErrNotAffirming = errors.New("secureboot: boot is not affirmed")

// Err returns nil for Affirming alone; otherwise an error that wraps
// ErrNotAffirming and lists the reasons.
func (r *Result) Err() error {
	if r != nil && r.Status == Affirming {
		return nil
	}
	if r == nil {
		return ErrNotAffirming
	}
	var reasons []string
	for _, f := range r.Findings {
		if f.Severity > Affirming {
			reasons = append(reasons, f.String())
		}
	}
	return fmt.Errorf("%w (%s): %s", ErrNotAffirming, r.Status, strings.Join(reasons, "; "))
}

// add appends a finding and lowers the status.
func (r *Result) add(sev Severity, code Code, pcr, event int, format string, args ...any) *Finding {
	r.Status = max(r.Status, sev)
	if p, ok := r.PCRs[pcr]; ok && sev > Affirming && p.Status < sev {
		p.Status, p.Detail = sev, string(code)
		r.PCRs[pcr] = p
	}
	switch n := len(r.Findings); {
	case n == 2*maxFindings:
		code, pcr, event, format, args = CodeMore, -1, -1, "there are more reasons than are listed", nil
	case n > 2*maxFindings:
		return &Finding{}
	}
	r.Findings = append(r.Findings, Finding{Code: code, Severity: sev, PCR: pcr, Event: event, Detail: fmt.Sprintf(format, args...)})
	return &r.Findings[len(r.Findings)-1]
}
