// Package softtpm is a TPM 2.0 in pure Go for tests and demonstrations: a
// command processor after the TCG TPM 2.0 Library Specification 1.59 (parts 1
// to 4), with endorsement keys and certificates of a test manufacturer (TCG EK
// Credential Profile 2.5). It protects nothing: its secrets lie in the memory
// of the process, and in the clear in its state directory.
//
// Start with NewMaker and New; a TPM then serves go-tpm's transport.TPM:
//
//	maker, err := softtpm.NewMaker()
//	t, err := softtpm.New(softtpm.Config{Maker: maker})
//	_, err = tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(t)
//
// # How it works
//
// A command goes through dispatch.go: header, handles, authorisation,
// decryption, parameters, action, response. Nothing changes before a command
// is parsed to its end. What survives a loss of power is written durably
// before the response is given.
//
// # Differences from a TPM
//
// Hierarchies, keys and secrets derive in ways of this package's own, so that
// primary keys differ from any other TPM's of the same seed. RSA keys have
// 1024, 2048 or 3072 bits, curves are P-256, P-384 and P-521; the block cipher
// is AES in CFB mode; there are no derivation parents, ECDAA, SM or Camellia
// algorithms, field upgrade, vendor commands, attached components or physical
// presence. HMAC sequences can't be saved as contexts. Orderly NV indices are
// written down at once.
package softtpm
