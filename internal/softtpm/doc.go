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
// # Fidelity
//
// testdata/swtpm holds what swtpm 0.7.1 (libtpms 0.9) answers to the scenarios
// of the tests and to mutations of their commands: each byte changed in three
// ways, each truncation, one byte more. This TPM gives the same response codes,
// with handle, parameter and session numbers, and the same bytes wherever
// nothing random is in them. TestSwtpmAnswersAsRecorded holds the recordings
// against the swtpm that is installed.
//
// testdata/streams holds what the TPMs of this module's suites (attest, fscrypt,
// secureboot/bootpolicy, update, tenantstore/keys, tlsconn, internal/tpm,
// internal/seams) were told, in the terms of Step, with swtpm's answers to the
// same. testdata/generated.json.gz holds swtpm's answers to random commands that
// make sense. Both are compared in the clear, with sessions, salts, encrypted
// parameters and HMACs made for each TPM anew; names, qualified names, creation
// hashes, attested names, signatures and response HMACs, which depend on random
// keys, are computed again on both sides instead. The full run records the
// suites anew and generates new commands.
//
// # Differences from swtpm that remain
//
//   - Primary keys, tickets and saved contexts derive from the seeds in ways of
//     this package's own, so a primary key differs from that of another TPM with
//     the same seed, and contexts have other sizes.
//   - Curves are P-256, P-384 and P-521: P-192, P-224, BN and SM2 answer
//     TPM_RC_CURVE. There are no Camellia or TDES, no ECDAA, SM2, ECSCHNORR,
//     ECMQV or CMAC, no KDF2, and no derivation parents (TPM2_CreateLoaded
//     answers TPM_RC_TYPE).
//   - An RSA ciphertext that does not decrypt is TPM_RC_VALUE as part 3 says,
//     where libtpms says TPM_RC_FAILURE.
//   - Of swtpm's commands these answer TPM_RC_COMMAND_CODE: PCR_Allocate,
//     PCR_SetAuthPolicy, PCR_SetAuthValue, PP_Commands, GetCommandAuditDigest,
//     SetCommandCodeAuditStatus, Rewrap, SetAlgorithmSet, Commit, EC_Ephemeral,
//     ZGen_2Phase, CertifyX509. Nobody is ever physically present.
//   - Properties say what is so here: manufacturer, vendor strings, firmware,
//     contexts (their gap is not limited, their hash is SHA-256), the numbers
//     of commands and curves, room in NV. All other capabilities are swtpm's,
//     less what is absent.
//   - An unknown tag answers TPM_RC_BAD_TAG as a TPM 1.2 would; swtpm answers
//     0x084, and a TPM 1.2's tag or TPM_ST_RSP_COMMAND as a TPM 2.0.
//   - HMAC sequences can't be saved as contexts. Orderly NV indices are written
//     down at once; a reset clears them all the same. The clock runs at one rate.
//   - TPM2_Startup is taken at locality 4 too, as after an H-CRTM sequence, which
//     swtpm takes from its control channel.
//   - An HMAC session with an object that has no private part answers as part 3
//     says; libtpms goes into failure mode. Signed comparisons with an empty
//     operand are false; libtpms compares what happens to lie there.
//   - Nothing is hardened against timing or faults: it is for tests.
package softtpm
