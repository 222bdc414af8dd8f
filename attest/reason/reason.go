// Package reason tells refusals of one class apart. The errors of attest and
// of attest/quote name a class, such as quote.ErrSelection; within it a Code
// names what exactly was found, so that a program can count, alert or answer
// differently without reading text.
//
// Ask with errors.Is(err, reason.SHA1Bank), or take the code with Of. The class
// is asked for as ever: errors.Is(err, quote.ErrSelection) holds too. The codes
// are stable: one keeps its name and meaning, new ones may come. They are also
// the attest.Reason.Code of refused evidence.
//
// Everything here is pure and safe for concurrent use.
package reason

import "errors"

// Code names one finding, in lower-case letters, digits and hyphens. It is an
// error itself, for errors.Is; it holds no secret. The zero value is none.
type Code string

// Error implements error.
func (c Code) Error() string { return string(c) }

// Of returns the code of an error, or "" when it has none. Of several it
// returns the first.
func Of(err error) Code {
	var c Code
	errors.As(err, &c)
	return c
}

// Because returns err with a code: its text and its classes stay what they are.
func Because(code Code, err error) error { return &refusal{err, code} }

type refusal struct {
	err  error
	code Code
}

func (r *refusal) Error() string   { return r.err.Error() }
func (r *refusal) Unwrap() []error { return []error{r.err, r.code} }
