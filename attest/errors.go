package attest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/trusttree/trusttree/attest/reason"
)

// Classes of refusal; test with errors.Is. The errors of package quote come
// through too, and registry.ErrNotFound for a device that nobody enrolled.
// Package reason tells what is found within a class apart.
var (
	ErrMalformed    = errors.New("attest: malformed message")
	ErrUntrustedEK  = errors.New("attest: endorsement key is not vouched for")
	ErrNotAdmitted  = errors.New("attest: not admitted by the owner")
	ErrBound        = errors.New("attest: device is bound to another key")
	ErrRevoked      = errors.New("attest: device is revoked")
	ErrChallenge    = errors.New("attest: no such open challenge")
	ErrExpired      = errors.New("attest: challenge has expired")
	ErrActivation   = errors.New("attest: credential activation failed")
	ErrKeyMismatch  = errors.New("attest: not the certified key")
	ErrPin          = errors.New("attest: endorsement key is not the pinned one")
	ErrNoKey        = errors.New("attest: the TPM holds no such key or certificate")
	ErrLockout      = errors.New("attest: the TPM is locked out after failed authorisations: wait, or reset the lockout")
	ErrReset        = errors.New("attest: the TPM and the machine did not start together")
	ErrRolledBack   = errors.New("attest: clock or counters of the TPM went back")
	ErrFirmware     = errors.New("attest: firmware of the TPM is below the floor")
	ErrUnmeasured   = errors.New("attest: a PCR that boot must extend is untouched")
	ErrNotAffirming = errors.New("attest: appraisal is not affirming")
)

// Status is an AR4SI trustworthiness tier (draft-ietf-rats-ar4si). The zero
// value is none: no claim, which admits nobody.
type Status uint8

// The tiers.
const (
	StatusNone            Status = 0
	StatusAffirming       Status = 2
	StatusWarning         Status = 32
	StatusContraindicated Status = 96
)

// String returns the tier's name.
func (s Status) String() string {
	switch s {
	case StatusNone:
		return "none"
	case StatusAffirming:
		return "affirming"
	case StatusWarning:
		return "warning"
	case StatusContraindicated:
		return "contraindicated"
	}
	return fmt.Sprintf("unknown(%d)", uint8(s))
}

// Reason is one thing that was found. Code is stable and for programs, one of
// package reason or an appraiser's own; Detail is for people. Neither holds a
// secret.
type Reason struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// AppraisalError says why evidence was refused, with every reason found. It
// unwraps to the classes of its reasons.
type AppraisalError struct {
	// Broken is true when the evidence itself does not hold (forged, stale,
	// malformed), false when it holds and the policy refuses what it shows.
	Broken  bool
	Status  Status // the worst tier among the opinions, when not Broken
	Reasons []Reason
	causes  []error
	claims  map[string]Status // affirmed while there are no causes
}

// Error implements error.
func (e *AppraisalError) Error() string {
	what := "evidence violates the policy"
	if e.Broken {
		what = "evidence is not valid"
	}
	var parts []string
	for _, r := range e.Reasons {
		parts = append(parts, r.Code+": "+r.Detail)
	}
	return "attest: " + what + ": " + strings.Join(parts, "; ")
}

// Unwrap returns the classes of the reasons.
func (e *AppraisalError) Unwrap() []error { return slices.Clone(e.causes) }

func broken(err error) *AppraisalError {
	return &AppraisalError{Broken: true, Status: StatusNone, Reasons: []Reason{{string(reason.Of(err)), err.Error()}}, causes: []error{err}}
}

func violated(err error) *AppraisalError {
	e := &AppraisalError{}
	e.add(err)
	return e
}

func (e *AppraisalError) add(err error) {
	e.Reasons = append(e.Reasons, Reason{string(reason.Of(err)), err.Error()})
	e.causes = append(e.causes, err)
	e.Status = StatusContraindicated
}
