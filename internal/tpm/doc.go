// Package tpm is the TPM 2.0 plumbing that several packages share: opening a
// device, one adapter for both of go-tpm's APIs, retry, serialised access,
// salted and parameter-encrypted sessions, flushing, and the table of handles,
// NV indices and PCRs (map.go).
//
// It implements no protocol of its own. Structures are those of the TCG TPM
// 2.0 Library Specification, parts 1 to 3.
package tpm
