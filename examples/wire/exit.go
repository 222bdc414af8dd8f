package wire

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
)

// Exit codes of all commands.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitRefused     = 3 // by policy
	ExitUnavailable = 4 // try later
)

// CodeError gives an error its exit code and a hint what to do next.
type CodeError struct {
	Code int
	Hint string // one sentence; empty for none
	Err  error
}

func (e *CodeError) Error() string { return e.Err.Error() }
func (e *CodeError) Unwrap() error { return e.Err }

// Usage is an error in how a command was called.
func Usage(format string, args ...any) error {
	return &CodeError{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// ErrHelp says that help was asked for and given.
var ErrHelp = &CodeError{Code: ExitDone, Err: flag.ErrHelp}

// ParseFlags parses a command's arguments. A mistake is a usage error; -h
// prints the flags to w and returns ErrHelp; what remains is an error, too.
func ParseFlags(flags *flag.FlagSet, args []string, w io.Writer) error {
	flags.SetOutput(io.Discard)
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(w, "usage of %s:\n", flags.Name())
		flags.SetOutput(w)
		flags.PrintDefaults()
		return ErrHelp
	case err != nil:
		return Usage("%w (%s -h lists the flags)", err, flags.Name())
	case flags.NArg() > 0:
		return Usage("unexpected argument %q", flags.Arg(0))
	}
	return nil
}

// Refused is an error by which a policy said no.
func Refused(err error, hint string) error { return &CodeError{ExitRefused, hint, err} }

// Unavailable is an error that may be gone later.
func Unavailable(err error, hint string) error { return &CodeError{ExitUnavailable, hint, err} }

// OneLine makes one line of the text of errors that were joined, each of them
// once.
func OneLine(text string) string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "; ")
}

// Report prints an error for the person who called the command and returns
// the exit code.
func Report(w io.Writer, command string, err error) int {
	if err == nil || errors.Is(err, ErrHelp) {
		return ExitDone
	}
	fmt.Fprintf(w, "%s: %s\n", command, OneLine(err.Error()))
	var coded *CodeError
	if errors.As(err, &coded) {
		if coded.Hint != "" {
			fmt.Fprintf(w, "%s\n", coded.Hint)
		}
		return coded.Code
	}
	var netErr *net.OpError
	if errors.As(err, &netErr) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return ExitUnavailable
	}
	return ExitFailed
}
