package update

import (
	"errors"
	"fmt"
	"syscall"
)

// Classes of refusal. Errors of this package wrap one of them where a caller
// can act on it; test with errors.Is.
var (
	ErrSignature       = errors.New("signatures do not reach the threshold of trusted keys")
	ErrRollback        = errors.New("older than what this node has trusted")
	ErrExpired         = errors.New("expired")
	ErrMixAndMatch     = errors.New("parts of the repository do not belong together")
	ErrMalformed       = errors.New("malformed")
	ErrTooLarge        = errors.New("larger than allowed")
	ErrHash            = errors.New("content does not have the signed hash or length")
	ErrSlow            = errors.New("slower than the minimum rate")
	ErrRedirect        = errors.New("redirect to a host or scheme that is not configured")
	ErrServer          = errors.New("server broke the protocol")
	ErrUnavailable     = errors.New("source is unavailable")
	ErrNotInRepository = errors.New("not in the repository")

	ErrNoUpdate        = errors.New("no release for this node")
	ErrUnassigned      = errors.New("director assigns nothing to this node")
	ErrIncompatible    = errors.New("release is not meant for this node")
	ErrBelowFloor      = errors.New("release is below the floor")
	ErrWithdrawn       = errors.New("release was withdrawn")
	ErrFailedBefore    = errors.New("release failed on this node before")
	ErrProvenance      = errors.New("provenance is missing or not acceptable")
	ErrPreflight       = errors.New("preflight refused the release")
	ErrNoSpace         = errors.New("not enough space")
	ErrActiveSlot      = errors.New("slot is running")
	ErrNotTrial        = errors.New("no release is on trial")
	ErrTrialPending    = errors.New("a release is armed or on trial")
	ErrHealth          = errors.New("health check failed")
	ErrBusy            = errors.New("another updater holds the lock")
	ErrStateRolledBack = errors.New("stored floors were put back, deleted or altered")
)

// RefusedError says what was refused and why. Reason is one of the Err values
// of this package and is what errors.Is finds.
type RefusedError struct {
	Reason error  // class
	What   string // role, file, release or slot
	Detail string // facts, and what to do next where that is known
	Err    error  // cause, or nil
}

func (e *RefusedError) Error() string {
	s := "update: " + e.What + ": " + e.Reason.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the class and the cause.
func (e *RefusedError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.Err}
}

func refuse(reason error, what, format string, args ...any) error {
	return &RefusedError{Reason: reason, What: what, Detail: fmt.Sprintf(format, args...)}
}

// stateError names an error of the node's own files: a full disk is ErrNoSpace.
func stateError(what string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return refuseErr(ErrNoSpace, what, err)
	}
	return fmt.Errorf("update: %s: %w", what, err)
}

func refuseErr(reason error, what string, err error) error {
	return &RefusedError{Reason: reason, What: what, Err: err}
}
