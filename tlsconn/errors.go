package tlsconn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/trusttree/trusttree/tlsconn/internal/mux"
)

// Sentinels for classes of failure. Every error that a tunnel or a flow ends
// with matches one of them with errors.Is; RefusedError holds the facts.
var (
	ErrDenied      = errors.New("denied by policy")
	ErrRevoked     = errors.New("identity revoked")
	ErrExpired     = errors.New("certificate or its revocation list is out of date")
	ErrUntrusted   = errors.New("peer not trusted")
	ErrNotAttested = errors.New("not attested")
	ErrLimit       = errors.New("limit reached")
	ErrTruncated   = errors.New("stream ended before its end of file")
	ErrDraining    = errors.New("tunnel is draining")
	ErrUnavailable = errors.New("no tunnel or destination available")
	ErrProtocol    = errors.New("peer broke the protocol")
	ErrClockUnset  = errors.New("clock is not set")
	ErrClosed      = errors.New("closed")
)

// Code says why a stream or a tunnel ended. It travels in resets, so numbers
// never change their meaning.
type Code uint32

// Codes of resets and refusals.
const (
	CodeOK          Code = 0 // not an error
	CodeDenied      Code = 1 // policy refuses the flow, now or since a change
	CodeRevoked     Code = 2
	CodeExpired     Code = 3
	CodeUntrusted   Code = 4
	CodeNotAttested Code = 5
	CodeLimit       Code = 6
	CodeReset       Code = 7 // an application or network beyond the tunnel reset it
	CodeDraining    Code = 8
	CodeUnreachable Code = 9 // the destination could not be reached
	CodeProtocol    Code = 10
	CodeTimeout     Code = 11
	CodeClosed      Code = 12 // closed before all was read
)

var codeNames = [...]string{"ok", "denied", "revoked", "expired", "untrusted", "not-attested", "limit",
	"reset", "draining", "unreachable", "protocol", "timeout", "closed"}

// String returns the code's stable name, as audit records hold it.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code-%d", uint32(c))
}

// class returns the sentinel that errors with this code match.
func (c Code) class() error {
	switch c {
	case CodeDenied:
		return ErrDenied
	case CodeRevoked:
		return ErrRevoked
	case CodeExpired:
		return ErrExpired
	case CodeUntrusted:
		return ErrUntrusted
	case CodeNotAttested:
		return ErrNotAttested
	case CodeLimit:
		return ErrLimit
	case CodeDraining:
		return ErrDraining
	case CodeUnreachable:
		return ErrUnavailable
	case CodeProtocol:
		return ErrProtocol
	case CodeTimeout:
		return os.ErrDeadlineExceeded
	case CodeClosed:
		return ErrClosed
	}
	return ErrTruncated
}

// RefusedError holds the facts of a refusal, a reset or a cut. It matches the
// sentinel of its code with errors.Is, and what it wraps.
type RefusedError struct {
	Code   Code
	Side   Side   // the end that decided
	Peer   ID     // the far end, when known
	Target string // what was asked for, when it was a flow
	Rule   string // the policy rule that decided; empty when no rule allowed it
	Reason string // for a person
	Err    error  // the cause, or nil
}

// Error implements error.
func (e *RefusedError) Error() string {
	var b strings.Builder
	b.WriteString("tlsconn: ")
	if e.Target != "" {
		fmt.Fprintf(&b, "%s: ", e.Target)
	}
	fmt.Fprintf(&b, "%s at the %s", e.Code, e.Side)
	if e.Rule != "" {
		fmt.Fprintf(&b, " by rule %q", e.Rule)
	}
	if !e.Peer.IsZero() {
		fmt.Fprintf(&b, " (peer %s)", e.Peer)
	}
	if e.Reason != "" {
		fmt.Fprintf(&b, ": %s", e.Reason)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Is reports whether target is the sentinel of the error's code.
func (e *RefusedError) Is(target error) bool { return target == e.Code.class() }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// Timeout implements net.Error.
func (e *RefusedError) Timeout() bool { return e.Code == CodeTimeout }

// Temporary implements net.Error.
func (e *RefusedError) Temporary() bool { return e.Code == CodeLimit || e.Code == CodeDraining }

// codeOf returns the code that an error carries, for resets and records.
func codeOf(err error) Code {
	var re *RefusedError
	if errors.As(err, &re) {
		return re.Code
	}
	var me *mux.ResetError
	if errors.As(err, &me) {
		return Code(me.Code)
	}
	for c := CodeDenied; int(c) < len(codeNames); c++ {
		if cl := c.class(); cl != ErrTruncated && errors.Is(err, cl) {
			return c
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return CodeTimeout
	}
	return CodeReset
}
