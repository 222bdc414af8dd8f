// Package ekimport is the enrolment in one round trip: the cloud sends the
// first message, to a TPM whose endorsement key it knows, and the node's one
// answer proves everything.
//
// The cloud makes an HMAC key and encrypts it so that only the TPM with that
// endorsement key can import it (TPM2_Import; TPM 2.0 Library, part 1, section
// 23.3), as go-attestation and openconfig's attestz do. The key is restricted:
// it signs only what a TPM made. The TPM that holds it certifies with it the
// attestation key that it also holds, and that one certifies the TLS key.
//
// Start with attest.Registrar.BeginImport, attest.Node.Import and
// attest.Registrar.CompleteImport; attest.Parse and attest.Marshal carry
// Challenge and Response. New makes the imported key alone, for protocols of
// others.
//
// Unlike a credential, which the cloud's store keeps as a hash, the HMAC key
// lies in the ChallengeStore until it is answered or expires, two minutes by
// default: who reads that store can pose as one node that is enrolling.
package ekimport
