// Package quote verifies what a TPM signs: quotes over PCRs and certifications
// of keys (TPM 2.0 Library Specification, part 1 section 31, part 2 section
// 10.12). It is the core of package attest's verifier and of use without it.
//
// Start with ParseKey and Key.VerifyQuote. The parser is its own: bounded, by
// hand, without reflection. It verifies the signature before it reads what was
// signed, takes structures whole (no byte missing, none too many), and leaves
// no freedom to who sends: the PCR values travel without indices, in the order
// of the selection that the verifier demanded, so that no value can pose as
// another PCR's (CVE-2024-29039) and none can come twice.
//
// Everything here is pure: no I/O, no clock, no state. It says nothing about
// whose key it is and whether the values are good: that is attest's Registrar
// and its Verifier with their appraisers.
package quote

import "errors"

// Classes of refusal; test with errors.Is.
var (
	ErrMalformed   = errors.New("quote: malformed structure")
	ErrSignature   = errors.New("quote: signature does not verify")
	ErrNonce       = errors.New("quote: qualifying data is not the expected one")
	ErrSelection   = errors.New("quote: PCR selection not accepted")
	ErrPCRMismatch = errors.New("quote: PCR values do not match")
	ErrKey         = errors.New("quote: key not accepted")
)
