// Package attesttest offers a software TPM 2.0 to the tests of programs that
// use a TPM: in the process, in pure Go, with endorsement keys and
// certificates whose root the test holds. It protects nothing, and no program
// that guards anything may link it.
//
// Three lines make a TPM, its EK root, and a booted state:
//
//	maker, err := attesttest.NewMaker()       // maker.Root is what a verifier pins
//	device, err := maker.NewTPM()             // serves go-tpm's transport.TPM
//	err = device.BootLog(log)                 // PCRs as a firmware's event log tells
//
// Boot does the same with single measurements. It can be kept in a directory, rebooted, cut off from its power, served on a
// socket, and made to misbehave by an Interposer.
//
// The TPM implements the TCG TPM 2.0 Library Specification 1.59 as far as this
// module uses it, and has the RSA-2048, P-256 and P-384 endorsement keys of
// the TCG EK Credential Profile 2.5 with certificates at the NV indices
// 0x01C00002, 0x01C0000A and 0x01C00016.
package attesttest
